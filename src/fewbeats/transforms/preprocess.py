"""From a scan's grid to the network's and exactly back.

The network's grid is laid over the scan as a box: for each axis a start, a step and a length, in voxels.
Linear resampling along an axis is then one small matrix, crop and padding included, and the way back is the
matrix of the reverse step. Where the new grid is coarser the kernel widens with it, so nothing aliases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from fewbeats.errors import InputError
from fewbeats.ranges import later

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """The network's grid and its gray values."""

    spacing_mm: float = 1.25
    """In-plane spacing of the network's grid, mm."""
    size: int = 128
    """In-plane side of the field of view the network is trained on, pixels."""
    through_plane_mm: float = 0.0
    """Through-plane spacing, mm; 0 keeps the scan's own slices."""
    clip_percent: tuple[float, float] = (0.5, 99.5)
    """Percentiles of the field of view to which gray values are clipped before the z-score (MR)."""
    window_hu: tuple[float, float] = (-200.0, 600.0)
    """Window to which Hounsfield units are clipped before the z-score (CT)."""
    statistics: Literal["image", "minmax"] = later("image")
    """Whose mean and deviation the z-score takes; minmax, those of the image scaled to [0, 1], is a slip of
    M&N's release, here to compare with it."""

    def __post_init__(self) -> None:
        if not 0 < self.spacing_mm < math.inf or self.size < 1:
            raise InputError("--preprocess.spacing-mm, --preprocess.size: must be positive")
        if not 0 <= self.through_plane_mm < math.inf:
            raise InputError("--preprocess.through-plane-mm: must be positive, or 0 to keep slices")
        if not 0 <= self.clip_percent[0] < self.clip_percent[1] <= 100:
            raise InputError("--preprocess.clip-percent: give a lower and a higher percentile, 0 to 100")
        if not self.window_hu[0] < self.window_hu[1]:
            raise InputError("--preprocess.window-hu: give a lower and a higher value")

    @property
    def field_of_view_mm(self) -> float:
        """Side of the square the network sees, mm."""
        return self.size * self.spacing_mm


