"""Tables of classes and points, as `fewbeats predict` wrote them and a person may have mended them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.data.points import count_points
from fewbeats.data.split import read_columns
from fewbeats.errors import InputError, name_some
from fewbeats.evaluation.predictions import read_count
from fewbeats.finetuning.task import TABLES, Task, read_task
from fewbeats.training.rundir import RunDir

Row = dict[str, Any]
LEVELS = ("study", "scan", "slice")
"""What a row of classes may speak of, the widest first."""
SLACK = 0.01
"""How far from 1 the probabilities of a row may add up to: spreadsheets round."""


def is_of_task(predictions: Path) -> bool:
    """Whether a folder holds answers of a task, not masks."""
    file = predictions / "run.json"
    return file.is_file() and RunDir(predictions).read_json("run.json").get("task") in TABLES


def read_answers(predictions: Path) -> tuple[Task, Mapping[str, Any], list[Row]]:
    """Task, `run.json` and rows of a folder; `frame` and `slice` are whole numbers, None
    where a row speaks of more than a slice; all else is text.

    Raises:
        InputError: not a finished folder of a task's answers, or a table that `predict` cannot have written.
    """
    run = RunDir(predictions).read_json("run.json")
    if run.get("task") not in TABLES or not isinstance(run.get("target"), Mapping):
        raise InputError(f"{predictions}: holds no classes or points; give what `fewbeats predict` wrote")
    file = predictions / TABLES[run["task"]]
    if run.get("finished") is False or not file.is_file():
        raise InputError(f"{predictions}: was stopped; run the same `fewbeats predict` again")
    task = read_task(run["target"], file=predictions / "run.json")
    rows = _read_points(file, task) if task.kind == "landmarks" else _read_classes(file, task)
    if not rows:
        raise InputError(f"{file}: holds no row; run `fewbeats predict` again")
    return task, run, rows


def judged_scans(predictions: Path, cohort: pl.DataFrame) -> list[str]:
    """The scans of a cohort that a folder of answers is judged by: of a task of studies all of its subjects.

    Raises:
        InputError: see `read_answers`, or the cohort has none of them.
    """
    task, _, rows = read_answers(predictions)
    by = "subject" if task.kind == "study" else "scan"
    found = cohort.filter(pl.col(by).is_in([row[by] for row in rows]))
    if found.is_empty():
        told = name_some(sorted({row[by] for row in rows}))
        raise InputError(f"{predictions}: none of its {by}s is in the cohort ({told}); give the cohort that "
                         "`fewbeats predict` was given")  # fmt: skip
    return found["scan"].to_list()


def _read_classes(file: Path, task: Task) -> list[Row]:
    shares = [f"p_{name}" for name in dict.fromkeys((*task.classes, *task.slice_classes))]
    needed = ("subject", "level", "scan", "frame", "slice", "class", *shares)
    rows = _read(file, needed, maybe=("study", "confidence", "attention"))
    for number, row in enumerate(rows, start=2):
        if row["level"] not in LEVELS:
            raise InputError(f"{file}: row {number}: level is '{row['level']}', none of {', '.join(LEVELS)}")
        if row["level"] != "slice":
            row["frame"] = row["slice"] = None
        else:
            _count(row, number, file)
            if task.kind == "study" and not task.present:
                continue  # a slice has attention, no class
        classes = task.classes if row["level"] == "study" else task.slice_classes
        values = [_number(row, f"p_{name}", number, file) for name in classes]
        if min(values) < 0 or max(values) > 1 or abs(sum(values) - 1) > SLACK:
            raise InputError(
                f"{file}: row {number}: {', '.join(map(str, values))} are no probabilities that add up to 1; "
                "run `fewbeats predict` again"
            )
        if row["class"] not in classes:
            raise InputError(f"{file}: row {number}: '{row['class']}' is none of {', '.join(classes)}")
    _refuse_twice(rows, ("level", "subject", "study", "scan", "frame", "slice"), {}, file)
    return rows


def _read_points(file: Path, task: Task) -> list[Row]:
    places = ("x_mm", "y_mm", "z_mm")
    rows = _read(file, ("subject", "scan", "frame", "slice", "point", *places), maybe=("study", "confidence"))
    for number, row in enumerate(rows, start=2):
        _count(row, number, file)
        for name in places:
            _number(row, name, number, file)
        if row["point"] not in task.points:
            raise InputError(f"{file}: row {number}: '{row['point']}' is none of {', '.join(task.points)}")
    most = dict(zip(task.points, count_points(task.points)))
    _refuse_twice(rows, ("scan", "frame", "slice", "point"), most, file)
    return rows


def _read(file: Path, names: Sequence[str], maybe: Sequence[str]) -> list[Row]:
    return read_columns(file, *names, maybe=maybe).fill_null("").to_dicts()


def _count(row: Row, number: int, file: Path) -> None:
    """Frame and slice become whole numbers."""
    for name in ("frame", "slice"):
        if (count := read_count(row[name])) is None:
            raise InputError(f"{file}: row {number}: {name} is '{row[name]}', not a number from 0; mend it")
        row[name] = count


def _number(row: Row, name: str, number: int, file: Path) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{file}: row {number}: {name} is '{row[name]}', no number; mend it")
    return value


def _refuse_twice(rows: Sequence[Row], names: Sequence[str], most: Mapping[str, int], file: Path) -> None:
    """Each place stands in a table once, a point of several as often as there are such points."""
    for place, count in Counter(tuple(row[name] for name in names) for row in rows).items():
        if count > most.get(place[-1], 1):
            told = ", ".join(
                f"{name} {value}" for name, value in zip(names, place) if value not in ("", None)
            )
            raise InputError(f"{file}: {told}: stands in it {count} times; take out what is too much")
