"""The first two nouns: a `Scan` (pixels with their geometry) and a `Prediction` (what was found in one).

Axis order in memory is always (T, Z, Y, X); a 3D image has T = 1. Affines map voxel indices
(x, y, z, 1) to RAS+ millimeters, as in NIfTI. A Scan is in *canonical* orientation; `Source`
remembers the file's own grid, and `Reorientation` goes there and back without interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A stack of slices, whose slice axis must stay Z whatever its direction in the patient, has slices far
# thicker than its pixels, and thick in themselves: thin slices of finer pixels are a volume, which is turned
# to RAS+. A little below 2 and 2.5 mm, where the rounding of a header would decide.
STACK_ANISOTROPY = 1.99
STACK_MM = 2.49

# Directions that differ by less are equal: an affine and its copy through a quaternion are turned alike.
TIE = 1e-3

# Cosine beyond which it is clear from which side slices are seen; planes along the heart's long axis are not.
SEEN_FROM = 0.3

SHORT_AXIS = np.array([-0.62, 0.64, -0.45])
"""Usual normal of short-axis slices, base to apex (RAS)."""
TURNED_DEGREES = 35.0
"""Short-axis slices of nearly all hearts lie no farther from it."""
PLAIN_DEGREES = 10.0
"""From an axis of the body: slices that nobody turned toward the heart."""
TOWARD_APEX = np.array([-1.0, 1.0, -1.0])
"""The human heart's long axis from base to apex: left, anterior, inferior, in RAS+."""


class Pixels(Protocol):
    """Lazy pixels in canonical orientation: stored type on disk or in memory, one frame at a time."""

    shape: tuple[int, int, int, int]
    """(T, Z, Y, X)."""
    dtype: np.dtype
    """Type as stored."""

    def frame(self, t: int) -> np.ndarray:
        """Frame t as float32 (Z, Y, X), slope and intercept applied (HU for CT)."""
        ...


class ArrayPixels:
    """Pixels held in memory: `array` is (T, Z, Y, X), in any numeric type."""

    def __init__(self, array: np.ndarray, *, slope: float = 1.0, intercept: float = 0.0):
        if array.ndim != 4:
            raise ValueError(f"pixels must be (T, Z, Y, X), got shape {array.shape}")
        self.array, self.slope, self.intercept = array, slope, intercept
        self.shape, self.dtype = array.shape, array.dtype

    def frame(self, t: int) -> np.ndarray:
        values = self.array[t].astype(np.float32)
        if self.slope != 1.0 or self.intercept != 0.0:
            values = values * np.float32(self.slope) + np.float32(self.intercept)
        return values


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of the three space axes, source -> canonical, both in (Z, Y, X) order.

    `order[i]` is the source axis that becomes canonical axis i; `flipped[i]` reverses canonical axis i.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, volume: np.ndarray) -> np.ndarray:
        """Source (Z, Y, X) array -> canonical view of it."""
        flips = tuple(slice(None, None, -1 if f else 1) for f in self.flipped)
        return volume.transpose(self.order)[flips]

    def invert(self, volume: np.ndarray) -> np.ndarray:
        """Canonical (Z, Y, X) array -> source view of it."""
        flips = tuple(slice(None, None, -1 if f else 1) for f in self.flipped)
        return volume[flips].transpose(tuple(int(i) for i in np.argsort(self.order)))

    def affine(self, source_affine: np.ndarray, source_shape: tuple[int, int, int]) -> np.ndarray:
        """Affine of the canonical grid; `source_shape` is (Z, Y, X)."""
        out = np.eye(4)
        origin = np.zeros(3)  # source (x, y, z) index of canonical voxel 0
        for canonical_axis in range(3):
            source_axis = self.order[canonical_axis]
            column = source_affine[:3, 2 - source_axis]
            if self.flipped[canonical_axis]:
                origin[2 - source_axis] = source_shape[source_axis] - 1
                column = -column
            out[:3, 2 - canonical_axis] = column
        out[:3, 3] = source_affine[:3, :3] @ origin + source_affine[:3, 3]
        return out


def slice_axis(spacing_mm: Sequence[float] | np.ndarray, shape: Sequence[int]) -> int | None:
    """The axis across the slices of a stack: the only one of a single voxel, or the one of largest spacing.

    Args:
        spacing_mm: of the three axes.
        shape: voxels along them, in the same order.

    Returns:
        the axis; None for a volume.
    """
    single = [axis for axis, count in enumerate(shape) if count == 1]
    if len(single) == 1:  # one slice, whatever depth its header gives it
        return single[0]
    thick = np.max(spacing_mm) >= max(STACK_MM, STACK_ANISOTROPY * np.median(spacing_mm))
    return int(np.argmax(spacing_mm)) if thick else None


