"""Dice, HD95 and ASSD against their definitions, against MONAI and against geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import reference
from fewbeats.metrics import compare, dice, field_of_view_mm, surface_distances

SPACINGS = [(1.0, 1.0, 1.0), (10.0, 1.37, 1.37), (2.5, 0.7, 1.9)]
shapes = st.tuples(st.integers(1, 5), st.integers(2, 7), st.integers(2, 7))
mask_pairs = shapes.flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s)))


@given(mask_pairs, st.sampled_from(SPACINGS))
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_definition(masks, spacing_mm):
    a, b = masks
    found = compare(a, b, spacing_mm=spacing_mm)
    assert found.dice == pytest.approx(reference.dice(a, b))
    assert found.miss == (a.any() != b.any())
    if a.any() and b.any():
        assert found.hd95_mm == pytest.approx(reference.hd95_mm(a, b, spacing_mm))
        assert found.assd_mm == pytest.approx(reference.assd_mm(a, b, spacing_mm))


@given(mask_pairs, st.sampled_from(SPACINGS))
@settings(max_examples=50, deadline=None)
def test_is_symmetric_and_perfect_on_itself(masks, spacing_mm):
    a, b = masks
    there, back = compare(a, b, spacing_mm=spacing_mm), compare(b, a, spacing_mm=spacing_mm)
    assert (there.dice, there.hd95_mm, there.assd_mm) == pytest.approx(
        (back.dice, back.hd95_mm, back.assd_mm)
    )
    itself = compare(a, a, spacing_mm=spacing_mm)
    assert (itself.dice, itself.hd95_mm, itself.assd_mm, itself.miss) == (1.0, 0.0, 0.0, False)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_agrees_with_monai(spacing_mm):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for _ in range(4):
        a, b = _blob(rng), _blob(rng)
        one_hot = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
        found = compare(a, b, spacing_mm=spacing_mm)
        hd95 = metrics.compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=spacing_mm
        )
        assd = metrics.compute_average_surface_distance(
            *one_hot, include_background=True, symmetric=True, spacing=spacing_mm
        )
        assert found.hd95_mm == pytest.approx(hd95.item(), rel=1e-5)
        assert found.assd_mm == pytest.approx(assd.item(), rel=1e-5)
        assert found.dice == pytest.approx(metrics.compute_dice(*one_hot).item())


def _blob(rng: np.random.Generator) -> np.ndarray:
    """A ragged ellipsoid somewhere in the image, sometimes cut by its border."""
    center, radii = rng.uniform(1, [5, 19, 19]), rng.uniform(2, [3, 8, 8])
    z, y, x = np.indices((6, 20, 20))
    inside = sum(((i - c) / r) ** 2 for i, c, r in zip((z, y, x), center, radii)) <= 1
    return inside & (rng.random(inside.shape) < 0.95)


def test_a_shifted_box_is_off_by_its_shift():
    a = np.zeros((8, 20, 20), bool)
    a[2:6, 5:15, 5:15] = True
    b = np.roll(a, 3, axis=2)
    found = compare(a, b, spacing_mm=(8.0, 1.5, 1.5))
    assert found.dice == pytest.approx(0.7)
    assert found.hd95_mm == pytest.approx(4.5)


def test_empty_masks_follow_the_written_rule():
    empty, full = np.zeros((4, 30, 40), bool), np.zeros((4, 30, 40), bool)
    full[1:3, 10:20, 10:20] = True
    spacing_mm = (10.0, 1.0, 1.0)
    diagonal = np.sqrt(40**2 + 30**2 + 40**2)
    assert field_of_view_mm(full.shape, spacing_mm) == pytest.approx(diagonal)
    both = compare(empty, empty, spacing_mm=spacing_mm)
    assert (both.dice, both.hd95_mm, both.assd_mm, both.miss) == (1.0, 0.0, 0.0, False)
    for predicted, manual in ((empty, full), (full, empty)):
        miss = compare(predicted, manual, spacing_mm=spacing_mm)
        assert (miss.dice, miss.miss) == (0.0, True)
        assert (miss.hd95_mm, miss.assd_mm) == pytest.approx((diagonal, diagonal))


def test_unknown_spacing_gives_no_distances():
    mask = np.ones((2, 3, 3), bool)
    found = compare(mask, mask, spacing_mm=None)
    assert (found.dice, found.hd95_mm, found.assd_mm) == (1.0, None, None)


def test_the_inside_of_a_single_slice_is_not_surface():
    disk = np.zeros((1, 21, 21), bool)
    disk[0, 3:18, 3:18] = True
    there, _ = surface_distances(disk, disk, spacing_mm=(8.0, 1.0, 1.0))
    assert len(there) == 4 * 14


def test_a_single_voxel_agrees_with_itself():
    full = np.ones((1, 1, 1), bool)
    found = compare(full, full, spacing_mm=(8.0, 1.0, 1.0))
    assert (found.dice, found.hd95_mm, found.assd_mm, found.miss) == (1.0, 0.0, 0.0, False)


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="different shape"):
        compare(np.ones((1, 2, 3), bool), np.ones((1, 3, 2), bool), spacing_mm=None)


@pytest.mark.realdata
def test_real_hearts_agree_with_monai(realdata):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    nib = pytest.importorskip("nibabel")
    ed, es = (
        np.asarray(nib.load(realdata / f"acdc/patient002/patient002_frame{f}_gt.nii.gz").dataobj).T
        for f in ("01", "12")
    )
    spacing_mm = (10.0, 1.3671875, 1.3671875)
    for value in (1, 2, 3):
        found = compare(ed == value, es == value, spacing_mm=spacing_mm)
        one_hot = [torch.from_numpy(m == value)[None, None].float() for m in (ed, es)]
        hd95 = metrics.compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=spacing_mm
        )
        assert found.hd95_mm == pytest.approx(hd95.item(), rel=1e-5)
        assert found.dice == pytest.approx(dice(ed == value, es == value))
