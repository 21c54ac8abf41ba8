"""How well two masks of one structure agree: Dice, HD95 and ASSD.

Surface. The voxels of a mask with at least one of their 6 face neighbors outside it (4 in a single
slice, where the axis of length 1 does not count); beyond the image is outside.

HD95 (mm). The distance from each surface voxel of one mask to the nearest surface voxel of the other,
its 95th percentile with linear interpolation, each way; the larger of the two. ASSD (mm): the mean of all
those distances, both ways pooled. Both are what MONAI computes, so the figures can be put side by side.

Empty masks. Both empty: Dice 1, distances 0 mm. Exactly one empty (a miss): Dice 0, and both
distances are the diagonal of the image's field of view. A miss is counted, never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of a predicted mask with a manual one."""

    dice: float
    """2 |A and B| / (|A| + |B|), 0 to 1."""
    hd95_mm: float | None
    """95th percentile Hausdorff distance; None where the spacing is not known."""
    assd_mm: float | None
    """Average symmetric surface distance; None where the spacing is not known."""
    miss: bool
    """Exactly one of the two masks is empty."""


def compare(predicted: np.ndarray, manual: np.ndarray, *, spacing_mm: Spacing | None) -> Agreement:
    """Judge a predicted mask.

    Args:
        predicted: (Z, Y, X) boolean mask.
        manual: (Z, Y, X) boolean mask on the same grid.
        spacing_mm: (z, y, x) voxel size, or None where it is not known: then there are no distances.

    Raises:
        ValueError: masks of different shape.
    """
    if predicted.shape != manual.shape:
        raise ValueError(f"masks of different shape: {predicted.shape} and {manual.shape}")
    predicted, manual = predicted.astype(bool, copy=False), manual.astype(bool, copy=False)
    miss = bool(predicted.any() != manual.any())
    hd95_mm = assd_mm = None
    if spacing_mm is not None:
        hd95_mm, assd_mm = _distances(predicted, manual, spacing_mm)
    return Agreement(dice=dice(predicted, manual), hd95_mm=hd95_mm, assd_mm=assd_mm, miss=miss)


def dice(predicted: np.ndarray, manual: np.ndarray) -> float:
    """Dice overlap of two boolean masks of one shape; both empty 1, one empty 0.

    >>> a, b = np.array([True, True, False]), np.array([True, False, False])
    >>> f"{dice(a, b):.3f} {dice(a, a):.3f} {dice(a, ~a):.3f} {dice(a & ~a, a & ~a):.3f}"
    '0.667 1.000 0.000 1.000'
    """
    total = np.count_nonzero(predicted) + np.count_nonzero(manual)
    return float(2.0 * np.count_nonzero(predicted & manual) / total) if total else 1.0


def field_of_view_mm(shape: tuple[int, ...], spacing_mm: Spacing) -> float:
    """Diagonal of an image of `shape` (Z, Y, X): the distance a miss is given."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))


def _distances(predicted: np.ndarray, manual: np.ndarray, spacing_mm: Spacing) -> tuple[float, float]:
    if not predicted.any() and not manual.any():
        return 0.0, 0.0
    if not predicted.any() or not manual.any():
        diagonal = field_of_view_mm(predicted.shape, spacing_mm)
        return diagonal, diagonal
    there, back = surface_distances(predicted, manual, spacing_mm=spacing_mm)
    hd95_mm = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95_mm), float(np.concatenate([there, back]).mean())


def surface_distances(
    predicted: np.ndarray, manual: np.ndarray, *, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of one mask to the other's surface, both ways.

    Args:
        predicted: (Z, Y, X) boolean mask, not empty.
        manual: (Z, Y, X) boolean mask, not empty.
        spacing_mm: (z, y, x) voxel size.

    Returns:
        predicted -> manual and manual -> predicted, one value a surface voxel.
    """
    from scipy.ndimage import distance_transform_edt

    axes = tuple(axis for axis, size in enumerate(predicted.shape) if size > 1) or (0,)  # a single voxel
    flat = tuple(axis for axis in range(3) if axis not in axes)
    box = bounding_box(predicted | manual)  # both surfaces lie in it: distances need nothing beyond
    surfaces = [_surface(mask[box].squeeze(flat)) for mask in (predicted, manual)]
    sampling = [spacing_mm[axis] for axis in axes]
    to_predicted, to_manual = (np.asarray(distance_transform_edt(~s, sampling)) for s in surfaces)
    return to_manual[surfaces[0]], to_predicted[surfaces[1]]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box that holds a boolean mask of any shape; an empty box where nothing is set."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    # Outside the crop is outside the mask (border value 0), which is what lies there.
    return mask & ~binary_erosion(mask)


def enclosed_share(cavity: np.ndarray, wall: np.ndarray) -> float:
    """Share of the pixels around a cavity, slice by slice, that are of its wall.

    Args:
        cavity: (Z, Y, X) bool.
        wall: (Z, Y, X) bool.

    Returns:
        in [0, 1]; 0 without a cavity.
    """
    box = ndimage.find_objects(cavity.astype(np.uint8))
    if not box:
        return 0.0
    grown = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box[0])
    inner, outer = cavity[grown], wall[grown]
    rim = ndimage.binary_dilation(inner, ndimage.generate_binary_structure(2, 1)[None]) & ~inner
    return float(outer[rim].mean()) if rim.any() else 0.0
