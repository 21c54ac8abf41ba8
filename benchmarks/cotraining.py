"""Co-training: steps a second beside the two networks' bare work, and memory over the size of the pool.

    python benchmarks/cotraining.py --steps 4 --pairs 5

M&N with the networks of `configs/semi_supervised/study_la.yaml`, two volumes an update, on a pool on disk.
Bare work is what no co-training can do without: forward and backward of the network whose turn it is, and the
partner's forward on what is not labeled, on tensors that are there already. Both sides take turns within one
process (median of ratios of pairs). Memory is the peak of a process of its own that trains on 50 scans, or on
1,000.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fewbeats.clock import Clock
from fewbeats.data.mixture import Mixture
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks, Stored
from fewbeats.losses import soft_dice_kl
from fewbeats.memory import peak_memory_mb
from fewbeats.models.answering import answering
from fewbeats.models.network import NetworkSettings, build_network, memory_format, set_deep_supervision
from fewbeats.sample import Batch
from fewbeats.semi_supervised.co_training import CoTraining, ask_volume, find_learners, views
from fewbeats.semi_supervised.settings import MnSettings
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.views import Viewed, ViewSettings, as_input

DEEP = NetworkSettings(kind="unet3d", base_channels=8, levels=4, isotropic=True)
SMALL = {
    "deep": NetworkSettings(kind="unet3d", base_channels=4, levels=2, isotropic=True),
    "flat": NetworkSettings(kind="unet2d", base_channels=4, levels=2),
}
MN = MnSettings(iterations=1)
TURNS = 40  # of a schedule in which every turn and share comes
LATE = 30  # one from which on a volume of two is not labeled


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--train-on", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train_on:
        print(peak_of_training(given.train_on))
        return
    result: dict = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder), scans=8, slices=28, side=144)
        method = make_method({"deep": DEEP, "flat": NetworkSettings()})
        batches = make_batches(pool, items=2, depth=32, size=96)
        ratios = [compare(method, batches, given.steps) for _ in range(given.pairs)]
    name = "steps a second over bare forward and backward"
    result[name] = [float(np.median(ratios)), min(ratios), max(ratios)]
    for scans in (50, 1000):
        command = [sys.executable, __file__, "--train-on", str(scans)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[f"peak memory with {scans} scans, MB"] = float(told.split()[-1])
    print(json.dumps(result, indent=1))


def make_pool(folder: Path, *, scans: int, slices: int, side: int) -> Stacks:
    """Smoothed noise with a labeled box in it; what it shows does not matter for time."""
    rng, every = np.random.default_rng(0), np.ones(scans, int)
    mask = np.zeros((slices, side, side), np.uint8)
    mask[2:-2, side // 3 : side // 2, side // 3 : side // 2] = 1
    np.save(folder / "mask.npy", mask)
    for i in range(scans):
        np.save(folder / f"{i}.npy", rng.standard_normal(mask.shape, dtype=np.float32).astype(np.float16))
    return Stacks(
        images=[Stored(folder / f"{i}.npy") for i in range(scans)],
        masks=[Stored(folder / "mask.npy")] * scans,
        which=np.arange(scans), frames=every, slices=slices * every, order=every,
        subject=np.arange(scans).astype(object), annotated=np.ones((scans, 1), bool),
        source=np.array(["manual"] * scans, object),
    )  # fmt: skip


def make_method(networks: dict[str, NetworkSettings]) -> CoTraining:
    """Both networks from random starts."""
    built = {}
    for name, settings in networks.items():
        built[name] = build_network(settings, classes=2).to(memory_format=memory_format(settings.dims))
        set_deep_supervision(built[name], False)
    return CoTraining(built["flat"], built["deep"], settings=MN)


def make_batches(pool: Stacks, *, items: int, depth: int, size: int) -> Viewed:
    """As the command makes them."""
    draw = partial(Sampler, batch_size=items, depth=depth, slab=True)
    closed = replace(pool, masks=None, annotated=None, source=None)
    mixture = Mixture(
        draw(pool), draw(closed), items, lambda clock: items if clock.step < LATE else items // 2
    )
    return Viewed(mixture, partial(cut, settings=ViewSettings(size=size)), 0)


def cut(batch: Batch, generator: torch.Generator, *, settings: ViewSettings) -> Batch:
    """A co-training's view of a batch."""
    return as_input(views(batch, generator, settings=settings, own=MN), dims=3)


def compare(method: CoTraining, batches: Viewed, steps: int) -> float:
    """Seconds of bare work over seconds of co-training, the same turns in both."""
    clocks = [Clock(LATE + i, TURNS) for i in range(steps)]
    optimizer = torch.optim.AdamW([p for g in method.parameter_groups() for p in g.parameters], lr=1e-4)
    ready = [batches(clock) for clock in clocks]
    assert all(batch.labeled is not None and not batch.labeled.all() for batch in ready)

    def train(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        method(batches(clocks[i]), clocks[i]).loss.backward()
        for parameters in (method.flat.parameters(), method.deep.parameters()):
            torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 5.0)
        optimizer.step()
        method.after_update(clocks[i])

    def bare(i: int) -> None:
        method.zero_grad(set_to_none=True)
        [learner] = find_learners(clocks[i], MN)
        networks = {"flat": method.flat, "deep": method.deep}
        volume, target = ready[i].views["image"], ready[i].target
        assert target is not None
        answer = ask_volume(networks[learner], volume, flat=learner == "flat")
        other = "deep" if learner == "flat" else "flat"
        with answering(networks[other], partial(ask_volume, flat=other == "flat")) as ask:
            ask(volume[len(volume) // 2 :])
        soft_dice_kl(answer, torch.stack([1 - target, target], 1).float()).backward()

    seconds = {bare: 0.0, train: 0.0}
    for i in range(steps):  # in turn, and in turns first: a shared machine's speed changes within seconds
        for step in (bare, train) if i // 2 % 2 else (train, bare):
            seconds[step] += seconds_of(step, i)
    return seconds[bare] / seconds[train]


def seconds_of(step: Callable[[int], None], i: int) -> float:
    """Of one step."""
    begun = time.perf_counter()
    step(i)
    return time.perf_counter() - begun


def peak_of_training(scans: int) -> float:
    """Of this process, after a short co-training on so many scans."""
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder), scans=scans, slices=10, side=72)
        batches = make_batches(pool, items=4, depth=8, size=48)
        fit(make_method(SMALL), batches, settings=FitSettings(steps=TURNS), run=RunDir(Path(folder) / "run"))
    return peak_memory_mb()


if __name__ == "__main__":
    main()
