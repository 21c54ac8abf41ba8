"""Predicting with or from what is wrong: exit code 2, one line with the file and the mend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

import synthetic_dicom
from conftest import TINY
from fewbeats.cli import main
from refusals import refuse
from spoiling import SHORT, colored, copy_phantoms, files_below, image_of, rewrite, truncate, with_value

cohort = pytest.fixture(copy_phantoms)


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


def vectors(path: Path) -> None:
    field = nib.Nifti1Image(np.zeros((8, 8, 4, 1, 3), np.float32), np.eye(4))
    field.header.set_intent("vector")
    nib.save(field, path)


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


def test_all_spoiled_scans_of_a_cohort_are_named_and_the_others_labeled(cohort, small_run, tmp_path, capfd):
    out, good = tmp_path / "masks", image_of(cohort, 5).read_bytes()
    scans = pl.read_csv(cohort).filter(pl.col("split") == "dev")["scan"].to_list()
    rewrite(image_of(cohort, 5), with_value(np.nan, (5, 5, 0, -1)))
    line = refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=dev")
    assert f"1 of {len(scans)} scans cannot be labeled" in line
    assert "phantom005" in line
    assert len(list(out.glob("*.nii.gz"))) == len(scans) - 1
    assert "was stopped" in refuse(capfd, "evaluate", out, cohort, f"--out={tmp_path / 'report'}")
    image_of(cohort, 5).write_bytes(good)
    assert main(["predict", str(small_run), str(cohort), f"--out={out}", "--split=dev"]) == 0
    assert f"{len(scans) - 1} of {len(scans)} labeled before" in capfd.readouterr().out
    assert len(list(out.glob("*.nii.gz"))) == len(scans)


def test_a_cohort_that_cannot_be_used_leaves_what_is_there(cohort, small_run, tmp_path, capfd):
    out = tmp_path / "masks"
    assert main(["predict", str(small_run), str(image_of(cohort, 4)), f"--out={out}"]) == 0
    before = {f: f.read_bytes() for f in files_below(out)}
    image_of(cohort, 5).unlink()
    assert "no such file" in refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=dev")
    assert "split 'test'" in refuse(capfd, "predict", small_run, cohort, f"--out={out}", "--split=test")
    assert {f: f.read_bytes() for f in files_below(out)} == before


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


def test_a_scan_that_stands_twice_among_predictions(cohort, small_run, tmp_path, capfd):
    masks = tmp_path / "masks"
    assert main(["predict", str(small_run), str(cohort), "--split=dev", f"--out={masks}"]) == 0
    table = masks / "predictions.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    assert "stands in it 2 times" in refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")
