"""Slices of whole studies, for what is known of a study rather than of a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fewbeats.clock import Clock
from fewbeats.data.store import Stacks
from fewbeats.sample import UNKNOWN, Batch


@dataclass(frozen=True)
class StudySampler:
    """Draws studies, each class as often as the others, and some slices of each.

    "image" is (B, S, Y, X): S slices of a study in no order, each once where it has as many. `target` is
    (B, 1 + S): the study's class, then that of each slice as `stacks.told` says it, or `UNKNOWN`.

    >>> one = np.ones(2, int)
    >>> images = [np.zeros((2, 5, 24, 24), np.float16)] * 2
    >>> cine = Stacks(images=images, which=one - 1, frames=2 * one, slices=5 * one, order=one, subject=one)
    >>> batch = StudySampler(cine, study=np.array([0, 1]), classes=np.array([0, 1]), batch_size=3, count=4)(
    ...     Clock(step=0, total=9)
    ... )
    >>> tuple(batch.views["image"].shape), tuple(batch.target.shape)
    ((3, 4, 24, 24), (3, 5))
    """

    stacks: Stacks
    study: np.ndarray
    """(N,) number of the study that each stack is of."""
    classes: np.ndarray
    """(M,) class of each study."""
    batch_size: int
    count: int
    """S."""
    seed: int = 0

    def __call__(self, clock: Clock) -> Batch:
        """The batch of a step; each rank draws its own."""
        draw = np.random.default_rng([self.seed, clock.step, clock.rank])
        known = np.unique(self.classes)
        wanted = np.resize(draw.permutation(known), self.batch_size)  # no class twice before each came once
        studies = [int(draw.choice(np.flatnonzero(self.classes == one))) for one in wanted]
        images, targets = zip(*(self._slices(study, draw) for study in studies))
        return Batch(
            views={"image": torch.from_numpy(np.stack(images).astype(np.float32))},
            target=torch.from_numpy(np.stack(targets)),
            subject=tuple(self.stacks.subject[np.flatnonzero(self.study == study)[0]] for study in studies),
            frame=(0,) * len(studies),
            source=("",) * len(studies),
        )

    def _slices(self, study: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(S, Y, X) slices of a study, and (1 + S,) classes."""
        own = np.flatnonzero(self.study == study)
        items = self.stacks.frames[own] * self.stacks.slices[own]
        reach = np.cumsum(items)
        drawn = draw.choice(reach[-1], self.count, replace=reach[-1] < self.count)
        at = np.searchsorted(reach, drawn, side="right")
        t, z = np.divmod(drawn - (reach - items)[at], self.stacks.slices[own[at]])
        places = list(zip(own[at], t, z))
        images = [self.stacks.read(stack, t, slice(z, z + 1))[0] for stack, t, z in places]
        told = [UNKNOWN] * self.count
        if self.stacks.told is not None:
            told = [int(self.stacks.read(*place, what="told")) for place in places]
        return np.stack(images), np.array([self.classes[study], *told])
