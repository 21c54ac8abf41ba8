"""What a training step spends outside the network: loading and augmentation, and the loop itself.

    python benchmarks/loading.py --steps 40

On phantom samples of ACDC's size, 0 workers. Two figures, both shares of wall time:
loading + augmentation of all steps (as `metrics.jsonl` of every run holds it), and the loop against bare
forward + backward + update on the same batches, in turn within one process (median of ratios of pairs).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fewbeats.clock import Clock
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import stack_samples
from fewbeats.finetuning.segmentation import SegmentationSettings, views
from fewbeats.finetuning.supervised import Supervised
from fewbeats.models.network import build_network
from fewbeats.sample import Sample
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.optim import build_optimizer, set_rates
from fewbeats.training.precision import choose_precision, full_depthwise
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.views import Viewed


def main() -> None:
    """Measure and print both shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    settings = SegmentationSettings()
    sampler = Sampler(stack_samples(make_samples()), settings.batch_size, settings.depth)
    batches = Viewed(sampler, partial(views, settings=settings), 0)
    loops, bares, shares = [], [], []
    for _ in range(given.pairs):
        seconds, share = time_loop(batches, settings, given.steps)
        loops.append(seconds)
        shares.append(share)
        bares.append(time_bare(batches, settings, given.steps))
    ratios = np.array(loops) * (1 - np.array(shares)) / np.array(bares)
    result = {
        "threads": torch.get_num_threads(),
        "step_seconds": float(np.median(loops)),
        "data_share": float(np.median(shares)),
        "loop_over_bare": float(np.median(ratios)),
        "loop_over_bare_range": [float(ratios.min()), float(ratios.max())],
    }
    print(json.dumps(result, indent=1))


def make_samples(subjects: int = 14, slices: int = 10, side: int = 192) -> list[Sample]:
    """Samples of the size of ACDC's; what they show does not matter for time."""
    rng = np.random.default_rng(0)
    return [
        Sample(
            image=rng.standard_normal((slices, side, side)).astype(np.float16),
            mask=rng.integers(0, 4, (slices, side, side)).astype(np.uint8),
            annotated=(True, True, True),
            subject=str(i),
            scan=str(i),
            frame=0,
            source="manual",
            spacing_mm=(10.0, 1.4, 1.4),
        )
        for i in range(subjects)
    ]


def make_method(settings: SegmentationSettings) -> Supervised:
    """The default network, fresh."""
    torch.manual_seed(0)
    network = build_network(settings.network, classes=4).to(memory_format=torch.channels_last)
    return Supervised(network, optim=settings.optim, ema_decay=settings.ema_decay)


def time_loop(batches, settings: SegmentationSettings, steps: int) -> tuple[float, float]:
    """Seconds a step of `fit` and the share of it spent on data, from its metrics but for the first line."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        fit(
            make_method(settings),
            batches,
            settings=FitSettings(steps=steps + 10, checkpoint_seconds=1e9),
            run=run,
        )
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()][1:]
    return float(np.median([r["step_seconds"] for r in rows])), float(
        np.median([r["data_share"] for r in rows])
    )


def time_bare(batches, settings: SegmentationSettings, steps: int) -> float:
    """Median seconds of forward + backward + update in the loop's arithmetic, batches made beforehand."""
    method = make_method(settings).train()
    bf16 = choose_precision(settings.optim.precision) == "bf16"
    groups = method.parameter_groups()
    optimizer = build_optimizer(groups, settings.optim)
    set_rates(optimizer, groups, Clock(1, 2))
    seconds = []
    with full_depthwise(method):
        for step in range(steps + 10):
            clock = Clock(step, steps + 10)
            batch = batches(clock)
            begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = method(batch, clock).loss
            loss.backward()
            optimizer.step()
            method.after_update(clock)
            if step >= 10:
                seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
