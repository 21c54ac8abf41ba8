"""Random transforms: image and mask move together, ranges are respected, the generator decides all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from fewbeats.transforms.intensity import IntensitySettings, apply_intensity, draw_intensity
from fewbeats.transforms.spatial import SpatialSettings, apply_spatial, draw_spatial

STILL = SpatialSettings(
    rotation_degrees=0, scale=(1, 1), anisotropy=0, shift_px=0, elastic_px=0, elastic_probability=0,
    turned=0, flip=False, crop_probability=0,
)  # fmt: skip
NEUTRAL = IntensitySettings(
    probability=1.0, gamma=(1, 1), bias_field=0, contrast=(1, 1), brightness=0, blur_px=(1e-3, 1e-3), noise=0,
    low_resolution=1,
)  # fmt: skip
SOURCE, OUT = 96, 64


def augment_intensity(image, settings, generator):
    return apply_intensity(image, draw_intensity(settings, image.shape, generator))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(settings: SpatialSettings, *, batch: int = 200, seed: int = 0):
    return draw_spatial(settings, batch=batch, source_px=SOURCE, out_px=OUT, generator=_generator(seed))


def _affine_of(draw) -> tuple[np.ndarray, np.ndarray]:
    """Least squares: (B, 2, 2) from output to source offsets (x, y) in pixels, and (B, 2) shift."""
    offsets = np.arange(OUT) - (OUT - 1) / 2
    x, y = np.meshgrid(offsets, offsets, indexing="xy")
    known = np.stack([x.ravel(), y.ravel(), np.ones(OUT * OUT)], 1)
    wanted = draw.grid.double().numpy().reshape(len(draw.grid), -1, 2) * SOURCE / 2
    solved = np.stack([np.linalg.lstsq(known, each, rcond=None)[0] for each in wanted])
    return solved[:, :2].transpose(0, 2, 1), solved[:, 2]


def _blob(place_xy: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian and the disk around it at an offset from the middle of the source, as (1, 1, Y, X)."""
    at = torch.arange(SOURCE) - (SOURCE - 1) / 2
    squared = (at[:, None] - place_xy[1]) ** 2 + (at[None] - place_xy[0]) ** 2
    return torch.exp(-squared / (2 * 3.0**2))[None, None], (squared < 6.0**2).float()[None, None]


def _centroid(plane: torch.Tensor) -> np.ndarray:
    """(x, y) from the middle of the output."""
    y, x = ndimage.center_of_mass(plane.numpy())
    return np.array([x, y]) - (OUT - 1) / 2


# Spatial


def test_nothing_drawn_is_the_middle_cut_out():
    image = torch.randn(3, 2, SOURCE, SOURCE, generator=_generator())
    labels = torch.randint(0, 4, (3, 1, SOURCE, SOURCE), generator=_generator()).float()
    draw = _draw(STILL, batch=3)
    middle = (slice(None), slice(None), *[slice((SOURCE - OUT) // 2, (SOURCE + OUT) // 2)] * 2)
    torch.testing.assert_close(apply_spatial(image, draw), image[middle], atol=1e-4, rtol=0)
    assert torch.equal(apply_spatial(labels, draw, labels=True), labels[middle])
    assert draw.keep.all()


def test_image_mask_and_point_move_together():
    settings = SpatialSettings(shift_px=6, elastic_probability=0, crop_probability=0)
    draw = _draw(settings, batch=40)
    turn, shift = _affine_of(draw)
    for place in ((0.0, 0.0), (12.0, -7.0), (-9.0, 15.0)):
        image, mask = (part.expand(40, -1, -1, -1) for part in _blob(place))
        image, mask = apply_spatial(image, draw), apply_spatial(mask, draw, labels=True)
        for i in range(40):
            expected = np.linalg.solve(turn[i], np.array(place) - shift[i])
            if np.abs(expected).max() > OUT / 2 - 14:
                continue  # cut by the border
            np.testing.assert_allclose(_centroid(image[i, 0]), expected, atol=0.1)
            np.testing.assert_allclose(_centroid(mask[i, 0]), expected, atol=0.35)


def test_a_bent_mask_stays_on_its_bent_image():
    settings = replace(STILL, elastic_px=4.0, elastic_probability=1.0)
    draw = _draw(settings, batch=30)
    image, mask = (part.expand(30, -1, -1, -1) for part in _blob((5.0, -3.0)))
    image, mask = apply_spatial(image, draw), apply_spatial(mask, draw, labels=True)
    edge = np.exp(-(6.0**2) / (2 * 3.0**2))  # the Gaussian's value on the rim of the disk
    agree = (mask.bool() == (image > edge)).float().mean((1, 2, 3))
    assert agree.min() > 0.99
    assert not torch.equal(mask[0], mask[1])
    still = torch.from_numpy(np.stack(_affine_of(_draw(STILL, batch=1))[0]))
    torch.testing.assert_close(still[0], torch.eye(2, dtype=still.dtype), atol=1e-4, rtol=0)


def test_ranges_are_respected_and_used():
    settings = replace(STILL, rotation_degrees=30, scale=(0.8, 1.25), shift_px=7)
    turn, shift = _affine_of(_draw(settings, batch=400))
    zoom = 1 / np.sqrt(np.linalg.det(turn))
    angle = np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))
    for values, (low, high) in ((zoom, (0.8, 1.25)), (angle, (-30, 30)), (shift, (-7, 7))):
        room = 0.05 * (high - low)
        assert low - 1e-4 <= values.min() < low + room
        assert high + 1e-4 >= values.max() > high - room
    assert np.median(zoom) == pytest.approx(1.0, abs=0.04)  # log-uniform
    singular = np.linalg.svd(turn, compute_uv=False)
    np.testing.assert_allclose(singular[:, 0], singular[:, 1], rtol=1e-4)  # no stretch unless asked for


def test_a_share_is_turned_by_any_angle():
    turn, _ = _affine_of(_draw(replace(STILL, rotation_degrees=20, turned=0.3), batch=600))
    angle = np.abs(np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0])))
    assert (angle > 20.01).mean() == pytest.approx(0.3 * 160 / 180, abs=0.06)
    assert angle.max() > 170


