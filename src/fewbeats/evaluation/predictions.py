"""A folder of predictions, joined to the cohort's manual labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.anatomy import Convention
from fewbeats.data.conventions import find_convention
from fewbeats.errors import InputError
from fewbeats.heartbeat import body_surface_m2

NEEDED = ("scan", "subject", "image", "mask", "ed_frame", "es_frame", "warnings", "seconds")
COLUMNS = (*NEEDED, "labeler", "source")
"""Of predictions.csv: the last two are digests of what labeled the scan, and of what it was read from; tables
of earlier versions lack them."""


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """One scan of a predictions folder, with what the cohort knows about it."""

    scan: str
    subject: str
    mask: Path
    """NIfTI label map in the `fewbeats` convention."""
    image: str
    """File or folder; `FOLDER#2` is the second scan of a DICOM folder."""
    structures: tuple[str, ...]
    """Structures the network looks for."""
    ed_frame: int | None = None
    es_frame: int | None = None
    warnings: tuple[str, ...] = ()
    convention: Convention | None = None
    """What the values of its manual label mean; None without a manual label."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Its row of the cohort, which leads to the label."""
    study: str = ""
    frame: int | None = None
    """Place in the heartbeat of a single-frame file."""
    phase: str | None = None
    """"ED" or "ES" for a single-frame file."""
    plane: str = ""
    """As in the cohort's column view; empty where nobody says it."""
    group: str = ""
    split: str = ""
    body_surface: float | None = None
    """m², where height and weight are known."""
    spacing_trusted: bool = True
    """False where the true voxel size is lost: then there are no mm and no mL."""


def seen_unlabeled(run: Mapping[str, Any]) -> set[str]:
    """Subjects whose images, not labels, a transductive run has seen.

    Args:
        run: `run.json` of a predictions folder.
    """
    training = run.get("training") or run
    return set(map(str, training.get("unlabeled_subjects") or ())) if training.get("transductive") else set()


def read_predictions(folder: Path) -> tuple[list[PredictedScan], dict[str, Any]]:
    """The scans of a predictions folder, and the run they came from (`run.json`).

    Raises:
        InputError: no such folder, or its tables cannot be read.
    """
    table, run_file = folder / "predictions.csv", folder / "run.json"
    for file in (table, run_file):
        if not file.is_file():
            raise InputError(f"{file}: missing; give the folder that `fewbeats predict` wrote")
    try:
        run = json.loads(run_file.read_text())
        found = pl.read_csv(table, infer_schema=False)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{folder}: damaged predictions.csv or run.json; run `fewbeats predict` again"
        ) from error
    lacking = [c for c in NEEDED if c not in found.columns]
    if not isinstance(run, dict):
        raise InputError(f"{run_file}: damaged; run `fewbeats predict` again")
    if lacking or not run.get("structures"):
        what = f"lacks the columns {lacking}" if lacking else "run.json names no structures"
        raise InputError(f"{table}: {what}; run `fewbeats predict` again")
    if run.get("finished") is False:
        raise InputError(f"{folder}: its labeling was stopped; run the same `fewbeats predict` again")
    if "labeler" in found.columns and set(found["labeler"]) - {run.get("labeler")}:
        raise InputError(f"{table}: holds masks of another network than run.json names; predict again")
    if found.is_empty():
        raise InputError(f"{table}: holds no scan; run `fewbeats predict` again")
    if twice := found["scan"].filter(found["scan"].is_duplicated()).to_list():
        raise InputError(f"{table}: '{twice[0]}' stands in it {twice.count(twice[0])} times; keep one")
    structures = tuple(run["structures"])
    return [_predicted(folder, row, structures) for row in found.iter_rows(named=True)], run


def _predicted(folder: Path, row: dict[str, str | None], structures: tuple[str, ...]) -> PredictedScan:
    return PredictedScan(
        scan=row["scan"] or "",
        subject=row["subject"] or row["scan"] or "",
        mask=folder / (row["mask"] or ""),
        image=row["image"] or "",
        structures=structures,
        ed_frame=_frame(folder, row, "ed_frame"),
        es_frame=_frame(folder, row, "es_frame"),
        warnings=tuple(w.strip() for w in (row["warnings"] or "").split(";") if w.strip()),
    )


def _frame(folder: Path, row: dict[str, str | None], name: str) -> int | None:
    text = (row[name] or "").strip()
    number = read_count(text)
    if text and number is None:
        raise InputError(
            f"{folder / 'predictions.csv'}: {name} of {row['scan']} is '{text}', not a frame counted from 0; "
            "mend it"
        )
    return number


def read_count(text: str) -> int | None:
    """A whole number from 0, None where a text is none.

    >>> read_count("3"), read_count("3.0"), read_count("3.5")
    (3, 3, None)
    """
    return int(float(text)) if re.fullmatch(r"\d{1,9}(\.0*)?", text) else None  # spreadsheets write 3.0


def join_cohort(predicted: list[PredictedScan], cohort: pl.DataFrame) -> list[PredictedScan]:
    """Add what the cohort knows, the manual label above all; scans it does not hold are left out."""
    known = {row["scan"]: row for row in cohort.iter_rows(named=True)}
    return [_joined(scan, known[scan.scan]) for scan in predicted if scan.scan in known]


def _joined(scan: PredictedScan, row: dict[str, Any]) -> PredictedScan:
    height, weight = row.get("height_cm"), row.get("weight_kg")
    trusted = row.get("spacing_trusted")
    return replace(
        scan,
        subject=str(row["subject"]),
        image=row["image"],
        convention=_convention(row),
        row=row,
        study=str(row.get("study") or ""),
        frame=row.get("frame"),
        phase=row.get("phase") or None,
        plane=row.get("view") or "",
        group=row.get("group") or "",
        split=row.get("split") or "",
        body_surface=body_surface_m2(height, weight) if height and weight else None,
        spacing_trusted=True if trusted is None else bool(trusted),
    )


def _convention(row: dict[str, Any]) -> Convention | None:
    """Meaning of the label's values where a person drew it; what a teacher made proves nothing."""
    if not row.get("label") or row.get("label_source") not in (None, "manual"):
        return None
    return find_convention(row["convention"])
