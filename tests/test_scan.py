"""Geometry: turning a grid never moves a voxel in the patient."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.errors import InputError
from fewbeats.scan import (
    STACK_ANISOTROPY,
    STACK_MM,
    TIE,
    ArrayPixels,
    Reorientation,
    Scan,
    Source,
    canonical_reorientation,
    is_orientation_lost,
    plane_by_direction,
)

TURNS = [
    Reorientation(order, flipped)  # type: ignore[arg-type]
    for order, flipped in product(permutations(range(3)), product((False, True), repeat=3))
]
shapes = st.tuples(*[st.integers(1, 5)] * 3)
angles = st.floats(-np.pi, np.pi)
spacings = st.tuples(*[st.floats(0.3, 12.0)] * 3)


@st.composite
def affines(draw) -> np.ndarray:
    """Oblique, mirrored and with axes in any order."""
    a, b, c = draw(st.tuples(angles, angles, angles))
    out = np.eye(4)
    out[:3, :3] = _about(0, a) @ _about(1, b) @ _about(2, c) @ np.diag(draw(spacings))
    out[:3, :3] = out[:3, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    out[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return out


def _about(axis: int, angle: float) -> np.ndarray:
    i, j = (k for k in range(3) if k != axis)
    out = np.eye(3)
    out[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return out


def _world(affine: np.ndarray, zyx: tuple[int, ...]) -> np.ndarray:
    return affine[:3, :3] @ np.array(zyx[::-1]) + affine[:3, 3]


def _places(affine: np.ndarray, volume: np.ndarray) -> dict[int, np.ndarray]:
    """Each voxel's value -> where it is in the patient, mm; voxel by voxel."""
    return {int(volume[index]): _world(affine, index) for index in np.ndindex(volume.shape)}


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_invert_undoes_apply(turn):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    turned = turn.apply(volume)
    np.testing.assert_array_equal(turn.invert(turned), volume)
    assert np.shares_memory(turned, volume)


@given(affines(), shapes, st.sampled_from(TURNS))
@settings(max_examples=60, deadline=None)
def test_turning_moves_no_voxel(affine, shape, turn):
    volume = np.arange(np.prod(shape)).reshape(shape)
    before = _places(affine, volume)
    after = _places(turn.affine(affine, shape), turn.apply(volume))
    assert before.keys() == after.keys()
    for value, place in before.items():
        np.testing.assert_allclose(after[value], place, atol=1e-9)


@given(affines(), shapes)
@settings(max_examples=150, deadline=None)
def test_canonical_stays_as_it_is(affine, shape):
    turn = canonical_reorientation(affine, shape)
    turned, turned_shape = turn.affine(affine, shape), turn.apply(np.zeros(shape)).shape
    again = canonical_reorientation(turned, turned_shape)
    np.testing.assert_allclose(again.affine(turned, turned_shape), turned, atol=1e-9)


@given(affines(), shapes)
@settings(max_examples=150, deadline=None)
def test_a_stack_has_its_slices_along_z_and_a_volume_is_closest_to_ras(affine, shape):
    turn = canonical_reorientation(affine, shape)
    turned = turn.affine(affine, shape)
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    direction = turned[:3, :3] / spacing
    one_slice = shape.count(1) == 1
    if one_slice or spacing.max() >= max(STACK_MM, STACK_ANISOTROPY * np.median(spacing)):
        assert turn.apply(np.zeros(shape)).shape[0] == 1 if one_slice else np.argmax(spacing) == 2
        if not is_orientation_lost(affine, shape):  # never seen from above, behind or the right
            assert np.cross(direction[:, 0], direction[:, 1]) @ [-1, 1, -1] <= 0.3 * 3**0.5 + 1e-9
    else:
        alignments = [sum(abs(direction[w, p[w]]) for w in range(3)) for p in permutations(range(3))]
        assert np.trace(direction) >= max(alignments) - 3 * TIE


