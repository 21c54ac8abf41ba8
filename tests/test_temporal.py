"""Curves that beat, jump or stand still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbeats.evaluation.temporal import beating, second_difference
from fewbeats.phantom.scan import PhantomSettings, frame_phases, truth_ml
from fewbeats.phantom.subject import make_subject

curves = arrays(float, st.integers(3, 30), elements=st.floats(0, 500))


@given(curves, st.integers(0, 29))
def test_a_circular_curve_may_begin_anywhere(curve, start):
    turned = np.roll(curve, start)
    away = np.roll(second_difference(curve, circular=True), start)
    np.testing.assert_allclose(second_difference(turned, circular=True), away, atol=1e-9)
    a, b = beating(curve, circular=True), beating(turned, circular=True)
    assert a.stroke_ml == pytest.approx(b.stroke_ml)
    assert a.roughness_ml == pytest.approx(b.roughness_ml)


@given(curves, st.booleans())
def test_roughness_is_the_mean_over_frames_with_two_neighbors(curve, circular):
    slow = []
    for t in range(len(curve)):
        if circular or 0 < t < len(curve) - 1:
            slow.append(abs(curve[t] - (curve[t - 1] + curve[(t + 1) % len(curve)]) / 2))
    assert beating(curve, circular=circular).roughness_ml == pytest.approx(np.mean(slow))


@pytest.mark.parametrize("frames", [8, 10, 12, 20, 30])
def test_true_beats_have_no_flagged_frame_and_a_spoiled_one_has(frames):
    for seed in range(20):
        subject = make_subject(seed)
        settings = PhantomSettings(frames=frames)
        for name, curve in truth_ml(subject, frame_phases(subject, settings)).items():
            assert beating(curve, circular=True).flagged == (), name
        lv = truth_ml(subject, frame_phases(subject, settings))["LV"].copy()
        bad = seed % frames
        lv[bad] = 0.0
        assert bad in beating(lv, circular=True).flagged


def test_short_curves_have_no_roughness():
    for curve in ([], [100.0], [100.0, 50.0]):
        if curve:
            assert beating(curve, circular=False).roughness_ml == 0.0
    assert beating([0.0, 0.0, 0.0], circular=False).ejection_percent == 0.0