def test_stretch_keeps_the_area():
    turn, _ = _affine_of(_draw(replace(STILL, anisotropy=0.2), batch=200))
    ratio = turn[:, 1, 1] / turn[:, 0, 0]
    np.testing.assert_allclose(np.linalg.det(turn), 1.0, rtol=1e-4)
    assert np.abs(np.log(ratio)).max() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("flip", "share"), [(True, 0.5), (False, 0.0)])
def test_half_are_mirrored_only_where_allowed(flip, share):
    settings = replace(STILL, flip=flip, turned=1.0)
    turn, _ = _affine_of(_draw(settings, batch=400))
    assert (np.linalg.det(turn) < 0).mean() == pytest.approx(share, abs=0.08)


def test_a_blanked_field_of_view_is_a_box_of_the_source():
    draw = _draw(replace(STILL, rotation_degrees=45, crop_probability=0.5), batch=120)
    blanked = ~draw.keep.flatten(1).all(1)
    assert blanked.float().mean() == pytest.approx(0.5, abs=0.12)
    for i in range(120):
        at, kept = draw.grid[i], draw.keep[i, 0]
        low, high = at[kept].amin(0), at[kept].amax(0)
        assert torch.equal(kept, ((at >= low) & (at <= high)).all(-1))
    image = torch.ones(120, 1, SOURCE, SOURCE)
    assert not apply_spatial(image, draw)[~draw.keep].any()


def test_masks_hold_only_classes_that_were_there():
    labels = torch.tensor([0, 2, 5])[torch.randint(0, 3, (8, 1, SOURCE, SOURCE), generator=_generator())]
    moved = apply_spatial(labels.float(), _draw(SpatialSettings(), batch=8), labels=True)
    assert set(moved.unique().tolist()) == {0.0, 2.0, 5.0}


def test_beyond_the_source_is_zero():
    ones = torch.ones(20, 1, SOURCE, SOURCE)
    draw = _draw(replace(STILL, scale=(0.4, 0.4)), batch=20)
    moved = apply_spatial(ones, draw)
    beyond = draw.grid.abs().amax(-1) > 1 + 1 / SOURCE
    assert beyond.any()
    assert not moved[:, 0][beyond].any()
    assert (moved[:, 0][draw.grid.abs().amax(-1) < 1 - 1 / SOURCE] > 0.999).all()


