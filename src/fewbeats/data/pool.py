"""Unlabeled scans -> Stacks, for methods that see no label.

Every frame of every scan is laid on the network's grid and kept once per file. The field of view is centered
without labels: on the image, or on what moves.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import ndimage

from fewbeats.data.files import open_scan
from fewbeats.data.provenance import file_key
from fewbeats.data.store import MARGIN, Stacks, Stored, slice_order
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.ranges import as_described
from fewbeats.transforms.preprocess import PreprocessSettings, middle, prepare_frame

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan

Centering = Literal["image", "motion"]
REVISION = 1  # of what is stored; part of its key
MOST_LOOKS = 8  # frames that motion is judged by
MOVING_PERCENT = 6.0  # of the image's area that counts as what moves
NEAR_MIDDLE_MM = (
    70.0  # whoever plans a cardiac scan puts the heart near its middle; arms and bowels move, too
)
SMOOTH_MM = 8.0  # the beating heart is one region of several cm; edges of still things are thin


def sample_slices(pool: Stacks, most: int, *, size: int, context: int) -> tuple[np.ndarray, ...]:
    """Some slices of stacks of known direction, the same for the same pool, to judge an encoder by.

    Args:
        pool: all slices.
        most: how many at most.
        size: side of the network's input, pixels; cut from the middle.
        context: neighboring slices on each side, as channels.

    Returns:
        images (n, C, size, size) float32, heights (n,), subjects (n,); none where fewer than two subjects
        have such stacks.
    """
    known = np.flatnonzero((pool.order != 0) & (pool.slices > 1))
    if len(np.unique(pool.subject[known])) < 2:
        return np.empty((0, 2 * context + 1, size, size), np.float32), np.empty(0), np.empty(0)
    draw = np.random.default_rng(0)
    scan = draw.permutation(np.resize(draw.permutation(known), most))
    t, z = (np.array([draw.integers(counts[s]) for s in scan]) for counts in (pool.frames, pool.slices))
    beside = np.arange(-context, context + 1)
    around = [np.clip(at + beside, 0, pool.slices[s] - 1) for s, at in zip(scan, z)]
    wide = np.stack([pool.read(*place) for place in zip(scan, t, around)]).astype(np.float32)
    cut = wide[..., middle(wide.shape[-1], size), middle(wide.shape[-1], size)]
    return cut, pool.heights(scan, z), pool.subject[scan]


def prepare_pool(
    rows: pl.DataFrame, settings: PreprocessSettings, *, cache: Path, center: Centering = "motion"
) -> Stacks:
    """Every frame of every scan of `rows`, laid on the network's grid and stored where it is not yet.

    Args:
        rows: of a cohort; labels are not opened.
        settings: the network's grid.
        cache: folder of stored scans, created when needed.
        center: image, or motion: the middle of what changes over the frames of a cine, or between the
            single-frame files of one study; the image's own where there is nothing to compare.

    Raises:
        InputError: no scan, or one that cannot be read.
    """
    if rows.is_empty():
        raise InputError("no unlabeled scan to learn from; give the cohort subjects of split train")
    index = _index_of(rows, settings, cache, center)
    known = _known_pool(index, cache)
    if known is None:
        known = _store_all(rows, settings, cache=cache, center=center)
        if index is not None:
            _note_pool(index, known)
    paths, frames, slices = known
    numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    order = [slice_order(text, z) for text, z in zip(rows["slice_order"], slices.tolist())]
    return Stacks(
        images=[Stored(cache / path) for path in numbers],
        which=np.array([numbers[path] for path in paths]),
        frames=frames,
        slices=slices,
        order=np.array(order),
        subject=np.array(rows["subject"].to_list(), object),
    )


Known = tuple[list[str], np.ndarray, np.ndarray]
"""Of each row: its stored array below the cache, and T and Z."""


def _store_all(rows: pl.DataFrame, settings: PreprocessSettings, *, cache: Path, center: Centering) -> Known:
    """Store what is not yet."""
    siblings = _siblings(rows)
    paths, shapes = [], []
    for row in rows.iter_rows(named=True):
        path = _store(row, siblings.get(_heart(row), ()), settings=settings, cache=cache, center=center)
        paths.append(str(path.relative_to(cache)))
        shapes.append(np.load(path, mmap_mode="r").shape[:2])
    frames, slices = np.array(shapes).T
    return paths, frames, slices


def _note_pool(index: Path, known: Known) -> None:
    """Note where everything lies: of a biobank the next look takes seconds."""
    paths, frames, slices = known
    whole = io.BytesIO()
    np.savez(whole, paths=np.array(paths), frames=frames, slices=slices)
    with atomic_path(index) as partial:
        partial.write_bytes(whole.getbuffer())


def _known_pool(index: Path | None, cache: Path) -> Known | None:
    """What was noted of the same rows, whose files have not changed since; None where nothing was."""
    if index is None or not index.is_file():
        return None
    with np.load(index) as told:
        paths, frames, slices = told["paths"].tolist(), told["frames"], told["slices"]
    folders = {path[:2] for path in paths}
    there = {f"{folder}/{stored.name}" for folder in folders for stored in (cache / folder).glob("*")}
    return (paths, frames, slices) if set(paths) <= there else None


def _index_of(
    rows: pl.DataFrame, settings: PreprocessSettings, cache: Path, center: Centering
) -> Path | None:
    """Where the places of a pool are noted; None where an image is a folder, whose content is looked at."""
    keys = [file_key(image) for image in rows["image"]]
    if None in keys:
        return None
    names = [name for name in (*HEART, "frames") if name in rows.columns]
    about = [REVISION, as_described(settings), center, rows.select("modality", *names).rows(), keys]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache / "pools" / f"{digest}.npz"


def motion_center(frames: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> tuple[float, float] | None:
    """(y, x) middle of the region whose gray values change most over frames (Z, Y, X); None for one frame.

    Change counts the less the farther it is from the image's middle.
    """
    if len(frames) < 2:
        return None
    change = np.std([frame.astype(np.float32) for frame in frames], axis=0).mean(0)
    change = ndimage.gaussian_filter(change, [SMOOTH_MM / s for s in spacing_mm[1:]])
    for axis, step_mm in enumerate(spacing_mm[1:]):
        away_mm = (np.arange(change.shape[axis]) - (change.shape[axis] - 1) / 2) * step_mm
        likely = np.exp(-0.5 * (away_mm / NEAR_MIDDLE_MM) ** 2)
        change = change * (likely[:, None] if axis == 0 else likely)
    moving, _ = ndimage.label(change >= np.percentile(change, 100 - MOVING_PERCENT))
    strength = ndimage.sum_labels(change, moving, np.arange(1, moving.max() + 1))
    y, x = ndimage.center_of_mass(moving == 1 + int(np.argmax(strength)))
    return float(y), float(x)


HEART = ("subject", "study", "view", "slices", "rows", "columns")
"""Columns by which single-frame files are told to be of one heart on one grid."""


def _heart(row: Mapping[str, Any]) -> tuple:
    return tuple(row[name] for name in HEART)


def _siblings(rows: pl.DataFrame) -> dict[tuple, list[dict[str, Any]]]:
    """Single-frame files of one heart on one grid."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows.filter(rows["frames"] == 1).iter_rows(named=True):
        found.setdefault(_heart(row), []).append(row)
    return found


