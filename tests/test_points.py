"""Points: the rules that find them in masks, how they move with a view, and how far off they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.anatomy import FEWBEATS_VALUES as VALUES
from fewbeats.data.cohort import new_cohort
from fewbeats.data.points import apply_rules, find_center, find_insertions, open_points, read_points
from fewbeats.errors import InputError
from fewbeats.evaluation.points import match_points, summarize_errors
from fewbeats.finetuning.landmarks import draw_maps, find_peaks
from fewbeats.io.nifti import read_nifti, write_frames, write_scan
from fewbeats.phantom.scan import PhantomSettings, make_scan
from fewbeats.phantom.subject import make_subject
from fewbeats.scan import ArrayPixels, Scan
from fewbeats.transforms.spatial import SpatialSettings, apply_spatial, draw_spatial, move_points


def heart(
    angle_deg: float = 0.0, *, half_deg: float = 50.0, side: int = 96, wall: float = 10.0
) -> np.ndarray:
    """A round LV of 14 pixels in a wall, and an RV that lies on it around an angle (from +x towards +y)."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    r = np.hypot(y, x)
    away = np.abs(np.angle(np.exp(1j * (np.arctan2(y, x) - np.deg2rad(angle_deg)))))
    mask = np.zeros((side, side), np.uint8)
    mask[(r < 14 + wall + 12) & (away < np.deg2rad(half_deg))] = VALUES["RV"]
    mask[r < 14 + wall] = VALUES["MYO"]
    mask[r < 14] = VALUES["LV"]
    return mask


@given(st.floats(-180, 180), st.floats(20, 100))
@settings(max_examples=40, deadline=None)
def test_insertions_are_the_ends_of_what_the_ventricles_share(angle, half):
    found = find_insertions(heart(angle, half_deg=half)) - 47.5
    assert np.hypot(*found.T) == pytest.approx([24, 24], abs=1.3)
    ends = np.deg2rad([angle - half, angle + half])
    expected = 24 * np.stack([np.sin(ends), np.cos(ends)], 1)
    away, _ = match_points(np.pad(found, ((0, 0), (0, 1))), np.pad(expected, ((0, 0), (0, 1))))
    assert away.max() < 2.0


@given(st.integers(0, 3), st.booleans())
@settings(max_examples=8, deadline=None)
def test_turned_and_mirrored_masks_have_turned_and_mirrored_points(quarters, mirrored):
    mask = heart(37.0)
    moved = np.rot90(mask[:, ::-1] if mirrored else mask, quarters)
    there = np.zeros((2, *mask.shape), bool)
    for number, (y, x) in enumerate(find_insertions(mask)):
        there[number, round(y), round(x)] = True
    there = there[:, :, ::-1] if mirrored else there
    expected = [np.argwhere(np.rot90(one, quarters))[0] for one in there]
    away, _ = match_points(np.pad(find_insertions(moved), ((0, 0), (0, 1))),
                           np.pad(np.array(expected, float), ((0, 0), (0, 1))))  # fmt: skip
    assert away.max() < 1.5


def test_slices_without_what_a_rule_needs_have_no_points():
    empty = heart()
    empty[empty == VALUES["RV"]] = 0
    assert np.isnan(find_insertions(empty)).all()
    assert np.isnan(find_center(np.zeros((9, 9), int))).all()
    touching = heart(half_deg=4)  # a corner of the RV
    assert np.isnan(find_insertions(touching)).all()
    assert apply_rules(np.stack([heart(), empty]), ["rv_insertions", "lv_center"]).shape == (2, 3, 2)


