"""Labeled and unlabeled samples in one batch, in shares that the clock decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fewbeats.clock import Clock
from fewbeats.data.sampler import Sampler
from fewbeats.sample import Batch, join_batches


@dataclass(frozen=True)
class Mixture:
    """A sampler of samplers: the first items of a batch are labeled, the others are not.

    Where a share changes, samplers still advance by whole batches: of an epoch's order a part is drawn.

    Args:
        labeled: of the samples with labels.
        unlabeled: of those without; the sizes of both are at least those that are asked of them.
        size: items of a batch.
        labels: how many of them are labeled at a step.
    """

    labeled: Sampler
    unlabeled: Sampler
    size: int
    labels: Callable[[Clock], int]

    def __call__(self, clock: Clock) -> Batch:
        """The batch of a step.

        Raises:
            ValueError: more labels than items, or fewer than none.
        """
        count = self.labels(clock)
        if not 0 <= count <= self.size:
            raise ValueError(f"{count} labeled items of {self.size}")
        parts = []
        if count:
            parts.append(self.labeled.draw(clock, count))
        if count < self.size:
            others = self.unlabeled.draw(clock, self.size - count)
            assert others.scan is not None
            parts.append(replace(others, scan=others.scan + len(self.labeled.stacks.which)))
        return join_batches(parts)
