"""Classes and points that a task's network told, against what the cohort says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fewbeats.data.files import open_scan
from fewbeats.data.points import count_points, open_points
from fewbeats.data.presence import open_presence
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.evaluation.answers import LEVELS, Row, read_answers
from fewbeats.evaluation.classes import Told, summarize_classes
from fewbeats.evaluation.points import match_points, summarize_errors
from fewbeats.evaluation.predictions import seen_unlabeled
from fewbeats.finetuning.task import PRESENT, Task, study_truth


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of comparing a folder of answers with a cohort."""

    task: Task
    run: Mapping[str, Any]
    """The folder's `run.json`."""
    rows: list[Row]
    """What was told and can be judged, with `truth`; of points with `error_mm` and `true_mm`."""
    every: list[Row] = field(default_factory=list)
    """All that was told."""
    told: dict[str, Told] = field(default_factory=dict)
    """Level -> items, of classes."""
    summary: dict[str, Any] = field(default_factory=dict)


def judge_task(predictions: Path, cohort: pl.DataFrame) -> Judged:
    """Compare a task's answers with a cohort.

    Args:
        predictions: folder of `fewbeats predict`.
        cohort: as `read_cohort` gives it.

    Raises:
        InputError: files that do not fit each other, or nothing in the cohort to judge by.
    """
    task, run, rows = read_answers(predictions)
    known = {row["scan"]: row for row in cohort.iter_rows(named=True)}
    if task.kind == "landmarks":
        judged = _judge_points(task, rows, known)
    else:
        judged = _judge_classes(task, rows, known)
    if not judged.rows:
        what = "points" if task.kind == "landmarks" else f"classes in {task.column or 'its masks'}"
        others = ", ".join(judged.summary.get("unknown_classes", ()))
        says = f"tells only {others}, which the network does not know" if others else f"tells no {what}"
        raise InputError(f"{predictions}: of these scans the cohort {says}; nothing to judge by")
    judged.summary["task"] = task.title
    if away := {row["scan"] for row in rows if row["scan"]} - known.keys():
        judged.summary["scans_not_in_cohort"] = len(away)
    if seen := {row["subject"] for row in judged.rows} & seen_unlabeled(run):
        judged.summary["subjects_seen_unlabeled"] = len(seen)
    return replace(judged, run=run, every=rows)


def evaluate_task(predictions: Path, cohort: pl.DataFrame, out: Path) -> dict[str, Any]:
    """Judge a task's answers and write `judged.csv`, `summary.json` and `report.html`.

    Raises:
        InputError: as `judge_task`.
    """
    from fewbeats.evaluation.task_report import render_task

    judged = judge_task(predictions, cohort)
    page = render_task(judged, {row["scan"]: row for row in cohort.iter_rows(named=True)})
    names = list(dict.fromkeys(n for row in judged.rows for n in row if n != "true_mm"))
    table = pl.DataFrame([{name: row.get(name) for name in names} for row in judged.rows],
                         infer_schema_length=None)  # fmt: skip
    texts = {
        "judged.csv": table.write_csv(float_precision=5),
        "summary.json": json.dumps(judged.summary, indent=2) + "\n",
        "report.html": page,
    }
    for name, text in texts.items():
        with atomic_path(out / name) as file:
            file.write_text(text, encoding="utf-8")
    return judged.summary


def _judge_classes(task: Task, rows: Sequence[Row], known: Mapping[str, Row]) -> Judged:
    """Each level that the cohort knows the truth of; classes that the network does not know are left out."""
    slices = slice_truth(task, {row["scan"] for row in rows}, known)
    scans = scan_truth(slices, rows)
    studies = study_truth(task, known.values())
    found, left_out = list[Row](), dict[str, int]()
    for row in rows:
        level, truth = row["level"], None
        if level == "slice" and task.present:
            truth = slices.get((row["scan"], row["frame"], row["slice"]))
        elif level == "study":
            truth = studies.get((row["subject"], row["study"])) or _named(studies, row["study"])
        elif level == "scan" and task.present:
            truth = scans.get(row["scan"])
        elif task.column and task.kind == "classification" and row["scan"] in known:
            truth = known[row["scan"]].get(task.column)
        classes = task.classes if level == "study" else task.slice_classes
        if truth is None:
            continue
        if truth not in classes:
            left_out[truth] = left_out.get(truth, 0) + 1
        else:
            found.append({**row, "truth": truth})
    levels = [level for level in LEVELS if any(r["level"] == level for r in found)]
    told = {level: _items(task, [r for r in found if r["level"] == level], level) for level in levels}
    summary: dict[str, Any] = {level: summarize_classes(items) for level, items in told.items()}
    if task.present and (within := within_present(found)):
        told["slice within"] = _items(task, within, "slice")
        summary["slice_within_studies_with_any"] = summarize_classes(told["slice within"])
    if left_out:
        summary["unknown_classes"] = left_out
    return Judged(task=task, run={}, rows=found, told=told, summary=summary)


