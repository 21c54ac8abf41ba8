"""Co-training in miniature: a 2D and a 3D network learn in turns, each also from what the other says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fewbeats.clock import Clock
from fewbeats.data.mixture import Mixture
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks
from fewbeats.losses import dice_ce_loss
from fewbeats.models.answering import answering, finest
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.sample import Batch
from fewbeats.training.method import Method, ParameterGroup, Step

NAMES = ("flat", "deep")
SLICES, SIDE = 4, 16


@dataclass(frozen=True)
class Schedule:
    """Yeung et al., 2025: both on labels alone, then in turns by epoch, with ever more pseudo-labels."""

    epochs: int = 4000
    warm_up: int = 500
    """Epochs in which both learn, from labels alone."""
    items: int = 5
    """Of a batch."""

    def labels(self, clock: Clock) -> int:
        """Labeled items; the others are pseudo-labeled by the partner."""
        since = max(0, clock.block(self.epochs) - self.warm_up)
        return self.items - since * self.items // (self.epochs - self.warm_up)

    def learners(self, clock: Clock) -> tuple[str, ...]:
        """The networks that learn at a step."""
        since = clock.block(self.epochs) - self.warm_up
        return NAMES if since < 0 else (NAMES[since % 2],)


class Folded(nn.Module):
    """A 2D network on all slices of a volume (B, 1, Z, Y, X) -> (B, classes, Z, Y, X)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        slices = volume.movedim(2, 1).flatten(0, 1)
        return finest(self.network(slices)).unflatten(0, volume.shape[::2][:2]).movedim(1, 2)


class CoTraining(Method):
    """Each network on labels, and on what the other says of unlabeled items."""

    def __init__(self, schedule: Schedule, *, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.schedule, self.moved = schedule, []  # type: ignore[var-annotated]
        small = NetworkSettings(kind="unet2d", base_channels=4, levels=2, norm="batch")
        self.flat: nn.Module = Folded(build_network(small, classes=2))
        self.deep = build_network(replace(small, kind="unet3d"), classes=2)
        self.before = self.snapshot()

    def forward(self, batch: Batch, clock: Clock) -> Step:
        learners = self.schedule.learners(clock)
        image = batch.views["image"]
        losses = {n: dice_ce_loss(finest(getattr(self, n)(image)), self.target(n, batch)) for n in learners}
        return Step(sum(losses.values()), {n: loss.item() for n, loss in losses.items()}, active=learners)

    def target(self, learner: str, batch: Batch) -> torch.Tensor:
        """Soft masks: the labels, and the partner's live answer where there are none."""
        soft = F.one_hot(batch.target.long(), 2).movedim(-1, 1).float()
        if not batch.labeled.all():
            with answering(getattr(self, NAMES[1 - NAMES.index(learner)])) as ask:
                soft[~batch.labeled] = ask(batch.views["image"][~batch.labeled]).float().softmax(1)
        return soft

    def parameter_groups(self) -> list[ParameterGroup]:
        rates: dict[str, Callable[[Clock], float]] = {"flat": lambda _: 1e-3, "deep": lambda _: 1e-2}
        return [
            ParameterGroup(n, tuple(getattr(self, n).parameters()), rates[n], lambda _: 0.01, network=n)
            for n in NAMES
        ]

    def after_update(self, clock: Clock) -> None:
        now = self.snapshot()
        self.moved.append(
            tuple(n for n in NAMES if any(not torch.equal(v, self.before[n][k]) for k, v in now[n].items()))
        )
        self.before = now

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.deep, "flat": self.flat}

    def snapshot(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weights and statistics of both."""
        return {n: {k: v.clone() for k, v in getattr(self, n).state_dict().items()} for n in NAMES}


@dataclass(frozen=True)
class Volumes:
    """Batches of volumes: bright boxes in noise, labeled and not, in the shares of a schedule."""

    schedule: Schedule

    def __call__(self, clock: Clock) -> Batch:
        """The batch of a step, views (B, 1, Z, Y, X)."""
        labeled, unlabeled = (_stacks(number, labeled=number == 0) for number in (0, 1))
        size, own = self.schedule.items, {"depth": SLICES, "slab": True}
        mixture = Mixture(
            Sampler(labeled, size, **own), Sampler(unlabeled, size, **own), size, self.schedule.labels
        )
        batch = mixture(clock)
        return replace(batch, views={"image": batch.views["image"][:, None]})


def _stacks(seed: int, *, labeled: bool, count: int = 6) -> Stacks:
    draw = np.random.default_rng(seed)
    masks = np.zeros((count, SLICES, SIDE, SIDE), np.uint8)
    for mask, y, x in zip(masks, *draw.integers(1, SIDE - 7, (2, count))):
        mask[:, y : y + 6, x : x + 6] = 1
    images = (draw.normal(size=masks.shape) + 3 * masks).astype(np.float16)
    each = np.ones(count, int)
    return Stacks(
        images=list(images), masks=list(masks) if labeled else None, which=np.arange(count), frames=each,
        slices=SLICES * each, order=each, subject=np.array([f"s{i}" for i in range(count)], object),
        annotated=np.ones((count, 1), bool) if labeled else None,
        source=np.array(["manual"] * count, object) if labeled else None,
    )  # fmt: skip