def is_orientation_lost(affine: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether an affine holds nothing but spacings: all axes plain, as programs write that know no better.

    Also the one nibabel makes up for a header without any: x mirrored, the origin in the middle. The affine
    alone decides, not the file it is from, so that an image and its mask are always turned alike.

    Args:
        affine: (4, 4), voxel (x, y, z, 1) -> RAS+ mm.
        shape: (Z, Y, X).
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction, middle = affine[:3, :3] / spacing, affine @ [*(np.array(shape[::-1]) - 1) / 2, 1.0]
    made_up = np.allclose(direction, np.diag([-1, 1, 1]), atol=1e-4) and np.allclose(middle[:3], 0, atol=1e-2)
    return made_up or np.allclose(direction, np.eye(3), atol=1e-4)


def canonical_reorientation(affine: np.ndarray, shape: tuple[int, int, int]) -> Reorientation:
    """How to turn a source grid into the canonical one.

    A volume goes to the closest RAS+ order. A stack of slices keeps its slices: the axis across them becomes
    Z and runs from base to apex. The in-plane axes are flipped so that their largest component points to the
    patient's left, posterior or foot side, as slices are shown in radiology, and change places where slices
    would be seen from above, behind or the right: a mirror image. A stack that lost its orientation is left
    as stored.

    Args:
        affine: (4, 4) source affine, voxel (x, y, z, 1) -> RAS+ mm.
        shape: (Z, Y, X) of the source.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    through = slice_axis(spacing, shape[::-1])
    if through is None:
        order_xyz, signs = _closest_axes(direction), []
        for world, axis in enumerate(order_xyz):
            signs.append(direction[world, axis] < 0)
        return _from_xyz(order_xyz, signs)
    order_xyz = [axis for axis in range(3) if axis != through] + [through]
    if through == 2 and is_orientation_lost(affine, shape):
        return Reorientation()
    signs = []
    for axis in order_xyz[:2]:  # to left, posterior or inferior, all negative in RAS+
        along = np.abs(direction[:, axis])
        largest = int(np.argmax(along > along.max() - TIE))  # the first of equals
        signs.append(direction[largest, axis] > 0)
    x, y = (direction[:, axis] * (-1 if sign else 1) for axis, sign in zip(order_xyz, signs))
    if np.cross(x, y) @ TOWARD_APEX / np.linalg.norm(TOWARD_APEX) > SEEN_FROM:
        order_xyz[:2], signs = order_xyz[1::-1], signs[::-1]
    signs.append(direction[:, through] @ TOWARD_APEX < -TIE)
    return _from_xyz(order_xyz, signs)


def _closest_axes(direction: np.ndarray) -> list[int]:
    """For each world axis the source axis closest to it, each used once; of equals the one in its place."""
    from scipy.optimize import linear_sum_assignment

    _, axes = linear_sum_assignment(-np.abs(direction) - TIE * np.eye(3))
    return [int(a) for a in axes]


def _from_xyz(order_xyz: list[int], signs_xyz: list[bool]) -> Reorientation:
    order = tuple(2 - axis for axis in reversed(order_xyz))
    flipped = tuple(bool(s) for s in reversed(signs_xyz))
    return Reorientation(order, flipped)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a Scan came from, and its grid as stored."""

    path: Path | None = None
    """File or folder."""
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    """(4, 4) affine as stored, voxel (x, y, z, 1) -> RAS+ mm."""
    shape: tuple[int, int, int] = (1, 1, 1)
    """(Z, Y, X) as stored."""
    reorientation: Reorientation = field(default_factory=Reorientation)
    notes: tuple[str, ...] = ()
    """What had to be inferred, and how; one sentence each, without patient data."""
    instances: tuple[tuple[tuple[Path, int], ...], ...] = ()
    """DICOM only: [t][z] -> (file, index of the frame in it), in canonical order."""
    placement: Mapping[str, Any] = field(default_factory=dict)
    """NIfTI only: the header's fields that place it, both transforms and their codes, lengths in mm."""
    other_affine: np.ndarray | None = None
    """NIfTI only: the second of two transforms that the header holds, as `affine`."""
    parts: tuple[Path, ...] = ()
    """NIfTI only: the files, where there is one a frame or a slice."""
    series: tuple[int, ...] = ()
    """DICOM only: SeriesNumber of each series in it, ascending."""
    plane: str = ""
    """DICOM only: SAX, 2CH, 3CH or 4CH where its series are called so."""
    part: str = ""
    """Why this may be a part of a heart alone, so that its volumes are none; empty where nothing says so."""
    no_beat: str = ""
    """DICOM only: why its frames are no phases of one beat; empty where they may be."""
    people: tuple[str, ...] = ()
    """DICOM only: digests of PatientID, to compare and never to write."""
    study: str = ""
    """DICOM only: StudyInstanceUID, to compare and never to write."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Pixels and geometry of one acquisition, in canonical orientation.

    Raises:
        InputError: when affine, times and pixels do not fit each other.

    >>> pixels = ArrayPixels(np.zeros((25, 10, 256, 216), np.int16))
    >>> scan = Scan(pixels=pixels, affine=np.diag([1.5, 1.5, 8.0, 1.0]))
    >>> scan.shape, scan.spacing_mm, scan.is_stack
    ((25, 10, 256, 216), (8.0, 1.5, 1.5), True)
    >>> scan.frame(0).shape
    (10, 256, 216)
    """

    pixels: Pixels
    """(T, Z, Y, X), lazy."""
    affine: np.ndarray
    """(4, 4), voxel (x, y, z, 1) -> RAS+ mm."""
    frame_times_ms: np.ndarray | None = None
    """(T,) time of each frame after the first, None where unknown."""
    cycle_ms: float | None = None
    """Length of the heartbeat; where it is known time is circular."""
    modality: str = ""
    """"MR", "CT" or "" where unknown."""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        name = self.source.path or "scan"
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise InputError(f"{name}: the affine is not a finite 4 x 4 matrix; rewrite the file's header")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise InputError(f"{name}: the affine is singular (a spacing of 0?); rewrite the file's header")
        if self.frame_times_ms is not None and len(self.frame_times_ms) != self.shape[0]:
            raise InputError(f"{name}: {len(self.frame_times_ms)} frame times for {self.shape[0]} frames")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, Z, Y, X)."""
        return self.pixels.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(z, y, x) voxel size in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def is_stack(self) -> bool:
        """True for a stack of slices along Z (`slice_axis`), False for a volume."""
        return slice_axis(self.spacing_mm, self.shape[1:]) == 0

    def frame(self, t: int) -> np.ndarray:
        """Frame t as float32 (Z, Y, X).

        Raises:
            InputError: when the frame holds NaN or infinite values.
        """
        values = self.pixels.frame(t)
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.source.path or 'scan'}: frame {t} holds NaN or infinite values; clean the file"
            )
        return values

    def shown(self, t: int) -> np.ndarray:
        """Frame t as float32 (Z, Y, X), which shows something.

        Raises:
            InputError: the frame is one gray value, or see `frame`.
        """
        values = self.frame(t)
        if values.min() == values.max():
            raise InputError(
                f"{self.source.path or 'scan'}: frame {t} is empty (one gray value); export it again, or "
                "leave the scan out"
            )
        return values

    def with_times(self, frame_time_ms: float) -> Scan:
        """The same scan with frames `frame_time_ms` apart."""
        return replace(self, frame_times_ms=np.arange(self.shape[0]) * float(frame_time_ms))


def slice_normal(scan: Scan) -> np.ndarray | None:
    """Unit normal (RAS) of a stack's slices; None for a volume, and where a file lost its orientation."""
    if not scan.is_stack or is_orientation_lost(scan.source.affine, scan.source.shape):
        return None
    normal = scan.affine[:3, 2]
    return normal / np.linalg.norm(normal)