def _named(studies: Mapping[tuple[str, str], str], name: str) -> str | None:
    """The class of a study that is called by its subject, too, as another bears its name."""
    return next((told for (subject, study), told in studies.items() if f"{subject}_{study}" == name), None)


def slice_truth(task: Task, scans: set[str], known: Mapping[str, Row]) -> dict[tuple[str, int, int], str]:
    """(scan, frame, slice) -> class, of slices whose mask was drawn by hand."""
    truth: dict[tuple[str, int, int], str] = {}
    for name in sorted(scans & known.keys() if task.present else set()):
        row = known[name]
        if row["label"] is None or row["label_source"] not in (None, "manual"):
            continue
        for t, find in open_presence(row, open_scan(row), task.present).items():
            truth |= {(name, t, z): task.slice_classes[int(there)] for z, there in enumerate(find())}
    return truth


def scan_truth(slices: Mapping[tuple[str, int, int], str], rows: Iterable[Row]) -> dict[str, str]:
    """Scan -> class: it shows what one of its slices shows, and nothing where all slices that were told of
    are known to show nothing.

    Args:
        slices: of `slice_truth`.
        rows: what was told.
    """
    truth: dict[str, str] = {}
    for (scan, *_), told in slices.items():
        if truth.get(scan) != PRESENT:
            truth[scan] = told
    unknown = {
        row["scan"]
        for row in rows
        if row["level"] == "slice" and (row["scan"], row["frame"], row["slice"]) not in slices
    }
    return {scan: told for scan, told in truth.items() if told == PRESENT or scan not in unknown}


def _items(task: Task, rows: Sequence[Row], level: str) -> Told:
    classes = task.classes if level == "study" else task.slice_classes
    return Told(
        classes=classes,
        subject=np.array([row["subject"] for row in rows]),
        truth=np.array([classes.index(row["truth"]) for row in rows]),
        shares=np.array([[float(row[f"p_{name}"] or 0) for name in classes] for row in rows]),
    )


def within_present(rows: Sequence[Row]) -> list[Row]:
    """Slices of studies that hold what is looked for anywhere: elsewhere the study alone tells the class."""
    slices = [row for row in rows if row["level"] == "slice"]
    holding = {(row["subject"], row["study"]) for row in slices if row["truth"] == PRESENT}
    return [row for row in slices if (row["subject"], row["study"]) in holding]


def _judge_points(task: Task, rows: Sequence[Row], known: Mapping[str, Row]) -> Judged:
    by_slice: dict[tuple[str, int, int], dict[str, list[Row]]] = {}
    for row in rows:
        place = (row["scan"], row["frame"], row["slice"])
        by_slice.setdefault(place, {}).setdefault(row["point"], []).append(row)
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in task.points}
    found, missed = list[Row](), 0
    for name in dict.fromkeys(row["scan"] for row in rows):
        for (t, z), point, truth in _true_points(task, known.get(name)):
            told = by_slice.get((name, t, z), {}).get(point, [])
            if len(told) < len(truth):
                missed += len(truth)
                continue
            places = np.array([[float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for row in told])
            away, of = match_points(places, truth)
            subject = known[name]["subject"]
            errors[point].setdefault(subject, []).extend(away.tolist())
            found += [
                {**row, "error_mm": float(error), "true_mm": truth[number].tolist()}
                for row, error, number in zip(told, away, of)
            ]
    summary = summarize_errors({name: own for name, own in errors.items() if own}) if found else {}
    return Judged(task=task, run={}, rows=found, summary={"points": summary, "missed_points": missed})


def _true_points(task: Task, row: Row | None) -> Iterator[tuple[tuple[int, int], str, np.ndarray]]:
    """(frame, slice), name and places (count, 3) in mm of the points that a cohort's row tells."""
    made = row is not None and row["label_source"] not in (None, "manual") and not row.get("points")
    if row is None or made:
        return
    scan = open_scan(row)
    counts = count_points(task.points)
    for t, find in open_points(row, scan, task.points).items():
        for z, points in enumerate(find()):
            for name, own in zip(task.points, np.split(points, np.cumsum(counts)[:-1])):
                if not np.isnan(own).any():
                    at = np.stack([own[:, 1], own[:, 0], np.full(len(own), z), np.ones(len(own))])
                    yield (t, z), name, (scan.affine[:3] @ at).T