def test_the_draw_is_the_generators():
    first, same, other = (_draw(SpatialSettings(), batch=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.grid, same.grid)
    assert torch.equal(first.keep, same.keep)
    assert not torch.equal(first.grid, other.grid)


# Gray values


@pytest.fixture
def image() -> torch.Tensor:
    """(6, 2, 48, 48) smooth with an empty border; the channels differ."""
    out = torch.nn.functional.interpolate(
        torch.randn(6, 2, 8, 8, generator=_generator(3)), size=(48, 48), mode="bicubic"
    )
    out[..., :5], out[:, :, 40:] = 0.0, 0.0
    return out


def test_no_chance_changes_nothing(image):
    assert augment_intensity(image, IntensitySettings(probability=0.0), _generator()) is image


def test_neutral_effects_change_nothing(image):
    torch.testing.assert_close(augment_intensity(image, NEUTRAL, _generator()), image, atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_outside_stays_zero(image, seed):
    before = image.clone()
    out = augment_intensity(image, IntensitySettings(probability=1.0), _generator(seed))
    assert torch.equal(image, before)  # not changed in place
    assert not out[before == 0].any()
    assert out.isfinite().all()
    assert (out != before).float().mean() > 0.5


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_a_samples_effects_do_not_depend_on_its_neighbors(image, probability):
    """Given the same generator and place in the batch."""
    settings = IntensitySettings(probability=probability)
    other = torch.cat([image[:1], image[1:] * 7 - 1])
    for seed in range(5):
        generators = _generator(seed), _generator(seed)
        alone, among = (
            augment_intensity(i, settings, g) for i, g in zip((image, other), generators, strict=True)
        )
        torch.testing.assert_close(alone[0], among[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(*(g.get_state() for g in generators))


def test_each_effect_meets_its_share():
    settings = replace(NEUTRAL, probability=0.3, brightness=1.0)
    out = augment_intensity(torch.ones(2000, 1, 8, 8), settings, _generator())
    assert ((out[:, 0, 0, 0] - 1).abs() > 1e-4).float().mean() == pytest.approx(0.3, abs=0.04)


def test_gamma_keeps_mean_and_deviation_and_order(image):
    flat = image[:, :1, :40, 5:].contiguous()
    for gamma in ((0.6, 0.6), (1.6, 1.6)):
        out = augment_intensity(flat, replace(NEUTRAL, gamma=gamma), _generator())
        torch.testing.assert_close(out.mean((1, 2, 3)), flat.mean((1, 2, 3)), atol=1e-4, rtol=0)
        torch.testing.assert_close(out.std((1, 2, 3)), flat.std((1, 2, 3)), atol=1e-4, rtol=1e-4)
        order = flat.flatten(1).argsort(1)
        assert (out.flatten(1).gather(1, order).diff(dim=1) >= -1e-4).all()
        assert (out - flat).abs().max() > 0.05


def test_contrast_and_brightness_are_one_factor_and_one_shift(image):
    inside = image != 0
    scaled = augment_intensity(image, replace(NEUTRAL, contrast=(0.65, 1.5)), _generator())
    shifted = augment_intensity(image, replace(NEUTRAL, brightness=0.3), _generator())
    for i in range(len(image)):
        factor = (scaled[i] / image[i])[image[i].abs() > 0.1]
        shift = (shifted[i] - image[i])[inside[i]]
        assert 0.65 <= factor.median() <= 1.5
        torch.testing.assert_close(factor, factor.median().expand_as(factor), atol=0, rtol=1e-2)
        torch.testing.assert_close(shift, shift.median().expand_as(shift), atol=1e-4, rtol=0)
    assert shifted[inside].std() != image[inside].std()


def test_noise_is_no_stronger_than_said():
    image = torch.ones(300, 1, 32, 32)
    out = augment_intensity(image, replace(NEUTRAL, noise=0.2), _generator()) - image
    deviations = out.std((1, 2, 3))
    assert deviations.max() < 0.2 * 1.1
    assert deviations.max() > 0.18
    assert deviations.min() < 0.02


def test_blur_is_a_gaussian(image):
    out = augment_intensity(image, replace(NEUTRAL, blur_px=(1.1, 1.1)), _generator())
    expected = ndimage.gaussian_filter(image.numpy(), (0, 0, 1.1, 1.1), mode="nearest", radius=4)
    np.testing.assert_allclose(out, np.where(image.numpy() == 0, 0, expected), atol=1e-4)


def test_a_bias_field_is_smooth_positive_and_shared_by_channels(image):
    out = augment_intensity(image, replace(NEUTRAL, bias_field=0.5), _generator())
    darkest = image.amin((1, 2, 3), keepdim=True)
    scaled = (out - darkest) / (image - darkest)  # the darkest value is where the scan had none
    field = torch.where((image != 0) & (image > darkest + 0.1), scaled, torch.nan)[..., 1:39, 6:]
    assert np.nanmin(field) > 0
    assert np.nanstd(np.log(field)) > 0.15
    assert np.nanmedian(np.abs(np.diff(field, axis=-1))) < 0.1
    shared = (field[:, 0] - field[:, 1]).abs() / field[:, 0]
    assert np.nanmedian(shared) < 1e-4


def test_a_bias_field_changes_gray_values_near_the_mean_too():
    """Half dark, half at the mean of 0: under a field the second half must not stay where it was."""
    image = torch.full((8, 1, 32, 32), 1e-3)
    image[..., :16] = -1.0
    image[..., 0, 0] = 2.0
    out = augment_intensity(image, replace(NEUTRAL, bias_field=0.5), _generator())
    assert (out - image)[..., 16:].abs().mean() > 0.1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("side", [96, 101, 128])
def test_low_resolution_blurs_in_place(side, seed):
    """A ramp has nothing to lose, so what is left is where it is."""
    ramp = torch.arange(1.0, side + 1).expand(2, 1, side, side).contiguous()
    out = augment_intensity(ramp, replace(NEUTRAL, low_resolution=0.5), _generator(seed))
    np.testing.assert_allclose(out[..., 4:-4], ramp[..., 4:-4], atol=0.1)


def test_low_resolution_loses_what_is_fine():
    stripes = torch.tensor([1.0, 2.0]).repeat(32).expand(2, 1, 64, 64).contiguous()
    deviations = [
        augment_intensity(stripes, replace(NEUTRAL, low_resolution=0.5), _generator(seed)).std()
        for seed in range(8)
    ]
    assert min(deviations) < 0.2 * stripes.std()
    assert np.ptp(deviations) > 0.1
