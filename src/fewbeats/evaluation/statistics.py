"""Intervals and tests in which the subject is the unit.

Frames, structures and seeds of one subject are averaged before anything else: they are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import polars as pl

Interval = tuple[float, float]


def average_subjects(rows: pl.DataFrame, value: str) -> pl.DataFrame:
    """One row a subject and structure: the mean over its frames (and seeds), missing values left out.

    Args:
        rows: with columns `subject`, `structure` and `value`.
        value: column to average.

    Returns:
        Columns `subject`, `structure`, `value`, in order of both.
    """
    known = rows.filter(pl.col(value).is_not_null())
    return known.group_by("subject", "structure").agg(pl.col(value).mean()).sort("subject", "structure")


def bootstrap_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval | None:
    """95% percentile bootstrap interval of the mean, from 10,000 resamples of the subjects.

    Args:
        values: (N,) one value a subject.
        seed: of the resampling.

    Returns:
        Lower and upper end, or None with fewer than two subjects (nothing to resample).
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    chosen = np.random.default_rng(seed).integers(len(values), size=(10_000, len(values)))
    low, high = np.percentile(values[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Method a minus method b on the same subjects."""

    subjects: int
    mean: float
    ci95: Interval | None
    """Bootstrap over subjects."""
    p_value: float
    """Wilcoxon signed-rank test, two-sided; 1 where every difference is 0."""


def compare_paired(a: Mapping[str, float], b: Mapping[str, float], *, seed: int = 0) -> PairedDifference:
    """Compare two methods by subject.

    Args:
        a: subject -> value of the first method, already averaged over seeds.
        b: subject -> value of the second.
        seed: of the bootstrap.

    Raises:
        ValueError: not the same subjects, or none.
    """
    from scipy.stats import wilcoxon

    if not a or set(a) != set(b):
        raise ValueError("paired comparison needs the same subjects, at least one, in both methods")
    difference = np.array([a[subject] - b[subject] for subject in sorted(a)])
    p_value = float(wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return PairedDifference(
        subjects=len(difference),
        mean=float(difference.mean()),
        ci95=bootstrap_interval(difference, seed=seed),
        p_value=p_value,
    )


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, Scand J Stat 6:65, 1979), in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(x) for x in adjusted]


@dataclass(frozen=True, kw_only=True)
class BlandAltman:
    """Agreement of two ways to measure one quantity; differences are predicted minus manual."""

    subjects: int
    bias: float
    """Mean difference."""
    bias_ci95: Interval | None
    limits: Interval | None
    """Bias - 1.96 and + 1.96 standard deviations: 95% of the differences are expected between."""
    lower_limit_ci95: Interval | None
    upper_limit_ci95: Interval | None
    mae: float
    """Mean absolute difference."""


def bland_altman(predicted: Sequence[float], manual: Sequence[float]) -> BlandAltman:
    """Bias and limits of agreement (Bland and Altman, Lancet 327:307, 1986).

    The interval of a limit uses their variance s² (1/n + 1.96² / (2 (n - 1))) and Student's t (Stat Methods
    Med Res 8:135, 1999). With one subject only bias and mean absolute difference are known.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    from scipy.stats import t

    if len(predicted) != len(manual) or not len(predicted):
        raise ValueError("Bland-Altman needs as many predicted as manual values, at least one")
    difference = np.subtract(predicted, manual)
    n, bias, mae = len(difference), float(difference.mean()), float(np.abs(difference).mean())
    if n < 2:
        return BlandAltman(
            subjects=n, bias=bias, bias_ci95=None, limits=None,
            lower_limit_ci95=None, upper_limit_ci95=None, mae=mae,
        )  # fmt: skip
    sd, student = float(difference.std(ddof=1)), float(t.ppf(0.975, n - 1))
    of_bias = student * sd / sqrt(n)
    of_limit = student * sd * sqrt(1 / n + 1.96**2 / (2 * (n - 1)))
    low, high = bias - 1.96 * sd, bias + 1.96 * sd
    return BlandAltman(
        subjects=n,
        bias=bias,
        bias_ci95=(bias - of_bias, bias + of_bias),
        limits=(low, high),
        lower_limit_ci95=(low - of_limit, low + of_limit),
        upper_limit_ci95=(high - of_limit, high + of_limit),
        mae=mae,
    )
