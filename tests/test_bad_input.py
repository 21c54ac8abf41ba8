"""Whatever a user gets wrong: exit code 2, one line with the file and the mend, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

import synthetic_dicom
from conftest import TINY
from fewbeats.cli import main
from fewbeats.errors import InputError

SHORT = ("--steps=2", "--localizer-steps=2", *TINY)


def refuse(capfd, *arguments) -> str:
    """Run a command that must be refused; returns its line."""
    capfd.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("fewbeats: error: ")
    return error


def files_below(folder: Path) -> set[Path]:
    return {f for f in folder.rglob("*") if f.is_file()} if folder.is_dir() else set()


@pytest.fixture
def cohort(phantoms, tmp_path) -> Path:
    """A copy of the phantoms that may be spoiled."""
    shutil.copytree(phantoms.parent / "source", tmp_path / "source")
    shutil.copy(phantoms, tmp_path / "cohort.csv")
    return tmp_path / "cohort.csv"


def image_of(cohort: Path, number: int = 0) -> Path:
    return cohort.parent / "source" / "images" / f"phantom{number:03d}_4d.nii.gz"


def label_of(cohort: Path, number: int = 0) -> Path:
    return cohort.parent / "source" / "labels" / f"phantom{number:03d}_4d.nii.gz"


def rewrite(path: Path, change, *, affine=None) -> None:
    """Change the array of a NIfTI file."""
    stored = nib.load(path)
    nib.save(
        nib.Nifti1Image(
            change(stored.get_fdata(dtype=np.float32)), stored.affine if affine is None else affine
        ),
        path,
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_value(value, where):
    def change(array):
        array[where] = value
        return array

    return change


def colored(path: Path) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(nib.load(path).shape[:3], dtype), np.eye(4)), path)


def vectors(path: Path) -> None:
    field = nib.Nifti1Image(np.zeros((8, 8, 4, 1, 3), np.float32), np.eye(4))
    field.header.set_intent("vector")
    nib.save(field, path)


def shifted(path: Path) -> None:
    affine = nib.load(path).affine.copy()
    affine[0, 3] += 5.0
    rewrite(path, lambda array: array, affine=affine)


SPOILED_FILES = {
    "missing image": (image_of, Path.unlink, "no such file"),
    "truncated gzip": (image_of, truncate, "truncated"),
    "no image": (image_of, lambda f: f.write_text("hello"), "NIfTI"),
    "zero bytes": (image_of, lambda f: f.write_bytes(b""), "0 bytes"),
    "NaN": (image_of, lambda f: rewrite(f, with_value(np.nan, (5, 5, 0, 0))), "NaN"),
    "infinite": (image_of, lambda f: rewrite(f, with_value(np.inf, (5, 5, 0, 2))), "infinite"),
    "empty": (image_of, lambda f: rewrite(f, np.zeros_like), "empty"),
    "color": (image_of, colored, "color"),
    "missing label": (label_of, Path.unlink, "no such file"),
    "truncated label": (label_of, truncate, "truncated"),
    "cropped label": (label_of, lambda f: rewrite(f, lambda a: a[:-1]), "own grid"),
    "shifted label": (label_of, shifted, "own grid"),
    "unknown label value": (label_of, lambda f: rewrite(f, with_value(99, (5, 5, 0, 0))), "[99]"),
    "label between values": (label_of, lambda f: rewrite(f, with_value(0.5, (5, 5, 0, 0))), "whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_FILES)
def test_training_on_a_spoiled_file(name, cohort, capfd):
    find, spoil, complaint = SPOILED_FILES[name]
    file, out = find(cohort), cohort.parent / "run"
    spoil(file)
    line = refuse(capfd, "finetune", cohort, f"--out={out}", *SHORT)
    assert str(file) in line
    assert complaint in line
    assert not out.exists()
    assert not [f for f in files_below(cohort.parent) if "partial" in f.name]


def edited(cohort: Path, **columns) -> Path:
    """Change columns of the table."""
    pl.read_csv(cohort, infer_schema=False).with_columns(**columns).write_csv(cohort)
    return cohort


def of(subject: str, value: str, column: str):
    return pl.when(pl.col("subject") == subject).then(pl.lit(value)).otherwise(pl.col(column))


BLANK = pl.lit(None, pl.String)
SPOILED_TABLES = {
    "subject in two splits": (
        lambda c: edited(c, subject=of("phantom004", "phantom000", "subject")), [], "in two splits"),
    "no labels": (lambda c: edited(c, label=BLANK, label_source=BLANK), [], "has manual labels"),
    "pseudo-labels alone": (lambda c: edited(c, label_source=pl.lit("pseudo")), [], "has manual labels"),
    "no split": (lambda c: edited(c, split=BLANK), [], "split train"),
    "too many wanted": (lambda c: c, ["--labeled=9"], "ask for 1 to 3"),
    "none wanted": (lambda c: c, ["--labeled=0"], "ask for 1 to 3"),
    "two lists": (lambda c: c, ["--labeled=2", "--labeled-subjects=x.txt"], "either"),
    "missing list": (lambda c: c, ["--labeled-subjects=x.txt"], "x.txt"),
    "unknown structure": (lambda c: c, ["--structures", "LX"], "LX"),
    "structure not drawn": (lambda c: c, ["--structures", "LA"], "LA"),
    "one subject to choose by": (lambda c: c, ["--labeled=1", "--select=best"], "--select last"),
    "another kind of table": (lambda c: c.write_text("a,b\n1,2\n") and c, [], "subject"),
    "missing table": (lambda c: c.with_name("none.csv"), [], "no such table"),
    "unknown convention": (lambda c: edited(c, convention=pl.lit("acdcc")), [], "acdcc"),
    "budget twice": (lambda c: c, ["--minutes=3"], "--minutes"),
    "size": (lambda c: c, ["--preprocess.size=60"], "multiple of 8"),
    "size of the bottom": (lambda c: c, ["--preprocess.size=8"], "at least 16"),
    "batch": (lambda c: c, ["--batch-size=0"], "--batch-size"),
    "slab": (lambda c: c, ["--network.kind=unet3d", "--slab-slices=10"], "multiple of 4"),
    "photographs in 3D": (lambda c: c, ["--network.kind=unet3d", "--init=natural"], "lite0"),
    "no such start": (lambda c: c, ["--init=nowhere"], "nowhere"),
    "steps": (lambda c: c, ["--steps=-4"], "at least 1"),
    "no spacing": (lambda c: c, ["--preprocess.spacing-mm=nan"], "--preprocess.spacing-mm"),
    "percentiles": (lambda c: c, ["--preprocess.clip-percent", "99", "1"], "--preprocess.clip-percent"),
    "through plane": (lambda c: c, ["--preprocess.through-plane-mm=-2"], "--preprocess.through-plane-mm"),
    "average": (lambda c: c, ["--ema-decay=2"], "--ema-decay"),
    "no slab": (lambda c: c, ["--network.kind=unet3d", "--slab-slices=0"], "multiple of 4"),
    "another spacing": (lambda c: edited(c, spacing_y_mm=pl.lit("9.5")), [], "mend the file's header"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_TABLES)
def test_training_on_a_spoiled_table_or_with_wrong_settings(name, cohort, capfd):
    spoil, flags, complaint = SPOILED_TABLES[name]
    out = cohort.parent / "run"
    line = refuse(capfd, "finetune", spoil(cohort), f"--out={out}", *SHORT, *flags)
    assert complaint in line
    assert not out.exists()


def test_no_budget(cohort, capfd):
    assert "--minutes" in refuse(capfd, "finetune", cohort, "--out=x", *TINY)


# Leaks


def test_a_renamed_copy_of_a_held_out_scan(cohort, capfd):
    for find in (image_of, label_of):
        shutil.copy(find(cohort, 3), find(cohort, 3).with_name("stranger_4d.nii.gz"))
    assert main(["index", str(cohort.parent / "source"), "--layout=phantom", f"--out={cohort}",
                 f"--split={add_stranger(cohort)}"]) == 0  # fmt: skip
    line = refuse(capfd, "finetune", cohort, "--out", cohort.parent / "run", *SHORT)
    assert "copy of a scan of the held-out phantom003" in line
    assert not (cohort.parent / "run").exists()


def add_stranger(cohort: Path) -> Path:
    """The subject also stands in the phantoms' table and in the splits."""
    facts = cohort.parent / "source" / "subjects.csv"
    header, *rows = facts.read_text().splitlines()
    twin = next(row for row in rows if row.startswith("phantom003"))
    facts.write_text("\n".join([header, *rows, twin.replace("phantom003", "stranger")]) + "\n")
    split = cohort.parent / "split.csv"
    names = ["train"] * 3 + ["tune", "dev", "dev"]
    rows = [f"phantom{i:03d},{s}" for i, s in enumerate(names)]
    split.write_text("\n".join(["subject,split", *rows, "stranger,train"]))
    return split


