"""Samples and batches: what is cut, in which order, and what is kept on disk."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.clock import Clock
from fewbeats.data import samples as samples_room
from fewbeats.data.dataset import SliceSampler
from fewbeats.data.samples import MARGIN, as_heart, image_center, labels_center, prepare_labeled
from fewbeats.errors import InputError
from fewbeats.io import nifti
from fewbeats.sample import Sample
from fewbeats.transforms.preprocess import PreprocessSettings


def _stack(slices: int, number: int, *, position: bool = True) -> Sample:
    """Slice z of stack n has the gray value 100 n + z, and its mask too, modulo 256."""
    values = 100 * number + np.arange(slices)
    plane = np.ones((slices, 4, 4))
    return Sample(
        image=(values[:, None, None] * plane).astype(np.float16),
        mask=(values[:, None, None] * plane % 256).astype(np.uint8),
        annotated=(True, number % 2 == 0),
        subject=f"s{number}",
        scan=f"s{number}_ed",
        frame=number,
        source="manual",
        spacing_mm=(8.0, 1.0, 1.0),
        position=np.linspace(0, 1, slices) if position else None,
    )


STACKS = [_stack(n, i + 1) for i, n in enumerate((5, 1, 3, 8, 2))]
SLICES = [(i + 1, z) for i, s in enumerate(STACKS) for z in range(len(s.image))]


def _take(sampler: SliceSampler, count: int, *, start: int = 0, rank: int = 0, world: int = 1):
    return [sampler(Clock(step, start + count, rank, world)) for step in range(start, start + count)]


def _drawn(batch) -> list[tuple[int, int]]:
    """(stack, slice) of each sample of a 2D batch, from the middle channel's gray value."""
    middle = batch.views["image"].shape[1] // 2
    return [divmod(int(v), 100) for v in batch.views["image"][:, middle, 0, 0]]


# Order


@given(st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_an_epoch_has_every_slice_once(batch_size, seed):
    sampler = SliceSampler(STACKS, batch_size, depth=1, seed=seed)
    batches = _take(sampler, 3 * len(SLICES))  # a whole number of epochs whatever the batch size
    drawn = [slice_ for batch in batches for slice_ in _drawn(batch)]
    epochs = [drawn[i : i + len(SLICES)] for i in range(0, len(drawn), len(SLICES))]
    assert all(Counter(epoch) == Counter(SLICES) for epoch in epochs)
    assert epochs[0] != epochs[1]


@given(st.integers(0, 60), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_any_step_can_be_resumed(start, world):
    sampler = SliceSampler(STACKS, 3, depth=3, seed=4)
    for rank in range(world):
        never_stopped = _take(sampler, start + 3, rank=rank, world=world)[start:]
        resumed = _take(sampler, 3, start=start, rank=rank, world=world)
        for a, b in zip(never_stopped, resumed):
            assert torch.equal(a.views["image"], b.views["image"])
            assert torch.equal(a.target, b.target)
            assert a.subject == b.subject


@given(st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=16, deadline=None)
def test_ranks_share_a_step_of_the_one_process_with_the_larger_batch(world, batch_size):
    alone = _take(SliceSampler(STACKS, batch_size * world, depth=1), 12)
    ranks = [
        _take(SliceSampler(STACKS, batch_size, depth=1), 12, rank=rank, world=world) for rank in range(world)
    ]
    for step, together in enumerate(alone):
        assert [s for rank in ranks for s in _drawn(rank[step])] == _drawn(together)


def test_the_seed_decides_the_order():
    orders = [
        [_drawn(b) for b in _take(SliceSampler(STACKS, 4, depth=1, seed=seed), 5)] for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


# What is cut


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_slice_comes_with_its_neighbors_and_the_last_is_repeated(depth):
    for batch in _take(SliceSampler(STACKS, 4, depth=depth), 10):
        assert batch.views["image"].shape == (4, depth, 4, 4)
        assert batch.views["image"].dtype == torch.float32
        assert batch.target.shape == (4, 1, 4, 4)
        for i, (number, z) in enumerate(_drawn(batch)):
            stack = STACKS[number - 1]
            last = len(stack.image) - 1
            wanted = [100 * number + min(max(z + d, 0), last) for d in range(-(depth // 2), depth // 2 + 1)]
            assert batch.views["image"][i, :, 1, 2].tolist() == wanted
            assert (batch.target[i] == (100 * number + z) % 256).all()
            assert batch.annotated[i].tolist() == list(stack.annotated)
            assert (batch.subject[i], batch.frame[i], batch.source[i]) == (f"s{number}", number, "manual")
            assert batch.position[i].item() == pytest.approx(stack.position[z])


def test_an_unknown_direction_has_no_position():
    (batch,) = _take(SliceSampler([_stack(3, 1, position=False)], 2, depth=1), 1)
    assert batch.position.isnan().all()


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_slabs_are_drawn_from_thick_stacks_and_thin_ones_get_empty_slices(depth):
    sampler = SliceSampler(STACKS, 5, depth=depth, slab=True)
    (batch,) = _take(sampler, 1)
    assert sorted(batch.subject) == [s.subject for s in STACKS]  # one slab a stack
    assert batch.views["image"].shape == batch.target.shape == (5, depth, 4, 4)
    assert batch.position.isnan().all()
    for i, subject in enumerate(batch.subject):
        number = int(subject[1:])
        values = [100 * number + z for z in range(len(STACKS[number - 1].image))]
        beside = depth - len(values)
        if beside >= 0:
            wanted = [0] * (beside // 2) + values + [0] * (beside - beside // 2)
        else:
            first = values.index(int(batch.views["image"][i, 0, 0, 0]))
            wanted = values[first : first + depth]
        assert batch.views["image"][i, :, 0, 0].tolist() == wanted
        assert batch.target[i, :, 3, 1].tolist() == [v % 256 for v in wanted]


def test_every_slice_of_a_thick_stack_is_drawn():
    seen = {
        int(value)
        for batch in _take(SliceSampler([_stack(9, 1)], 4, depth=4, slab=True), 20)
        for value in batch.views["image"][..., 0, 0].flatten()
    }
    assert seen == {100 + z for z in range(9)}


# Kept samples


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
    assert isinstance(first.image, np.memmap)
    assert isinstance(first.mask, np.memmap)
    np.testing.assert_allclose(first.position, [1, 0.5, 0])
    lv, middle = np.argwhere(first.mask[1] == 1), (16 * MARGIN - 1) / 2
    np.testing.assert_allclose(lv.mean(0), [middle, middle], atol=0.6)  # the field of view is on the heart
    assert np.asarray(first.image, float)[first.mask == 1].mean() > 1  # and the image is there with it
    plane = (slice(None), *[slice(4, 20)] * 2)
    assert np.asarray(first.image[plane], float).std() == pytest.approx(1, abs=0.15)


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
    truth = _prepared(row, tmp_path)[0].image.copy()
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

    monkeypatch.setattr(samples_room.np, "save", save_with_company)
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
    np.testing.assert_array_equal(heart.mask, (sample.mask > 0).astype(np.uint8))
    assert heart.annotated == (True,)
    assert heart.image is sample.image


def test_memory_mapped_samples_make_batches(row, tmp_path):
    sampler = SliceSampler(_prepared(row, tmp_path), 4, depth=3)
    (batch,) = _take(sampler, 1)
    side = int(16 * MARGIN)
    assert batch.views["image"].shape == (4, 3, side, side)
    assert batch.views["image"].isfinite().all()
    assert set(batch.target.unique().tolist()) == {0, 1, 2}
