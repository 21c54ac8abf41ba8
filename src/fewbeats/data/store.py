"""What is prepared for a network is kept on disk and read slice by slice: memory does not grow with a cohort.

`Stored` is one array file, opened for each read and closed again: a memory map that stays open holds one of
the few file handles a process has. `Stacks` is the table that samplers draw from, labeled or not.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewbeats.disk import atomic_path
from fewbeats.sample import Sample

MARGIN = 1.5  # width of what is stored in fields of view: rotation and shift find real pixels beyond it


class Stored:
    """A NumPy file that is read where it is indexed.

    Args:
        path: of the file.
        merged: read class indices as 1 where there is any structure.
    """

    def __init__(self, path: Path, *, merged: bool = False):
        self.path, self.merged = path, merged

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the array; the file's header is read when it is first asked for, as a pool has many."""
        return self._open().shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of what is stored."""
        return self._open().dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        part = np.array(self._open()[index])
        return (part > 0).astype(np.uint8) if self.merged else part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...] if dtype is None else self[...].astype(dtype)

    def _open(self) -> np.memmap:
        return np.load(self.path, mmap_mode="r")


class OneFrame:
    """One frame (Z, S, S) of a stored scan (T, Z, S, S), read where it is indexed."""

    ndim = 3

    def __init__(self, whole: Stored, t: int):
        self.whole, self.t, self.shape = whole, t, whole.shape[1:]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        return self.whole[(self.t, *index)]


def keep(path: Path, array: np.ndarray) -> None:
    """Save an array so that it is there whole or not at all.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    whole = io.BytesIO()  # numpy itself does not tell that a disk is full
    np.save(whole, array)
    with atomic_path(path) as partial:
        partial.write_bytes(whole.getbuffer())


def slice_order(text: str | None, slices: int) -> int:
    """1 where the base comes first, -1 where the apex does, 0 where it is unknown or one slice has no end.

    Args:
        text: of the cohort's column.
        slices: of the stack.
    """
    return {"base_first": 1, "apex_first": -1}.get(text or "", 0) if slices > 1 else 0


def heights(z: np.ndarray, slices: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Slices below the base over all slices, z / Z as in PCL; from the first where the end is unknown.

    >>> heights(np.array([0, 3, 3]), np.array([4, 4, 4]), np.array([1, 1, -1])).tolist()
    [0.0, 0.75, 0.0]
    """
    return np.where(order < 0, slices - 1 - z, z) / slices


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Stacks of slices on a network's grid, in columns: N stacks of T frames of Z slices.

    >>> one = np.ones(1, int)
    >>> images, who = [np.zeros((20, 10, 96, 96), np.float16)], np.array(["a"])
    >>> cine = Stacks(images=images, which=0 * one, frames=20 * one, slices=10 * one, order=one, subject=who)
    >>> len(cine), cine.read(0, 3, slice(4, 6)).shape
    (200, (2, 96, 96))
    """

    images: Sequence[Any]
    """Arrays (T, Z, S, S) or, of one frame, (Z, S, S); float16, `Stored` or in memory, each once."""
    which: np.ndarray
    """(N,) for each stack its array."""
    frames: np.ndarray
    """(N,) T."""
    slices: np.ndarray
    """(N,) Z."""
    order: np.ndarray
    """(N,) see `slice_order`."""
    subject: np.ndarray
    """(N,) names."""
    masks: Sequence[Any] | None = None
    """Class indices for each of `images`, None without labels."""
    weights: Sequence[Any] | None = None
    """For each of `images` what its labels' voxels count, 0 to 255, or None where all count in full."""
    annotated: np.ndarray | None = None
    """(N, C) bool: the labels speak of class c + 1."""
    first_frame: np.ndarray | None = None
    """(N,) number of the first frame in its scan; 0 where not given."""
    source: np.ndarray | None = None
    """(N,) where labels come from."""
    told: Sequence[np.ndarray] | None = None
    """For each of `images` what is known of its slices beside masks, (T, Z, ...): classes, or points."""

    def __len__(self) -> int:
        return int((self.frames * self.slices).sum())

    def read(
        self,
        stack: int,
        t: int,
        z: np.ndarray | slice,
        *,
        what: Literal["images", "masks", "weights", "told"] = "images",
    ) -> np.ndarray:
        """Slices z of frame t, (len(z), S, S): gray values, class indices, or shares that voxels count.

        Of `told` what is known of them, (len(z), ...).
        """
        arrays = getattr(self, what)
        assert arrays is not None
        array = arrays[self.which[stack]]
        if what == "told":
            return array[t, z]
        if array is None:  # of weights: all count
            return np.ones_like(self.read(stack, t, z), np.float32)
        part = np.asarray(array[t, z] if array.ndim == 4 else array[z])
        return part / np.float32(255) if what == "weights" else part

    def heights(self, stack: np.ndarray, z: np.ndarray) -> np.ndarray:
        """`heights` of slices z of stacks."""
        return heights(z, self.slices[stack], self.order[stack])


def stack_samples(samples: Iterable[Sample]) -> Stacks:
    """Labeled samples as a table to draw from."""
    listed = list(samples)
    return Stacks(
        images=[s.image for s in listed],
        masks=[s.mask for s in listed],
        which=np.arange(len(listed)),
        frames=np.ones(len(listed), int),
        slices=np.array([len(s.image) for s in listed]),
        order=np.array([s.order for s in listed]),
        subject=np.array([s.subject for s in listed], object),
        weights=[s.weight for s in listed] if any(s.weight is not None for s in listed) else None,
        annotated=np.array([s.annotated for s in listed]),
        first_frame=np.array([s.frame for s in listed]),
        source=np.array([s.source for s in listed], object),
    )


def as_heart(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples with one class, the heart: everything labeled."""
    merged = []
    for s in samples:
        stored = isinstance(s.mask, Stored)
        mask = Stored(s.mask.path, merged=True) if stored else (np.asarray(s.mask) > 0).astype(np.uint8)
        merged.append(replace(s, mask=mask, annotated=(True,)))
    return merged
