"""The pool of unlabeled slices: what is in it, what a step draws, and where the middle is."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest
import torch

import small_nifti
from fewbeats.clock import Clock
from fewbeats.data.cohort import new_cohort, read_cohort
from fewbeats.data.pool import motion_center, prepare_pool
from fewbeats.data.sampler import Sampler
from fewbeats.errors import InputError
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.method import Method, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.views import Viewed
from tiny_training import GRID, train_pool

pool = pytest.fixture(train_pool, scope="module")


def test_every_slice_of_every_frame_is_in_the_pool(pool, phantoms):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    assert len(pool) == (rows["frames"] * rows["slices"]).sum()
    assert len(pool.images) == len(rows) == 3


def test_a_step_draws_different_slices_and_ranks_share_them(pool):
    whole = Sampler(pool, 16, seed=1, epochs=False)(Clock(5, 9))
    halves = [Sampler(pool, 8, seed=1, epochs=False)(Clock(5, 9, rank, 2)) for rank in range(2)]
    joined = torch.stack([half.views["image"] for half in halves], 1).flatten(0, 1)
    assert torch.equal(joined, whole.views["image"])
    assert len({image.numpy().tobytes() for image in whole.views["image"]}) == 16
    assert not torch.equal(
        Sampler(pool, 16, seed=1, epochs=False)(Clock(6, 9)).views["image"], whole.views["image"]
    )


def test_slices_come_with_their_height_and_scan(pool):
    batch = Sampler(pool, 32, depth=3, seed=0, epochs=False)(Clock(0, 1))
    assert batch.views["image"].shape == (32, 3, 96, 96)
    for image, height, scan in zip(batch.views["image"].numpy(), batch.position, batch.scan):
        stored = pool.images[pool.which[scan]][...]
        z = round(float(height) * stored.shape[1])
        assert any(np.array_equal(image[1], stored[t, z].astype(np.float32)) for t in range(len(stored)))
    assert batch.directed.all()


def test_apex_first_is_turned_and_unknown_is_said(phantoms, tmp_path):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    order = pl.Series("slice_order", ["base_first", "apex_first", None])
    found = prepare_pool(rows.with_columns(order), GRID, cache=tmp_path)
    assert found.order.tolist() == [1, -1, 0]
    slices = found.slices[1]
    assert found.heights(np.array([0, 1, 2]), np.array([0, 0, 0])).tolist() == [0, (slices - 1) / slices, 0]


def test_what_is_blanked_does_not_follow_how_a_slice_is_turned(pool, tmp_path):
    """Both draw from (seed, step, rank); the same numbers in both would tie them together."""
    drawn = []

    class Listens(Method):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch, clock):
            drawn.append((batch.views["numbers"][:, 0], torch.rand(4)))
            return Step(self.weight.sum())

        def parameter_groups(self):
            return one_group(self, OptimSettings())

        def networks(self):
            return {}

    images = Sampler(pool, 4, seed=3, epochs=False)
    numbers = Viewed(
        images, lambda batch, g: replace(batch, views={"numbers": torch.rand(4, 1, generator=g)}), 3
    )
    fit(Listens(), numbers, settings=FitSettings(steps=5, seed=3), run=RunDir(tmp_path / "run"))
    assert not any(torch.equal(*pair) for pair in drawn)


def test_what_moves_is_the_middle():
    still = np.random.default_rng(0).normal(100, 5, (2, 80, 80))
    beating = still.copy()
    beating[:, 45:60, 20:35] += 60
    assert motion_center([still, beating], (8.0, 2.0, 2.0)) == pytest.approx((52, 27), abs=3)
    assert motion_center([still], (8.0, 2.0, 2.0)) is None


def test_what_is_stored_follows_content_replaced_with_size_and_time_kept(tmp_path):
    file = small_nifti.image(tmp_path / "x.nii", frames=2)
    rows = new_cohort([{"subject": "x", "image": str(file), "frames": 2}])

    def pixels():
        return prepare_pool(rows, GRID, cache=tmp_path / "cache").read(0, 1, np.array([2]))

    first = pixels()
    assert np.array_equal(pixels(), first)
    small_nifti.replace_unnoticed(file, np.array(nib.load(file).dataobj).T[:, :, ::-1])
    assert not np.array_equal(pixels(), first)


def test_a_pool_without_scans_is_refused(phantoms, tmp_path):
    with pytest.raises(InputError, match="no unlabeled scan"):
        prepare_pool(read_cohort(phantoms).clear(), GRID, cache=tmp_path)


def test_memory_does_not_grow_with_the_table(phantoms, tmp_path):
    """10,000 rows that point at three files need no more than 100 do."""
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    peaks = []
    for count in (100, 10_000):
        many = pl.concat([rows] * (count // 3 + 1)).head(count)
        sampler = Sampler(prepare_pool(many, GRID, cache=tmp_path), 16, epochs=False)
        sampler(Clock(0, 200))
        tracemalloc.start()
        for step in range(200):
            sampler(Clock(step, 200))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000


def test_a_pool_that_was_seen_before_is_opened_without_a_look_at_its_files(phantoms, tmp_path, monkeypatch):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    first = prepare_pool(rows, GRID, cache=tmp_path)
    monkeypatch.setattr("fewbeats.data.pool._store", None)  # nobody asks for it
    again = prepare_pool(rows, GRID, cache=tmp_path)
    assert [image.path for image in again.images] == [image.path for image in first.images]
    for name in ("which", "frames", "slices", "order", "subject"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    assert np.array_equal(again.read(1, 1, slice(2, 3)), first.read(1, 1, slice(2, 3)))


@pytest.mark.parametrize("gone", ["stored", "image"])
def test_what_is_not_as_it_was_is_stored_anew(phantoms, tmp_path, gone):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    images = [tmp_path / f"{name}.nii.gz" for name in rows["subject"]]
    for old, new in zip(rows["image"], images):
        new.write_bytes(Path(old).read_bytes())
    rows = rows.with_columns(image=pl.Series(map(str, images)))
    first = prepare_pool(rows, GRID, cache=tmp_path / "cache")
    if gone == "stored":
        first.images[0].path.unlink()
    else:
        whole = nib.load(images[0])
        nib.save(
            nib.Nifti1Image(np.asarray(whole.dataobj)[::-1].copy(), whole.affine, whole.header), images[0]
        )
    again = prepare_pool(rows, GRID, cache=tmp_path / "cache")
    assert all(image.path.is_file() for image in again.images)
    if gone == "image":
        assert again.images[0].path != first.images[0].path
        assert again.images[1].path == first.images[1].path


def test_a_biobanks_slices_are_drawn_in_moments(pool):
    """300,000 scans of 36 million slices: what a step costs does not grow with them."""
    scans = 300_000
    many = replace(
        pool, which=np.zeros(scans, int), frames=np.full(scans, 12), slices=np.full(scans, 10),
        order=np.ones(scans, int), subject=np.full(scans, "a", object),
        images=[np.zeros((12, 10, 8, 8), np.float16)],
    )  # fmt: skip
    assert len(many) == 36_000_000
    tracemalloc.start()
    begun = time.perf_counter()
    shares = np.random.default_rng(0).random(scans)
    for sampler in (Sampler(many, 64, epochs=False), Sampler(many, 64, shares=shares)):
        for step in range(20):
            assert len(sampler(Clock(step, 100)).views["image"]) == 64
    assert tracemalloc.get_traced_memory()[1] < 100e6
    shuffled = Sampler(many, 64)
    epoch = len(many) // 64  # steps
    for step in (*range(20), epoch, 2 * epoch + 1):
        assert len(shuffled(Clock(step, 3 * epoch)).views["image"]) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6  # 4 bytes a slice, twice while it is shuffled
    assert time.perf_counter() - begun < 20
