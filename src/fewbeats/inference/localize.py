"""Find the heart at low resolution, so that the segmentation network sees a crop of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, special

from fewbeats.transforms.preprocess import lay_grid, prepare_frame

if TYPE_CHECKING:
    from fewbeats.inference.engine import Engine
    from fewbeats.scan import Scan

LOOKS = 2  # frames looked at, spread over the beat: the heart moves less than its own size


@dataclass(frozen=True)
class Region:
    """Where the heart is, in voxels of the canonical grid."""

    center: tuple[float, float]
    """(y, x)."""
    extent_mm: float
    """Larger in-plane side of the heart's bounding box; 0 where it was not looked for."""
    found: bool = True
    """False when the network saw no heart: the region is then the image's own middle."""


def whole_image(scan: Scan, *, found: bool = True) -> Region:
    """The image's middle."""
    _, _, y, x = scan.shape
    return Region(((y - 1) / 2, (x - 1) / 2), 0.0, found)


def locate_heart(scan: Scan, localizer: Engine) -> Region:
    """The bounding box of the largest thing the localizer calls heart."""
    looks = sorted({round(i * scan.shape[0] / LOOKS) for i in range(LOOKS)} & set(range(scan.shape[0])))
    likely = np.mean([_heart_probability(scan, t, localizer) for t in looks], axis=0)
    labels, count = ndimage.label(likely > 0.5)
    if count == 0:
        return whole_image(scan, found=False)
    largest = 1 + int(np.argmax(ndimage.sum_labels(likely, labels, range(1, count + 1))))
    _, y, x = ndimage.find_objects(labels)[largest - 1]
    grid = lay_grid(scan.shape[1:], scan.spacing_mm, localizer.settings.preprocess)
    center = [
        start + step * (part.start + part.stop - 1) / 2
        for start, step, part in zip(grid.start[1:], grid.step[1:], (y, x))
    ]
    extent = localizer.settings.preprocess.spacing_mm * max(y.stop - y.start, x.stop - x.start)
    return Region((center[0], center[1]), extent)


def _heart_probability(scan: Scan, t: int, localizer: Engine) -> np.ndarray:
    """(Z, y, x) on the localizer's grid."""
    settings = localizer.settings.preprocess
    image, _ = prepare_frame(scan.frame(t), scan.spacing_mm, settings, modality=scan.modality or "MR")
    logits = localizer.call(localizer.settings.cut(image))
    return special.expit(logits[:, 1] - logits[:, 0])
