"""Where the heart is: found at low resolution, or the whole image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewbeats.inference.localize import locate_heart, whole_image
from fewbeats.inference.segment import Model, find_region, segment_frames
from oracle import make_scan, make_truth, oracle, ranked


def test_the_localizer_leads_there():
    truth = make_truth(shape=(6, 120, 140), center=(40, 95))
    scan = make_scan(truth, spacing=(8.0, 2.5, 2.5))
    model = Model(ranked(oracle("segmenter")), oracle("localizer"))
    region = find_region(scan, model)
    assert region.center == pytest.approx((40, 95), abs=2)
    ((found, _),) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


def test_a_cropped_image_is_padded_and_no_localizer_is_asked():
    truth = make_truth(shape=(6, 22, 24), center=(11, 12))
    asked = []
    localizer = replace(oracle("localizer"), call=lambda batch: asked.append(1))
    model = Model(ranked(oracle("segmenter")), localizer)
    scan = make_scan(truth)
    region = find_region(scan, model)
    assert region == whole_image(scan)
    assert not asked
    ((found, _),) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


def test_no_heart_at_low_resolution_is_said():
    scan = make_scan(np.zeros((4, 100, 100), np.uint8))
    nothing = replace(
        oracle("localizer"), call=lambda batch: np.stack([batch[:, 0] * 0 + 1, batch[:, 0] * 0], 1)
    )
    assert locate_heart(scan, nothing) == whole_image(scan, found=False)
