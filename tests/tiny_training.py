"""Methods that train in a moment, and what they train on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import nn

from fewbeats.clock import Clock
from fewbeats.commands.pretrain import Pretrain
from fewbeats.data.cohort import read_cohort
from fewbeats.data.pool import prepare_pool
from fewbeats.data.store import Stacks
from fewbeats.finetuning.supervised import Supervised
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining.methods import find_recipe
from fewbeats.recipes.encoder import build_method
from fewbeats.recipes.starts import Start
from fewbeats.sample import Batch
from fewbeats.training.checkpoint import STATE
from fewbeats.training.loop import FitSettings
from fewbeats.training.method import Method
from fewbeats.training.optim import OptimSettings
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.views import Views

RATES = OptimSettings(learning_rate=1e-2)
FULL = OptimSettings(precision="full")  # where sums in another order must agree
GRID = PreprocessSettings(size=64, spacing_mm=2.5)


def batches(clock: Clock, *, size: int = 2) -> Batch:
    """Random images with a square that is bright; what comes depends on the place in the sequence alone."""
    places = [(clock.step * clock.world + clock.rank) * size + i for i in range(size)]
    images, targets = zip(*(_square(place) for place in places))
    return Batch(views={"image": torch.stack(images)}, target=torch.stack(targets))


def _square(place: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([7, place])
    y, x = rng.integers(4, 20, 2)
    target = torch.zeros(32, 32, dtype=torch.long)
    target[y : y + 8, x : x + 8] = 1
    noise = torch.from_numpy(rng.normal(size=(1, 32, 32)).astype(np.float32))
    return noise + 3 * target, target


def unet_method(seed: int = 0) -> Supervised:
    """Deep supervision, channels last and a moving average, as in real runs."""
    torch.manual_seed(seed)
    settings = NetworkSettings(kind="unet2d", base_channels=4, levels=3, context=0)
    network = build_network(settings, classes=2).to(memory_format=torch.channels_last)
    return Supervised(network, optim=RATES, ema_decay=0.9)


def norm_method(seed: int = 0) -> Supervised:
    """Dropout and batch statistics: a step that draws and buffers that move."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 2, 1)]
    return Supervised(nn.Sequential(*body), optim=RATES, ema_decay=0.9)


def short(**changes) -> FitSettings:
    return FitSettings(**({"steps": 9, "log_every": 2, "checkpoint_seconds": 0.0} | changes))


def at(progress: float) -> Clock:
    """A clock so far into a run of 1,000 steps."""
    return Clock(round(1000 * progress), 1000)


def method_of(command: Pretrain) -> tuple[Method, Views]:
    """The method of a pretraining command, and its views."""
    command.check_settings()
    own, start = getattr(command, command.file), Start(init=command.init)
    return build_method(command.settings, find_recipe(command.file), own, start=start, seed=command.seed)


class Killed(BaseException):
    """What stops a run in the middle of a step."""


def killed_at(step: int):
    """Batches up to a step that never comes."""

    def until(clock: Clock) -> Batch:
        if clock.step >= step:
            raise Killed
        return batches(clock)

    return until


def everything(run: RunDir) -> dict[str, torch.Tensor]:
    """Weights, moving average and optimizer, as last saved."""
    return load_file(run.checkpoint / STATE)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def logged(run: RunDir) -> list[dict]:
    """Rows of the log."""
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def one_thread() -> Iterator[None]:
    """Sums in the same order each time; other numbers of threads are put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_pool(phantoms, tmp_path_factory) -> Stacks:
    """The pool of the training phantoms."""
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    return prepare_pool(rows, GRID, cache=tmp_path_factory.mktemp("pool"))
