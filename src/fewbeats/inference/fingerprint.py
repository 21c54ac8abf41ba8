"""What the images and labels of a training were like, as plain numbers: new scans are compared with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.metrics import enclosed_share
from fewbeats.scan import SHORT_AXIS, slice_normal
from fewbeats.transforms.preprocess import middle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fewbeats.sample import Sample
    from fewbeats.scan import Scan
    from fewbeats.transforms.preprocess import PreprocessSettings

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_SPREAD = 0.08  # of a gray-value feature: a handful of training scans underestimates it


def describe_gray(image: np.ndarray) -> np.ndarray:
    """Features of a normalized field of view (Z, Y, X): quantiles of its values and its mean slope."""
    seen = image[image != 0]
    if seen.size == 0:
        return np.zeros(len(QUANTILES) + 1)
    slope = np.abs(np.diff(image, axis=-1)).mean() + np.abs(np.diff(image, axis=-2)).mean()
    return np.array([*np.quantile(seen, QUANTILES), slope])


def take_fingerprint(
    samples: Iterable[Sample],
    settings: PreprocessSettings,
    structures: tuple[str, ...],
    *,
    scans: Iterable[Scan] = (),
    short_axis: bool = False,
) -> dict[str, Any]:
    """What the training images and labels are like; plain numbers, kept in `run.json`.

    Args:
        samples: labeled training frames.
        settings: their grid.
        structures: in class order.
        scans: the scans they come from, for the direction of their slices.
        short_axis: whether all of them are known to be short-axis stacks.
    """
    gray, spacing, volumes = [], [], {s: {} for s in structures}  # type: ignore[var-annotated]
    enclosed = list[float]()
    for sample in samples:
        side = middle(sample.image.shape[-1], settings.size)
        gray.append(describe_gray(np.asarray(sample.image[:, side, side], np.float32)))
        spacing.append(sample.spacing_mm)
        mask = np.asarray(sample.mask)
        voxel_ml = sample.spacing_mm[0] * settings.spacing_mm**2 / 1000.0
        for index, structure in enumerate(structures, 1):
            if sample.annotated[index - 1]:
                ml = float((mask == index).sum() * voxel_ml)
                volumes[structure].setdefault(sample.subject, []).append(ml)
        if {"LV", "MYO"} <= {s for s, known in zip(structures, sample.annotated) if known}:
            lv, myo = (mask == structures.index(name) + 1 for name in ("LV", "MYO"))
            enclosed += [enclosed_share(lv, myo)] if lv.any() else []
    normals = [normal.tolist() for scan in scans if (normal := slice_normal(scan)) is not None]
    return {
        "gray_mean": np.mean(gray, 0).tolist(),
        "gray_spread": np.maximum(np.std(gray, 0), LEAST_SPREAD).tolist(),
        "spacing_mm": [np.min(spacing, 0).tolist(), np.max(spacing, 0).tolist()],
        "normals": normals or ([SHORT_AXIS.tolist()] if short_axis else []),
        "volume_ml": {
            s: _range(ml for subject in v.values() for ml in subject) for s, v in volumes.items() if v
        },
        "largest_ml": {s: _range(map(max, v.values())) for s, v in volumes.items() if v},
        "enclosed": float(np.median(enclosed)) if enclosed else None,
    }


def _range(values: Iterable[float]) -> list[float]:
    listed = sorted(values)
    return [listed[0], listed[-1]]
