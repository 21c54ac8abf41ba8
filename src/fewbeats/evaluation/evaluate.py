"""Predictions + cohort -> `subjects.csv`, `clinical.csv`, `summary.json` and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.evaluation.measure import Heartbeat, MeasuredScan, find_heartbeats, measure_scan
from fewbeats.evaluation.predictions import PredictedScan, join_cohort, read_predictions, seen_unlabeled
from fewbeats.evaluation.report import render_report
from fewbeats.evaluation.summary import summarize, tabulate_heartbeats


def evaluate(predictions: Path, cohort: pl.DataFrame, out: Path) -> dict[str, Any]:
    """Judge predictions against the manual labels of a cohort and write the report.

    Args:
        predictions: folder written by `fewbeats predict`.
        cohort: as `read_cohort` gives it.
        out: folder for the four files; nothing is written before all is measured.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: no predicted scan has a manual label, or files that do not fit each other.
    """
    predicted, run = read_predictions(predictions)
    scans = join_cohort(predicted, cohort)
    if not any(scan.convention for scan in scans):
        raise InputError(
            f"{predictions}: none of its {len(predicted)} scans has a manual label in the cohort"
            f"{_tell_made(scans)}; predict scans of that cohort, or add their labels to its column label"
        )
    measured = [measure_scan(scan) for scan in scans]
    beats = find_heartbeats(measured)
    rows = pl.DataFrame([row for m in measured for row in m.rows], infer_schema_length=None)
    if rows.is_empty():
        raise InputError(
            f"{predictions}: the labels speak of none of the predicted structures "
            f"({', '.join(run['structures'])}); check the cohort's column convention"
        )
    clinical = tabulate_heartbeats(beats)
    summary = summarize(rows, clinical, run["structures"])
    summary |= _count_caveats(scans, beats, predicted=len(predicted), cohort=cohort, run=run)
    summary |= {"exchanged_scans": sum(m.exchanged for m in measured)}
    summary |= {"seconds": run.get("seconds"), "peak_memory_mb": run.get("peak_memory_mb")}
    page = render_report(measured, beats, run=run, rows=rows, summary=summary)
    _write(out / "subjects.csv", rows.write_csv(float_precision=5))
    _write(out / "clinical.csv", clinical.write_csv(float_precision=3))
    _write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    _write(out / "report.html", page)
    return summary


def write_prediction_report(predictions: Path, out: Path) -> Path:
    """The report of predictions without manual labels: cine, volumes and curves, no Dice.

    Args:
        predictions: folder written by `fewbeats predict`.
        out: folder for `report.html`.

    Returns:
        Path of the report.

    Raises:
        InputError: the folder cannot be read.
    """
    scans, run = read_predictions(predictions)
    measured: Sequence[MeasuredScan] = [measure_scan(scan) for scan in scans]
    beats: Sequence[Heartbeat] = find_heartbeats(measured)
    _write(out / "report.html", render_report(measured, beats, run=run))
    return out / "report.html"


def _tell_made(scans: list[PredictedScan]) -> str:
    """That there are labels, but such as no person drew."""
    made = [str(s.row["label_source"]) for s in scans if s.row.get("label") and s.convention is None]
    return f" ({len(made)} labels are {' or '.join(sorted(set(made)))})" if made else ""


def _count_caveats(
    scans: list[PredictedScan],
    beats: list[Heartbeat],
    *,
    predicted: int,
    cohort: pl.DataFrame,
    run: dict[str, Any],
) -> dict[str, int]:
    """What a reader must know beside the means: who is not in them, and who should not be."""
    splits, names = {s.split for s in scans}, {s.scan for s in scans}
    labeled = cohort.filter(pl.col("label").is_not_null() & (pl.col("label_source") == "manual"))
    missing = [
        row
        for row in labeled.iter_rows(named=True)
        if (row.get("split") or "") in splits and row["scan"] not in names
    ]
    trained_on = set(map(str, run.get("labeled_subjects") or ()))
    seen = seen_unlabeled(run)
    return {
        "warned_scans": sum(bool(s.warnings) for s in scans),
        "withheld_heartbeats": sum(bool(b.withheld) for b in beats),
        "unlabeled_scans": sum(s.convention is None for s in scans),
        "scans_outside_cohort": predicted - len(scans),
        "labeled_scans_not_predicted": len(missing),
        "subjects_trained_on": len({s.subject for s in scans if s.convention} & trained_on),
        "subjects_seen_unlabeled": len({s.subject for s in scans if s.convention} & seen - trained_on),
    }


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
