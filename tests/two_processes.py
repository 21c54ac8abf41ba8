"""What `test_loop` starts with torchrun: runs, one after the other, in each of two processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fewbeats.training.loop import FitSettings, Watch, fit
from fewbeats.training.rundir import RunDir
from test_loop import FULL, PLAIN, SELF_SUPERVISED, Pointwise, batches, norm_method, self_supervised, short


def total(method) -> dict[str, float]:
    return {"sum": float(method.network[0].weight.detach().sum())}


def train(out: Path) -> None:
    """Save each process's last state as RUN + RANK + .pt, with the number of steps."""
    runs: dict[str, tuple] = {
        "pointwise": (Pointwise(), batches, short(optim=FULL), None),
        "norm": (
            norm_method(),
            batches,
            FitSettings(minutes=0.004, log_every=2, checkpoint_seconds=0.0),
            Watch(measure=total, times=4, best="sum"),
        ),
    }
    runs |= {name: (*self_supervised(name), short(steps=4, optim=PLAIN), None) for name in SELF_SUPERVISED}
    for name, (method, source, settings, watch) in runs.items():
        steps = fit(method, source, settings=settings, run=RunDir(out / name), watch=watch)
        torch.save((steps, method.state_dict()), out / f"{name}{os.environ['RANK']}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
