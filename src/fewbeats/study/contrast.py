"""Two arms of a study against each other: the difference, its evidence, and what one subject does to it.

The subject is the unit: structures, phases and draws of labeled subjects are averaged within a subject before
anything else. How much the draws differ is told apart from that and, where there are enough, taken as chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

from fewbeats.errors import InputError, name_some
from fewbeats.evaluation.scores import Score
from fewbeats.evaluation.statistics import (
    CrossedMean,
    Interval,
    PairedDifference,
    adjust_holm,
    compare_paired,
    cross_draws,
)
from fewbeats.study.budget import name_budget

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm at a budget."""

    arm: str
    labeled: int
    mean: float
    """Of the score, over subjects."""
    ci95: Interval | None
    """Bootstrap over subjects."""
    draws: dict[int, float]
    """Seed -> mean over subjects."""
    by_structure: dict[str, float]
    by_phase: dict[str, float]
    subjects: int
    missed: int
    """Structures of a subject, phase and draw that were missed or taken for another."""
    judged: int
    """Structures of a subject, phase and draw of which that is known."""
    exchanged: int | None
    """Hearts of a subject, phase and draw whose ventricles were taken for each other; None where rows do not
    tell."""
    steps: int
    minutes: float
    """Median time of a run."""
    pretraining_minutes: float | None
    weights: list[str]
    """Digests of what its runs started from."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm against another at one budget."""

    arm: str
    labeled: int
    baseline: str
    mean: float
    """Of the arm, over the draws that are compared, which may be fewer than it has."""
    difference: PairedDifference
    draws: dict[int, float]
    """Seed -> mean difference over subjects."""
    crossed: CrossedMean | None
    """With the draws as chance, too; None where they are too few."""
    primary: bool
    p_value: float
    """Of the primary contrast as it is; of the others, which are exploratory, after Holm."""
    without: Contrast | None
    """The same without the most extreme subject; None where that leaves nobody."""

    @property
    def doubt(self) -> Literal["interval", "test", "draws", "direction"] | None:
        """What stands against telling both apart.

        The interval over subjects and the test must exclude no difference; so must the interval for new
        draws and new subjects (`draws`), or, where the draws are too few for one, all must point the same
        way (`direction`). What is then said is of these draws alone.
        """
        if not _excludes_zero(self.difference.ci95):
            return "interval"
        if self.p_value >= LEVEL:
            return "test"
        if self.crossed:
            return None if _excludes_zero(self.crossed.ci95) else "draws"
        return None if len({value > 0 for value in self.draws.values()}) == 1 else "direction"

    @property
    def is_clear(self) -> bool:
        """Whether both are told apart."""
        return self.doubt is None

    @property
    def verdict(self) -> Literal["yes", "here", "no"]:
        """Whether both are told apart, `here` where that is of these draws alone."""
        if not self.is_clear:
            return "no"
        return "yes" if self.crossed else "here"

    @property
    def hinges(self) -> bool:
        """Whether direction or verdict would be another without the most extreme subject."""
        other = self.without
        if other is None:
            return False
        turned = (other.difference.mean > 0) != (self.difference.mean > 0)
        return turned or other.is_clear != self.is_clear


def _excludes_zero(interval: Interval | None) -> bool:
    return interval is not None and not interval[0] <= 0 <= interval[1]


def by_draw(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a subject and seed, in order of both: the mean over phases, then over structures."""
    for keys in (("subject", "seed", "structure"), ("subject", "seed")):
        rows = rows.group_by(keys).agg(pl.col("value").mean())
    return rows.sort("subject", "seed")


def by_subject(rows: pl.DataFrame) -> dict[str, float]:
    """Subject -> value: over phases first, then structures, then draws."""
    averaged = by_draw(rows).group_by("subject").agg(pl.col("value").mean())
    return dict(averaged.sort("subject").iter_rows())


def mean_of(rows: pl.DataFrame) -> float:
    """Mean over subjects."""
    values = list(by_subject(rows).values())
    return sum(values) / len(values)


def compare_arms(
    rows: pl.DataFrame, arm: str, labeled: int, *, baseline: str, primary: bool = False
) -> Contrast | None:
    """Two arms over the draws that both have; the p-value as it is, until `adjust`.

    Args:
        rows: of one split and score.
        arm: the one.
        labeled: budget of both.
        baseline: the other.
        primary: whether this is the contrast that was named beforehand.

    Returns:
        None where both share no draw.

    Raises:
        InputError: arms or draws that were judged on different subjects, phases or structures.
    """
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
    a, b = by_draw(mine), by_draw(base)
    differences = a.with_columns(own=a["value"], value=a["value"] - b["value"])
    if len(differences) != differences["subject"].n_unique() * len(shared):
        raise InputError(
            f"rows of '{arm}', {name_budget(labeled)} labeled: its seeds were judged on different subjects"
        )
    whole = _weigh(differences, arm, labeled, baseline=baseline, primary=primary)
    if whole.difference.extreme is None:
        return whole
    rest = differences.filter(pl.col("subject") != whole.difference.extreme.subject)
    return replace(whole, without=_weigh(rest, arm, labeled, baseline=baseline, primary=primary))


def _weigh(differences: pl.DataFrame, arm: str, labeled: int, *, baseline: str, primary: bool) -> Contrast:
    """Of one row a subject and seed, sorted."""
    subjects, seeds = (differences[name].unique().sort().to_list() for name in ("subject", "seed"))
    values = differences["value"].to_numpy().reshape(len(subjects), len(seeds))
    means = dict(zip(subjects, map(float, values.mean(axis=1))))
    difference = compare_paired(means, dict.fromkeys(means, 0.0))
    return Contrast(
        arm=arm,
        labeled=labeled,
        baseline=baseline,
        mean=float(differences["own"].mean()),  # type: ignore[arg-type]
        difference=difference,
        draws=dict(zip(seeds, map(float, values.mean(axis=0)))),
        crossed=cross_draws(values),
        primary=primary,
        p_value=difference.p_value,
        without=None,
    )


def adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same with p-values after Holm over all that are exploratory.

    What a contrast would be without its most extreme subject is adjusted beside the others as they are.
    """
    found = []
    for contrast in contrasts:
        others = [c.difference.p_value for c in contrasts if c is not contrast and not c.primary]
        without = contrast.without and replace(contrast.without, p_value=_holm(contrast.without, others))
        found.append(replace(contrast, p_value=_holm(contrast, others), without=without))
    return found


def _holm(own: Contrast, others: Sequence[float]) -> float:
    p_value = own.difference.p_value
    return p_value if own.primary else adjust_holm([p_value, *others])[0]


def find_best(contrasts: Sequence[Contrast], score: Score) -> Contrast | None:
    """The one with the largest gain of those that are told apart from the baseline."""
    clear = [c for c in contrasts if c.is_clear and score.gain(c.difference.mean) > 0]
    return max(clear, key=lambda c: score.gain(c.difference.mean), default=None)


def compare_best(best: Contrast, others: Sequence[Contrast], rows: pl.DataFrame) -> list[Contrast]:
    """The best one against each of the others, after Holm over all of these comparisons."""
    pairs = [compare_arms(rows, best.arm, best.labeled, baseline=c.arm) for c in others if c.arm != best.arm]
    return adjust([pair for pair in pairs if pair is not None])
