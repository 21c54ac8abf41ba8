"""Labels smoothed over the heartbeat: each voxel takes what its neighboring frames say, too.

Flicker goes, and so does some of the beat: look at ejection fraction and stroke volume beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.inference.compose import Changed
from fewbeats.inference.labeler import Labeled
from fewbeats.metrics import bounding_box

if TYPE_CHECKING:
    from fewbeats.scan import Scan

WIDTH = 2.0  # standard deviations that the kernel reaches


@dataclass(frozen=True)
class Smoothed(Changed):
    """A labeler whose labels are smoothed in time, in probabilities.

    Where it tells how sure it is, a label counts so much and background the rest; else it counts as sure. The
    kernel is Gaussian, and one-sided at the ends. Memory holds as many frames as it is wide.
    """

    frames: float
    """Standard deviation of the kernel, in frames."""

    @property
    def key(self) -> str:
        return f"{self.labeler.key}-smoothed{self.frames:g}"

    def label(self, scan: Scan) -> Iterator[Labeled]:
        reach = min(ceil(WIDTH * self.frames), (scan.shape[0] - 1) // 2)
        weights = {d: exp(-0.5 * (d / self.frames) ** 2) for d in range(-reach, reach + 1)}
        yield from self._slide(_with_ends(self.labeler.label(scan), reach), weights)

    def _slide(self, given: Iterator[Labeled | None], weights: dict[int, float]) -> Iterator[Labeled]:
        """Label the middle of each window; None stands for a frame beyond the ends."""
        window: deque[Labeled | None] = deque(maxlen=len(weights))
        for labeled in given:
            window.append(labeled)
            middle = window[len(weights) // 2] if len(window) == len(weights) else None
            if middle is not None:
                near = [(one, weight) for one, weight in zip(window, weights.values()) if one is not None]
                mask, sure = smooth([one for one, _ in near], [w for _, w in near], self.structures)
                yield replace(middle, mask=mask, confidence=sure)

    def describe(self) -> dict[str, Any]:
        return {**self.labeler.describe(), "smoothed_frames": self.frames}


def smooth(
    labeled: Sequence[Labeled], weights: Sequence[float], structures: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The label with the largest weighted probability in each voxel, and that probability.

    Args:
        labeled: neighboring frames, (Z, Y, X) each.
        weights: of them, positive.
        structures: that may be in them.

    Returns:
        mask, (Z, Y, X) uint8 in `FEWBEATS_VALUES`, and confidence; 1 where all frames are background.
    """
    shape = labeled[0].mask.shape
    mask, sure = np.zeros(shape, np.uint8), np.ones(shape, np.float32)
    box = bounding_box(np.logical_or.reduce([one.mask > 0 for one in labeled]))
    total = float(sum(weights))
    best = np.zeros(mask[box].shape, np.float32)
    for one, weight in zip(labeled, weights):
        inside = one.mask[box]
        unsure = 0.0 if one.confidence is None else 1 - one.confidence[box]
        best += weight / total * np.where(inside == 0, 1.0, unsure)  # background
    for structure in structures:
        value = FEWBEATS_VALUES[structure]
        found = np.zeros_like(best)
        for one, weight in zip(labeled, weights):
            share = 1.0 if one.confidence is None else one.confidence[box]
            found += weight / total * np.where(one.mask[box] == value, share, 0.0)
        won = found > best
        mask[box][won], best[won] = value, found[won]
    sure[box] = best
    return mask, sure


def _with_ends(frames: Iterator[Labeled], reach: int) -> Iterator[Labeled | None]:
    """The frames with `reach` places of none before and behind."""
    yield from [None] * reach
    yield from frames
    yield from [None] * reach
