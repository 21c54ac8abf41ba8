"""What a folder of masks is like, frame by frame: the table that filters, verdicts and reports read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.files import open_image
from fewbeats.evaluation.measure import measure_scan
from fewbeats.evaluation.predictions import PredictedScan, join_cohort, read_predictions
from fewbeats.evaluation.temporal import beating
from fewbeats.inference.plausibility import border_length_mm
from fewbeats.io.nifti import read_nifti
from fewbeats.metrics import bounding_box, dice, enclosed_share
from fewbeats.scan import Scan

FOR_MOTION = 3
"""Frames from which on a scan has a curve."""
SCHEMA: dict[str, Any] = {
    "scan": pl.String,
    "subject": pl.String,
    "frame": pl.Int64,
    "circular": pl.Boolean,
    "structure": pl.String,
    "ml": pl.Float64,
    "largest_part": pl.Float64,
    "slices": pl.Int64,
    "cut_mm": pl.Float64,
    "enclosed": pl.Float64,
    "neighbor": pl.Float64,
    "agreement": pl.Float64,
}
"""Of the table, one row a frame and structure. largest_part: share of its voxels in one connected part;
slices: that show it; cut_mm: see `border_length_mm`; enclosed: see `enclosed_share`, of LV alone; neighbor:
Dice with the next frame; agreement: Dice with the masks of before. Null where there is none."""


@dataclass(frozen=True)
class Sequence4d:
    """Masks of one scan, read frame by frame."""

    predicted: PredictedScan
    mask: Scan
    circular: bool
    """The last frame is followed by the first."""

    def frame(self, t: int) -> np.ndarray:
        """(Z, Y, X) in `FEWBEATS_VALUES`."""
        return self.mask.frame(t).astype(np.uint8)


def open_sequences(folder: Path) -> Iterator[Sequence4d]:
    """The scans of a folder of masks, one at a time.

    Raises:
        InputError: the folder is none, or a mask cannot be read.
    """
    for predicted in read_predictions(folder)[0]:
        image = open_image(predicted.image)
        yield Sequence4d(predicted, read_nifti(predicted.mask), image.cycle_ms is not None)


def tabulate_frames(folder: Path, *, before: Path | None = None) -> pl.DataFrame:
    """Look at every mask in a folder.

    Args:
        folder: that `label_scans` filled.
        before: such a folder of the round before; scans that it lacks have no agreement.

    Returns:
        the table of `SCHEMA`.

    Raises:
        InputError: a mask cannot be read.
    """
    earlier = {} if before is None else {s.scan: s.mask for s in read_predictions(before)[0]}
    rows = []
    for sequence in open_sequences(folder):
        file = earlier.get(sequence.predicted.scan)
        rows += list(_rows(sequence, read_nifti(file) if file else None))
    return pl.DataFrame(rows, SCHEMA)


def _rows(sequence: Sequence4d, earlier: Scan | None) -> Iterator[dict[str, Any]]:
    frames, first = sequence.mask.shape[0], sequence.frame(0)
    here = first
    for t in range(frames):
        last = t == frames - 1
        after = (first if sequence.circular else None) if last else sequence.frame(t + 1)
        was = None if earlier is None else earlier.frame(t)
        for structure in sequence.predicted.structures:
            yield {
                "scan": sequence.predicted.scan,
                "subject": sequence.predicted.subject,
                "frame": t,
                "circular": sequence.circular,
                "structure": structure,
                **look_at(here, structure, sequence.mask),
                "neighbor": _dice(here, after, structure) if frames > 1 else None,
                "agreement": _dice(here, was, structure),
            }
        if after is not None:
            here = after


def _dice(mask: np.ndarray, other: np.ndarray | None, structure: str) -> float | None:
    value = FEWBEATS_VALUES[structure]
    return None if other is None else dice(mask == value, other == value)


def look_at(mask: np.ndarray, structure: str, scan: Scan) -> dict[str, Any]:
    """One structure of one frame (Z, Y, X): columns ml to enclosed of the table."""
    own = mask == FEWBEATS_VALUES[structure]
    voxels = int(own.sum())
    found: dict[str, Any] = {"ml": voxels * scan.voxel_ml, "slices": int(own.any((1, 2)).sum())}
    found |= {"largest_part": None, "cut_mm": 0.0, "enclosed": None}
    if not voxels:
        return found
    labels, _ = ndimage.label(own[bounding_box(own)], ndimage.generate_binary_structure(3, 2))
    found["largest_part"] = float(np.bincount(labels.ravel())[1:].max() / voxels)
    found["cut_mm"] = border_length_mm(mask, FEWBEATS_VALUES[structure], scan.spacing_mm)
    if structure == "LV":
        found["enclosed"] = enclosed_share(own, mask == FEWBEATS_VALUES["MYO"])
    return found


def structures_of(table: pl.DataFrame) -> Sequence[str]:
    """Of a table, in the usual order."""
    found = set(table["structure"].unique())
    return [s for s in FEWBEATS_VALUES if s in found]


def curves_of(table: pl.DataFrame) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    """Scan -> structure -> volumes (T,)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for (scan, structure), rows in table.group_by("scan", "structure", maintain_order=True):
        found.setdefault(str(scan), {})[str(structure)] = rows.sort("frame")["ml"].to_numpy()
    return list(found.items())


def motion(table: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Scan -> means over its structures: roughness_ml, neighbor; of its LV stroke_ml, ejection_percent.

    Scans of fewer than 3 frames have none.
    """
    circular = dict(table.select("scan", "circular").unique().iter_rows())
    near = dict(table.group_by("scan").agg(pl.col("neighbor").mean()).iter_rows())
    found: dict[str, dict[str, float]] = {}
    for scan, curves in curves_of(table):
        beats = {s: beating(curve, circular=circular[scan]) for s, curve in curves.items()}
        if len(next(iter(curves.values()))) < FOR_MOTION:
            continue
        first = beats.get("LV") or next(iter(beats.values()))
        found[scan] = {
            "roughness_ml": float(np.mean([beat.roughness_ml for beat in beats.values()])),
            "neighbor": near[scan] if near[scan] is not None else float("nan"),
            "flagged": float(sum(len(beat.flagged) for beat in beats.values())),
            "stroke_ml": first.stroke_ml,
            "ejection_percent": first.ejection_percent,
        }
    return found


def judge(folder: Path, cohort: pl.DataFrame) -> pl.DataFrame:
    """subject, dice: mean Dice of masks with manual labels, over structures and frames."""
    rows = [
        {"subject": row["subject"], "dice": row["dice"]}
        for scan in join_cohort(read_predictions(folder)[0], cohort)
        for row in measure_scan(scan).rows
    ]
    table = pl.DataFrame(rows, {"subject": pl.String, "dice": pl.Float64})
    return table.group_by("subject", maintain_order=True).agg(pl.col("dice").mean())