@dataclass(frozen=True)
class Grid:
    """A regular grid over a scan's voxels; all in (z, y, x).

    >>> settings = PreprocessSettings(spacing_mm=1.25, size=128)
    >>> grid = lay_grid((10, 64, 64), (8.0, 2.5, 2.5), settings)
    >>> grid.step, grid.shape
    ((1.0, 0.5, 0.5), (10, 128, 128))
    >>> even = np.ones((10, 64, 64), np.float32)
    >>> bool(np.allclose(grid.restore(grid.sample(even)), even))
    True
    """

    start: tuple[float, float, float]
    """Voxel coordinate of the grid's first point."""
    step: tuple[float, float, float]
    """Voxels from one grid point to the next."""
    shape: tuple[int, int, int]
    """Points along each axis."""
    source_shape: tuple[int, int, int]
    """Voxels of the scan along each axis."""

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The scan's voxels nearest to a grid point of their own, the ones `restore` answers for."""
        box = []
        for start, step, count, voxels in zip(self.start, self.step, self.shape, self.source_shape):
            first = int(np.ceil(start - step / 2))
            last = int(np.floor(start + (count - 0.5) * step))
            first = min(max(first, 0), voxels)
            box.append(slice(first, max(min(last + 1, voxels), first)))
        return box[0], box[1], box[2]

    def sample(self, volume: np.ndarray) -> np.ndarray:
        """Scan values (Z, Y, X) -> values on the grid (linear); 0 where the grid leaves the scan."""
        drawn = [
            _reduced(start, step, count, voxels)
            for start, step, count, voxels in zip(self.start, self.step, self.shape, volume.shape)
        ]
        return _resample(volume, drawn)

    def sample_labels(self, labels: np.ndarray) -> np.ndarray:
        """Class indices (Z, Y, X) -> nearest-neighbor class indices on the grid; 0 outside the scan."""
        out = labels
        for axis in (0, 1, 2):
            at = np.rint(self.start[axis] + self.step[axis] * np.arange(self.shape[axis]) - 1e-6).astype(int)
            inside = (at >= 0) & (at < labels.shape[axis])
            out = np.take(out, np.where(inside, at, 0), axis)
            out = np.where(np.expand_dims(inside, tuple(a for a in (0, 1, 2) if a != axis)), out, 0)
        return out.astype(labels.dtype)

    def inside(self) -> np.ndarray:
        """(Z', Y', X') bool: grid points that lie on the scan."""
        on = []
        for start, step, count, voxels in zip(self.start, self.step, self.shape, self.source_shape):
            at = start + step * np.arange(count)
            on.append((at >= -0.5) & (at <= voxels - 0.5))
        return on[0][:, None, None] & on[1][None, :, None] & on[2][None, None, :]

    def reach(self, part: tuple[slice, ...]) -> tuple[slice, slice, slice]:
        """The voxels of `box` whose restored value draws from a part of the grid, and at most one more."""
        reached = []
        for own, start, step, whole in zip(part, self.start, self.step, self.box):
            width = max(1.0, 1.0 / step)  # of the kernel, in grid points
            first = int(np.floor(start + step * (own.start - width)))
            last = int(np.ceil(start + step * (own.stop - 1 + width)))
            first = min(max(first, whole.start), whole.stop)
            reached.append(slice(first, max(first, min(last + 1, whole.stop))))
        return reached[0], reached[1], reached[2]

    def restore(self, values: np.ndarray, *, box: tuple[slice, slice, slice] | None = None) -> np.ndarray:
        """Grid values (..., Z', Y', X') -> values on the scan's voxels of `box` (..., z, y, x), linear.

        Args:
            values: one value or score per grid point.
            box: only these voxels of the scan.
        """
        drawn = [
            _reduced((extent.start - start) / step, 1.0 / step, extent.stop - extent.start, count, clamp=True)
            for extent, start, step, count in zip(box or self.box, self.start, self.step, self.shape)
        ]
        return _resample(values, drawn)


@lru_cache(maxsize=256)
def _reduced(
    start: float, step: float, count: int, source: int, *, clamp: bool = False
) -> tuple[np.ndarray, slice]:
    """The resampling matrix without the source columns nothing draws from: (count, used), and which."""
    matrix = linear_matrix(start, step, count, source, clamp=clamp)
    used = np.flatnonzero(matrix.any(0))
    extent = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
    return np.ascontiguousarray(matrix[:, extent]), extent


def linear_matrix(start: float, step: float, count: int, source: int, *, clamp: bool = False) -> np.ndarray:
    """Weights (count, source) of linear interpolation at `start + step * i`.

    A step above 1 widens the triangle kernel to `step`, which averages instead of skipping. Rows whose
    point lies more than half a voxel outside are 0, or with `clamp` take the border's value.
    """
    at = start + step * np.arange(count)
    within = (at >= -0.5) & (at <= source - 0.5)
    at = np.clip(at, 0, source - 1)
    width = max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(source)[None, :]) / width)
    weights /= weights.sum(1, keepdims=True)
    if not clamp:
        weights[~within] = 0.0
    return weights.astype(np.float32)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Products this small gain nothing from BLAS threads, which then spin on and take the network's cores."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _resample(volume: np.ndarray, drawn: list[tuple[np.ndarray, slice]]) -> np.ndarray:
    """Apply a resampling matrix along each of the last three axes, to what they draw from alone."""
    z, y, x = (used for _, used in drawn)
    out = volume[..., z, y, x]
    with _blas().limit(limits=1, user_api="blas"):
        for axis, (weights, _) in zip((-3, -2, -1), drawn):
            out = _along(out, axis, weights)
    return out


