"""Samples -> batches of slices (2D) or slabs (3D), resumable at any step, without workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fewbeats.clock import Clock
from fewbeats.sample import Batch, Sample


@dataclass(frozen=True)
class SliceSampler:
    """Draws slices without replacement, epoch after epoch; slices are addressed by cumulative offsets.

    `depth` neighboring slices come along as the second axis of "image": for a 2D network the odd number
    2 * context + 1 around the drawn slice, whose mask is the target; for a 3D network (`slab`) all slices of
    the target. Neighbors beyond the stack repeat its last slice in 2D and are empty in 3D.
    """

    samples: Sequence[Sample]
    batch_size: int
    depth: int
    slab: bool = False
    seed: int = 0

    def __call__(self, clock: Clock) -> Batch:
        """The batch of a step; each rank gets its own share of the step's slices."""
        offsets = np.cumsum([0] + [1 if self.slab else len(s.image) for s in self.samples])
        first = (clock.step * clock.world + clock.rank) * self.batch_size
        drawn = [self._index(first + i, int(offsets[-1])) for i in range(self.batch_size)]
        heights = np.random.default_rng([self.seed, clock.step, clock.rank]).random(self.batch_size)
        return self._batch(drawn, heights, offsets)

    def _index(self, position: int, total: int) -> int:
        """The slice at a position of the endless sequence of shuffled epochs."""
        epoch, within = divmod(position, total)
        return int(_shuffled(self.seed, epoch, total)[within])

    def _batch(self, drawn: list[int], heights: np.ndarray, offsets: np.ndarray) -> Batch:
        images, targets, chosen, places = [], [], [], []
        for index, height in zip(drawn, heights):
            which = int(np.searchsorted(offsets, index, side="right")) - 1
            sample, z = self.samples[which], index - int(offsets[which])
            cut = _slab(sample, height, self.depth) if self.slab else _neighbors(sample, z, self.depth)
            image, target = cut
            images.append(image)
            targets.append(target)
            chosen.append(sample)
            places.append(np.nan if sample.position is None or self.slab else sample.position[z])
        return Batch(
            views={"image": torch.from_numpy(np.stack(images).astype(np.float32))},
            target=torch.from_numpy(np.stack(targets)),
            annotated=torch.tensor([s.annotated for s in chosen]),
            position=torch.tensor(places, dtype=torch.float32),
            subject=tuple(s.subject for s in chosen),
            frame=tuple(s.frame for s in chosen),
            source=tuple(s.source for s in chosen),
        )


_EPOCHS: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffled(seed: int, epoch: int, total: int) -> np.ndarray:
    """The order of an epoch; the last few are kept."""
    key = (seed, epoch, total)
    if key not in _EPOCHS:
        while len(_EPOCHS) >= 4:
            _EPOCHS.pop(next(iter(_EPOCHS)))
        _EPOCHS[key] = np.random.default_rng([seed, epoch]).permutation(total)
    return _EPOCHS[key]


def _neighbors(sample: Sample, z: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(depth, Y, X) slices around z and the mask (1, Y, X) of slice z."""
    assert sample.mask is not None
    around = np.clip(np.arange(z - depth // 2, z + depth // 2 + 1), 0, len(sample.image) - 1)
    return sample.image[around], sample.mask[z : z + 1]


def _slab(sample: Sample, height: float, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """`depth` slices from a height in [0, 1) on, and their masks; empty ones are added to thin stacks."""
    assert sample.mask is not None
    missing = depth - len(sample.image)
    if missing > 0:
        padding = ((missing // 2, missing - missing // 2), (0, 0), (0, 0))
        return np.pad(sample.image, padding), np.pad(sample.mask, padding)
    first = int(height * (1 - missing))
    return sample.image[first : first + depth], sample.mask[first : first + depth]
