"""Pretraining: the share of time that is network, and images a second beside lightly's losses.

    python benchmarks/pretraining.py --steps 12 --pairs 3

On slices of ACDC's size that lie in a pool on disk, the default network, channels-last. Two figures:
the share of a step that is forward, backward and update, with 0 and with 2 loader processes, as
`metrics.jsonl` of every run holds it; and SimCLR and DINO against the same network driven by lightly's losses
(MIT) and torchvision's tensor transforms, in turn within one process (median of ratios of pairs).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from fewbeats.clock import Clock
from fewbeats.commands.pretrain import Pretrain
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks, Stored
from fewbeats.models.heads import pool_features
from fewbeats.pretraining.dino import Dino
from fewbeats.pretraining.methods import find_recipe
from fewbeats.pretraining.simclr import Simclr
from fewbeats.recipes.encoder import build_method
from fewbeats.recipes.starts import Start
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.method import Method
from fewbeats.training.rundir import RunDir
from fewbeats.training.workers import with_workers
from fewbeats.transforms.views import Viewed, Views


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    result: dict = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder))
        for name in ("simclr", "dino"):
            command = Pretrain(
                method=name, cohort=Path("none"), out=Path(folder), steps=1, batch_size=given.batch_size
            )
            for workers in (0, 2):
                result[f"{name}, network's share with {workers} workers"] = 1 - data_share(
                    command, pool, given.steps, workers
                )
            ratios = []
            for _ in range(given.pairs):
                own = images_per_second(own_step(command, pool), command.batch_size, given.steps)
                other = images_per_second(lightly_step(command, pool), command.batch_size, given.steps)
                ratios.append(own / other)
            result[f"{name}, images a second over lightly's"] = [
                float(np.median(ratios)),
                min(ratios),
                max(ratios),
            ]
    print(json.dumps(result, indent=1))


def make_method(command: Pretrain) -> tuple[Method, Views]:
    """A command's method on its network, and its views."""
    own, start = getattr(command, command.file), Start(init=command.init)
    return build_method(command.settings, find_recipe(command.file), own, start=start, seed=command.seed)


def make_pool(folder: Path, *, scans: int = 20, slices: int = 10, side: int = 192) -> Stacks:
    """A pool of smoothed noise; what it shows does not matter for time."""
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.pool.npy" for i in range(scans)]
    for file in files:
        np.save(file, rng.standard_normal((2, slices, side, side)).astype(np.float16))
    every = np.ones(scans, int)
    return Stacks(
        images=[Stored(file) for file in files], which=np.arange(scans),
        frames=2 * every, slices=slices * every,
        order=every, subject=np.arange(scans),
    )  # fmt: skip


def data_share(command: Pretrain, pool: Stacks, steps: int, workers: int) -> float:
    """Median share of a step that waits for data, but for the first line of the log."""
    method, views = make_method(command)
    shown = Viewed(Sampler(pool, command.batch_size, epochs=False), views, 0)
    with tempfile.TemporaryDirectory() as folder, with_workers(shown, workers) as batches:
        run, settings = (
            RunDir(Path(folder)),
            FitSettings(steps=steps + 4, log_every=4, checkpoint_seconds=1e9),
        )
        fit(method, batches, settings=settings, run=run)
        return float(np.median([row["data_share"] for row in run.read_metrics()[1:]]))


def images_per_second(step: Callable[[], None], batch_size: int, steps: int) -> float:
    """From the median time of a step, after two that do not count."""
    seconds = []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return batch_size / float(np.median(seconds[2:]))


def own_step(command: Pretrain, pool: Stacks) -> Callable[[], None]:
    """Draw, view, forward, backward, update."""
    method, views = make_method(command)
    batches, steps = Viewed(Sampler(pool, command.batch_size, epochs=False), views, 0), count()
    optimizer = torch.optim.AdamW([p for g in method.parameter_groups() for p in g.parameters], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        clock = Clock(next(steps), 1000)
        method(batches(clock), clock).loss.backward()
        optimizer.step()
        method.after_update(clock)

    return step


def lightly_step(command: Pretrain, pool: Stacks) -> Callable[[], None]:
    """The same networks with lightly's loss, and each slice changed by torchvision's tensor transforms."""
    from copy import deepcopy

    warnings.simplefilter("ignore")
    from lightly.loss import DINOLoss, NTXentLoss

    method, _ = make_method(command)
    dino, size = command.dino, command.preprocess.size
    batches, steps = Sampler(pool, command.batch_size, epochs=False), count()
    if isinstance(method, Simclr):
        student = torch.nn.ModuleDict({"encoder": method.encoder, "head": method.projector})
        loss, sizes = NTXentLoss(temperature=command.simclr.temperature), [size, size]
    else:
        assert isinstance(method, Dino)
        student, loss = method.student, DINOLoss(output_dim=dino.prototypes)
        sizes = [size, size, *[int(size * dino.small_size)] * dino.small_views]
    teacher = deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    change = {
        side: v2.Compose([
            v2.RandomAffine(45, translate=(0.1, 0.1), scale=(0.75, 1.35)), v2.CenterCrop(size),
            v2.RandomCrop(side), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4),
            v2.RandomApply([v2.GaussianBlur(9, (0.5, 1.3))], 0.3), v2.RandomApply([v2.GaussianNoise()], 0.3),
        ])
        for side in set(sizes)
    }  # fmt: skip

    def judge(side: torch.nn.ModuleDict, image: torch.Tensor) -> torch.Tensor:
        return side["head"](pool_features(side, image.contiguous(memory_format=torch.channels_last)))

    def step() -> None:
        image = batches(Clock(next(steps), 1000)).views["image"]
        views = [torch.stack([change[side](one) for one in image]) for side in sizes]
        optimizer.zero_grad(set_to_none=True)
        if command.method == "simclr":
            value = loss(judge(student, views[0]), judge(student, views[1]))
        else:
            with torch.no_grad():
                seen = judge(teacher, torch.cat(views[:2])).chunk(2)
            told = [*judge(student, torch.cat(views[:2])).chunk(2)]
            told += judge(student, torch.cat(views[2:])).chunk(len(views) - 2)
            value = loss(list(seen), told, epoch=0)
        value.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
