"""Files and folders: written whole or not at all, and found from wherever one stands."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fewbeats.disk import atomic_path, files_below
from fewbeats.errors import InputError
from fewbeats.io.nifti import write_frames
from refusals import is_one_line


def _write(path: Path, side: int = 4) -> None:
    frame = np.random.default_rng(0).random((4, side, side)).astype("f4")
    write_frames(path, [frame], affine=np.eye(4), shape=(1, 4, side, side), dtype="f4")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"mask{suffix}"
    _write(path)
    before = path.read_bytes()
    (tmp_path / f".mask{suffix}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="the disk is full") as error:
        _write(path, side=512)
    is_one_line(error, path.name)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _break_off(path: Path, error: BaseException) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_one_line(tmp_path, number):
    with pytest.raises(InputError) as error:
        _break_off(tmp_path / "mask.nii", OSError(number, os.strerror(number)))
    is_one_line(error, "mask.nii")
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "mask.nii", tmp_path / "folder", tmp_path / ("m" * 250 + ".nii")):
        with pytest.raises(InputError, match="cannot be written"):
            _write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _break_off(tmp_path / "new" / "mask.nii", KeyboardInterrupt())
    assert list((tmp_path / "new").iterdir()) == []


def test_the_report_of_an_earlier_prediction_goes_away(tmp_path):
    from fewbeats.disk import whole_folder

    (tmp_path / "report.html").write_text("of something else")
    with (
        pytest.raises(InputError, match=r"report\.html: would be overwritten"),
        whole_folder(tmp_path, names=["report.html"], mark="predictions.csv"),
    ):
        pass
    (tmp_path / "predictions.csv").write_text("earlier")
    for name, left in (("report.html", True), ("b.nii.gz", False)):
        with whole_folder(tmp_path, names=["b.nii.gz", "report.html"], mark="predictions.csv") as folder:
            (folder / name).write_text("new")
        assert (tmp_path / "report.html").exists() == left


def test_a_folder_may_be_named_from_below(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("")
    monkeypatch.chdir(tmp_path / "sub")
    for name in ("..", "../sub/.."):
        assert [f.name for f in files_below(Path(name))] == ["a.txt"]
