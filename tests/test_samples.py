"""Samples: what a labeled frame becomes, and what is kept on disk."""

from __future__ import annotations

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fewbeats.clock import Clock
from fewbeats.data import store
from fewbeats.data.files import open_labels, open_scan
from fewbeats.data.sampler import Sampler
from fewbeats.data.samples import image_center, labels_center, prepare_labeled
from fewbeats.data.store import MARGIN, Stored, as_heart, stack_samples
from fewbeats.errors import InputError
from fewbeats.io import nifti
from fewbeats.sample import Sample
from fewbeats.scan import Scan
from fewbeats.transforms.preprocess import PreprocessSettings

VIEW = PreprocessSettings(spacing_mm=1.0, size=16)


@pytest.fixture
def row(tmp_path) -> dict:
    """A cohort row: a 4D stack of two frames with labels; a ring of myocardium off the middle."""
    z, y, x = np.indices((3, 40, 40))
    radius = np.hypot(y - 25, x - 12)
    labels = np.where(radius < 4, 3, np.where(radius < 6, 2, 0)).astype(np.uint8)  # ACDC: 3 LV, 2 MYO
    image = np.random.default_rng(0).normal(100, 10, (2, 3, 40, 40)) + 50 * labels + z
    for name, array in (("image", image.astype(np.float32)), ("label", np.stack([labels, labels]))):
        nib.save(nib.Nifti1Image(array.T, np.diag([1, 1, 8, 1])), tmp_path / f"{name}.nii.gz")
    return {
        "subject": "anna", "scan": "anna_cine", "image": str(tmp_path / "image.nii.gz"),
        "label": str(tmp_path / "label.nii.gz"), "label_frames": "",
        "label_source": None, "convention": "acdc",
        "modality": "MR", "slice_order": "apex_first", "frame_time_ms": None, "frames": 2, "slices": 3,
        "rows": 40, "columns": 40,
    }  # fmt: skip


def _prepared(row: dict, tmp_path: Path, **changes) -> list[Sample]:
    options = {"structures": ("LV", "MYO", "LA"), "cache": tmp_path / "cache"} | changes
    return prepare_labeled([row], options.pop("settings", VIEW), **options)


def _kept(tmp_path: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}


def test_a_sample_is_one_frame_normalized_on_the_networks_grid(row, tmp_path):
    first, second = _prepared(row, tmp_path)
    assert (first.frame, second.frame) == (0, 1)
    assert (first.subject, first.scan, first.source) == ("anna", "anna_cine", "manual")
    assert first.annotated == (True, True, False)  # ACDC is silent about the left atrium
    assert first.image.shape == first.mask.shape == (3, int(16 * MARGIN), int(16 * MARGIN))
    assert first.image.dtype == np.float16
    assert isinstance(first.image, Stored)
    assert isinstance(first.mask, Stored)
    assert first.order == -1
    lv, middle = np.argwhere(first.mask[1] == 1), (16 * MARGIN - 1) / 2
    np.testing.assert_allclose(lv.mean(0), [middle, middle], atol=0.6)  # the field of view is on the heart
    assert (
        np.asarray(first.image, float)[np.asarray(first.mask) == 1].mean() > 1
    )  # and the image is there with it
    plane = (slice(None), *[slice(4, 20)] * 2)
    assert first.image[plane].astype(float).std() == pytest.approx(1, abs=0.15)


def test_labels_decide_the_center_only_where_they_may(row, tmp_path):
    (sample, _) = _prepared(row, tmp_path, center=image_center)
    lv = np.argwhere(sample.mask[1] == 1).mean(0)
    middle = (16 * MARGIN - 1) / 2
    np.testing.assert_allclose(lv - middle, [25 - 19.5, 12 - 19.5], atol=0.6)
    assert labels_center(np.zeros((2, 5, 5), np.uint8)) is None
    mask = np.zeros((2, 9, 9), np.uint8)
    mask[0, 2, 3], mask[1, 7, 4] = 1, 2
    assert labels_center(mask) == (4.5, 3.5)


def test_what_is_kept_is_not_made_again(row, tmp_path):
    first = _prepared(row, tmp_path)
    before = _kept(tmp_path)
    again = _prepared(row, tmp_path)
    assert _kept(tmp_path) == before
    assert len(before) == 4
    np.testing.assert_array_equal(first[1].image, again[1].image)