def swapped(cohort: Path) -> Path:
    """What was trained on is held out, and the other way round."""
    swap = {"train": "dev", "dev": "train", "tune": "train"}
    return edited(cohort, split=pl.col("split").replace_strict(swap))


@pytest.mark.parametrize("start", ["", "network.safetensors"])
def test_starting_from_weights_that_saw_held_out_scans(start, cohort, small_run, capfd):
    out = cohort.parent / "again"
    line = refuse(capfd, "finetune", swapped(cohort), f"--out={out}", *SHORT, f"--init={small_run / start}")
    assert "has seen held-out subjects: phantom000, phantom001, phantom002" in line
    assert not out.exists()


def test_judging_a_run_on_what_it_was_trained_on(cohort, small_run, tmp_path, capfd):
    masks = tmp_path / "masks"
    assert main(["predict", str(small_run), str(cohort), "--split=train", f"--out={masks}"]) == 0
    line = refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")
    assert "has seen held-out subjects" in line
    (masks / "provenance.json").unlink()
    assert "provenance.json" in refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")
    assert not (tmp_path / "report").exists()


# Run folders


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A copy of the run that may be spoiled."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def edit_json(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


SPOILED_RUNS = {
    "another format": (lambda r: edit_json(r / "run.json", format=99), [], "format 99"),
    "another version": (lambda r: edit_json(r / "run.json", settings={"odd": 1}), [], "odd"),
    "damaged run.json": (lambda r: (r / "run.json").write_text("{"), [], "damaged"),
    "emptied run.json": (lambda r: (r / "run.json").write_text('{"format": 1}'), [], "damaged"),
    "damaged fingerprint": (lambda r: edit_json(r / "run.json", fingerprint={"x": 1}), [], "damaged"),
    "other structures": (
        lambda r: edit_json(r / "run.json", structures=["LV"]), ["--runtime=openvino"], "does not fit"),
    "unfinished": (lambda r: (r / "run.json").unlink(), [], "not a finished run"),
    "damaged weights": (lambda r: truncate(r / "network.safetensors"), ["--runtime=torch"], "safetensors"),
    "missing weights": (lambda r: (r / "network.safetensors").unlink(), ["--runtime=torch"], "no such"),
    "damaged ONNX": (lambda r: truncate(r / "network.onnx"), ["--runtime=onnxruntime"], "network.onnx"),
    "damaged OpenVINO": (lambda r: truncate(r / "network.onnx"), ["--runtime=openvino"], "network.onnx"),
    "missing ONNX": (lambda r: (r / "network.onnx").unlink(), ["--runtime=openvino"], "--runtime torch"),
    "missing provenance": (lambda r: (r / "provenance.json").unlink(), [], "provenance.json"),
    "damaged localizer": (lambda r: (r / "localizer" / "run.json").write_text("["), [], "localizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_RUNS)
def test_predicting_with_a_spoiled_run(name, run, phantoms, tmp_path, capfd):
    spoil, flags, complaint = SPOILED_RUNS[name]
    spoil(run)
    line = refuse(capfd, "predict", run, image_of(phantoms), "--out", tmp_path / "masks", *flags)
    assert complaint in line
    assert str(run) in line
    assert not (tmp_path / "masks").exists()


def test_folders_that_are_no_run(small_run, phantoms, tmp_path, capfd):
    image, out = image_of(phantoms), tmp_path / "masks"
    assert "not a finished run" in refuse(capfd, "predict", tmp_path, image, f"--out={out}")
    assert "not a finished run" in refuse(capfd, "predict", tmp_path / "no", image, f"--out={out}")
    assert "run folder above" in refuse(capfd, "predict", small_run / "localizer", image, f"--out={out}")
    assert not out.exists()


def test_another_run_is_not_written_over(phantoms, run, capfd):
    before = {f: f.read_bytes() for f in files_below(run)}
    line = refuse(capfd, "finetune", phantoms, f"--out={run}", *SHORT)
    assert "run of other settings" in line
    assert {f: f.read_bytes() for f in files_below(run)} == before


def test_the_same_request_is_done_already(phantoms, small_run, capfd):
    before = (small_run / "network.safetensors").stat().st_mtime_ns
    done = ["--steps=150", "--localizer-steps=20"]
    assert main(["finetune", str(phantoms), f"--out={small_run}", *done, *TINY]) == 0
    assert "already trained" in capfd.readouterr().out
    assert (small_run / "network.safetensors").stat().st_mtime_ns == before


def test_a_run_is_no_place_for_predictions(run, phantoms, capfd):
    before = {f: f.read_bytes() for f in files_below(run)}
    assert "training run" in refuse(capfd, "predict", run, image_of(phantoms), f"--out={run}")
    assert {f: f.read_bytes() for f in files_below(run)} == before


# Scans to predict

SPOILED_SCANS = {
    "missing": (lambda f: f.unlink(), [], "no such file"),
    "truncated": (truncate, [], "truncated"),
    "no image": (lambda f: f.write_text("hello"), [], "NIfTI"),
    "zero bytes": (lambda f: f.write_bytes(b""), [], "0 bytes"),
    "NaN in the last frame": (lambda f: rewrite(f, with_value(np.nan, (5, 5, 0, -1))), [], "NaN"),
    "empty frame": (lambda f: rewrite(f, with_value(7.0, (..., -1))), [], "frame 2 is empty"),
    "color": (colored, [], "color"),
    "vectors": (vectors, [], "vectors"),
    "ED beyond the end": (lambda f: None, ["--ed-frame=3"], "frames 0 to 2"),
    "ES before the start": (lambda f: None, ["--es-frame=-1"], "frames 0 to 2"),
    "split of a file": (lambda f: None, ["--split=dev"], "cohort"),
    "frame time": (lambda f: None, ["--frame-time-ms=-3"], "positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_SCANS)
def test_predicting_a_spoiled_scan(name, cohort, small_run, tmp_path, capfd):
    spoil, flags, complaint = SPOILED_SCANS[name]
    file, out = image_of(cohort), tmp_path / "masks"
    spoil(file)
    line = refuse(capfd, "predict", small_run, file, f"--out={out}", *flags)
    assert complaint in line
    assert not out.exists()


def test_a_cohort_with_one_spoiled_scan_leaves_nothing(cohort, small_run, tmp_path, capfd):
    out = tmp_path / "masks"
    rewrite(image_of(cohort, 5), with_value(np.nan, (5, 5, 0, -1)))
    assert "phantom005" in refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=dev")
    assert not out.exists()
    assert main(["predict", str(small_run), str(image_of(cohort, 4)), f"--out={out}"]) == 0
    before = {f: f.read_bytes() for f in files_below(out)}
    refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=dev")
    assert {f: f.read_bytes() for f in files_below(out)} == before
    image_of(cohort, 5).unlink()
    assert "no such file" in refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=dev")
    assert "split 'test'" in refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=test")


def test_spoiled_dicom(small_run, tmp_path, capfd):
    folder, out = tmp_path / "dicom", tmp_path / "masks"
    folder.mkdir()
    complaints = []
    complaints.append(refuse(capfd, "predict", small_run, folder, f"--out={out}"))
    (folder / "a.dcm").write_bytes(b"")
    complaints.append(refuse(capfd, "predict", small_run, folder, f"--out={out}"))
    (folder / "a.dcm").write_text("no DICOM at all")
    complaints.append(refuse(capfd, "predict", small_run, folder, f"--out={out}"))
    complaints.append(refuse(capfd, "info", folder / "a.dcm"))
    (folder / "a.dcm").unlink()
    synthetic_dicom.write_color(folder / "color.dcm")
    complaints.append(refuse(capfd, "predict", small_run, folder, f"--out={out}"))
    assert all(str(folder) in line for line in complaints)
    assert "Secretname" not in "".join(complaints)
    assert not out.exists()


# Places to write


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


def test_one_heart_under_two_names_is_told(cohort, capfd):
    for find in (image_of, label_of):
        shutil.copy(find(cohort, 0), find(cohort, 1))
    table = pl.read_csv(cohort, infer_schema=False)
    first = table.row(by_predicate=pl.col("subject") == "phantom000", named=True)
    shape = [c for c in table.columns if c in ("frames", "slices", "rows", "columns") or "spacing" in c]
    edited(cohort, **{c: of("phantom001", first[c], c) for c in shape})
    assert main(["finetune", str(cohort), f"--out={cohort.parent / 'run'}", *SHORT]) == 0
    assert "phantom000 and phantom001 are one heart" in capfd.readouterr().out


def test_a_scan_that_stands_twice_among_predictions(cohort, small_run, tmp_path, capfd):
    masks = tmp_path / "masks"
    assert main(["predict", str(small_run), str(cohort), "--split=dev", f"--out={masks}"]) == 0
    table = masks / "predictions.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    assert "stands in it 2 times" in refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")


def test_a_split_table_with_semicolons(cohort, capfd):
    split = cohort.parent / "split.csv"
    split.write_text("subject;split\nphantom000;train\n")
    words = ["index", cohort.parent / "source", "--layout=phantom", "--out", cohort, "--split", split]
    assert "separate columns by commas" in refuse(capfd, *words)
