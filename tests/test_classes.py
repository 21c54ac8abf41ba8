"""Figures of classes against scikit-learn's, and what of them is by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from fewbeats.evaluation.classes import (
    Told,
    accuracy,
    balanced_accuracy,
    brier_score,
    calibration_error,
    class_auc,
    confusion,
    interval_over_subjects,
    macro_auc,
    reliability,
    roc_curve,
    summarize_classes,
)


def told(seed: int, *, items: int = 60, classes: int = 3, skill: float = 1.0, steps: int = 0) -> Told:
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=items)
    logits = draw.normal(size=(items, classes)) + skill * np.eye(classes)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if steps:  # ties
        shares = np.round(shares * steps) / steps
    subject = np.array([f"s{n}" for n in draw.integers(12, size=items)])
    return Told(classes=tuple("abcde"[:classes]), subject=subject, truth=truth, shares=shares)


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from([0, 4]))
@settings(max_examples=40, deadline=None)
def test_figures_agree_with_scikit_learn(seed, classes, steps):
    one = told(seed, classes=classes, steps=steps)
    assert accuracy(one) == pytest.approx(metrics.accuracy_score(one.truth, one.found))
    assert balanced_accuracy(one) == pytest.approx(metrics.balanced_accuracy_score(one.truth, one.found))
    there = np.bincount(one.truth, minlength=classes)
    areas = []
    for c in range(classes):
        if 0 < there[c] < len(one.truth):
            area = metrics.roc_auc_score(one.truth == c, one.shares[:, c])
            assert class_auc(one, c) == pytest.approx(area)
            false, true = roc_curve(one, c)
            assert metrics.auc(false, true) == pytest.approx(area)
            areas.append(area)
    assert macro_auc(one) == pytest.approx(np.mean(areas))
    labels = list(range(classes))
    assert np.array_equal(confusion(one), metrics.confusion_matrix(one.truth, one.found, labels=labels))
    hot = np.eye(classes)[one.truth]
    assert brier_score(one) == pytest.approx(((hot - one.shares) ** 2).sum(1).mean())


def test_one_class_alone_has_no_area():
    one = told(0)
    same = Told(classes=one.classes, subject=one.subject, truth=np.zeros_like(one.truth), shares=one.shares)
    assert macro_auc(same) is None
    assert summarize_classes(same)["macro_auc"] == {"value": None, "ci95": None}


def test_calibration_by_hand():
    shares = np.array([[0.95, 0.05]] * 4 + [[0.65, 0.35]] * 2)
    one = Told(classes=("a", "b"), subject=np.arange(6).astype(str), truth=np.array([0, 0, 0, 1, 0, 1]),
               shares=shares)  # fmt: skip
    assert reliability(one) == [(pytest.approx(0.65), 0.5, 2), (pytest.approx(0.95), 0.75, 4)]
    assert calibration_error(one) == pytest.approx((0.15 * 2 + 0.2 * 4) / 6)


def test_intervals_know_that_items_of_a_subject_go_together():
    """Each of 8 subjects told all right or all wrong: 400 items say no more than 8."""
    right = np.repeat([1, 1, 1, 1, 0, 0, 0, 0], 50)
    shares = np.where(right[:, None] == 1, [0.9, 0.1], [0.1, 0.9])
    names = np.repeat([f"s{n}" for n in range(8)], 50)
    one = Told(classes=("a", "b"), subject=names, truth=np.zeros(400, int), shares=shares)
    low, high = interval_over_subjects(one, accuracy)
    assert low <= 0.2
    assert high >= 0.8
    assert interval_over_subjects(one.select(names == "s0"), accuracy) is None


def test_a_guess_is_worth_what_chance_is_worth():
    values = [macro_auc(told(seed, skill=0.0, items=200)) for seed in range(30)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
