"""Where along its stack a frame shows a structure, so that slabs can be forced onto it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewbeats.clock import Clock
from fewbeats.data.store import Stacks, keep

Extents = Callable[[Clock], "np.ndarray | None"]
"""Clock -> (frames of all stacks, 2) first slice with foreground and the one after the last, equal where none
has; None where nothing is known yet."""


def nothing_known(clock: Clock) -> None:
    """Extents where nobody looked."""


def list_frames(stacks: Stacks) -> Iterator[tuple[int, int]]:
    """(stack, frame) in the order in which a sampler of slabs counts them."""
    for stack, frames in enumerate(stacks.frames):
        yield from ((stack, t) for t in range(int(frames)))


def find_extent(mask: np.ndarray) -> tuple[int, int]:
    """First slice of (Z, Y, X) that is not background alone, and the one after the last; equal without one.

    >>> mask = np.zeros((5, 4, 4), int)
    >>> mask[2:4, 1, 1] = 3
    >>> find_extent(mask), find_extent(0 * mask)
    ((2, 4), (0, 0))
    """
    shown = np.flatnonzero(mask.any((1, 2)))
    return (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)


def labeled_extents(stacks: Stacks) -> Extents:
    """Extents of labels."""
    whole = slice(None)
    found = np.array([find_extent(stacks.read(*place, whole, what="masks")) for place in list_frames(stacks)])
    return Known(found)


@dataclass(frozen=True)
class Known:
    """Extents that stay as they are."""

    extents: np.ndarray

    def __call__(self, clock: Clock) -> np.ndarray:
        """The same at every step."""
        return self.extents


@dataclass(frozen=True)
class Surveys:
    """Extents of masks that a network in training made now and then, one file each in a run's folder.

    A step sees the last survey before it, so a resumed run draws what the first would have drawn.
    """

    folder: Path

    def __call__(self, clock: Clock) -> np.ndarray | None:
        """Extents of the last survey that was made before a step."""
        made = [int(file.stem) for file in self.folder.glob("*.npy")]
        before = [step for step in made if step <= clock.step]
        return np.load(self.folder / f"{max(before)}.npy") if before else None

    def write(self, step: int, extents: np.ndarray) -> None:
        """Keep a survey that steps from `step` on see."""
        keep(self.folder / f"{step}.npy", extents)

    def clear(self) -> None:
        """Take them away, once nobody will draw again."""
        shutil.rmtree(self.folder, ignore_errors=True)


def force_starts(
    first: np.ndarray, extents: np.ndarray, *, room: np.ndarray, depth: int, draw: np.ndarray
) -> np.ndarray:
    """First slices of slabs, moved to where the slab shows foreground.

    Args:
        first: (n,) as drawn.
        extents: (n, 2) of the frames.
        room: (n,) the last possible first slice.
        depth: slices of a slab.
        draw: (n,) uniform in [0, 1).

    Returns:
        (n,) uniform among the first slices whose slab holds foreground, as drawn where there is none.

    >>> place = {"room": np.array([20]), "depth": 4, "draw": np.array([0.99])}
    >>> force_starts(np.array([17]), np.array([[5, 8]]), **place).tolist()
    [7]
    """
    low = np.clip(extents[:, 0] - depth + 1, 0, room)
    high = np.clip(extents[:, 1] - 1, 0, room)
    forced = low + (draw * (high - low + 1)).astype(int)
    return np.where(extents[:, 1] > extents[:, 0], forced, first)
