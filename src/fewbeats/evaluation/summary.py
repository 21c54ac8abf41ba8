"""Rows -> the figures of `summary.json`: means over subjects with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from fewbeats.evaluation.measure import Heartbeat
from fewbeats.evaluation.scores import OF_MASKS
from fewbeats.evaluation.statistics import average_subjects, bland_altman, bootstrap_interval
from fewbeats.heartbeat import QUANTITIES


def tabulate_heartbeats(beats: Sequence[Heartbeat]) -> pl.DataFrame:
    """One row a heartbeat and quantity: values null where there is none.

    `predicted` is also null where a warning withholds it; `from_masks` is not, so that a method is judged by
    its failures, too.
    """
    rows = [
        (b.subject, b.study, b.group, b.scans[0], q, QUANTITIES[q][1],
         b.quoted.get(q), b.manual.get(q), b.predicted.get(q))
        for b in beats
        for q in QUANTITIES
        if q in b.predicted or q in b.manual
    ]  # fmt: skip
    text = ("subject", "study", "group", "scan", "quantity", "unit")
    values = ("predicted", "manual", "from_masks")
    schema = dict.fromkeys(text, pl.String) | dict.fromkeys(values, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def summarize(rows: pl.DataFrame, clinical: pl.DataFrame, structures: Sequence[str]) -> dict[str, Any]:
    """Every figure of an evaluation.

    A score is the mean over subjects of the mean over structures of the mean over frames, a fraction for
    Dice; its `ci95` is a bootstrap over subjects; a score that is nowhere known is null.

    Args:
        rows: one row a scan, frame and structure (`subjects.csv`).
        clinical: one row a heartbeat and quantity (`clinical.csv`).
        structures: in the order wanted.
    """
    judged = [s for s in structures if s in set(rows["structure"])]
    agreement, quoted = (_clinical_agreement(clinical, column) for column in ("from_masks", "predicted"))
    sides = {"LV": "lv_ef_percent", "RV": "rv_ef_percent"}
    return {
        "subjects": rows["subject"].n_unique(),
        "scans": rows["scan"].n_unique(),
        "frames": rows.select("scan", "frame").n_unique(),
        "structures": judged,
        **_scores(rows, judged),
        "ci95_by_structure": _intervals(rows, judged),
        "misses": int(rows["miss"].sum()),
        "judged_masks": len(rows),
        "ef_percent": {
            side: {**agreement[q], "quoted": quoted.get(q)} for side, q in sides.items() if q in agreement
        },
        "clinical": agreement,
        "groups": _scores_by(rows, "group", judged),
        "phases": _scores_by(rows, "phase", judged),
    }


def _scores_by(rows: pl.DataFrame, column: str, structures: Sequence[str]) -> dict[str, Any]:
    found = {}
    for key in rows[column].drop_nulls().unique().sort():
        if key != "":
            part = rows.filter(pl.col(column) == key)
            subjects, misses = part["subject"].n_unique(), int(part["miss"].sum())
            found[key] = {"subjects": subjects, **_scores(part, structures), "misses": misses}
    return found


def _scores(rows: pl.DataFrame, structures: Sequence[str]) -> dict[str, Any]:
    return {score: _score(rows, score, structures) for score in OF_MASKS}


def _score(rows: pl.DataFrame, score: str, structures: Sequence[str]) -> dict[str, Any]:
    averaged = average_subjects(rows, score)
    overall = average_over_structures(averaged, score)[score]
    by_structure = {s: averaged.filter(structure=s)[score] for s in structures}
    return {
        "mean": overall.mean(),
        "ci95": bootstrap_interval(overall.to_numpy()),
        **{s: values.mean() for s, values in by_structure.items()},
    }


def _intervals(rows: pl.DataFrame, structures: Sequence[str]) -> dict[str, Any]:
    """Score -> structure -> bootstrap interval."""
    found = {}
    for score in OF_MASKS:
        averaged = average_subjects(rows, score)
        found[score] = {
            s: bootstrap_interval(averaged.filter(structure=s)[score].to_numpy()) for s in structures
        }
    return found


def average_over_structures(averaged: pl.DataFrame, score: str) -> pl.DataFrame:
    """One row a subject: the mean of its structures' values."""
    return averaged.group_by("subject").agg(pl.col(score).mean()).sort("subject")


def _clinical_agreement(clinical: pl.DataFrame, column: str) -> dict[str, Any]:
    """Bland-Altman of a column of predictions by quantity, the subject as the unit."""
    both = clinical.drop_nulls([column, "manual"])
    by_subject = both.group_by("quantity", "subject").agg(pl.col(column, "manual").mean()).sort("subject")
    found = {}
    for q in QUANTITIES:
        pairs = by_subject.filter(pl.col("quantity") == q)
        if len(pairs):
            found[q] = asdict(bland_altman(pairs[column].to_list(), pairs["manual"].to_list()))
    return found
