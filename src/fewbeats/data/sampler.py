"""Stacks -> batches of slices (2D) or slabs (3D); a batch follows from the clock alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from fewbeats.clock import Clock
from fewbeats.data.foreground import Extents, force_starts, nothing_known
from fewbeats.data.store import Stacks
from fewbeats.sample import Batch

What = Literal["images", "masks", "weights"]
Pieces = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Sampler:
    """Draws slices, addressed by cumulative offsets, so that memory does not grow with the table.

    `depth` neighboring slices come along as the second axis of "image": for a 2D network the odd number
    2 * context + 1 around the drawn slice, whose mask is the target; for a 3D network (`slab`) all slices of
    the target. Neighbors beyond the stack repeat its last slice in 2D and are empty in 3D.

    >>> one = np.ones(1, int)
    >>> images, who = [np.zeros((20, 10, 96, 96), np.float16)], np.array(["a"])
    >>> cine = Stacks(images=images, which=0 * one, frames=20 * one, slices=10 * one, order=one, subject=who)
    >>> batch = Sampler(cine, batch_size=4, depth=3)(Clock(step=0, total=100))
    >>> tuple(batch.views["image"].shape), batch.target is None
    ((4, 3, 96, 96), True)
    """

    stacks: Stacks
    batch_size: int
    depth: int = 1
    slab: bool = False
    """Draw whole stacks, and of thick ones a part."""
    seed: int = 0
    epochs: bool = True
    """Without replacement, epoch after epoch; else anew each step, all different within it."""
    shares: np.ndarray | None = None
    """(N,) how often each stack is drawn against the others, whatever its size; then anew each step, and a
    slice may come twice. None: all slices alike."""
    forced: float = 0.0
    """Share of slabs that are moved to where `extents` say that there is foreground."""
    extents: Extents = nothing_known

    def __call__(self, clock: Clock) -> Batch:
        """The batch of a step; each rank gets its own share of the step's slices."""
        return self.draw(clock, self.batch_size)

    def draw(self, clock: Clock, count: int) -> Batch:
        """`count` samples of a step: the first ones of its batch."""
        items = self.stacks.frames * (1 if self.slab else self.stacks.slices)
        offsets = np.cumsum(items)
        drawn = self._indices(clock, int(offsets[-1]))[:count]
        stack = np.searchsorted(offsets, drawn, side="right")
        within = drawn - (offsets - items)[stack]
        if self.slab:
            return self._batch(stack, within, z=self._first_slices(clock, stack, drawn))
        t, z = np.divmod(within, self.stacks.slices[stack])
        return self._batch(stack, t, z=z)

    def _first_slices(self, clock: Clock, stack: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Where slabs begin."""
        random, count = np.random.default_rng([self.seed, clock.step, clock.rank]), len(stack)
        room = np.maximum(0, self.stacks.slices[stack] - self.depth)
        first = (random.random(self.batch_size)[:count] * (room + 1)).astype(int)
        extents = self.extents(clock) if self.forced else None
        if extents is None:
            return first
        draw, chosen = random.random((2, self.batch_size))[:, :count]
        forced = force_starts(first, extents[drawn], room=room, depth=self.depth, draw=draw)
        return np.where(chosen < self.forced, forced, first)

    def _indices(self, clock: Clock, total: int) -> np.ndarray:
        """Which of all slices or slabs a step draws on this rank."""
        if self.shares is not None:
            return self._by_share(clock)
        if not self.epochs:
            draw = np.random.default_rng([self.seed, clock.step])
            together = draw.choice(total, self.batch_size * clock.world, replace=False)
            return together[clock.rank :: clock.world]
        first = (clock.step * clock.world + clock.rank) * self.batch_size
        places = [divmod(first + i, total) for i in range(self.batch_size)]
        return np.array([_shuffled(self.seed, epoch, total)[within] for epoch, within in places])

    def _by_share(self, clock: Clock) -> np.ndarray:
        """Stacks by their shares, and of each any of its slices or slabs."""
        assert self.shares is not None
        draw = np.random.default_rng([self.seed, clock.step, clock.rank])
        items = self.stacks.frames * (1 if self.slab else self.stacks.slices)
        reach = np.cumsum(self.shares)
        stack = np.searchsorted(reach, draw.random(self.batch_size) * reach[-1], side="right")
        within = (draw.random(self.batch_size) * items[stack]).astype(int)
        return (np.cumsum(items) - items)[stack] + within

    def _batch(self, stack: np.ndarray, t: np.ndarray, *, z: np.ndarray) -> Batch:
        cut = self._slab if self.slab else self._neighbors
        pieces = [cut(*place) for place in zip(stack, t, z)]
        images, masks, weights = zip(*pieces)
        table = self.stacks
        position = np.full(len(stack), np.nan) if self.slab else table.heights(stack, z)
        batch = Batch(
            views={"image": torch.from_numpy(np.stack(images).astype(np.float32))},
            position=torch.from_numpy(position.astype(np.float32)),
            directed=torch.from_numpy(table.order[stack] != 0),
            scan=torch.from_numpy(stack),
            subject=tuple(table.subject[stack]),
            frame=tuple((t if table.first_frame is None else t + table.first_frame[stack]).tolist()),
        )
        if table.told is not None:
            told = [table.read(*place, what="told") for place in zip(stack, t, z)]
            return replace(batch, target=torch.from_numpy(np.stack(told)), source=("",) * len(stack))
        if table.masks is None:
            return replace(batch, source=("",) * len(stack))
        assert table.annotated is not None
        assert table.source is not None
        return replace(
            batch,
            target=torch.from_numpy(np.stack(masks)),
            weight=None if table.weights is None else torch.from_numpy(np.stack(weights)),
            annotated=torch.from_numpy(table.annotated[stack]),
            source=tuple(table.source[stack]),
        )

    def _read(self, stack: int, t: int, z: np.ndarray | slice, what: What) -> np.ndarray | None:
        return None if getattr(self.stacks, what) is None else self.stacks.read(stack, t, z, what=what)

    def _neighbors(self, stack: int, t: int, z: int) -> Pieces:
        """(depth, Y, X) slices around z; mask and weights (1, Y, X) of slice z."""
        around = np.arange(z - self.depth // 2, z + self.depth // 2 + 1)
        around = np.clip(around, 0, self.stacks.slices[stack] - 1)
        middle = slice(z, z + 1)
        image, mask = self._read(stack, t, around, "images"), self._read(stack, t, middle, "masks")
        return image, mask, self._read(stack, t, middle, "weights")

    def _slab(self, stack: int, t: int, first: int) -> Pieces:
        """`depth` slices from `first` on, their masks and weights; empty ones are added to thin stacks."""
        missing = self.depth - int(self.stacks.slices[stack])
        padding = ((max(0, missing) // 2, max(0, missing) - max(0, missing) // 2), (0, 0), (0, 0))
        taken = [self._read(stack, t, slice(first, first + self.depth), what) for what in get_args(What)]
        image, mask, weight = (None if part is None else np.pad(part, padding) for part in taken)
        return image, mask, weight


def share_kinds(
    kinds: Sequence[str], items: np.ndarray, weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """`Sampler.shares` by which each kind of stack comes as its weight says, and slices of one kind alike.

    Args:
        kinds: (N,) of each stack.
        items: (N,) its slices, or its slabs.
        weights: kind -> how often against the others; all kinds alike by default.

    Returns:
        (N,) shares, whose sum over a kind is its weight.

    >>> share_kinds(["a", "b", "b"], np.array([5, 1, 3])).tolist()
    [1.0, 0.25, 0.75]
    """
    names, which = np.unique(kinds, return_inverse=True)
    weight = np.array([1.0 if weights is None else weights[name] for name in names.tolist()])
    return weight[which] * items / np.bincount(which, items)[which]


_EPOCHS: dict[tuple[int, int, int], np.ndarray] = {}
KEPT, LARGE = 4, 40_000_000
"""Epochs whose order a process keeps, and up to how many slices in all; the last one is kept in any case."""


def _shuffled(seed: int, epoch: int, total: int) -> np.ndarray:
    """The order of an epoch; the last few are kept."""
    key = (seed, epoch, total)
    if key not in _EPOCHS:
        while len(_EPOCHS) >= KEPT or (_EPOCHS and total + sum(map(len, _EPOCHS.values())) > LARGE):
            _EPOCHS.pop(next(iter(_EPOCHS)))
        # 36 million slices in half the memory
        kind = np.int32 if total <= np.iinfo(np.int32).max else np.int64
        _EPOCHS[key] = np.random.default_rng([seed, epoch]).permutation(np.arange(total, dtype=kind))
    return _EPOCHS[key]