def plane_by_direction(scan: Scan) -> str:
    """How the slices of a stack are cut, by their normal alone: a guess that fits most hearts.

    Returns:
        AX, SAG or COR along the body's axes, SAX or long axis along the usual heart's; empty for a volume,
        in between, and where the orientation is lost.
    """
    normal = slice_normal(scan)
    if normal is None:
        return ""
    body = np.abs(normal)
    if body.max() > math.cos(math.radians(PLAIN_DEGREES)):
        return ("SAG", "COR", "AX")[int(body.argmax())]
    along = abs(float(normal @ SHORT_AXIS)) / float(np.linalg.norm(SHORT_AXIS))
    near = math.cos(math.radians(TURNED_DEGREES))
    return "SAX" if along > near else "long axis" if along < math.sqrt(1 - near**2) else ""


def is_spacing_nominal(scan: Scan) -> bool:
    """A stack with pixels of exactly 1 mm, unturned and at the origin: by one who knew no geometry.

    A header without any affine comes to the same: it is read as mirrored in x, around its middle.
    """
    z_mm = scan.source.affine[2, 2]
    written, missing = np.diag([1.0, 1.0, z_mm, 1.0]), np.diag([-1.0, 1.0, z_mm, 1.0])
    missing[:3, 3] = missing[:3, :3] @ (np.array(scan.source.shape[::-1]) - 1) / -2
    return scan.is_stack and any(np.array_equal(scan.source.affine, lost) for lost in (written, missing))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one scan; the masks themselves are on disk, on the source's own grid."""

    mask: Path
    """NIfTI label map in the `fewbeats` convention, same grid and frames as the source."""
    structures: tuple[str, ...]
    """Structures the network looks for."""
    volumes_ml: dict[str, np.ndarray]
    """Structure -> (T,) volume in mL."""
    ed_frame: int | None = None
    """Frame of end-diastole (largest LV volume unless given), None where there is no LV or one frame."""
    es_frame: int | None = None
    """Frame of end-systole (smallest LV volume unless given)."""
    warnings: tuple[str, ...] = ()
    """Why not to trust this prediction; where there are any, no EF is reported."""
