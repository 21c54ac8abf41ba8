"""Rows of a study -> what they say: means, paired differences to the baseline, and one sentence a budget.

The subject is the unit: structures, phases and draws of labeled subjects are averaged within a subject before
anything else. How much the draws differ is told apart from that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from fewbeats.data.split import name_some
from fewbeats.errors import InputError
from fewbeats.evaluation.statistics import (
    Interval,
    PairedDifference,
    adjust_holm,
    bootstrap_interval,
    compare_paired,
)

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm at a budget."""

    arm: str
    labeled: int
    dice: float
    """Mean over subjects."""
    ci95: Interval | None
    """Bootstrap over subjects."""
    draws: dict[int, float]
    """Seed -> mean over subjects."""
    by_structure: dict[str, float]
    by_phase: dict[str, float]
    subjects: int
    steps: int
    minutes: float
    """Median time of a run."""
    pretraining_minutes: float | None


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm against the baseline at one budget."""

    arm: str
    labeled: int
    difference: PairedDifference
    draws: dict[int, float]
    """Seed -> mean difference over subjects."""
    primary: bool
    p_value: float
    """Of the primary contrast as it is; of the others, which are exploratory, after Holm."""

    @property
    def is_clear(self) -> bool:
        """Whether interval and test exclude no difference and several draws all point the same way."""
        interval = self.difference.ci95
        if interval is None or self.p_value >= LEVEL or interval[0] <= 0 <= interval[1]:
            return False
        return len(self.draws) > 1 and len({value > 0 for value in self.draws.values()}) == 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a study found so far."""

    cells: list[Cell]
    contrasts: list[Contrast]
    sentences: dict[int, str]
    """Budget -> which method to use, and whether the evidence is enough."""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        contrasts = [{**asdict(c), "is_clear": c.is_clear} for c in self.contrasts]
        return {"cells": [asdict(c) for c in self.cells], "contrasts": contrasts, "sentences": self.sentences}


def analyze(
    rows: pl.DataFrame, arms: Sequence[str], *, baseline: str, primary: tuple[str, int] | None = None
) -> Result:
    """Compare the arms of a study.

    Args:
        rows: of one split, as `units.read_rows` gives them.
        arms: in the order wanted.
        baseline: what the others are compared with, over the draws that both have.
        primary: arm and budget of the contrast that was named beforehand.
    """
    rows = rows.filter(pl.col("arm").is_in(list(arms)))
    budgets = sorted(rows["labeled"].unique())
    cells = [
        _cell(part, arm, labeled)
        for labeled in budgets
        for arm in arms
        if not (part := rows.filter(pl.col("arm") == arm, pl.col("labeled") == labeled)).is_empty()
    ]
    contrasts = [
        _contrast(rows, cell.arm, cell.labeled, baseline, primary) for cell in cells if cell.arm != baseline
    ]
    found = _adjust([c for c in contrasts if c is not None])
    sentences = {
        labeled: _sentence([c for c in cells if c.labeled == labeled], found, rows, baseline)
        for labeled in budgets
    }
    return Result(cells=cells, contrasts=found, sentences=sentences)


def by_subject(rows: pl.DataFrame) -> dict[str, float]:
    """Subject -> Dice: over phases first, then structures, then draws."""
    for keys in (("subject", "seed", "structure"), ("subject", "seed"), ("subject",)):
        rows = rows.group_by(keys).agg(pl.col("dice").mean())
    return dict(rows.select("subject", "dice").sort("subject").iter_rows())


def _mean(rows: pl.DataFrame) -> float:
    values = list(by_subject(rows).values())
    return sum(values) / len(values)


def _each(rows: pl.DataFrame, column: str) -> dict[Any, float]:
    """Value of a column -> mean over subjects."""
    return {v: _mean(rows.filter(pl.col(column) == v)) for v in rows[column].drop_nulls().unique().sort()}


def _cell(rows: pl.DataFrame, arm: str, labeled: int) -> Cell:
    runs = rows.unique("seed")
    before = runs["pretraining_minutes"].drop_nulls()
    return Cell(
        arm=arm,
        labeled=labeled,
        dice=_mean(rows),
        ci95=bootstrap_interval(list(by_subject(rows).values())),
        draws=_each(rows, "seed"),
        by_structure=_each(rows, "structure"),
        by_phase=_each(rows, "phase"),
        subjects=rows["subject"].n_unique(),
        steps=int(runs["steps"].max()),  # type: ignore[arg-type]
        minutes=float(runs["minutes"].median()),  # type: ignore[arg-type]
        pretraining_minutes=float(before.median()) if len(before) else None,  # type: ignore[arg-type]
    )


