"""What `test_processes` starts with torchrun: runs, one after the other, in each of two processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fewbeats.clock import Clock
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining.dino import Dino
from fewbeats.pretraining.pcl import Pcl
from fewbeats.pretraining.settings import DinoSettings, PclSettings, SimclrSettings
from fewbeats.pretraining.simclr import Simclr
from fewbeats.sample import Batch, Batches
from fewbeats.training.loop import FitSettings, Validation, fit
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings
from fewbeats.training.rundir import RunDir
from tiny_training import FULL, batches, norm_method, short


class Pointwise(Method):
    """A loss that is a mean over samples, and a network without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, batch: Batch, clock: Clock) -> Step:
        return Step(nn.functional.cross_entropy(self.network(batch.views["image"]), batch.target))

    def parameter_groups(self) -> list[ParameterGroup]:
        parameters = (*self.network.parameters(), self.unused)
        return [ParameterGroup("all", parameters, lambda _: 1e-2, lambda _: 0.0)]

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}


PLAIN = OptimSettings(kind="sgd", learning_rate=1e-2, precision="full")


def slice_views(clock: Clock, *, names: Sequence[str], size: int = 2) -> Batch:
    """As `batches`, with the views and places that a self-supervised method asks for."""
    image = batches(clock, size=size).views["image"]
    places = torch.arange(size) + (clock.step * clock.world + clock.rank) * size
    return Batch(
        views={name: image.rot90(k, (2, 3)) for k, name in enumerate(names)},
        position=places % 4 / 4,
        directed=torch.ones(size, dtype=torch.bool),
        scan=places,
    )


def self_supervised(name: str, *, size: int = 2) -> tuple[Method, Batches]:
    """One of `SELF_SUPERVISED` at its start, and its batches."""
    torch.manual_seed(0)
    network = build_network(NetworkSettings(kind="unet2d", base_channels=4, levels=3), classes=1)
    kind, settings, names = SELF_SUPERVISED[name]
    return kind(network, settings=settings, optim=PLAIN), partial(slice_views, names=names, size=size)


SELF_SUPERVISED = {
    "simclr": (Simclr, SimclrSettings(projector=(8,)), ("a", "b")),
    "pcl": (Pcl, PclSettings(projector=(8,), distance=0.3), ("a", "b")),
    "dino": (Dino, DinoSettings(hidden=8, bottleneck=4, prototypes=6, freeze=0.0), ("large0", "large1", "s")),
}
"""Methods whose loss, or center, is of all processes' slices; with the views they ask for."""


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
            Validation(measure=total, times=4, best="sum"),
        ),
    }
    runs |= {name: (*self_supervised(name), short(steps=4, optim=PLAIN), None) for name in SELF_SUPERVISED}
    for name, (method, source, settings, validation) in runs.items():
        steps = fit(method, source, settings=settings, run=RunDir(out / name), validation=validation)
        torch.save((steps, method.state_dict()), out / f"{name}{os.environ['RANK']}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
