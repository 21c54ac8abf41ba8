"""The leak guard: copies are recognized by content, and followed through a chain of runs."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from fewbeats.data.cohort import new_cohort
from fewbeats.data.provenance import (
    Provenance,
    by_subject,
    frame_hashes,
    guard_ancestors,
    guard_training,
    hash_scans,
    load_provenance,
    merge,
)
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.scan import ArrayPixels, Scan
from small_nifti import replace_unnoticed

AFFINE = np.diag([1.4, 1.4, 8.0, 1.0])


def write(path, array, *, affine=AFFINE):
    """(T, Z, Y, X) or (Z, Y, X) to NIfTI, by nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, affine), path)
    return path


@pytest.fixture
def cine():
    return np.random.default_rng(0).integers(-5, 900, (3, 4, 10, 12)).astype(np.int16)


def test_copies_have_the_same_hashes(tmp_path, cine):
    original = frame_hashes(read_nifti(write(tmp_path / "a_4d.nii.gz", cine)))
    assert len(set(original)) == 3
    shutil.copy(tmp_path / "a_4d.nii.gz", tmp_path / "renamed.nii.gz")
    assert frame_hashes(read_nifti(tmp_path / "renamed.nii.gz")) == original
    assert frame_hashes(read_nifti(write(tmp_path / "plain.nii", cine))) == original
    assert frame_hashes(read_nifti(write(tmp_path / "float.nii", cine.astype(np.float32)))) == original
    for t in range(3):  # a frame cut out of the cine
        assert frame_hashes(read_nifti(write(tmp_path / f"frame{t}.nii.gz", cine[t]))) == [original[t]]
    mirrored = read_nifti(write(tmp_path / "mirrored.nii.gz", cine[:, ::-1, ::-1]))
    assert frame_hashes(mirrored) == original
    turned = np.array([[0, 1.4, 0, 5], [-1.4, 0, 0, 2], [0, 0, 8.0, 1], [0, 0, 0, 1]])
    assert frame_hashes(read_nifti(write(tmp_path / "turned.nii.gz", cine, affine=turned))) == original


def test_different_content_has_different_hashes(cine):
    def hashes(array):
        return frame_hashes(Scan(pixels=ArrayPixels(array), affine=AFFINE))

    original = hashes(cine)
    changed = cine.copy()
    changed[1, 2, 3, 4] += 1
    assert [a == b for a, b in zip(hashes(changed), original, strict=True)] == [True, False, True]
    shifted = cine.copy()  # a voxel moved to another slice
    shifted[0, 0, 0, 0], shifted[0, 1, 0, 0] = cine[0, 1, 0, 0], cine[0, 0, 0, 0]
    assert hashes(shifted)[0] != original[0] or cine[0, 1, 0, 0] == cine[0, 0, 0, 0]
    zero = np.zeros((1, 1, 2, 2), np.float32)
    assert hashes(zero) == hashes(-zero)


@pytest.fixture
def cohort(tmp_path, cine):
    """Two train subjects, a dev subject with frames 0 and 1 in two files."""
    files = {
        "t1": write(tmp_path / "t1.nii.gz", cine[:, :, ::2] + 1),
        "t2": write(tmp_path / "t2.nii.gz", cine[:, :, ::2] + 2),
        "d_0": write(tmp_path / "d_0.nii.gz", cine[0]),
        "d_1": write(tmp_path / "d_1.nii.gz", cine[1]),
    }
    return new_cohort(
        {"subject": name.split("_")[0], "scan": name, "image": str(file),
         "split": "dev" if name[0] == "d" else "train"}
        for name, file in files.items()
    )  # fmt: skip


def held_out(cohort):
    rows = cohort.filter(pl.col("split") == "dev")
    return by_subject(rows, hash_scans(rows))


def test_held_out_subject_in_a_pool(cohort):
    train = cohort.filter(pl.col("split") == "train")
    guard_training(cohort, labeled=train, unlabeled=train)
    for pools in ({"labeled": cohort}, {"labeled": train, "unlabeled": cohort}):
        with pytest.raises(InputError, match=f"{list(pools)[-1]} pool: held-out subjects in it: d;"):
            guard_training(cohort, **pools)
    guard_training(cohort, labeled=train, unlabeled=cohort, transductive=True)
    with pytest.raises(InputError, match="labeled pool"):
        guard_training(cohort, labeled=cohort, transductive=True)


