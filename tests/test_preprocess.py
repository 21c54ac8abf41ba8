"""The network's grid: resampling against scipy, and every voxel back where it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewbeats.transforms.preprocess import (
    Grid,
    PreprocessSettings,
    lay_grid,
    linear_matrix,
    normalize,
    prepare_frame,
)

axes = st.tuples(st.floats(-20, 20), st.floats(0.2, 4.0), st.integers(1, 24), st.integers(2, 20))
"""start, step, count, voxels of one axis"""


def _grid(*along) -> Grid:
    start, step, shape, source = zip(*along)
    return Grid(start, step, shape, source)


def _points(grid: Grid) -> np.ndarray:
    """(3, Z', Y', X') voxel coordinate of each grid point."""
    at = [s + d * np.arange(n) for s, d, n in zip(grid.start, grid.step, grid.shape)]
    return np.stack(np.meshgrid(*at, indexing="ij"))


def _linear_weights_slowly(start: float, step: float, count: int, voxels: int) -> np.ndarray:
    """Triangle kernel of half-width max(step, 1) around each point, normalized; zero rows outside."""
    out = np.zeros((count, voxels))
    for i in range(count):
        at = start + step * i
        if -0.5 <= at <= voxels - 0.5:
            at = min(max(at, 0.0), voxels - 1.0)
            for j in range(voxels):
                out[i, j] = max(0.0, 1.0 - abs(at - j) / max(step, 1.0))
            out[i] /= out[i].sum()
    return out


@given(axes)
@settings(max_examples=150, deadline=None)
def test_weights_are_those_of_the_definition(axis):
    np.testing.assert_allclose(linear_matrix(*axis), _linear_weights_slowly(*axis), atol=1e-6)


@given(axes)
@settings(max_examples=100, deadline=None)
def test_weights_sum_to_one_on_the_scan_and_everywhere_when_clamped(axis):
    start, step, count, voxels = axis
    at = start + step * np.arange(count)
    on_scan = (at >= -0.5) & (at <= voxels - 0.5)
    np.testing.assert_allclose(linear_matrix(*axis).sum(1), on_scan, atol=1e-5)
    np.testing.assert_allclose(linear_matrix(*axis, clamp=True).sum(1), 1.0, atol=1e-5)


@given(st.lists(axes, min_size=3, max_size=3), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_upsampling_agrees_with_scipy(along, seed):
    along = [(start, min(step, 1.0), count, voxels) for start, step, count, voxels in along]
    grid = _grid(*along)
    volume = np.random.default_rng(seed).normal(size=grid.source_shape).astype(np.float32)
    expected = ndimage.map_coordinates(volume, _points(grid), order=1, mode="nearest") * grid.inside()
    np.testing.assert_allclose(grid.sample(volume), expected, atol=1e-4)


@given(st.lists(axes, min_size=3, max_size=3), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_labels_are_those_of_the_nearest_voxel(along, seed):
    grid = _grid(*along)
    at = _points(grid)
    assume(np.abs(at - np.floor(at) - 0.5).min() > 1e-4)  # halfway there is no nearest voxel
    labels = np.random.default_rng(seed).integers(1, 5, grid.source_shape, dtype=np.uint8)
    expected = ndimage.map_coordinates(labels, at, order=0, mode="nearest") * grid.inside()
    found = grid.sample_labels(labels)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype


def test_downsampling_averages_instead_of_skipping():
    stripes = np.tile([0.0, 1.0], 32)[None, None].repeat(4, 1)
    grid = _grid((0, 1, 1, 1), (0, 1, 4, 4), (8, 4.0, 12, 64))
    np.testing.assert_allclose(grid.sample(stripes.astype(np.float32)), 0.5, atol=1e-5)


# There and back


def _smooth(shape: tuple[int, int, int], spacing_mm) -> np.ndarray:
    """A few broad waves, the same in mm whatever the spacing."""
    z, y, x = (np.arange(n) * s for n, s in zip(shape, spacing_mm))
    wave = np.sin(y / 17)[:, None] * np.cos(x / 23)[None, :]
    return (wave[None] + np.cos(z / 40)[:, None, None]).astype(np.float32)


sides = st.integers(8, 40)
spacings = st.tuples(st.floats(2, 10), st.floats(0.6, 2.5), st.floats(0.6, 2.5))


@given(st.tuples(st.integers(1, 9), sides, sides), spacings, st.floats(0.8, 2.5), st.integers(8, 40))
@settings(max_examples=80, deadline=None)
def test_a_smooth_image_comes_back(shape, spacing_mm, network_mm, size):
    view = PreprocessSettings(spacing_mm=network_mm, size=size)
    image = _smooth(shape, spacing_mm)
    grid = lay_grid(shape, spacing_mm, view)
    box = grid.box
    back = grid.restore(grid.sample(image))
    assert back.shape == image[box].shape
    kept = _well_inside(grid)
    np.testing.assert_allclose(back[kept], image[box][kept], atol=0.06)


def _well_inside(grid: Grid) -> tuple[slice, ...]:
    """Voxels of the box whose neighbors, there and back, are all on the scan and on the grid."""
    kept = [slice(None)]
    for axis in (1, 2):
        border = int(np.ceil(max(1.0, grid.step[axis]))) + 1
        kept.append(slice(border, max(border, grid.box[axis].stop - grid.box[axis].start - border)))
    return tuple(kept)


@given(
    st.tuples(st.floats(12, 50), st.floats(12, 50)),
    st.tuples(st.floats(0.7, 2.2), st.floats(0.7, 2.2)),
    st.floats(0.8, 2.0),
    st.tuples(st.floats(20, 44), st.floats(20, 44)),
)
@settings(max_examples=80, deadline=None)
def test_a_marker_comes_back_to_its_place(marker_mm, spacing_yx, network_mm, center_mm):
    """A Gaussian's centroid, on the grid where the grid says it is, and back within 0.1 voxel."""
    spacing_mm = (8.0, *spacing_yx)
    shape = (1, *[int(64 / s) for s in spacing_yx])
    y, x = (np.arange(n) * s for n, s in zip(shape[1:], spacing_yx))
    sigma = 1.5 * max(*spacing_yx, network_mm)
    squared = (y[:, None] - marker_mm[0]) ** 2 + (x[None] - marker_mm[1]) ** 2
    image = np.exp(-squared / (2 * sigma**2))[None].astype(np.float32)
    center = (center_mm[0] / spacing_yx[0], center_mm[1] / spacing_yx[1])
    grid = lay_grid(shape, spacing_mm, PreprocessSettings(spacing_mm=network_mm, size=96), center=center)
    seen = grid.sample(image)
    assume(grid.inside()[0].any())
    edge = 4 * sigma
    assume(all(edge < m < n * s - edge for m, n, s in zip(marker_mm, shape[1:], spacing_yx)))
    truth = np.array(marker_mm) / spacing_yx
    on_grid = np.array(ndimage.center_of_mass(seen[0]))
    np.testing.assert_allclose(np.array(grid.start[1:]) + on_grid * grid.step[1:], truth, atol=0.1)
    back = np.zeros(shape, np.float32)
    back[grid.box] = grid.restore(seen)
    np.testing.assert_allclose(ndimage.center_of_mass(back[0]), truth, atol=0.1)


@given(st.lists(axes, min_size=3, max_size=3), st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_restoring_slab_by_slab_is_restoring_all(along, seed, thickness):
    grid = _grid(*along)
    scores = np.random.default_rng(seed).normal(size=(3, *grid.shape)).astype(np.float32)
    whole = grid.restore(scores)
    assert whole.shape == (3, *[b.stop - b.start for b in grid.box])
    depth = grid.box[0]
    slabs = [
        grid.restore(scores, box=(slice(z, min(z + thickness, depth.stop)), *grid.box[1:]))
        for z in range(depth.start, depth.stop, thickness)
    ]
    if slabs:
        np.testing.assert_allclose(np.concatenate(slabs, axis=1), whole, atol=1e-5)


@given(axes)
@settings(max_examples=200, deadline=None)
def test_the_box_holds_the_voxels_nearest_to_a_grid_point(axis):
    grid = _grid((0, 1, 1, 1), (0, 1, 1, 1), axis)
    start, step, count, voxels = axis
    last = start + step * (count - 1)
    away = [max(start - j, j - last) - step / 2 for j in range(voxels)]
    assume(min(abs(a) for a in away) > 1e-6)
    answered = range(voxels)[grid.box[2]]
    assert list(answered) == [j for j in range(voxels) if away[j] < 0]


def test_a_grid_beside_the_scan_sees_and_answers_nothing():
    view = PreprocessSettings(spacing_mm=1.0, size=16)
    grid = lay_grid((3, 20, 20), (8.0, 1.0, 1.0), view, center=(200.0, -90.0))
    image = np.ones((3, 20, 20), np.float32)
    assert not grid.inside().any()
    assert not grid.sample(image).any()
    assert not grid.sample_labels(image.astype(np.uint8)).any()
    assert grid.restore(np.ones((4, *grid.shape), np.float32)).size == 0
    assert not normalize(grid.sample(image), grid.inside(), view).any()


def test_an_image_smaller_than_the_field_of_view_is_framed():
    view = PreprocessSettings(spacing_mm=1.0, size=32)
    image = np.arange(2 * 10 * 12, dtype=np.float32).reshape(2, 10, 12)
    grid = lay_grid(image.shape, (8.0, 1.0, 1.0), view)
    assert grid.inside().sum() == image.size
    seen = grid.sample(image)
    np.testing.assert_allclose(seen[:, 11:21, 10:22], image, rtol=1e-6)
    assert not seen[~grid.inside()].any()
    assert grid.box == (slice(0, 2), slice(0, 10), slice(0, 12))
    np.testing.assert_allclose(grid.restore(seen), image, rtol=1e-6)


def test_slices_are_kept_unless_a_through_plane_spacing_is_wished():
    shape, spacing_mm = (10, 30, 30), (8.0, 1.25, 1.25)
    assert lay_grid(shape, spacing_mm, PreprocessSettings()).shape[0] == 10
    grid = lay_grid(shape, spacing_mm, PreprocessSettings(through_plane_mm=4.0))
    assert (grid.shape[0], grid.step[0]) == (20, 0.5)
    middle = grid.start[0] + grid.step[0] * (grid.shape[0] - 1) / 2
    assert middle == pytest.approx((shape[0] - 1) / 2)
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None], shape).astype(np.float32)
    back = grid.restore(grid.sample(ramp))[:, 15, 15]
    np.testing.assert_allclose(back[2:-2], ramp[2:-2, 0, 0], atol=1e-4)
    coarse = lay_grid(shape, spacing_mm, PreprocessSettings(through_plane_mm=16.0))
    assert coarse.shape[0] == 5
    np.testing.assert_allclose(coarse.sample(ramp)[1:-1, 64, 64], [2.5, 4.5, 6.5], atol=1e-4)


# Gray values


def test_the_field_of_view_has_mean_zero_and_deviation_one():
    view = PreprocessSettings(spacing_mm=1.25, size=64)
    noise = np.random.default_rng(0).gamma(2.0, 100.0, (6, 90, 90)).astype(np.float32)
    values, grid = prepare_frame(noise, (8.0, 1.25, 1.25), view, size=96)
    center = values[:, 16:80, 16:80][grid.inside()[:, 16:80, 16:80]]
    assert center.mean() == pytest.approx(0.0, abs=0.03)
    assert center.std() == pytest.approx(1.0, abs=0.03)
    assert not values[~grid.inside()].any()


def test_outliers_are_clipped_at_the_percentiles():
    view = PreprocessSettings(size=128)
    values = np.random.default_rng(1).normal(size=(2, 128, 128)).astype(np.float32)
    spoiled = values.copy()
    spoiled[0, 10, 10] = 1e6
    inside = np.ones(values.shape, bool)
    clean, clipped = normalize(values, inside, view), normalize(spoiled, inside, view)
    assert clipped.max() < 4.0
    np.testing.assert_allclose(np.delete(clipped, 1290), np.delete(clean, 1290), atol=0.1)


@given(st.floats(0.01, 1000), st.floats(-500, 500))
@settings(max_examples=30, deadline=None)
def test_the_scanners_gain_and_offset_do_not_matter(gain, offset):
    view = PreprocessSettings(size=32)
    values = np.random.default_rng(2).gamma(2.0, 1.0, (2, 32, 32)).astype(np.float32)
    inside = np.ones(values.shape, bool)
    rescaled = (values.astype(np.float64) * gain + offset * gain).astype(np.float32)
    np.testing.assert_allclose(
        normalize(rescaled, inside, view), normalize(values, inside, view), atol=1e-4 * (1 + abs(offset))
    )


def test_hounsfield_units_take_the_window_whatever_else_is_in_view():
    view = PreprocessSettings(size=32, window_hu=(-200.0, 600.0))
    values = np.random.default_rng(3).uniform(-1024, 3000, (2, 32, 32)).astype(np.float32)
    inside = np.ones(values.shape, bool)
    seen = normalize(values, inside, view, modality="CT")
    order = np.clip(values, -200, 600)
    slope, _ = np.polyfit(order.ravel(), seen.ravel(), 1)
    np.testing.assert_allclose(seen, (order - order.mean()) / order.std(), atol=0.1)
    assert slope == pytest.approx(1 / order.std(), rel=0.05)
    assert len(np.unique(seen[values < -200])) == len(np.unique(seen[values > 600])) == 1


def test_an_even_image_stays_finite():
    for level in (0.0, 7.0, -1024.0, 60_000.0):
        frame = np.full((2, 20, 20), level, np.float32)
        values, _ = prepare_frame(frame, (8, 1, 1), PreprocessSettings(size=16))
        np.testing.assert_allclose(values, 0.0, atol=0.05)


@given(st.lists(axes, min_size=3, max_size=3), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_beyond_the_reach_of_a_part_nothing_is_restored_from_it(along, seed):
    grid, draw = _grid(*along), np.random.default_rng(seed)
    first = draw.integers(0, grid.shape)
    last = draw.integers(first, grid.shape)
    part = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last))
    values = np.zeros(grid.shape, np.float32)
    values[part] = 1.0
    whole = np.zeros(grid.source_shape, np.float32)
    whole[grid.box] = grid.restore(values)
    reached = grid.reach(part)
    if all(b.stop > b.start for b in reached):
        np.testing.assert_allclose(grid.restore(values, box=reached), whole[reached], atol=1e-6)
    whole[reached] = 0.0
    assert not whole.any()


def test_the_slip_of_mns_release_takes_the_statistics_of_the_scaled_image():
    image = np.random.default_rng(0).integers(10, 210, (1, 32, 32)).astype(np.float32)
    settings = PreprocessSettings(size=32, statistics="minmax", clip_percent=(0, 100))
    found = normalize(image, np.ones(image.shape, bool), settings)
    seen = image[:, ::2, ::2]
    scaled = (seen - seen.min()) / (seen.max() - seen.min())
    np.testing.assert_allclose(
        found, (image.clip(seen.min(), seen.max()) - scaled.mean()) / scaled.std(), rtol=1e-5
    )
