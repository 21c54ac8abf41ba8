"""Two arms of a study's rows that its report does not pair, or without a subject of your choice.

    python benchmarks/draws.py --labeled 3 --baseline scratch --arms simclr mim --without patient086

Differences in points of Dice, as the report computes them; p is not adjusted, so verdicts are the report's
alone. `covers` is how often 95% intervals of samples drawn from these differences hold their mean. A subject
is left out after the fact: that shows what hangs on one, it is no result.
"""

from __future__ import annotations

import argparse
from math import sqrt

import numpy as np
import polars as pl
from scipy import stats

from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES
from fewbeats.study.contrast import Contrast, by_subject, compare_arms
from fewbeats.study.result import name_networks
from fewbeats.study.sentences import tell_p, tell_range
from fewbeats.study.units import read_rows
from record import ROWS

DICE = SCORES["dice"]


def main() -> None:
    """Print what is known of each contrast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", default="ssp_acdc.csv", help="of rows/")
    parser.add_argument("--split", choices=("tune", "dev"), default="dev")
    parser.add_argument("--labeled", type=int, required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--without", help="a subject to leave out")
    given = parser.parse_args()
    rows = name_networks(read_rows(ROWS / given.table))
    rows = rows.filter(pl.col("split") == given.split, pl.col("metric") == DICE.name)
    if given.without and given.without not in set(rows["subject"]):
        parser.error(f"--without {given.without}: no such subject in {given.table}")
    rest = rows.filter(pl.col("subject") != given.without) if given.without else None
    for arm in given.arms:
        try:
            contrast = compare_arms(rows, arm, given.labeled, baseline=given.baseline)
        except InputError as error:
            parser.error(str(error))
        if contrast is None:
            parser.error(f"{arm} and {given.baseline} share no draw with {given.labeled} labeled")
        print(f"{arm} against {given.baseline}: {describe(contrast)}")
        if rest is not None and (other := compare_arms(rest, arm, given.labeled, baseline=given.baseline)):
            print(f"    without {given.without}: {describe(other)}")
        print(f"    {tell_coverage(differences(rows, contrast))}")


def describe(contrast: Contrast) -> str:
    """Mean, interval and p over subjects, the draws, and what is said of new ones."""
    d, crossed = contrast.difference, contrast.crossed
    interval = tell_range(d.ci95, DICE) if d.ci95 else "no interval"
    draws = " ".join(DICE.change(value) for value in contrast.draws.values())
    new = ""
    if crossed:
        new = (
            f"; new draws {tell_range(crossed.draws_ci95, DICE)}, new draws and subjects "
            f"{tell_range(crossed.ci95, DICE)} (p {tell_p(crossed.p_value)})"
        )
    return f"{DICE.change(d.mean)} ({interval}, p {tell_p(d.p_value)}), draws {draws}{new}"


def differences(rows: pl.DataFrame, contrast: Contrast) -> np.ndarray:
    """One a subject, in points, over the draws that both arms have."""
    shared = rows.filter(pl.col("labeled") == contrast.labeled, pl.col("seed").is_in(list(contrast.draws)))
    own, base = (by_subject(shared.filter(pl.col("arm") == arm)) for arm in (contrast.arm, contrast.baseline))
    return DICE.scale * np.array([own[subject] - base[subject] for subject in own])


def tell_coverage(values: np.ndarray) -> str:
    """Skewness of differences, and how often intervals of as many subjects, and of 10, cover."""
    covered = ", ".join(
        f"{n} subjects: bootstrap {boot:.0%}, t {student:.0%}"
        for n in sorted({len(values), 10}, reverse=True)
        for boot, student in [coverage(values, n)]
    )
    return f"skewness {stats.skew(values):.1f}; covers with {covered}"


def coverage(values: np.ndarray, subjects: int, *, samples: int = 2_000) -> tuple[float, float]:
    """Share of samples whose 95% interval holds the values' mean: percentile bootstrap, Student's t."""
    random = np.random.default_rng(0)
    boot = student = 0
    for _ in range(samples):
        drawn = random.choice(values, subjects)
        low, high = np.percentile(
            drawn[random.integers(subjects, size=(1_000, subjects))].mean(1), [2.5, 97.5]
        )
        boot += low <= values.mean() <= high
        reach = stats.t.ppf(0.975, subjects - 1) * drawn.std(ddof=1) / sqrt(subjects)
        student += abs(drawn.mean() - values.mean()) <= reach
    return boot / samples, student / samples


if __name__ == "__main__":
    main()
