"""Intervals and tests against loops, textbook values and simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_1samp

import reference
from fewbeats.evaluation.statistics import (
    Extreme,
    adjust_holm,
    average_subjects,
    bland_altman,
    bootstrap_interval,
    compare_paired,
    cross_draws,
    flip_signs,
)

ROWS = Path(__file__).parents[1] / "benchmarks" / "rows"


def test_frames_and_seeds_are_averaged_within_a_subject():
    rows = pl.DataFrame(
        {
            "subject": ["b", "a", "a", "a", "a"],
            "structure": ["LV", "LV", "LV", "LV", "RV"],
            "seed": [0, 0, 1, 1, 0],
            "dice": [0.5, 0.9, 0.7, None, 0.6],
        }
    )
    assert average_subjects(rows, "dice").rows() == [("a", "LV", 0.8), ("a", "RV", 0.6), ("b", "LV", 0.5)]


def test_bootstrap_is_repeatable_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(0.9, 0.05, 200)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_of_one_subject_is_unknown():
    assert bootstrap_interval([0.9]) is None
    assert bootstrap_interval([0.9, 0.9]) == pytest.approx((0.9, 0.9))


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=25)) for _ in range(200)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.87 <= covered <= 0.98  # a little under 95% with 25 subjects, as known of the percentile interval


def test_a_paired_difference():
    a = {f"s{i}": 0.90 + 0.001 * i for i in range(12)}
    b = {f"s{i}": 0.88 + 0.0005 * i for i in range(12)}
    found = compare_paired(a, b)
    assert found.subjects == 12
    assert found.mean == pytest.approx(0.02 + 0.0005 * 5.5)
    assert found.ci95[0] < found.mean < found.ci95[1]
    assert found.p_value == pytest.approx(2 / 2**12)  # every sign is the same: the exact test's smallest p
    assert found.extreme == Extreme(
        subject="s0", difference=pytest.approx(0.02), mean_without=pytest.approx(0.023)
    )
    assert compare_paired(a, a).p_value == 1.0
    assert compare_paired({"s0": 1.0}, {"s0": 0.5}).extreme is None
    with pytest.raises(ValueError, match="same subjects"):
        compare_paired(a, {"s0": 1.0})


@pytest.mark.parametrize("n", [2, 5, 12])
def test_flipped_signs_agree_with_scipy(n):
    differences = np.random.default_rng(n).normal(0.4, 1, n).round(1)  # some of a size, some sums alike
    expected = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert flip_signs(differences) == pytest.approx(expected.pvalue)


def test_random_signs_agree_with_all_of_them():
    differences = np.random.default_rng(3).normal(0.4, 1, 18)
    patterns = np.arange(2**18)[:, None] >> np.arange(18) & 1
    sums = np.abs((2 * patterns - 1) @ differences)
    exact = np.mean(sums >= abs(differences.sum()) - 1e-9)
    assert flip_signs(differences) == pytest.approx(exact, abs=0.003)
    assert flip_signs(differences) == flip_signs(differences) != flip_signs(differences, seed=1)
    assert flip_signs(np.ones(25)) == pytest.approx(1 / 100_001)  # never 0
    assert flip_signs(np.zeros(25)) == 1


def test_the_test_speaks_of_the_mean_as_the_interval_does():
    """natural-7-2800 against plain-7-1400 of the tracked rows: ranks said p 0.003, with 0 in the interval."""
    rows = pl.read_csv(ROWS / "acdc.csv").filter(pl.col("split") == "dev")
    averaged = rows.group_by("arm", "seed", "subject").agg(pl.col("dice").mean()).sort("subject", "seed")
    ours, plain = (
        averaged.filter(pl.col("arm") == arm)["dice"].to_numpy().reshape(25, 3)
        for arm in ("natural-7-2800", "plain-7-1400")
    )
    found = flip_signs((ours - plain).mean(axis=1))
    assert found == pytest.approx(0.080, abs=2e-3)
    low, high = bootstrap_interval((ours - plain).mean(axis=1))
    assert low < 0 < high
    assert cross_draws(ours - plain).ci95 == pytest.approx((-0.0022, 0.0202), abs=1e-4)


def test_crossed_means_agree_with_loops():
    rng = np.random.default_rng(0)
    values = 0.5 + rng.normal(size=(9, 1)) + rng.normal(size=(1, 4)) + 0.5 * rng.normal(size=(9, 4))
    found, (low, high, degrees) = cross_draws(values), reference.crossed_interval(values)
    assert found.ci95 == pytest.approx((low, high))
    assert found.degrees_of_freedom == pytest.approx(degrees)
    assert (found.p_value < 0.05) == (not low <= 0 <= high)
    assert found.draws_p_value == pytest.approx(ttest_1samp(values.mean(axis=0), 0).pvalue)
    assert cross_draws(values[:, :2]) is None
    assert cross_draws(values[:1]) is None
    assert cross_draws(np.zeros((5, 3))).ci95 == (0, 0)
    assert (cross_draws(np.zeros((5, 3))).p_value, cross_draws(np.ones((5, 3))).p_value) == (1, 0)


def test_where_draws_do_not_differ_subjects_alone_decide():
    """The plain estimate would be below the variance of either alone, or negative."""
    values = np.random.default_rng(1).normal(size=(25, 3))
    values -= values.mean(axis=0)
    found, alone = cross_draws(values + 0.3), ttest_1samp(values.mean(axis=1) + 0.3, 0)
    assert found.ci95 == pytest.approx(alone.confidence_interval(0.95))
    assert found.p_value == pytest.approx(alone.pvalue)


@pytest.mark.parametrize(("draws", "of_subjects", "of_draws", "subjects_alone"), [
    (3, 1, 0, 0.95), (3, 2, 1, 0.83), (3, 1, 2, 0.49), (3, 0, 0, 0.95), (8, 2, 1, 0.88), (8, 1, 2, 0.57),
])  # fmt: skip
def test_the_crossed_interval_covers_the_truth_of_new_draws(draws, of_subjects, of_draws, subjects_alone):
    """Where draws differ, an interval of subjects alone misses what other draws would have given."""
    rng, covered, alone = np.random.default_rng(0), [], []
    for _ in range(800):
        values = of_subjects * rng.normal(size=(25, 1)) + of_draws * rng.normal(size=(1, draws))
        values = values + 3 * rng.normal(size=(25, draws))
        low, high = cross_draws(values).ci95
        covered.append(low <= 0 <= high)
        alone.append(ttest_1samp(values.mean(axis=1), 0).pvalue > 0.05)
    assert 0.91 <= np.mean(covered) <= 0.99
    assert np.mean(alone) == pytest.approx(subjects_alone, abs=0.06)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_its_definition(p_values):
    assert adjust_holm(p_values) == pytest.approx(reference.holm(p_values))


def test_holm_on_a_textbook_example():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_bland_altman_on_the_peak_flow_meters():
    """The 17 subjects of Bland and Altman 1986: large meter against mini meter."""
    large = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = bland_altman(large, mini)
    sd = 38.765
    assert found.bias == pytest.approx(-2.118, abs=1e-3)
    assert found.limits == pytest.approx((-2.118 - 1.96 * sd, -2.118 + 1.96 * sd), abs=0.01)
    assert found.bias_ci95 == pytest.approx((-22.05, 17.81), abs=0.02)
    assert found.upper_limit_ci95[0] < found.limits[1] < found.upper_limit_ci95[1]
    assert found.mae == pytest.approx(np.abs(np.subtract(large, mini)).mean())


def test_limits_hold_95_percent_of_differences():
    difference = np.random.default_rng(0).normal(2.0, 5.0, 4000)
    found = bland_altman(difference, np.zeros(4000))
    inside = np.mean((difference > found.limits[0]) & (difference < found.limits[1]))
    assert inside == pytest.approx(0.95, abs=0.01)


def test_one_subject_has_no_limits():
    found = bland_altman([55.0], [60.0])
    assert (found.bias, found.mae, found.limits) == (-5.0, 5.0, None)
    with pytest.raises(ValueError, match="at least one"):
        bland_altman([], [])
