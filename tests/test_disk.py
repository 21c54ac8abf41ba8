"""Files and folders: written whole or not at all, and found from wherever one stands."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fewbeats.disk import atomic_path, files_below, hold_folder, partial_of
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
    partial_of(path).symlink_to("/dev/full")
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
    for path in (tmp_path / "file" / "mask.nii", tmp_path / "folder", tmp_path / ("m" * 253 + ".nii")):
        with pytest.raises(InputError, match=r"cannot be written|too long"):
            _write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _break_off(tmp_path / "new" / "mask.nii", KeyboardInterrupt())
    assert list((tmp_path / "new").iterdir()) == []


def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path):
    with pytest.raises(InputError, match="too long for this disk"), atomic_path(tmp_path / ("m" * 300)):
        raise AssertionError("the work began")
    assert list(tmp_path.iterdir()) == []
    with atomic_path(tmp_path / ("m" * 255)) as partial:  # as long as the disk allows
        partial.write_text("whole")
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_what_killed_processes_left_goes_away(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = partial_of(tmp_path / "mask.nii")
    left, other = (
        own.with_name(own.name.replace(str(os.getpid()), str(n))) for n in (dead.pid, os.getppid())
    )
    for folder in (left, other):
        folder.mkdir()
        (folder / "identity").write_text("half")
    with atomic_path(tmp_path / "mask.nii") as partial:
        partial.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "mask.nii"])  # one that runs is left alone
    far = own.with_name(own.name.replace(own.name.split(".")[-2], "elsewhere-1"))
    far.write_text("half")
    with hold_folder(tmp_path):
        assert sorted(tmp_path.iterdir()) == sorted([far, other, tmp_path / "mask.nii"])
    os.utime(far, (0, 0))  # of another machine, long ago
    with hold_folder(tmp_path):
        assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "mask.nii"])


def test_a_folder_left_under_the_same_process_number_is_no_obstacle(tmp_path):
    partial_of(tmp_path / "whole").mkdir()
    with atomic_path(tmp_path / "whole") as partial:
        partial.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    with hold_folder(tmp_path / "out"):
        with (
            pytest.raises(InputError, match="another process writes there") as error,
            hold_folder(tmp_path / "out"),
        ):
            pass
        is_one_line(error, "out")
    assert list(tmp_path.iterdir()) == []  # nothing was put into it
    with hold_folder(tmp_path / "out"):
        (tmp_path / "out" / "mask.nii").write_text("whole")
    assert (tmp_path / "out" / "mask.nii").is_file()


def test_a_folder_may_be_named_from_below(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("")
    monkeypatch.chdir(tmp_path / "sub")
    for name in ("..", "../sub/.."):
        assert [f.name for f in files_below(Path(name))] == ["a.txt"]