def test_an_oblique_stack_is_shown_as_radiologists_do():
    affine = np.eye(4)
    affine[:3, :3] = _about(0, 0.4) @ np.diag([1.4, 1.4, 8.0])
    turned = canonical_reorientation(affine, (9, 6, 5)).affine(affine, (9, 6, 5))
    assert turned[0, 0] < 0  # columns to the left
    assert turned[1, 1] < 0  # rows to the back


@given(affines(), shapes.filter(lambda shape: 1 not in shape))
@settings(max_examples=100, deadline=None)
def test_slices_run_from_base_to_apex(affine, shape):
    """Where the orientation is known; the apex is to the left, front and feet."""
    affine[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * [1.4, 1.4, 8.0]
    turned = canonical_reorientation(affine, shape).affine(affine, shape)
    if not is_orientation_lost(affine, shape):
        assert turned[:3, 2] @ [-1, 1, -1] > -8.0 * TIE - 1e-9


def test_a_stack_without_orientation_is_left_as_stored():
    shape = (9, 6, 5)
    plain = np.diag([1.4, 1.4, 8.0, 1.0])
    assert canonical_reorientation(plain, shape) == Reorientation()
    made_up = nib.Nifti1Image(np.zeros(shape[::-1], "u1"), None).header
    made_up.set_zooms((1.4, 1.4, 8.0))
    assert canonical_reorientation(made_up.get_base_affine(), shape) == Reorientation()


@pytest.mark.parametrize("in_plane_mm", [0.3, 0.4, 0.45, 0.5, 1.0])
def test_thin_slices_are_a_volume_however_fine_their_pixels(in_plane_mm):
    for signs in product((-1, 1), repeat=3):
        affine = np.diag([*np.multiply(signs, [in_plane_mm, in_plane_mm, 0.9]), 1.0])
        turned = canonical_reorientation(affine, (9, 6, 5)).affine(affine, (9, 6, 5))
        assert (np.diag(turned) > 0).all()
        assert not Scan(pixels=ArrayPixels(np.zeros((1, 9, 6, 5))), affine=turned).is_stack


def test_thick_axial_slices_are_shown_alike_however_they_are_stored():
    for signs in product((-1, 1), repeat=3):
        if signs != (1, 1, 1):  # as one who lost the orientation writes it
            affine = np.diag([*np.multiply(signs, [0.7, 0.7, 3.0]), 1.0])
            turned = canonical_reorientation(affine, (9, 6, 5)).affine(affine, (9, 6, 5))
            np.testing.assert_allclose(np.diag(turned)[:3], [-0.7, -0.7, -3.0])


@pytest.mark.parametrize(("in_plane_mm", "slice_mm"), [(1.5, 3.0), (1.25, 2.5)])
def test_rounding_does_not_make_a_stack_a_volume(in_plane_mm, slice_mm):
    for error in (-1e-6, 0, 1e-6):
        affine = np.diag([-in_plane_mm, -in_plane_mm, slice_mm + error, 1.0])
        assert canonical_reorientation(affine, (9, 6, 5)).flipped == (True, False, False)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_a_slice_whatever_its_depth(axis):
    shape = tuple(1 if i == axis else 6 for i in range(3))
    for depth_mm in (0.2, 1.4, 9.0):
        spacing = [depth_mm if i == 2 - axis else 1.4 for i in range(3)]
        affine = np.diag([*np.multiply(spacing, [-1, -1, 1]), 1.0])
        turn = canonical_reorientation(affine, shape)
        pixels = ArrayPixels(turn.apply(np.zeros(shape))[None])
        assert pixels.shape == (1, 1, 6, 6)
        assert Scan(pixels=pixels, affine=turn.affine(affine, shape)).is_stack


@pytest.mark.parametrize("spacing", [(1.4, 1.4, 8.0), (1.4, 8.0, 1.4), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("quarter", [-3, -1, 1, 3])
def test_a_rounded_affine_is_turned_alike(axis, quarter, spacing):
    """At 45 degrees two directions are equal but for rounding, which must not decide."""
    turns = set()
    for error in np.linspace(-2e-4, 2e-4, 9):
        affine = np.eye(4)
        affine[:3, :3] = _about(axis, quarter * np.pi / 4 + error) @ np.diag(spacing)
        turns.add(canonical_reorientation(affine, (9, 6, 5)))
    assert len(turns) == 1


def test_spacing_and_voxel_volume_follow_the_affine():
    scan = Scan(pixels=ArrayPixels(np.zeros((1, 3, 4, 5))), affine=np.diag([1.5, -2.0, 10.0, 1.0]))
    assert scan.spacing_mm == pytest.approx((10.0, 2.0, 1.5))
    assert scan.voxel_ml == pytest.approx(0.03)
    assert scan.is_stack
    assert not Scan(pixels=scan.pixels, affine=np.eye(4)).is_stack


def test_stored_integers_become_values():
    pixels = ArrayPixels(np.array([[[[0, 1, 1000]]]], np.int16), slope=2.0, intercept=-1024.0)
    np.testing.assert_array_equal(pixels.frame(0), [[[-1024.0, -1022.0, 976.0]]])
    assert pixels.frame(0).dtype == np.float32


def test_times_are_given_in_milliseconds():
    scan = Scan(pixels=ArrayPixels(np.zeros((4, 1, 2, 2))), affine=np.eye(4)).with_times(33.5)
    np.testing.assert_allclose(scan.frame_times_ms, [0, 33.5, 67, 100.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"affine": np.diag([1.0, 1.0, np.nan, 1.0])}, "finite 4 x 4"),
        ({"affine": np.eye(3)}, "finite 4 x 4"),
        ({"affine": np.diag([1.0, 1.0, 0.0, 1.0])}, "singular"),
        ({"frame_times_ms": np.arange(3.0)}, "3 frame times for 2 frames"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message, tmp_path):
    kept = {"pixels": ArrayPixels(np.zeros((2, 3, 4, 5))), "affine": np.eye(4)}
    with pytest.raises(InputError, match=message) as error:
        Scan(**(kept | changes), source=Source(path=tmp_path / "heart.nii"))
    assert "heart.nii" in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_frame_without_numbers_is_refused(bad):
    pixels = np.zeros((2, 3, 4, 5))
    pixels[1, 2, 3, 4] = bad
    scan = Scan(pixels=ArrayPixels(pixels), affine=np.eye(4))
    scan.frame(0)
    with pytest.raises(InputError, match="frame 1 holds NaN"):
        scan.frame(1)


@pytest.mark.parametrize(
    ("normal", "plane"),
    [
        ((0, 0, 1), "AX"), ((0, -1, 0.05), "COR"), ((1, 0.1, 0), "SAG"), ((-0.62, 0.64, -0.45), "SAX"),
        ((0.7, -0.6, 0.2), "SAX"), ((0.2, 0.65, 0.7), "long axis"), ((0.75, 0.5, -0.3), "long axis"),
        ((0.0, 0.9, -0.25), ""),
    ],
)  # fmt: skip
def test_planes_by_their_direction(normal, plane):
    z = np.array(normal, float) / np.linalg.norm(normal)
    x = np.cross([0.3, 0.2, 0.93], z)
    x /= np.linalg.norm(x)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x, np.cross(z, x), z], 1) @ np.diag([1.5, 1.5, 8])
    pixels = ArrayPixels(np.zeros((1, 4, 8, 8), np.int16))
    scan = Scan(pixels=pixels, affine=affine, source=Source(affine=affine, shape=(4, 8, 8)))
    assert plane_by_direction(scan) == plane
    assert plane_by_direction(replace(scan, affine=np.diag([1.5, 1.5, 1.5, 1]))) == ""  # a volume
