"""Scans of a beating heart with known truth.

`make_subject` draws an anatomy, `make_scan` images it, `truth_ml` gives its exact volumes. Everything follows
from seeds; bright and dark of a subject show the same geometry.

Conventions: papillary muscles and trabeculae belong to LV and RV; all ventricles end at the plane of the
mitral valve, what lies above it on the right is outflow tract (PA). Cine masks hold LV, MYO and RV as in
ACDC; a voxel has the label that most of it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.phantom.anatomy import (
    STRUCTURE_OF,
    Anatomy,
    Beat,
    Tissue,
    beat_at,
    heart_tissue,
)
from fewbeats.phantom.exam import View, long_axis_affine
from fewbeats.phantom.imaging import Contrast, Signal, expose_cine, expose_ct, signal_of
from fewbeats.phantom.sequences import MAPS, Sequence, expose_map
from fewbeats.phantom.thorax import thorax_tissue
from fewbeats.scan import ArrayPixels, Scan

Modality = Literal["cine", "ct"]
CINE_STRUCTURES = ("LV", "MYO", "RV")
LONG_STRUCTURES = ("LV", "MYO", "RV", "LA", "RA")
MOST_GAP = 1.5
HEART_STRUCTURES = ("LV", "MYO", "RV", "LA", "RA", "AO", "PA")


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Which cohort to make."""

    subjects: int = 20
    """Number of subjects; the groups take turns."""
    modality: Modality = "cine"
    """Short-axis cine MR, or isotropic 4D contrast CT."""
    frames: int = 12
    """Frames a heartbeat."""
    seed: int = 0
    """Another seed, other subjects."""
    contrast: Contrast = "bright"
    """"bright": blood far above muscle (balanced cine; arterial CT); "dark": another scanner, where blood is
    little above muscle and liver, muscle and fluid change places (spoiled cine; venous CT); "any": contrast,
    heart and slices far wider than life, to learn from (cine)."""
    species: Literal["human", "pig"] = "human"
    """Whose hearts and chests."""
    gap: float = 1.0
    """Of pigs: how far from people, who are 0, towards a pig, which is 1."""
    matrix: int = 160
    """Pixels in-plane along each axis."""
    pixel_mm: tuple[float, float] = (1.3, 1.7)
    """Smallest and largest pixel; each subject draws one (CT: the voxel)."""
    view: View = "SAX"
    """Plane of a cine; of others than SAX one slice along the heart's axis."""
    sequence: Sequence = "cine"
    """cine, late enhancement or a map, of which the last three have one frame."""

    def __post_init__(self) -> None:
        low, high = self.pixel_mm
        if self.subjects < 1 or self.frames < 1 or self.matrix < 16 or not 0 < low <= high:
            raise InputError(
                f"phantom: subjects={self.subjects}, frames={self.frames}, matrix={self.matrix}, "
                f"pixel_mm={self.pixel_mm} cannot be made; give at least 1, 1, 16 and 0 < low <= high"
            )
        if self.contrast == "any" and self.modality == "ct":
            raise InputError("--contrast any: of cine alone; CT has its units")
        if self.contrast == "any" and self.species == "pig":
            raise InputError("--contrast any: hearts of no species; take --species human")
        if self.modality == "ct" and (self.view, self.sequence) != ("SAX", "cine"):
            raise InputError("--view, --sequence: of MR alone; take --modality cine")
        if self.sequence != "cine" and self.frames != 1:
            raise InputError(f"--frames {self.frames}: of {self.sequence} there is one; give 1")
        if not 0 <= self.gap <= MOST_GAP:
            raise InputError(f"--gap {self.gap}: must be between 0 and {MOST_GAP}")


def truth_ml(subject: Anatomy, phases: np.ndarray) -> dict[str, np.ndarray]:
    """Exact LV, MYO and RV volumes (closed form, see `anatomy.py`).

    Args:
        subject: the anatomy.
        phases: (P,) fractions of the heartbeat, end-diastole at 0.

    Returns:
        structure -> (P,) mL.
    """
    volumes = np.array([beat_at(subject, float(p)).volumes_ml for p in np.atleast_1d(phases)])
    return {name: volumes[:, i] for i, name in enumerate(CINE_STRUCTURES)}