def _store(
    row: Mapping[str, Any],
    siblings: Sequence[Mapping[str, Any]],
    *,
    settings: PreprocessSettings,
    cache: Path,
    center: Centering,
) -> Path:
    """The stored array of a scan."""
    modality = row["modality"] or "MR"
    seen = [row["image"], *([s["image"] for s in siblings] if center == "motion" else [])]
    keys = [file_key(image) for image in seen]  # None for a folder, which is then read again
    about = json.dumps([REVISION, as_described(settings), center, modality, seen, keys], sort_keys=True)
    key = hashlib.sha256(about.encode()).hexdigest()[:32]
    path = cache / key[:2] / f"{key}.pool.npy"
    if path.is_file() and None not in keys:
        return path
    scan = open_scan(row)
    middle = motion_center(_looks(scan, siblings), scan.spacing_mm) if center == "motion" else None
    size = int(settings.size * MARGIN)
    with atomic_path(path) as partial:
        stored: np.memmap | None = None
        for t in range(scan.shape[0]):
            image, _ = prepare_frame(
                scan.shown(t), scan.spacing_mm, settings, center=middle, size=size, modality=modality
            )
            if stored is None:
                shape = (scan.shape[0], *image.shape)
                stored = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            stored[t] = image
        assert stored is not None
        stored.flush()
    return path


def _looks(scan: Scan, siblings: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Frames of one heart to judge its motion by."""
    if scan.shape[0] == 1:
        return [open_scan(row).frame(0) for row in siblings]
    chosen = np.unique(np.linspace(0, scan.shape[0] - 1, MOST_LOOKS).round().astype(int))
    return [scan.frame(int(t)) for t in chosen]
