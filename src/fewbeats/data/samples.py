"""Cohort rows -> Samples: read, laid on the network's grid, normalized, kept on disk.

A sample is wider than the network's field of view, so that rotation and shift find real pixels beyond it.
It is stored once under a key of its content and the settings, as two arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbeats.anatomy import annotated, relabel
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import open_labels, open_scan
from fewbeats.data.store import MARGIN, Stored, keep, slice_order
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.ranges import as_described
from fewbeats.sample import Sample
from fewbeats.scan import Scan
from fewbeats.transforms.preprocess import PreprocessSettings, prepare_frame

REVISION = 1  # of what a stored sample is; part of its key

Center = Callable[[np.ndarray], tuple[float, float] | None]
"""Class indices (Z, Y, X) -> (y, x) center of the field of view, None for the image's own center."""


def labels_center(mask: np.ndarray) -> tuple[float, float] | None:
    """Middle of the in-plane bounding box of everything labeled."""
    rows, columns = (np.flatnonzero((mask > 0).any((0, axis))) for axis in (2, 1))
    if len(rows) == 0:
        return None
    return (float(rows[0] + rows[-1]) / 2, float(columns[0] + columns[-1]) / 2)


def image_center(mask: np.ndarray) -> None:
    """The image's own center, for what must not know the labels or learns to find them."""
    return


def prepare_labeled(
    rows: Iterable[Mapping[str, Any]],
    settings: PreprocessSettings,
    *,
    structures: Sequence[str],
    cache: Path,
    center: Center = labels_center,
    phase: str | None = None,
) -> list[Sample]:
    """The labeled frames of cohort rows as samples.

    Args:
        rows: cohort rows; those without labels are passed over.
        settings: the network's grid.
        structures: in class order.
        cache: folder of stored samples, created when needed.
        center: where the field of view goes.
        phase: ED or ES: only frames of this phase.

    Raises:
        InputError: an image or label cannot be used, or is empty.
    """
    samples = []
    for row in rows:
        if row["label"] is None:
            continue
        scan = open_scan(row)
        sure = open_confidence(row, scan)
        for t, values in open_labels(row, scan).items():
            if phase and phase != _phase(row, t):
                continue
            sample = _prepare(
                row,
                scan,
                t=t,
                values=values,
                sure=sure(t),
                settings=settings,
                structures=tuple(structures),
                cache=cache,
                center=center,
            )
            samples.append(sample)
    return samples


def _phase(row: Mapping[str, Any], t: int) -> str | None:
    return row["phase"] or {row["es_frame"]: "ES", row["ed_frame"]: "ED"}.get(t)


def _prepare(
    row: Mapping[str, Any],
    scan: Scan,
    *,
    t: int,
    values: np.ndarray,
    sure: np.ndarray | None,
    settings: PreprocessSettings,
    structures: tuple[str, ...],
    cache: Path,
    center: Center,
) -> Sample:
    convention = find_convention(row["convention"])
    mask = relabel(values, convention, structures, file=row["label"])
    frame = scan.shown(t)
    modality = row["modality"] or "MR"
    key = _key(
        frame,
        mask,
        *([] if sure is None else [sure]),
        spacing_mm=scan.spacing_mm,
        settings=settings,
        structures=structures,
        center=center,
        modality=modality,
    )
    folder = cache / key[:2]
    if not (folder / f"{key}.mask.npy").is_file():
        size = int(settings.size * MARGIN)
        image, grid = prepare_frame(
            frame, scan.spacing_mm, settings, center=center(mask), size=size, modality=modality
        )
        keep(folder / f"{key}.image.npy", image.astype(np.float16))
        if sure is not None:
            keep(folder / f"{key}.weight.npy", np.rint(255 * grid.sample(weigh(sure))).astype(np.uint8))
        keep(folder / f"{key}.mask.npy", grid.sample_labels(mask))
    stored = Stored(folder / f"{key}.image.npy")
    return Sample(
        image=stored,
        mask=Stored(folder / f"{key}.mask.npy"),
        weight=None if sure is None else Stored(folder / f"{key}.weight.npy"),
        annotated=annotated(convention, structures),
        subject=row["subject"],
        scan=row["scan"],
        frame=t,
        source=row["label_source"] or "manual",
        spacing_mm=scan.spacing_mm,
        order=slice_order(row["slice_order"], stored.shape[0]),
        key=key,
    )


def open_confidence(row: Mapping[str, Any], scan: Scan) -> Callable[[int], np.ndarray | None]:
    """For each frame how sure each voxel of its label is (Z, Y, X), 0 to 255; None where nobody tells.

    Raises:
        InputError: the file cannot be read, or is not on the image's grid.
    """
    if not row.get("label_confidence"):
        return lambda t: None
    file = Path(row["label_confidence"])
    told = read_nifti(file)
    if told.shape != scan.shape:
        raise InputError(f"{file}: shape {told.shape} is not the image's {scan.shape}; label the scan again")
    return lambda t: told.frame(t)


def weigh(sure: np.ndarray) -> np.ndarray:
    """What the voxels of a frame count by how sure they are: 0 for the least sure, 1 for the surest.

    1 - u with the uncertainty u scaled to its range in the frame, as in STRUDEL (Groeger et al., MIUA 2021).
    """
    low, high = float(sure.min()), float(sure.max())
    return np.ones_like(sure) if high == low else ((sure - low) / (high - low)).astype(np.float32)


def _key(
    frame: np.ndarray,
    *labels: np.ndarray,
    spacing_mm: tuple[float, float, float],
    settings: PreprocessSettings,
    structures: tuple[str, ...],
    center: Center,
    modality: str,
) -> str:
    spacing = np.round(spacing_mm, 5).tolist()
    about = [REVISION, as_described(settings), structures, center.__name__, spacing, modality]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for array in (frame, *labels):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