def sampled_ml(subject: Anatomy, phase: float, *, step_mm: float = 1.0) -> dict[str, float]:
    """Volume in mL of every structure at `phase`, counted on a grid of `step_mm`.

    The grid is a 300 mm cube round the heart; AO and PA are what of them lies in it.
    """
    side = np.arange(-150.0, 150.0, step_mm) + step_mm / 2.0
    beat = beat_at(subject, phase)
    counts = np.zeros(max(Tissue) + 1, np.int64)
    for z in side:
        plane = np.stack(np.meshgrid(side, side, z, indexing="ij"), -1).reshape(-1, 3)
        tissue = tissue_at(subject, plane + np.array(subject.center_mm), beat)
        counts += np.bincount(tissue, minlength=len(counts))
    voxel_ml = step_mm**3 / 1000.0
    return {
        name: float(sum(counts[t] for t, s in STRUCTURE_OF.items() if s == name)) * voxel_ml
        for name in HEART_STRUCTURES
    }


def tissue_at(subject: Anatomy, points: np.ndarray, beat: Beat) -> np.ndarray:
    """Tissue at any points of the body, so that every plane and volume is cut from the same subject.

    Args:
        subject: the anatomy.
        points: (N, 3) RAS mm.
        beat: phase of the heart, from `beat_at`.

    Returns:
        (N,) uint8 `Tissue`.
    """
    heart = heart_tissue(subject, subject.to_heart(points), beat)
    return np.maximum(thorax_tissue(subject, points), heart)


@dataclass(frozen=True)
class _Grid:
    """Where voxels lie, and at which K points inside each the body is sampled."""

    affine: np.ndarray
    """Voxel -> RAS mm of the scanner."""
    shape: tuple[int, int, int]
    offsets: np.ndarray
    """(K, 3) in voxels (x, y, z), centered on 0."""
    shifts_mm: np.ndarray
    """(Z, 3) displacement of the body in each slice (breath-holds differ)."""
    body: np.ndarray = field(default_factory=lambda: np.eye(4))
    """RAS mm of the scanner -> RAS mm of the body, which may lie turned in it."""

    def points(self, z: int) -> np.ndarray:
        """(K, Y, X, 3) RAS mm in the body of the sample points of slice z."""
        _, rows, columns = self.shape
        index = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), [z]), -1)[:, :, 0]
        index = (index[None] + self.offsets[:, None, None]).astype(np.float32)
        affine = self.body @ self.affine
        origin = affine[:3, 3] + self.shifts_mm[z]
        return index @ affine[:3, :3].T.astype(np.float32) + origin.astype(np.float32)


def _sample_offsets(count: int) -> np.ndarray:
    """(K, 3) points that fill a voxel evenly: each axis is stratified (an additive recurrence in-plane)."""
    k = np.arange(count)
    plane = [(0.5 + k * g) % 1.0 for g in (0.7548776662, 0.5698402910)]
    return np.stack([*plane, (k + 0.5) / count], -1) - np.mean([*plane, (k + 0.5) / count], axis=1)


