"""Intervals and tests against loops, textbook values and simulation."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from fewbeats.evaluation.statistics import (
    adjust_holm,
    average_subjects,
    bland_altman,
    bootstrap_interval,
    compare_paired,
)


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
    assert compare_paired(a, a).p_value == 1.0
    with pytest.raises(ValueError, match="same subjects"):
        compare_paired(a, {"s0": 1.0})


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
