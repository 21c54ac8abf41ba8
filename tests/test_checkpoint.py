"""Checkpoints: partial, damaged or of another run, and a disk that is full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewbeats.disk import atomic_path, partial_of
from fewbeats.errors import InputError
from fewbeats.models.weights import save_weights
from fewbeats.training import checkpoint
from fewbeats.training.checkpoint import STATE
from fewbeats.training.loop import fit
from fewbeats.training.rundir import RunDir
from tiny_training import (
    Killed,
    batches,
    equal,
    everything,
    killed_at,
    norm_method,
    one_thread,
    short,
    unet_method,
)

_threads = pytest.fixture(one_thread, autouse=True)


def test_a_partial_checkpoint_is_ignored_and_the_old_one_stays(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    with pytest.raises(Killed):
        fit(norm_method(), killed_at(3), settings=short(), run=run)
    before = (run.checkpoint / STATE).read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", half)
        with pytest.raises(KeyboardInterrupt):
            fit(norm_method(), batches, settings=short(), run=run)
    assert (run.checkpoint / STATE).read_bytes() == before
    assert [p.name for p in run.checkpoint.iterdir()] == [STATE]
    partial_of(run.checkpoint / STATE).write_bytes(before[:100])  # of a process that was killed
    assert fit(norm_method(), batches, settings=short(), run=run) == 9


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"\xff" * 40])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    run = RunDir(tmp_path)
    fit(norm_method(), batches, settings=short(steps=1), run=run)
    file = run.checkpoint / STATE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="damaged checkpoint; delete it"):
        fit(norm_method(), batches, settings=short(), run=run)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(norm_method(), batches, settings=short(steps=1), run=RunDir(tmp_path))
    with pytest.raises(InputError, match="of other settings; choose another --out"):
        fit(unet_method(), batches, settings=short(steps=1), run=RunDir(tmp_path))


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    run, write_tensors = RunDir(tmp_path / "run"), checkpoint.write_tensors
    saves = []

    def full(tensors, path, metadata):
        saves.append(path)
        if len(saves) == 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(InputError, match="the disk is full") as error:
            fit(norm_method(), batches, settings=short(), run=run)
    assert "\n" not in str(error.value)
    assert [p.name for p in run.checkpoint.iterdir()] == [STATE]
    fit(norm_method(seed=1), batches, settings=short(), run=run)
    whole = RunDir(tmp_path / "whole")
    fit(norm_method(), batches, settings=short(), run=whole)
    assert equal(everything(run), everything(whole))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 kB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "fewbeats-test", str(folder)]
    try:
        mounted = (
            os.name == "posix" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    run = RunDir(small_disk / "run")
    with pytest.raises(InputError, match="the disk is full"):
        fit(unet_method(), batches, settings=short(), run=run)
    assert not list(run.checkpoint.iterdir())
    with (
        pytest.raises(InputError, match="the disk is full"),
        atomic_path(small_disk / "network.safetensors") as partial,
    ):
        save_weights(unet_method().state_dict(), partial)
    assert not list(small_disk.glob("*.safetensors"))
    (small_disk / "filler").write_bytes(
        bytes(60 * 1024 - sum(p.stat().st_size for p in small_disk.rglob("*.*")))
    )
    with pytest.raises(InputError, match="the disk is full"):
        run.write_json("run.json", {"long": "x" * 20_000})
    with pytest.raises(InputError, match="the disk is full"):
        run.append_metrics({"long": "x" * 20_000})
    assert not (run.path / "run.json").exists()