def _short_axis_grid(subject: Anatomy, settings: PhantomSettings, rng: np.random.Generator) -> _Grid:
    """Stack across the long axis, slice 0 at or above the base, planned by a slightly careless hand."""
    wide = settings.contrast == "any"
    slice_mm = float(rng.uniform(5.0, 12.0) if wide else rng.choice([8.0, 9.0, 10.0]))
    pixel = float(rng.uniform(*settings.pixel_mm))
    beat = beat_at(subject, 0.0)
    apex = beat.middle_mm + beat.epi_mm[1]
    first = beat.base_mm - rng.uniform(0.2, 1.8) * slice_mm
    few, many = (5, 26) if wide else (8, 12)
    slices = int(np.clip(np.ceil((apex - first) / slice_mm + rng.uniform(0.0, 1.5)), few, many))
    turn = np.deg2rad(rng.uniform(-20.0, 20.0))
    plane = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    tilt = np.eye(3)
    tilt[0, 2], tilt[1, 2] = np.deg2rad(rng.uniform(-3.0, 3.0, 2))
    directions = np.linalg.qr(subject.axes @ plane @ tilt[:, ::-1])[0][:, ::-1]
    directions *= np.sign((directions * (subject.axes @ plane)).sum(0))
    affine = np.eye(4)
    affine[:3, :3] = directions * [pixel, pixel, slice_mm]
    room = 0.5 * settings.matrix * pixel - 62.0  # keep both ventricles in the field of view
    off_center = rng.uniform(-1.0, 1.0, 2) * np.clip(room, 4.0, 34.0)
    middle = subject.to_world(-14.0 + off_center[0], off_center[1], first)
    affine[:3, 3] = middle - affine[:3, :2].sum(1) * (settings.matrix - 1) / 2.0
    shifts = (rng.normal(size=(slices, 2)) * 1.6).clip(-4, 4) @ directions[:, :2].T
    return _Grid(affine, (slices, settings.matrix, settings.matrix), _sample_offsets(6), shifts)


def _long_axis_grid(subject: Anatomy, settings: PhantomSettings, rng: np.random.Generator) -> _Grid:
    """One slice along the heart's axis."""
    affine, shape = long_axis_affine(subject, settings, rng)
    return _Grid(affine, shape, _sample_offsets(6), np.zeros((1, 3)))


def _volume_grid(subject: Anatomy, settings: PhantomSettings, rng: np.random.Generator) -> _Grid:
    """Isotropic RAS+ volume round the heart, 160 mm high or as high as wide."""
    voxel = float(rng.uniform(*settings.pixel_mm))
    height = min(settings.matrix, int(np.ceil(160.0 / voxel)))
    shape = (height, settings.matrix, settings.matrix)
    affine = np.diag([voxel, voxel, voxel, 1.0])
    middle = np.array(subject.center_mm) + [20.0, -5.0, 15.0] + rng.normal(size=3) * 5.0
    affine[:3, 3] = middle - voxel * (np.array(shape[::-1]) - 1) / 2.0
    return _Grid(affine, shape, _sample_offsets(3), np.zeros((height, 3)), _roll(subject, middle))


def _roll(subject: Anatomy, about: np.ndarray) -> np.ndarray:
    """The scanner's coordinates -> those of a body that lies rolled about its long axis through a point."""
    angle = np.deg2rad(subject.roll_deg)
    turn, there, back = np.eye(4), np.eye(4), np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    there[:3, 3], back[:3, 3] = -np.asarray(about), about
    return back @ turn @ there


def make_scan(subject: Anatomy, settings: PhantomSettings) -> tuple[Scan, np.ndarray]:
    """Image a subject.

    Args:
        subject: from `make_subject`; its seed also decides slice planning, artifacts and noise.
        settings: modality, contrast, frames and grid.

    Returns:
        The scan (pixels in memory, int16), and its mask (T, Z, Y, X) uint8 in `FEWBEATS_VALUES`.
    """
    cine = settings.modality == "cine"
    geometry = ["SAX", "", "2CH", "3CH", "4CH"].index(settings.view) if cine else 1
    rng = np.random.default_rng([subject.seed, 1 + geometry])  # not the contrast: same geometry
    grid = (_long_axis_grid if geometry > 1 else _short_axis_grid if cine else _volume_grid)(
        subject, settings, rng
    )
    phases = frame_phases(subject, settings)
    look = np.random.default_rng([subject.seed, 3, get_args(Contrast).index(settings.contrast)])
    signal = signal_of(
        settings.modality, settings.contrast, look, timing=subject.contrast_timing, sequence=settings.sequence
    )
    structures = HEART_STRUCTURES if not cine else LONG_STRUCTURES if geometry else CINE_STRUCTURES
    beats = [beat_at(subject, float(p)) for p in phases]
    parts, mask = _acquire(
        subject, grid, beats=beats, signal=signal, structures=structures, scars=settings.sequence == "lge"
    )
    expose = expose_map if settings.sequence in MAPS else expose_cine if cine else expose_ct
    image = expose(parts, look)
    scan = Scan(
        pixels=ArrayPixels(image),
        affine=grid.affine,
        frame_times_ms=np.arange(settings.frames) * subject.cycle_ms / settings.frames,
        cycle_ms=subject.cycle_ms,
        modality="MR" if cine else "CT",
    )
    return scan, mask