def _along(volume: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """Apply a resampling matrix along one of the last three axes."""
    if weights.shape[0] == weights.shape[1] and np.array_equal(
        weights, np.eye(len(weights), dtype=np.float32)
    ):
        return volume
    if axis == -1:
        return volume @ weights.T
    if axis == -2:
        return np.matmul(weights, volume)
    return np.moveaxis(np.tensordot(weights, np.moveaxis(volume, axis, 0), 1), 0, axis)


def lay_grid(
    source_shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    settings: PreprocessSettings,
    *,
    center: tuple[float, float] | None = None,
    size: int | None = None,
) -> Grid:
    """The network's grid over a scan.

    Args:
        source_shape: (Z, Y, X) voxels.
        spacing_mm: (z, y, x) of the scan.
        settings: spacing and field of view.
        center: (y, x) voxel coordinate of the field of view's center; the image's center by default.
        size: in-plane points, `settings.size` by default.
    """
    size = size or settings.size
    center = center or ((source_shape[1] - 1) / 2, (source_shape[2] - 1) / 2)
    step = [settings.spacing_mm / s for s in spacing_mm[1:]]
    start = [c - (size - 1) / 2 * d for c, d in zip(center, step)]
    z_step, slices = 1.0, source_shape[0]
    if settings.through_plane_mm:
        z_step = settings.through_plane_mm / spacing_mm[0]
        slices = max(1, round(source_shape[0] / z_step))
    z_start = (source_shape[0] - 1) / 2 - (slices - 1) / 2 * z_step
    return Grid((z_start, start[0], start[1]), (z_step, step[0], step[1]), (slices, size, size), source_shape)


def middle(width: int, size: int) -> slice:
    """The middle `size` of `width` points; all of them where there are fewer."""
    margin = max(0, (width - size) // 2)
    return slice(margin, min(width, margin + size))


def normalize(
    values: np.ndarray, inside: np.ndarray, settings: PreprocessSettings, *, modality: str = "MR"
) -> np.ndarray:
    """Clip and z-score values on the grid by the statistics of the central field of view.

    The statistics come from a quarter of the points (every second row and column), which moves them by
    less than the noise does and costs a quarter.

    Args:
        values: (Z, Y, X) as `Grid.sample` gives them, at least `settings.size` wide.
        inside: (Z, Y, X) bool, points that lie on the scan; the others become 0.
        settings: clip limits.
        modality: "CT" takes the HU window, all else the percentiles.

    Returns:
        (Z, Y, X) float32.
    """
    margin = max(0, (values.shape[-1] - settings.size) // 2)
    center = (slice(None), *[slice(margin, values.shape[-1] - margin, 2)] * 2)
    seen = values[center][inside[center]]
    if seen.size == 0:
        seen = values[inside] if inside.any() else values.ravel()
    low, high = settings.window_hu if modality == "CT" else np.percentile(seen, settings.clip_percent)
    seen = np.clip(seen, low, high)
    if settings.statistics == "minmax":
        seen = (seen - seen.min()) / max(float(np.ptp(seen)), 1e-12)
    mean = float(seen.mean())
    scale = 1.0 / max(float(seen.std()), 1e-4 * abs(mean), 1e-12)  # an even image's rounding stays small
    out = (np.clip(values, low, high) - np.float32(mean)) * np.float32(scale)
    out[~inside] = 0.0
    return out.astype(np.float32, copy=False)


def prepare_frame(
    values: np.ndarray,
    spacing_mm: tuple[float, float, float],
    settings: PreprocessSettings,
    *,
    center: tuple[float, float] | None = None,
    size: int | None = None,
    modality: str = "MR",
) -> tuple[np.ndarray, Grid]:
    """One frame on the network's grid, normalized, and the grid that leads back.

    Args:
        values: (Z, Y, X) gray values.
        spacing_mm: (z, y, x).
        settings: grid and clip limits.
        center: (y, x) voxel coordinate of the field of view; the image's center by default.
        size: in-plane points, `settings.size` by default.
        modality: "CT" for Hounsfield units.
    """
    grid = lay_grid(values.shape, spacing_mm, settings, center=center, size=size)
    return normalize(grid.sample(values), grid.inside(), settings, modality=modality), grid
