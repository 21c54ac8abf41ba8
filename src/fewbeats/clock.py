"""Where a training run stands, in exact integers: method, rates and batches are all told the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """A step of a run, on one of its processes.

    A run's stages are asked in whole steps: a share of the run as a float puts 24 of 32,000 steps into the
    wrong one of 4,000 epochs, the first of them step 8,008.

    >>> Clock(step=8008, total=32_000).block(4000)
    1001
    >>> Clock(step=150, total=600).progress
    0.25
    """

    step: int
    """Updates that are done, from 0."""
    total: int
    """Updates of the whole run."""
    rank: int = 0
    """Which process, from 0."""
    world: int = 1
    """Number of processes."""

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / self.total

    def block(self, blocks: int) -> int:
        """Which of `blocks` equal parts of the run this step is in, from 0: its epoch of so many epochs."""
        return self.step * blocks // self.total