def frame_phases(subject: Anatomy, settings: PhantomSettings) -> np.ndarray:
    """(T,) phase of each frame; in about every fourth subject the first frame comes after end-diastole.

    Of any contrast, whose frames are few: end-diastole, end-systole, and then any.
    """
    rng = np.random.default_rng([subject.seed, 4])
    if settings.contrast == "any":
        ends = np.array([0.0, subject.es_phase])[: settings.frames]
        return np.sort(np.append(ends, rng.uniform(0.0, 1.0, settings.frames - len(ends))))
    late = rng.uniform(0.05, 0.2) if rng.random() < 0.25 else 0.0
    return (np.arange(settings.frames) / settings.frames + late) % 1.0


def _acquire(
    subject: Anatomy,
    grid: _Grid,
    *,
    beats: list[Beat],
    signal: Signal,
    structures: tuple[str, ...],
    scars: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless (3, T, Z, Y, X) parts of the signal (see `Signal.of`) and the mask.

    The surroundings are evaluated once a slice, the heart in every frame inside its bounding box. Where
    `scars` are seen they are INFARCT, else myocardium.
    """
    parts = np.empty((3, len(beats), *grid.shape), np.float32)
    mask = np.zeros((len(beats), *grid.shape), np.uint8)
    label = np.zeros(max(Tissue) + 1, np.uint8)
    for tissue, structure in STRUCTURE_OF.items():
        label[tissue] = FEWBEATS_VALUES[structure] if structure in structures else 0
    if scars:
        label[Tissue.SCAR] = FEWBEATS_VALUES["INFARCT"]
    for z in range(grid.shape[0]):
        points = grid.points(z)
        still = thorax_tissue(subject, points.reshape(-1, 3)).reshape(points.shape[:3])
        parts[:, :, z] = signal.of(still)[:, None]
        mask[:, z] = _majority(label[still])
        rows, columns = _heart_box(subject, points[len(points) // 2], beats)
        local = subject.to_heart(points[:, rows, columns].reshape(-1, 3))
        for t, beat in enumerate(beats):
            behind = still[:, rows, columns]
            tissue_here = np.maximum(behind, heart_tissue(subject, local, beat).reshape(behind.shape))
            parts[:, t, z, rows, columns] = signal.of(tissue_here)
            mask[t, z, rows, columns] = _majority(label[tissue_here])
    return parts, mask


def _heart_box(subject: Anatomy, points: np.ndarray, beats: list[Beat]) -> tuple[slice, slice]:
    """Rows and columns of a slice, points (Y, X, 3), that the fullest and the emptiest heart touch."""
    local = subject.to_heart(points.reshape(-1, 3))
    ends = (max(beats, key=lambda b: b.contraction), min(beats, key=lambda b: b.contraction))
    touched = np.maximum(*(heart_tissue(subject, local, beat) for beat in ends)).reshape(points.shape[:2]) > 0
    rows, columns = touched.any(1).nonzero()[0], touched.any(0).nonzero()[0]
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(max(rows[0] - 3, 0), rows[-1] + 4), slice(max(columns[0] - 3, 0), columns[-1] + 4)


def _majority(labels: np.ndarray) -> np.ndarray:
    """(K, ...) labels of a voxel's sample points -> (...) the most frequent, background in a tie."""
    best = np.zeros(labels.shape[1:], np.uint8)
    most = (labels == 0).sum(0, dtype=np.uint8)
    for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=1)):
        count = (labels == value).sum(0, dtype=np.uint8)
        best[count > most] = value
        most = np.maximum(most, count)
    return best
