"""Rows of a study -> what they say: means, paired differences to the baseline, and one sentence a budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from fewbeats.evaluation.scores import EXCHANGED, SCORES, Score
from fewbeats.evaluation.statistics import bootstrap_interval
from fewbeats.study.budget import COUNTED
from fewbeats.study.contrast import (
    Cell,
    Contrast,
    adjust,
    by_subject,
    compare_arms,
    compare_best,
    find_best,
    mean_of,
)
from fewbeats.study.sentences import say
from fewbeats.study.units import NETWORK

MISSED = next(score for score in SCORES.values() if score.missed is not None)
"""The score that says whether a structure was missed."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a study found so far."""

    score: Score
    cells: list[Cell]
    contrasts: list[Contrast]
    """To the baseline."""
    beside: list[Contrast]
    """Of the arm that is best at a budget to the others, where there is one."""
    gains: list[Contrast]
    """Of pretrained arms to the arm that starts the same network at random, perhaps the baseline."""
    sentences: dict[int, str]
    """Budget -> which method to use, and whether the evidence is enough."""
    shared: tuple[str, ...]
    """Arms whose draws share one pretraining."""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "score": self.score.name,
            "cells": [asdict(c) for c in self.cells],
            "contrasts": [_plain(c) for c in self.contrasts],
            "beside": [_plain(c) for c in self.beside],
            "gains": [_plain(c) for c in self.gains],
            "sentences": self.sentences,
            "shared": self.shared,
        }


def _plain(contrast: Contrast) -> dict[str, Any]:
    known = asdict(replace(contrast, without=None))
    without = contrast.without and {
        "p_value": contrast.without.p_value,
        "is_clear": contrast.without.is_clear,
    }
    return known | {"is_clear": contrast.is_clear, "without": without}


def analyze(
    rows: pl.DataFrame,
    arms: Sequence[str],
    *,
    baseline: str,
    score: Score,
    primary: tuple[str, int] | None = None,
    shared: Collection[str] = (),
    random_starts: Mapping[str, str] | None = None,
    budgeted: str = COUNTED,
) -> Result:
    """Compare the arms of a study.

    Args:
        rows: of one split, as `units.read_rows` gives them.
        arms: in the order wanted. An arm's further networks follow it, named ARM/NETWORK.
        baseline: what the others are compared with, over the draws that both have.
        score: what is compared.
        primary: arm and budget of the contrast that was named beforehand.
        shared: arms whose draws share one pretraining.
        random_starts: pretrained arm -> the one that starts the same network at random.
        budgeted: what a budget counts.

    Raises:
        InputError: arms or draws that were judged on different subjects, phases or structures.
    """
    rows = name_networks(rows.filter(pl.col("arm").is_in(list(arms))))
    names = set(rows["arm"])
    arms = [name for arm in arms for name in sorted(n for n in names if arm_of(n) == arm)]
    shared = tuple(arm for arm in arms if arm_of(arm) in shared)
    judged = rows.filter(pl.col("metric") == score.name)
    budgets = sorted(judged["labeled"].unique())
    cells = [
        _cell(part, rows.filter(*at), arm, labeled)
        for labeled in budgets
        for arm in arms
        if not (
            part := judged.filter(*(at := (pl.col("arm") == arm, pl.col("labeled") == labeled)))
        ).is_empty()
    ]
    contrasts = _against(judged, [c for c in cells if c.arm != baseline], baseline, primary)
    starts, gains = random_starts or {}, list[Contrast]()
    for start in dict.fromkeys(starts.values()):
        known = [c for c in contrasts if starts.get(c.arm) == start]
        its = [c for c in cells if starts.get(c.arm) == start]
        gains += known if start == baseline else _against(judged, its, start)
    beside, sentences = [], {}
    for labeled in budgets:
        own = [c for c in contrasts if c.labeled == labeled]
        best = find_best(own, score)
        others = compare_best(best, own, judged) if best else []
        there = [c for c in cells if c.labeled == labeled]
        sentences[labeled] = say(
            there, own, best, others, baseline=baseline, score=score, shared=shared, budgeted=budgeted
        )
        beside += others
    return Result(
        score=score, cells=cells, contrasts=contrasts, beside=beside, gains=gains, sentences=sentences,
        shared=shared,
    )  # fmt: skip


def _against(
    rows: pl.DataFrame, cells: Sequence[Cell], baseline: str, primary: tuple[str, int] | None = None
) -> list[Contrast]:
    """What the arms of some cells are to another one, adjusted for their number."""
    found = [
        compare_arms(rows, c.arm, c.labeled, baseline=baseline, primary=(c.arm, c.labeled) == primary)
        for c in cells
    ]
    return adjust([contrast for contrast in found if contrast is not None])


def name_networks(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in which further networks of an arm's runs are arms of their own, named ARM/NETWORK."""
    further = pl.concat_str("arm", "network", separator="/")
    return rows.with_columns(arm=pl.when(pl.col("network") == NETWORK).then("arm").otherwise(further))


def arm_of(name: str) -> str:
    """The arm that a network belongs to, as `name_networks` names it."""
    return name.partition("/")[0]


def _each(rows: pl.DataFrame, column: str) -> dict[Any, float]:
    """Value of a column -> mean over subjects."""
    return {v: mean_of(rows.filter(pl.col(column) == v)) for v in rows[column].drop_nulls().unique().sort()}


def _cell(rows: pl.DataFrame, every: pl.DataFrame, arm: str, labeled: int) -> Cell:
    """Of the rows of the score, and of every row."""
    runs = rows.unique("seed")
    before = runs["pretraining_minutes"].drop_nulls()
    masks = every.filter(pl.col("metric") == MISSED.name)["value"]
    taken = every.filter(pl.col("metric") == EXCHANGED, pl.col("value") > 0)
    told = not every.filter(pl.col("metric") == EXCHANGED).is_empty()
    return Cell(
        arm=arm,
        labeled=labeled,
        mean=mean_of(rows),
        ci95=bootstrap_interval(list(by_subject(rows).values())),
        draws=_each(rows, "seed"),
        by_structure=_each(rows, "structure"),
        by_phase=_each(rows, "phase"),
        subjects=rows["subject"].n_unique(),
        missed=int((masks == MISSED.missed).sum()),
        judged=len(masks),
        exchanged=len(taken.unique(["subject", "phase", "seed"])) if told else None,
        steps=int(runs["steps"].max()),  # type: ignore[arg-type]
        minutes=float(runs["minutes"].median()),  # type: ignore[arg-type]
        pretraining_minutes=float(before.median()) if len(before) else None,  # type: ignore[arg-type]
        weights=runs["weights"].drop_nulls().unique().sort().to_list(),
    )