def test_insertions_of_a_phantom_lie_where_its_right_ventricle_ends():
    subject = replace(make_subject(3, group="normal"), bend_mm=0.0, twist_deg=0.0, outline=(0, 0, 0, 0))
    shape = PhantomSettings(subjects=1, frames=1, matrix=128, pixel_mm=(1.5, 1.5))
    scan, mask = make_scan(subject, shape)
    z = scan.shape[1] // 2
    found = find_insertions(mask[0, z])
    center = find_center(mask[0, z])[0]
    angles = []
    for y, x in found - center:
        world = scan.affine[:3, :3] @ [x, y, 0.0]
        u, v, _ = subject.axes.T @ world
        angles.append(np.rad2deg(np.arctan2(v, u)) % 360)
    middle = np.mean(sorted(angles))
    assert middle == pytest.approx(subject.rv_angle_deg % 360, abs=12)
    assert abs(angles[0] - angles[1]) < 2 * subject.rv_half_width_deg + 10


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_points_move_as_the_image_does(seed, bent):
    """What is sampled where a point is said to go is that point; and a blob's middle goes there."""
    generator = torch.Generator().manual_seed(seed)
    spatial = SpatialSettings(elastic_probability=float(bent), elastic_px=2.0, crop_probability=0)
    draw = draw_spatial(spatial, batch=4, source_px=96, out_px=64, generator=generator)
    points = 36 + 24 * torch.rand(4, 1, 2, generator=generator)
    moved = move_points(points, draw, source_px=96)
    at = (2 * moved.nan_to_num(32.0).flip(-1) + 1) / 64 - 1
    seen = F.grid_sample(draw.grid.permute(0, 3, 1, 2), at[:, :, None], align_corners=False)[:, :, 0, 0]
    back = ((seen + 1) * 96 - 1).flip(1) / 2
    known = ((moved[:, 0] >= 0) & (moved[:, 0] <= 63)).all(1)  # NaN is neither
    assert torch.allclose(back[known], points[known, 0], atol=0.25)
    axis = torch.arange(96.0)
    blobs = torch.exp(
        -((axis[:, None] - points[..., 0, None]) ** 2 + (axis - points[..., 1, None]) ** 2) / 4.5
    )
    shown = apply_spatial(blobs[:, None], draw)[:, 0]
    for image, (place,) in zip(shown, moved):
        if not bent and bool((place > 8).all() & (place < 55).all()):
            total, out = image.sum(), torch.arange(64.0)
            middle = torch.stack([(image.sum(1) * out).sum(), (image.sum(0) * out).sum()]) / total
            assert torch.allclose(place, middle, atol=0.15)


def test_points_that_a_view_does_not_show_are_none():
    draw = draw_spatial(
        SpatialSettings(rotation_degrees=0, turned=0, scale=(1, 1), anisotropy=0, shift_px=0,
                        elastic_probability=0, crop_probability=0),
        batch=1, source_px=96, out_px=64, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    moved = move_points(torch.tensor([[[48.0, 50.0], [2.0, 50.0], [float("nan")] * 2]]), draw, source_px=96)
    assert moved[0, 0].tolist() == pytest.approx([32, 34], abs=1e-4)
    assert torch.isnan(moved[0, 1:]).all()


@given(st.lists(st.tuples(st.floats(4, 55), st.floats(4, 55)), min_size=1, max_size=1))
@settings(max_examples=20, deadline=None)
def test_a_drawn_point_is_found_again(places):
    points = torch.tensor(places)[None].float()
    maps = draw_maps(points, [1], 60)[0, 0].numpy()
    found, heights = find_peaks(maps, 1)
    assert found[0] == pytest.approx(places[0], abs=0.4)
    assert heights[0] > 0.9


def test_two_points_of_a_map_are_found_whichever_comes_first():
    points = torch.tensor([[[15.0, 20.0], [44.0, 38.0]]])
    found, _ = find_peaks(draw_maps(points, [2], 60)[0, 0].numpy(), 2)
    away, of = match_points(np.pad(found, ((0, 0), (0, 1))), np.pad(points[0].numpy(), ((0, 0), (0, 1))))
    assert away.max() < 0.5
    assert sorted(of) == [0, 1]


def test_the_rim_of_one_point_is_not_the_other():
    """What a network draws is wider than what it learned, and of two points one is fainter."""
    y, x = np.ogrid[:60, :60]
    broad = [
        h * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 5.0**2))
        for h, a, b in ((0.9, 15, 20), (0.3, 44, 38))
    ]
    found, heights = find_peaks(np.maximum(*broad), 2)
    assert found == pytest.approx(np.array([[15, 20], [44, 38]]), abs=0.5)
    assert heights == pytest.approx([0.9, 0.3], abs=0.01)


