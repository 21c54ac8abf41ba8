"""M&N: a 2D network pretrained on photographs and a 3D one from scratch teach each other.

Yeung et al., Semi-Supervised 3D Medical Segmentation from 2D Natural Images Pretrained Model, MLMI 2025,
https://arxiv.org/abs/2509.15167.

    for epoch e of E, batch of B volumes x:
        e < e_t: all B are labeled, f (2D, slice by slice) and g (3D) both learn
        else:    floor((e - e_t) / (E - e_t) B) of them are not; f and g learn in turn, f first
        the learner's target t: the label, or the partner's softmax on the same crop, asked without gradient
        loss = soft Dice(p, t) + KL(t || p)
        rate: rises for 50 of 4000 epochs, cosine to 0 at e_t, starts again at its base, cosine to 0 at E
    keep g; f and the mean of both are there, too
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fewbeats.losses import soft_dice_kl
from fewbeats.models.adapters import merge_adapters
from fewbeats.models.answering import answering, finest
from fewbeats.sample import Batch
from fewbeats.semi_supervised.methods import Recipe, tell_pseudo
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.transforms.views import ViewSettings, change_labeled, cut_labeled

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.sample import Batches
    from fewbeats.semi_supervised.settings import MnSettings

PARTNER = {"flat": "deep", "deep": "flat"}
SURE = 20.0  # logit of background in slices that are not shown to the 2D network
SURVEYS = (0.25, 0.375, 0.5, 0.75)  # of the run: after these shares unlabeled crops are placed anew


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: MnSettings) -> Batch:
    """One view, of image and mask, on which both networks learn and are asked."""
    cut = cut_labeled(batch, settings, generator)
    return replace(cut, views={"image": change_labeled(cut, settings, generator)})


def epochs(clock: Clock, settings: MnSettings) -> int:
    """E: epochs of the whole run, of `iterations` updates each."""
    return max(8, clock.total // settings.iterations)


def stage_two(clock: Clock, settings: MnSettings) -> int:
    """e_t: the first epoch in which pseudo-labels are learned from."""
    return round(epochs(clock, settings) * settings.warmup)


def count_labeled(clock: Clock, settings: MnSettings, size: int) -> int:
    """How many of the `size` items of a step's batch are labeled; at least one."""
    total, first = epochs(clock, settings), stage_two(clock, settings)
    epoch = clock.block(total)
    if epoch < first:
        return size
    if settings.sampling == "half":
        return (size + 1) // 2
    if settings.sampling == "learning_rate":
        pseudo = int((1 - relative_rate(clock, settings)) * size)
    else:
        pseudo = (epoch - first) * size // (total - first)
    return size - min(pseudo, size - 1)


def find_learners(clock: Clock, settings: MnSettings) -> tuple[str, ...]:
    """Which networks learn in a step: both in the warm-up, then one an epoch, the 2D one first."""
    epoch, first = clock.block(epochs(clock, settings)), stage_two(clock, settings)
    if epoch < first or settings.turns == "joint":
        return ("flat", "deep")
    return ("flat",) if (epoch - first) % 2 == 0 else ("deep",)


def relative_rate(clock: Clock, settings: MnSettings) -> float:
    """Learning rate of a step's epoch over the base rate."""
    total, first = epochs(clock, settings), stage_two(clock, settings)
    epoch, rises = clock.block(total), round(total * settings.rate_warmup)
    if epoch < rises:
        return 0.01 + 0.99 * epoch / rises
    start, end = (rises, first) if epoch < first else (first, total)
    return 0.5 * (1 + math.cos(math.pi * (epoch - start) / max(1, end - start)))


def asks_survey(clock: Clock, settings: MnSettings) -> bool:
    """Whether this step is the last before an epoch from which unlabeled crops are placed by newer masks."""
    total, after = epochs(clock, settings), replace(clock, step=clock.step + 1)
    due = {stage_two(clock, settings), *(round(total * share) for share in SURVEYS)}
    return after.block(total) in due - {clock.block(total)}


def fold(volume: Tensor) -> Tensor:
    """(B, C, Z, Y, X) -> its slices (B Z, C, Y, X)."""
    return volume.transpose(1, 2).flatten(0, 1)


def unfold(slices: Tensor, volumes: int) -> Tensor:
    """(B Z, C, Y, X) -> volumes (B, C, Z, Y, X), the inverse of `fold`."""
    return slices.unflatten(0, (volumes, -1)).transpose(1, 2)


