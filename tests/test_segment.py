"""From a region to masks on the scan's own grid: exact places, whatever its pixels and size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.inference.localize import Region, whole_image
from fewbeats.inference.segment import Model, find_region, keep_largest, segment_frames, widen_grid
from fewbeats.scan import ArrayPixels, Scan
from oracle import SIDE, make_scan, make_truth, oracle, ranked


@pytest.mark.parametrize("dims", [2, 3])
def test_the_answer_lands_where_it_belongs(dims):
    truth = make_truth()
    scan = make_scan(truth)
    model = Model(ranked(oracle("segmenter", dims=dims)), None)
    region = Region((22.0, 45.0), 50.0)
    ((found, _),) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("spacing", [1.25, 1.7, 3.1])
def test_other_pixel_sizes_are_off_by_less_than_half_a_pixel_of_the_network(spacing):
    truth = make_truth(reach=(10, 8, 4)) if spacing < 2.5 else make_truth(reach=(7, 5, 3))
    scan = make_scan(truth, spacing=(8.0, spacing, spacing))
    ((found, _),) = segment_frames(scan, Model(ranked(oracle("segmenter")), None), Region((22.0, 45.0), 0.0))
    for value in (1, 2, 3):
        for axis in (1, 2):
            here, there = (np.flatnonzero((m >= 1).any((0, 3 - axis)) if value == 3 else
                           (m == value).any((0, 3 - axis))) for m in (found, truth))  # fmt: skip
            assert abs(here[[0, -1]] - there[[0, -1]]).max() * spacing <= 0.5 * 2.5 + 0.5 * spacing


def test_a_heart_larger_than_the_field_of_view_is_zoomed_out():
    truth = make_truth(shape=(6, 160, 160), center=(80, 80), reach=(22, 15, 8))  # 112 mm; the view is 80 mm
    scan = make_scan(truth)
    model = Model(ranked(oracle("segmenter")), oracle("localizer"))
    region = find_region(scan, model)
    view = widen_grid(model.segmenter.settings.preprocess, region)
    assert 112 <= view.field_of_view_mm <= 1.5 * 80
    ((found, _),) = segment_frames(scan, model, region)
    for value in (1, 2, 3):
        both = 2 * ((found == value) & (truth == value)).sum()
        assert both / ((found == value).sum() + (truth == value).sum()) > 0.85


@pytest.mark.parametrize("corner", [0, SIDE - 3])
def test_a_heart_seen_only_beside_the_image_is_no_heart(corner):
    """The field of view reaches beyond a small image; what is found there has no voxel."""

    def logits(batch):
        out = np.zeros((len(batch), 4, SIDE, SIDE), np.float32)
        out[:, 1, corner : corner + 3, corner : corner + 3] = 5.0
        return out

    model = Model(replace(oracle("segmenter"), call=logits), None)
    pixels = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    scan = Scan(pixels=ArrayPixels(pixels), affine=np.diag([2.5, 2.5, 8.0, 1.0]))
    ((mask, _),) = segment_frames(scan, model, whole_image(scan))
    assert mask.shape == (4, 8, 8)
    assert not mask.any()


def test_slab_by_slab_is_the_whole_at_once(monkeypatch):
    truth = np.concatenate([make_truth(), make_truth(center=(30, 40)), make_truth()])
    scan, region = make_scan(truth), Region((24.0, 43.0), 0.0)
    model = Model(ranked(oracle("segmenter")), None)
    results = []
    for slab in (1, 5, 16, 100):
        monkeypatch.setattr("fewbeats.inference.segment.SLAB", slab)
        results.append(next(segment_frames(scan, model, region))[0])
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert results[0].any()


# Parts


def heart_with(*parts: tuple[int, tuple[slice, ...]]) -> np.ndarray:
    """A ring of myocardium around an LV, and further boxes of a structure."""
    mask = np.zeros((3, 40, 40), np.uint8)
    mask[:, 10:24, 10:24], mask[:, 13:21, 13:21] = 2, 1
    for value, where in parts:
        mask[where] = value
    return mask


BESIDE = (3, (slice(0, 2), slice(12, 18), slice(24, 29)))  # 60 voxels that adjoin the ring
HEART = ("LV", "MYO", "RV")


@pytest.mark.parametrize(("side", "kept"), [(6, "beside"), (8, "beside"), (9, "alone")])
def test_of_two_parts_the_one_at_the_heart_is_kept_unless_it_is_far_smaller(side, kept):
    alone = (3, (slice(0, 3), slice(28, 28 + side), slice(30, 30 + side)))  # three slices of side²
    mask = heart_with(BESIDE, alone)
    wanted = heart_with(BESIDE if kept == "beside" else alone)
    assert (wanted == 3).sum() in (60, 3 * side**2)
    np.testing.assert_array_equal(keep_largest(mask.copy(), HEART), wanted)


def test_where_all_parts_or_none_adjoin_the_largest_is_kept():
    small, large = (3, (0, slice(1, 4), slice(1, 4))), (3, (1, slice(1, 5), slice(34, 39)))
    np.testing.assert_array_equal(keep_largest(heart_with(small, large), HEART), heart_with(large))
    beside = (3, (slice(0, 3), slice(12, 18), slice(4, 10)))
    np.testing.assert_array_equal(keep_largest(heart_with(BESIDE, beside), HEART), heart_with(beside))
    single = np.zeros((3, 20, 20), np.uint8)
    single[0, 2:5, 2:5], single[2, 10:15, 10:15] = 4, 4
    wanted = single.copy()
    wanted[0] = 0
    np.testing.assert_array_equal(keep_largest(single, ("LA",)), wanted)


def test_one_part_is_left_as_it_is_and_nothing_is_nothing():
    mask = heart_with(BESIDE)
    np.testing.assert_array_equal(keep_largest(mask.copy(), HEART), mask)
    empty = np.zeros((2, 5, 5), np.uint8)
    np.testing.assert_array_equal(keep_largest(empty.copy(), HEART), empty)


def test_a_vessel_that_the_field_of_view_parts_keeps_its_limbs():
    """The aorta goes up and comes down again; a speck is none of it."""
    mask = np.zeros((6, 30, 30), np.uint8)
    mask[:, 3:9, 3:9], mask[:, 20:24, 20:24], mask[0, 15, 3:6] = 6, 6, 6
    assert FEWBEATS_VALUES["AO"] == 6
    wanted = mask.copy()
    wanted[0, 15] = 0
    np.testing.assert_array_equal(keep_largest(mask.copy(), ("AO",)), wanted)
    small, corner = (6, (0, slice(12, 14), slice(24, 28))), (6, (2, slice(30, 38), slice(30, 38)))
    assert (keep_largest(heart_with(small, corner), ("LV", "MYO", "AO")) == 6).sum() == 64  # not of the heart
    chamber = np.where(mask == 6, FEWBEATS_VALUES["LA"], 0).astype(np.uint8)
    assert (keep_largest(chamber, ("LA",)) > 0).sum() == 6 * 36