@pytest.mark.parametrize(
    ("changed_row", "changes"),
    [
        ({}, {"settings": PreprocessSettings(spacing_mm=1.5, size=16)}),
        ({}, {"structures": ("MYO", "LV", "LA")}),
        ({}, {"center": image_center}),
        ({"modality": "CT"}, {}),
        ({"convention": "mnms"}, {}),
    ],
    ids=["grid", "classes", "center", "modality", "convention"],
)
def test_other_settings_are_kept_apart(row, tmp_path, changed_row, changes):
    before, _ = _prepared(row, tmp_path)
    after, _ = _prepared(row | changed_row, tmp_path, **changes)
    assert len(_kept(tmp_path)) == 8
    same_image = np.array_equal(before.image, after.image)
    assert not (same_image and np.array_equal(before.mask, after.mask))


def test_other_pixels_are_kept_apart(row, tmp_path):
    _prepared(row, tmp_path)
    image = nib.load(row["image"])
    array = np.array(image.dataobj)
    array[0, 0, 0, 1] += 1  # one voxel of the second frame
    nib.save(nib.Nifti1Image(array, image.affine), row["image"])
    _prepared(row, tmp_path)
    assert len(_kept(tmp_path)) == 6


def test_a_broken_off_sample_is_made_again(row, tmp_path, monkeypatch):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="disk is full"):
            _prepared(row, tmp_path)
    assert _kept(tmp_path) == {}
    assert len(_prepared(row, tmp_path)) == 2


def test_two_processes_may_keep_the_same_sample(row, tmp_path, monkeypatch):
    """The other one finishes while this one writes."""
    truth = _prepared(row, tmp_path)[0].image[...]
    for path in _kept(tmp_path):
        path.unlink()
    save, nested = np.save, []

    def save_with_company(file, array):
        if not nested:
            nested.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(nifti.os, "getpid", lambda: -1)
                _prepared(row, tmp_path)
        save(file, array)

    monkeypatch.setattr(store.np, "save", save_with_company)
    np.testing.assert_array_equal(_prepared(row, tmp_path)[0].image, truth)
    assert len(_kept(tmp_path)) == 4


def test_rows_without_labels_are_passed_over_and_empty_frames_refused(row, tmp_path):
    assert prepare_labeled([row | {"label": None}], VIEW, structures=("LV",), cache=tmp_path) == []
    image = nib.load(row["image"])
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), row["image"])
    with pytest.raises(InputError, match=r"image\.nii\.gz: frame 0 is empty"):
        _prepared(row, tmp_path)


def test_the_heart_is_everything_labeled(row, tmp_path):
    sample, _ = _prepared(row, tmp_path)
    (heart,) = as_heart([sample])
    np.testing.assert_array_equal(heart.mask, (sample.mask[...] > 0).astype(np.uint8))
    assert heart.annotated == (True,)
    assert heart.image is sample.image


def test_samples_on_disk_make_batches(row, tmp_path):
    sampler = Sampler(stack_samples(_prepared(row, tmp_path)), 4, depth=3)
    batch = sampler(Clock(0, 1))
    side = int(16 * MARGIN)
    assert batch.views["image"].shape == (4, 3, side, side)
    assert batch.views["image"].isfinite().all()
    assert set(batch.target.unique().tolist()) == {0, 1, 2}


def test_no_file_stays_open(row, tmp_path):
    """A few hundred labeled frames must not reach the usual limit of open files."""
    samples = _prepared(row, tmp_path) * 100
    before = len(list(Path("/proc/self/fd").iterdir()))
    hearts = as_heart(samples)
    sampler = Sampler(stack_samples(hearts), 16)
    held = [sampler(Clock(step, 9)) for step in range(9)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert len(held) == 9
    assert held[0].target.max() == 1


def test_labels_are_read_when_they_are_asked_for(row, monkeypatch):
    read = []
    frame = Scan.frame
    monkeypatch.setattr(Scan, "frame", lambda scan, t: read.append(t) or frame(scan, t))
    labels = open_labels(row, open_scan(row))
    assert list(labels) == [0, 1]
    assert read == []
    assert set(np.unique(labels[1])) == {0, 2, 3}
    assert read == [1]