def test_errors_are_averaged_by_subject():
    told = summarize_errors({"a": {"s1": [1.0, 3.0], "s2": [8.0]}, "b": {"s1": [2.0]}})
    assert told["a"]["mean_mm"] == 5.0
    assert (told["a"]["median_mm"], told["a"]["near"]) == (3.0, pytest.approx(2 / 3))
    assert told["mean"]["mean_mm"] == 5.0  # (2 + 2) / 2 and 8
    assert (told["mean"]["points"], told["mean"]["subjects"]) == (4, 2)


def test_two_points_of_one_kind_count_as_one_of_another():
    """As a study averages them, over structures."""
    told = summarize_errors({"insertion": {"s": [10.0, 10.0]}, "center": {"s": [1.0]}})
    assert told["mean"]["mean_mm"] == 5.5
    assert told["mean"]["median_mm"] == 10.0


def stack(tmp_path: Path) -> tuple[Scan, dict]:
    mask = np.stack([heart(), heart(90.0)])
    affine = np.array([[0, -1.5, 0, 40], [1.5, 0, 0, -70], [0, 0, 8, 5], [0, 0, 0, 1.0]])
    scan = Scan(
        pixels=ArrayPixels(np.arange(mask.size, dtype=np.int16).reshape(1, *mask.shape)), affine=affine
    )
    image, label = tmp_path / "images" / "a.nii.gz", tmp_path / "labels" / "a.nii.gz"
    write_scan(image, scan)
    write_frames(label, mask[None], affine=affine, shape=scan.shape, dtype=mask.dtype)
    row = {"subject": "a", "image": str(image), "label": str(label), "convention": "fewbeats"}
    return read_nifti(image), new_cohort([row]).row(0, named=True)


def test_a_table_leads_back_to_the_points_it_was_made_of(tmp_path):
    scan, row = stack(tmp_path)
    names = ["rv_insertions", "lv_center"]
    points = open_points(row, scan, names)[0]()
    lines = ["point,frame,x_mm,y_mm,z_mm"]
    for z, told in enumerate(points):
        for name, (y, x) in zip(["rv_insertions", "rv_insertions", "lv_center"], told):
            lines.append(f"{name},0," + ",".join(f"{v:.4f}" for v in (scan.affine @ [x, y, z, 1])[:3]))
    (tmp_path / "points.csv").write_text("\n".join(lines))
    back = read_points(tmp_path / "points.csv", scan, names)[0]
    assert np.allclose(back, points, atol=1e-3)
    from_table = open_points({**row, "label": None, "points": str(tmp_path / "points.csv")}, scan, names)
    assert np.allclose(from_table[0](), points, atol=1e-3)


TABLES = {
    "outside": ("point,x_mm,y_mm,z_mm\nlv_center,4000,0,5", "lies outside the image"),
    "frame": ("point,frame,x_mm,y_mm,z_mm\nlv_center,7,0,0,5", "lies outside the image"),
    "number": ("point,x_mm,y_mm,z_mm\nlv_center,here,0,5", "not a frame and a place in mm"),
    "twice": ("point,x_mm,y_mm,z_mm\nlv_center,0,0,5\nlv_center,1,1,5", "stands twice in a slice"),
    "column": ("name,x_mm\nlv_center,0", "has no column 'point'"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_points_that_cannot_be_used(tmp_path, name):
    scan, _ = stack(tmp_path)
    text, complaint = TABLES[name]
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_points(tmp_path / "points.csv", scan, ["lv_center"])


def test_points_that_nobody_tells_are_none(tmp_path):
    scan, row = stack(tmp_path)
    assert open_points(row, scan, ["mitral_valve"]) == {}
    assert open_points({**row, "convention": "emidec"}, scan, ["rv_insertions"]) == {}  # silent about the RV
