"""Places that cannot be written to: nothing is lost, nothing is left half-written."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fewbeats.cli import main
from refusals import refuse
from spoiling import SHORT, copy_phantoms, files_below, image_of, label_of

cohort = pytest.fixture(copy_phantoms)


def test_nothing_but_an_earlier_result_is_written_over(cohort, small_run, tmp_path, capfd):
    image, label = image_of(cohort), label_of(cohort)
    for file, flags in ((image, [image]), (label, [cohort, "--split=train"])):
        before = file.read_bytes()
        assert "overwritten" in refuse(capfd, "predict", small_run, *flags, f"--out={file.parent}")
        assert file.read_bytes() == before
    assert main(["convert", str(image), str(tmp_path / "one"), "--frames", "0"]) == 0
    single = tmp_path / "one" / "phantom000_frame00.nii.gz"
    assert "overwritten" in refuse(capfd, "convert", single, single.parent)
    assert "frames 0 to 2" in refuse(capfd, "convert", image, tmp_path / "two", "--frames", "0", "3")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_places_that_are_no_folder(place, cohort, small_run, tmp_path, capfd):
    file = tmp_path / "taken"
    file.write_text("mine")
    out = file if place == "a file" else file / "below"
    for command in (
        ["finetune", cohort, *SHORT, f"--out={out}", f"--cache={tmp_path / 'cache'}"],
        ["predict", small_run, image_of(cohort), f"--out={out}"],
        ["convert", image_of(cohort), out],
        ["phantom", out, "--subjects=1", "--frames=1", "--matrix=16"],
        ["index", cohort.parent / "source", "--layout=phantom", f"--out={out / 'cohort.csv'}"],
    ):
        assert str(file) in refuse(capfd, *command)
        assert file.read_text() == "mine"


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 128 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_on_a_full_or_closed_disk(suffix, tiny_disk, phantoms, capfd):
    def index() -> str:
        table = tiny_disk / f"cohort{suffix}"
        return refuse(capfd, "index", phantoms.parent / "source", "--layout=phantom", f"--out={table}")

    (tiny_disk / "filler").write_bytes(bytes(128 * 1024))
    assert f"cohort{suffix}: the disk is full" in index()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert f"cohort{suffix}: cannot be written" in index()
    assert files_below(tiny_disk) == {tiny_disk / "filler"}


def test_full_disk(tiny_disk, phantoms, small_run, tmp_path, capfd):
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(64 * 1024))
    train = ["finetune", phantoms, f"--out={tiny_disk / 'run'}", *SHORT]
    line = refuse(capfd, *train, f"--cache={tmp_path / 'cache'}")
    assert "the disk is full" in line
    assert str(tiny_disk) in line
    shutil.rmtree(tiny_disk / "run")
    line = refuse(capfd, *train, f"--cache={tiny_disk / 'cache'}")
    assert "the disk is full" in line
    assert not (tiny_disk / "run").exists()
    shutil.rmtree(tiny_disk / "cache", ignore_errors=True)
    filler.write_bytes(bytes(120 * 1024))
    out = tiny_disk / "masks"
    assert "the disk is full" in refuse(capfd, "predict", small_run, image_of(phantoms), f"--out={out}")
    assert not out.exists()
    assert "the disk is full" in refuse(capfd, "convert", image_of(phantoms), out)
    filler.unlink()
    assert "the disk is full" in refuse(
        capfd, "phantom", tiny_disk / "phantoms", "--subjects=1", "--frames=2"
    )
    assert not [f for f in files_below(tiny_disk) if "partial" in f.name]