def test_renamed_copy_of_a_held_out_scan_in_a_pool(tmp_path, cohort, cine):
    copy = write(tmp_path / "innocent.nii.gz", cine)  # the whole cine, of which two frames are held out
    row = {"subject": "t3", "image": str(copy), "split": "train"}
    both = pl.concat([cohort, new_cohort([row])])
    train = both.filter(pl.col("split") == "train")
    guard_training(both, labeled=train.head(2), unlabeled=train.head(2), hashes=hash_scans(both))
    with pytest.raises(
        InputError, match=r"unlabeled pool: 'innocent' of t3 is, in whole or part, a copy .* held-out d;"
    ):
        guard_training(both, labeled=train.head(2), unlabeled=train, hashes=hash_scans(both))


def test_weights_that_saw_held_out_frames_through_a_chain_of_two_runs(tmp_path, cohort, cine):
    pool = new_cohort([{"subject": "x", "image": str(write(tmp_path / "other_name.nii", cine))}])
    first = Provenance(run="pretrained", unlabeled=by_subject(pool, hash_scans(pool)))
    first.save(tmp_path / "pretrained")
    train = cohort.filter(pl.col("split") == "train")
    second = Provenance(
        run="teacher",
        labeled=by_subject(train, hash_scans(train)),
        ancestors=(load_provenance(tmp_path / "pretrained"),),
    )
    second.save(tmp_path / "teacher")
    teacher = load_provenance(tmp_path / "teacher")
    assert teacher == second
    with pytest.raises(InputError, match=r"'pretrained' \(an ancestor of 'teacher'\) has seen .*: d;"):
        guard_ancestors([teacher], held_out(cohort))
    guard_ancestors([teacher], held_out(cohort), transductive=True)
    labeled = Provenance(run="labels", labeled=first.unlabeled)
    with pytest.raises(InputError, match="'labels' has seen"):
        guard_ancestors([labeled], held_out(cohort), transductive=True)


def test_clean_weights_pass(tmp_path, cohort):
    """The guard speaks by raising: where nothing was seen it says nothing."""
    train = cohort.filter(pl.col("split") == "train")
    run = Provenance(run="clean", labeled=by_subject(train, hash_scans(train)))
    assert guard_ancestors([run], held_out(cohort)) is None
    assert guard_ancestors([], held_out(cohort)) is None


def test_merge_joins_rounds(cohort):
    base = Provenance(run="base", unlabeled={"b": ["9"]})
    one = Provenance(run="round 1", labeled={"a": ["1"]}, unlabeled={"c": ["3"]}, ancestors=(base,))
    two = Provenance(run="round 2", labeled={"a": ["1", "2"]}, ancestors=(base,))
    assert merge("both", [one, two]) == Provenance(
        run="both", labeled={"a": ["1", "2"]}, unlabeled={"c": ["3"]}, ancestors=(base,)
    )


def test_cache_is_used_until_a_file_changes(tmp_path, cohort, cine, monkeypatch):
    cache = tmp_path / "hashes.json"
    hashes = hash_scans(cohort, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("fewbeats.data.provenance.content_hashes", lambda scan: pytest.fail("read again"))
        assert hash_scans(cohort, cache=cache) == hashes
    write(tmp_path / "d_0.nii.gz", cine[2])
    assert hash_scans(cohort, cache=cache)["d_0"] != hashes["d_0"]
    cache.write_text("{")
    assert hash_scans(cohort.tail(1), cache=cache) == {"d_1": hashes["d_1"]}


def test_content_replaced_with_size_and_time_kept_is_read_again(tmp_path, cine):
    image, cache = write(tmp_path / "x.nii", cine), tmp_path / "hashes.json"
    rows = new_cohort([{"subject": "x", "image": str(image)}])
    before = hash_scans(rows, cache=cache)
    replace_unnoticed(image, cine + 1, affine=AFFINE)
    after = hash_scans(rows, cache=cache)
    assert after["x"] == hash_scans(rows)["x"]
    assert not set(after["x"]) & set(before["x"])


def test_a_cache_without_the_second_time_is_not_trusted(tmp_path, cine):
    """As caches were written before; they know frames alone, and may be stale."""
    image, cache = write(tmp_path / "x.nii", cine), tmp_path / "hashes.json"
    stat = image.stat()
    cache.write_text(json.dumps({f"{image.absolute()}|{stat.st_size}|{stat.st_mtime_ns}": ["0" * 24]}))
    rows = new_cohort([{"subject": "x", "image": str(image)}])
    assert hash_scans(rows, cache=cache) == hash_scans(rows)


def test_missing_and_damaged_provenance(tmp_path):
    with pytest.raises(InputError, match="missing"):
        load_provenance(tmp_path)
    for text in ("{", "[]", '{"run": "x"}', '{"run": "x", "labeled": [], "unlabeled": {}, "ancestors": []}'):
        (tmp_path / "provenance.json").write_text(text)
        with pytest.raises(InputError, match=r"provenance\.json: damaged"):
            load_provenance(tmp_path)
