"""What an interval over subjects does not show: the draws, one patient's part, and how often it covers.

    python benchmarks/draws.py --labeled 3 --baseline scratch --arms simclr mim --without patient086

Differences in points of Dice, paired by subject. `random draws` takes the draws of labeled subjects as a
random factor crossed with the subjects (two-way variance, Satterthwaite's degrees of freedom, Student's t).
`sign flip` tests the mean, as the interval does; Wilcoxon's test does not. `covers` is how often 95%
intervals of samples drawn from these differences hold their mean. A patient is left out after the fact: that
shows what hangs on one, it is no result.
"""

from __future__ import annotations

import argparse
from math import sqrt

import numpy as np
import polars as pl
from scipy import stats

from fewbeats.evaluation.statistics import bootstrap_interval
from record import ROWS


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
    rows = pl.read_csv(ROWS / given.table)
    rows = rows.filter(pl.col("split") == given.split, pl.col("labeled") == given.labeled)
    base = by_subject_and_draw(rows, given.baseline)
    for arm in given.arms:
        own = by_subject_and_draw(rows, arm)
        if own["subject"].to_list() != base["subject"].to_list() or own.columns != base.columns:
            parser.error(f"{arm}: not the subjects and seeds of {given.baseline}")
        difference = 100 * (own.drop("subject").to_numpy() - base.drop("subject").to_numpy())
        print(f"{arm} against {given.baseline}: {describe(difference)}; {doubts(difference)}")
        if given.without:
            left = difference[(own["subject"] != given.without).to_numpy()]
            print(f"    without {given.without}: {describe(left)}")


def by_subject_and_draw(rows: pl.DataFrame, arm: str) -> pl.DataFrame:
    """Column `subject` and one a seed with the Dice of an arm; both in order."""
    own = (
        rows.filter(pl.col("arm") == arm).group_by("subject", "seed", "structure").agg(pl.col("dice").mean())
    )
    table = own.group_by("subject", "seed").agg(pl.col("dice").mean()).pivot(on="seed", index="subject")
    return table.select("subject", *sorted(table.drop("subject").columns)).sort("subject")


def describe(difference: np.ndarray) -> str:
    """Mean, interval over subjects, draws and p-values of differences (subjects, draws)."""
    mean = difference.mean(1)
    low, high = bootstrap_interval(mean) or (float("nan"), float("nan"))
    draws = " ".join(f"{value:+.2f}" for value in difference.mean(0))
    return (
        f"{mean.mean():+.2f} ({low:+.2f} to {high:+.2f}), draws {draws}, "
        f"Wilcoxon p {stats.wilcoxon(mean).pvalue:.4f}, sign flip p {sign_flip(mean):.3f}"
    )


def doubts(difference: np.ndarray) -> str:
    """Skewness, what random draws leave of it, and how often intervals cover."""
    mean = difference.mean(1)
    low, high, freedom, p = random_draws(difference)
    covered = ", ".join(
        f"{n} subjects: bootstrap {boot:.0%}, t {student:.0%}"
        for n in (len(mean), 10)
        for boot, student in [coverage(mean, n)]
    )
    return (
        f"random draws {low:+.1f} to {high:+.1f} (df {freedom:.1f}, p {p:.3f}); "
        f"skewness {stats.skew(mean):.1f}; covers with {covered}"
    )


def sign_flip(values: np.ndarray, *, flips: int = 200_000) -> float:
    """Two-sided p of the mean where each subject's sign is a coin's."""
    signs = np.random.default_rng(0).choice([-1, 1], size=(flips, len(values)))
    return float((np.abs((signs * values).mean(1)) >= abs(values.mean()) - 1e-12).mean())


def random_draws(difference: np.ndarray) -> tuple[float, float, float, float]:
    """95% interval of the mean, degrees of freedom and p-value; NaN where the variance comes out negative."""
    subjects, draws = difference.shape
    mean, of_subject, of_draw = difference.mean(), difference.mean(1), difference.mean(0)
    rest = difference - of_subject[:, None] - of_draw[None] + mean
    squares = np.array([
        draws * ((of_subject - mean) ** 2).sum() / (subjects - 1),
        subjects * ((of_draw - mean) ** 2).sum() / (draws - 1),
        -(rest**2).sum() / ((subjects - 1) * (draws - 1)),
    ])  # fmt: skip
    freedom = (
        squares.sum() ** 2 / (squares**2 / [subjects - 1, draws - 1, (subjects - 1) * (draws - 1)]).sum()
    )
    if squares.sum() <= 0:
        return float("nan"), float("nan"), float(freedom), float("nan")
    error = sqrt(squares.sum() / (subjects * draws))
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return mean - reach, mean + reach, float(freedom), float(2 * stats.t.sf(abs(mean) / error, freedom))


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