class CoTraining(Method):
    """A 2D and a 3D network that learn from labels and from each other.

    Args:
        flat: 2D network, (B, 1, Y, X) -> logits.
        deep: 3D network, (B, 1, Z, Y, X) -> logits.
        settings: schedule and rates.
        look: (step, 3D network) lets it say where unlabeled scans show foreground, for crops from that step
            on; None where crops hold all slices.
    """

    rate_flags = "--mn.flat-rate and --mn.deep-rate"

    def __init__(
        self,
        flat: nn.Module,
        deep: nn.Module,
        *,
        settings: MnSettings,
        look: Callable[[int, nn.Module], None] | None = None,
    ):
        super().__init__()
        self.flat, self.deep, self.settings, self.look = flat, deep, settings, look

    def forward(self, batch: Batch, clock: Clock) -> Step:
        volume, learners = batch.views["image"], find_learners(clock, self.settings)
        loss, logs = volume.new_zeros(()), dict[str, float]()
        for learner in learners:
            logits = self.logits(learner, volume)
            target = self.target(learner, batch, classes=logits.shape[1])
            own = soft_dice_kl(logits, target)
            loss = loss + own
            logs[f"loss_{learner}"] = float(own.detach())
            if batch.labeled is not None and not bool(batch.labeled.all()):
                logs |= tell_pseudo(target[~batch.labeled].argmax(1), of=f"_{PARTNER[learner]}")
        return Step(loss, logs, active=learners)

    def logits(self, name: str, volume: Tensor) -> Tensor:
        """(B, 1, Z, Y, X) -> logits (B, classes, Z, Y, X) of one of the networks."""
        return ask_volume(getattr(self, name), volume, flat=name == "flat")

    def target(self, learner: str, batch: Batch, *, classes: int) -> Tensor:
        """(B, classes, Z, Y, X): labels, and the partner's answer where there is none."""
        assert batch.target is not None
        volume, partner = batch.views["image"], PARTNER[learner]
        network = getattr(self, partner)
        target = F.one_hot(batch.target, classes).movedim(-1, 1).float()
        if batch.labeled is None or bool(batch.labeled.all()):
            return target
        with answering(network, lambda n, v: ask_volume(n, v, flat=partner == "flat")) as ask:
            answer = ask(volume[~batch.labeled]).float().softmax(1)
        if self.settings.targets == "hard":
            answer = F.one_hot(answer.argmax(1), classes).movedim(-1, 1).float()
        target[~batch.labeled] = answer
        return target

    def survey(self, clock: Clock) -> None:
        if self.look and asks_survey(clock, self.settings):
            self.look(clock.step + 1, self.deep)

    def parameter_groups(self) -> list[ParameterGroup]:
        rates = {"flat": self.settings.flat_rate, "deep": self.settings.deep_rate}
        return [
            ParameterGroup(
                name,
                tuple(p for p in getattr(self, name).parameters() if p.requires_grad),
                self.rate(base),
                lambda _: self.settings.weight_decay,
                network=name,
            )
            for name, base in rates.items()
        ]

    def rate(self, base: float) -> Callable[[Clock], float]:
        """The schedule of a network."""
        return lambda clock: base * relative_rate(clock, self.settings)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.deep, "flat": merge_adapters(self.flat)}


def ask_volume(network: nn.Module, volume: Tensor, *, flat: bool) -> Tensor:
    """Logits of a volume, of a 2D network slice by slice.

    Slices of zeros, which fill up thin stacks, are background to it and never shown to it: they would move
    the statistics of its BatchNorm.
    """
    if not flat:
        return finest(network(volume))
    slices = fold(volume)
    shown = slices.flatten(1).any(1)
    whole = bool(shown.all())
    seen = (slices if whole else slices[shown]).contiguous(memory_format=torch.channels_last)
    answer = finest(network(seen))
    if not whole:
        filled = answer.new_zeros(len(slices), *answer.shape[1:])
        filled[:, 0] = SURE
        answer = filled.index_put((shown.nonzero()[:, 0],), answer)
    return unfold(answer, len(volume))


@dataclass(frozen=True)
class Folded:
    """Batches of volumes as batches of their slices, as the 2D network sees them."""

    batches: Batches

    def __call__(self, clock: Clock) -> Batch:
        """The slices of a step, without empty ones."""
        slices = fold(self.batches(clock).views["image"])
        return Batch(views={"image": slices[slices.flatten(1).any(1)]})


RECIPE = Recipe(
    name="mn",
    views=views,
    labels=count_labeled,
    longer="--mn.warmup",
    judges_all=True,
)