def _contrast(
    rows: pl.DataFrame, arm: str, labeled: int, baseline: str, primary: tuple[str, int] | None
) -> Contrast | None:
    """None where both share no draw."""
    mine, base = (rows.filter(pl.col("arm") == a, pl.col("labeled") == labeled) for a in (arm, baseline))
    shared = sorted(set(mine["seed"]) & set(base["seed"]))
    if not shared:
        return None
    mine, base = (part.filter(pl.col("seed").is_in(shared)) for part in (mine, base))
    seen, known = (
        {" ".join(map(str, row)) for row in part.select("subject", "seed", "phase", "structure").iter_rows()}
        for part in (mine, base)
    )
    if other := seen ^ known:
        raise InputError(
            f"rows of '{arm}' and '{baseline}' are of different subjects, seeds, phases or structures: "
            f"{name_some(sorted(other))}"
        )
    difference = compare_paired(by_subject(mine), by_subject(base))
    a, b = _each(mine, "seed"), _each(base, "seed")
    return Contrast(
        arm=arm,
        labeled=labeled,
        difference=difference,
        draws={seed: a[seed] - b[seed] for seed in shared},
        primary=(arm, labeled) == primary,
        p_value=difference.p_value,
    )


def _adjust(contrasts: list[Contrast]) -> list[Contrast]:
    exploratory = [c for c in contrasts if not c.primary]
    adjusted = iter(adjust_holm([c.difference.p_value for c in exploratory]) if exploratory else [])
    return [c if c.primary else replace(c, p_value=next(adjusted)) for c in contrasts]


def _sentence(cells: Sequence[Cell], contrasts: Sequence[Contrast], rows: pl.DataFrame, baseline: str) -> str:
    """Which method to use at a budget, and whether the evidence is enough."""
    labeled = cells[0].labeled
    at = f"With {labeled} labeled subject{'s' if labeled != 1 else ''}"
    own = sorted((c for c in contrasts if c.labeled == labeled), key=lambda c: -c.difference.mean)
    if len(cells) == 1:
        return f"{at}: {cells[0].arm} alone was tried, Dice {cells[0].dice:.3f}."
    if not own:
        return f"{at}: no arm shares a draw with {baseline}, so none is compared."
    if own[0].difference.mean <= 0:
        return f"{at}, take {baseline}: no arm that could be compared with it had a higher mean."
    told = {c.arm: f"{c.arm}: Dice {_shared_dice(rows, c):.3f}, {describe(c)}" for c in own}
    clear = [c for c in own if c.is_clear and c.difference.mean > 0]
    if not clear:
        best = own[0]
        return (
            f"{at} the evidence is not enough to prefer {told[best.arm]}. {_why_not(best)} Take {baseline}."
        )
    return f"{at}, take {told[clear[0].arm]}. The evidence is enough.{_beside(clear[0], own, rows)}"


def _shared_dice(rows: pl.DataFrame, contrast: Contrast) -> float:
    """Mean Dice over the draws that are compared, which may be fewer than the arm has."""
    return _mean(
        rows.filter(
            pl.col("arm") == contrast.arm,
            pl.col("labeled") == contrast.labeled,
            pl.col("seed").is_in(list(contrast.draws)),
        )
    )


def describe(contrast: Contrast) -> str:
    """A difference with its interval, test and draws, in points of Dice (hundredths)."""
    d = contrast.difference
    interval = "no interval" if d.ci95 is None else f"95% interval {points(d.ci95[0])} to {points(d.ci95[1])}"
    low, high = min(contrast.draws.values()), max(contrast.draws.values())
    draws = len(contrast.draws)
    spread = f"{draws} draws from {points(low)} to {points(high)}" if draws > 1 else "a single draw"
    test = "p" if contrast.primary else "p after Holm"
    p_value = "< 0.001" if contrast.p_value < 0.001 else f"{contrast.p_value:.3f}"
    return (
        f"{points(d.mean)} points against the baseline ({interval} over {d.subjects} subjects, "
        f"{test} {p_value}, {spread})"
    )


def _why_not(contrast: Contrast) -> str:
    interval = contrast.difference.ci95
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "The interval includes no difference."
    if contrast.p_value >= LEVEL:
        return f"The test does not exclude chance (p {contrast.p_value:.2f})."
    if len(contrast.draws) == 1:
        return "A single draw of labeled subjects does not speak for others."
    return "The draws of labeled subjects do not agree on its direction."


def _beside(best: Contrast, others: Sequence[Contrast], rows: pl.DataFrame) -> str:
    """Methods that the best one is not told apart from, after Holm over all of these comparisons."""
    pairs = [_contrast(rows, best.arm, best.labeled, c.arm, None) for c in others if c.arm != best.arm]
    found = {c.arm: p for c, p in zip((c for c in others if c.arm != best.arm), _adjust_known(pairs))}
    alike = [arm for arm, contrast in found.items() if contrast is not None and not contrast.is_clear]
    return f" It is not told apart from {', '.join(alike)}." if alike else ""


def _adjust_known(contrasts: Sequence[Contrast | None]) -> list[Contrast | None]:
    adjusted = iter(_adjust([c for c in contrasts if c is not None]))
    return [None if c is None else next(adjusted) for c in contrasts]


def points(value: float) -> str:
    """A difference of Dice in hundredths, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def spread_of(draws: Mapping[int, float]) -> tuple[float, float]:
    """Smallest and largest of the draws."""
    return min(draws.values()), max(draws.values())
