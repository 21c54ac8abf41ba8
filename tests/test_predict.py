"""The command that predicts: kinds of files, masks on their own grid, and flat memory."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pydicom
import pytest

import synthetic_dicom
from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.cli import main
from fewbeats.inference.labeler import RunLabeler
from fewbeats.inference.segment import Model
from fewbeats.io.dicom import read_dicom
from fewbeats.io.dicom_seg import read_seg
from oracle import GRAY, STRUCTURES, make_scan, make_truth, oracle, ranked
from predicting import find_cine, masks_of, predict, predict_cine
from small_nifti import read_labels

cine = pytest.fixture(find_cine)
expected = pytest.fixture(predict_cine, scope="module")


def test_a_cine_comes_back_on_its_own_grid(cine, small_run, tmp_path, expected):
    rows = predict(small_run, cine, tmp_path / "out")
    image, mask = nib.load(cine), masks_of(tmp_path / "out", "phantom004_4d")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8
    assert mask.header.get_zooms()[3] == pytest.approx(image.header.get_zooms()[3])
    assert rows[0]["image"] == str(cine)
    assert (tmp_path / "out" / "report.html").is_file()
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert about["structures"] == list(STRUCTURES)
    assert (tmp_path / "out" / "provenance.json").is_file()


TURNS = {
    "mirrored": [[0, -1], [1, -1], [2, 1]],
    "other end": [[0, 1], [1, -1], [2, -1]],
    "slices first": [[1, 1], [2, -1], [0, 1]],
    "slices between": [[0, -1], [2, 1], [1, -1]],
    "rows for columns": [[1, 1], [0, 1], [2, 1]],
    "turned by 90 degrees": [[1, -1], [0, 1], [2, 1]],
}
"""For each axis x, y, z of the cine: which axis of the file it becomes, and whether mirrored."""


@pytest.mark.parametrize(
    ("turn", "suffix"), zip(TURNS, [".nii", ".nii.gz", ".NII.GZ", ".nii", ".nii", ".nii"])
)
def test_flipped_and_permuted_files_get_the_same_mask(turn, suffix, cine, small_run, tmp_path, expected):
    image, there = nib.load(cine), np.array(TURNS[turn])
    affine = image.affine @ nib.orientations.inv_ornt_aff(there, image.shape[:3])
    turned = nib.orientations.apply_orientation(np.asarray(image.dataobj), there)
    nib.save(nib.Nifti1Image(turned, affine), tmp_path / f"turned{suffix}")
    predict(small_run, tmp_path / f"turned{suffix}", tmp_path / "out")
    mask = masks_of(tmp_path / "out", "turned")
    assert mask.shape == turned.shape
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    back = np.array([[axis, there[axis, 1]] for axis in np.argsort(there[:, 0])])
    same = nib.orientations.apply_orientation(np.asarray(mask.dataobj), back) == expected
    assert same.mean() > 0.9999  # the order of summation may move a voxel on the border


def test_single_frames_equal_those_of_the_cine(cine, small_run, tmp_path, expected):
    image = nib.load(cine)
    nib.save(image.slicer[..., 1], tmp_path / "frame.nii.gz")
    row = predict(small_run, tmp_path / "frame.nii.gz", tmp_path / "out")[0]
    mask = np.asarray(masks_of(tmp_path / "out", "frame").dataobj)
    assert mask.shape == image.shape[:3]
    assert (mask == expected[..., 1]).mean() > 0.9999
    assert (row["ed_frame"], row["es_frame"]) == (None, None)


def test_end_diastole_and_end_systole(cine, small_run, tmp_path, expected):
    volumes = (expected == FEWBEATS_VALUES["LV"]).sum((0, 1, 2))
    row = predict(small_run, cine, tmp_path / "own")[0]
    assert (row["ed_frame"], row["es_frame"]) == (str(volumes.argmax()), str(volumes.argmin()))
    row = predict(small_run, cine, tmp_path / "given", "--ed-frame=2", "--es-frame=0")[0]
    assert (row["ed_frame"], row["es_frame"]) == ("2", "0")


def test_a_cohort_is_predicted_by_split(phantoms, small_run, tmp_path, capfd):
    rows = predict(small_run, phantoms, tmp_path / "out", "--split=dev")
    assert [(r["scan"], r["subject"]) for r in rows] == [
        (f"phantom00{i}_4d", f"phantom00{i}") for i in (4, 5)
    ]
    again = predict(small_run, phantoms, tmp_path / "out", "--split=dev")  # takes the place of the earlier
    assert [r["scan"] for r in again] == [r["scan"] for r in rows]
    for split in ("tune", "dev"):
        words = ["predict", small_run, phantoms, "--split", split, "--out", tmp_path / "out"]
        assert main(list(map(str, words))) == (2 if split == "tune" else 0)
    assert "holds predictions of other scans (phantom004_4d, phantom005_4d)" in capfd.readouterr().err


def test_settings_of_one_scan_do_not_go_with_several(phantoms, small_run, tmp_path, capfd):
    for flag in ("--ed-frame=1", "--es-frame=1", "--frame-time-ms=30"):
        words = ["predict", small_run, phantoms, "--split=dev", "--out", tmp_path / "out", flag]
        assert main(list(map(str, words))) == 2
        assert flag.partition("=")[0] in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lost_voxel_size_is_told_and_nothing_is_measured_by_it(cine, phantoms, small_run, tmp_path, capfd):
    lost = nib.Nifti1Image(np.asarray(nib.load(cine).dataobj), np.diag([1.0, 1.0, 10.0, 1.0]))
    nib.save(lost, tmp_path / "lost.nii.gz")
    (row,) = predict(small_run, tmp_path / "lost.nii.gz", tmp_path / "out")
    assert "the voxel size is lost" in row["warnings"]
    assert " mL" not in capfd.readouterr().out.partition("warning")[0]
    there = {name: pl.lit(f"{phantoms.parent}/") + pl.col(name) for name in ("image", "label")}
    cohort = pl.read_csv(phantoms, infer_schema=False)
    cohort.with_columns(spacing_trusted=pl.lit("false"), **there).write_csv(tmp_path / "cohort.csv")
    rows = predict(small_run, tmp_path / "cohort.csv", tmp_path / "untrusted", "--split=dev")
    assert all("the voxel size is lost" in row["warnings"] for row in rows)


# DICOM


@pytest.fixture
def dicom(tmp_path) -> Path:
    grid = synthetic_dicom.Grid(rows=64, columns=64, slices=5, spacing=(2.4, 2.4), distance=9.0,
                                orientation=synthetic_dicom.oblique(30, 20, 10))  # fmt: skip
    synthetic_dicom.write_cine(tmp_path / "study", grid=grid, frames=3)
    return tmp_path / "study"


def test_dicom_gets_masks_and_segmentations_that_are_equal(dicom, small_run, tmp_path, capfd, monkeypatch):
    answer_with_squares(monkeypatch)
    predict(small_run, dicom, tmp_path / "out")
    assert "Secretname" not in "".join(capfd.readouterr())
    (scan,) = read_dicom(dicom)
    written = nib.load(tmp_path / "out" / "study.nii.gz")
    assert written.shape == (64, 64, 5, 3)
    np.testing.assert_allclose(written.affine, scan.source.affine, atol=1e-4)
    labels = read_labels(tmp_path / "out" / "study.nii.gz")
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    segmented = np.stack(list(read_seg(tmp_path / "out" / "study_seg", scan)))
    np.testing.assert_array_equal(segmented, labels)
    everything = b"".join(f.read_bytes() for f in (tmp_path / "out").glob("*.*"))
    assert b"Secretname" not in everything


def test_another_kind_of_image_is_told(tmp_path, small_run, monkeypatch):
    answer_with_squares(monkeypatch)
    grid = synthetic_dicom.Grid(rows=64, columns=64, slices=5, spacing=(2.4, 2.4), distance=9.0)
    synthetic_dicom.write_cine(tmp_path / "study", grid=grid, frames=3, Modality="PT")
    (row,) = predict(small_run, tmp_path / "study", tmp_path / "out")
    assert "PT, but the network was trained on MR" in row["warnings"]


def test_each_of_two_scans_in_a_folder_is_shown_under_its_own_masks(tmp_path, small_run, monkeypatch):
    from fewbeats.evaluation.measure import measure_scan
    from fewbeats.evaluation.pictures import Pictured
    from fewbeats.evaluation.predictions import read_predictions

    answer_with_squares(monkeypatch)
    grid = synthetic_dicom.Grid(rows=64, columns=64, slices=5, spacing=(2.4, 2.4), distance=9.0)
    synthetic_dicom.write_cine(tmp_path / "study" / "first", grid=grid, frames=3)
    again = synthetic_dicom.write_cine(tmp_path / "study" / "again", grid=grid, frames=3)
    for number, file in enumerate(again):
        data = pydicom.dcmread(file)
        data.SeriesNumber += 20
        data.SeriesInstanceUID = data.SeriesInstanceUID + ".20"
        data.PixelData = np.full((64, 64), number + 1, "<u2").tobytes()
        data.save_as(file)
    scans = read_dicom(tmp_path / "study")
    predict(small_run, tmp_path / "study", tmp_path / "out")
    predicted, _ = read_predictions(tmp_path / "out")
    for one, scan in zip(predicted, scans, strict=True):
        shown = Pictured(measure_scan(one)).image
        np.testing.assert_array_equal(shown.frame(1), scan.frame(1))


def test_of_an_exam_what_the_network_knows_is_labeled_and_the_rest_is_listed(
    tmp_path, small_run, monkeypatch, capfd
):
    answer_with_squares(monkeypatch)
    normal = np.array(read_config_of(small_run).fingerprint["normals"][0])
    row = np.cross(normal, [0, 0, 1.0]) / np.linalg.norm(np.cross(normal, [0, 0, 1.0]))
    column = np.cross(normal, row)
    exam = {
        "sax": (5, (*row, *column), "cine_sa"), "4ch": (1, (*normal, *row), "cine 4-chamber"),
        "scout": (3, (-1.0, 0, 0, 0, -1.0, 0), "localizer"),
    }  # fmt: skip
    for number, (name, (slices, orientation, words)) in enumerate(exam.items(), 1):
        grid = synthetic_dicom.Grid(rows=64, columns=64, slices=slices, spacing=(2.4, 2.4), distance=9.0,
                                    orientation=tuple(np.multiply(orientation, [-1, -1, 1] * 2)))  # fmt: skip
        for file in synthetic_dicom.write_cine(tmp_path / "exam" / name, grid=grid, frames=3):
            data = pydicom.dcmread(file)
            data.SeriesNumber = data.SeriesNumber + 100 * number
            data.SeriesInstanceUID += f".{number}"
            data.SeriesDescription = words
            data.save_as(file)
    rows = predict(small_run, tmp_path / "exam", tmp_path / "out")
    told = capfd.readouterr().out
    assert len(rows) == 1
    assert nib.load(tmp_path / "out" / rows[0]["mask"]).shape == (64, 64, 5, 3)
    (line,) = [line for line in told.splitlines() if line.startswith("not labeled")]
    assert "4CH" in line
    assert "AX" in line
    assert main(["info", str(tmp_path / "exam")]) == 0
    told = capfd.readouterr().out
    assert [words.split()[1] for words in told.splitlines() if "plane  " in words] == ["SAX", "AX", "4CH"]
    assert "series       107, 108, 109, 110, 111" in told


def read_config_of(run: Path):
    from fewbeats.training.rundir import RunDir

    return RunDir(run).read_config()


def answer_with_squares(monkeypatch) -> None:
    """Networks of a run that find three nested squares in the middle of whatever they are shown."""

    def logits(batch):
        classes, side = 4, batch.shape[-1]
        out = np.zeros((len(batch), classes, side, side), np.float32)
        for value, reach in ((1, 12), (2, 8), (3, 4)):
            middle = slice(side // 2 - reach, side // 2 + reach)
            out[:, value, middle, middle] = value
        return out

    import fewbeats.inference.segment as segment

    load = segment.load_engine
    monkeypatch.setattr(segment, "load_engine", lambda *a, **k: replace(load(*a, **k), call=logits))


def test_converted_drawn_and_corrected_labels_come_back(dicom, small_run, tmp_path, monkeypatch, no_onnx):
    """DICOM -> NIfTI -> a mask drawn by hand -> training; and a corrected prediction is a manual label."""
    from conftest import TINY
    from fewbeats.data.cohort import read_cohort

    images, labels, table = tmp_path / "lab" / "images", tmp_path / "lab" / "labels", tmp_path / "lab.csv"
    assert main(["convert", str(dicom), str(images), "--frames", "0", "2"]) == 0
    assert sorted(f.name for f in images.iterdir()) == [
        "study_4d.nii.gz", "study_frame00.nii.gz", "study_frame02.nii.gz",
    ]  # fmt: skip
    frame = nib.load(images / "study_frame02.nii.gz")
    drawn = np.zeros(frame.shape, np.uint8)
    drawn[20:30, 20:30, 1:4], drawn[23:27, 23:27, 1:4] = 2, 1
    labels.mkdir()
    nib.save(nib.Nifti1Image(drawn, frame.affine), labels / "study_frame02.nii.gz")
    (tmp_path / "split.csv").write_text("subject,split\nstudy,train\n")
    flags = [
        "--layout=folder",
        "--convention=fewbeats",
        f"--split={tmp_path / 'split.csv'}",
        f"--out={table}",
    ]
    assert main(["index", str(tmp_path / "lab"), *flags]) == 0
    labeled = read_cohort(table).filter(pl.col("label").is_not_null())
    assert labeled["scan"].to_list() == ["study_frame02"]
    assert labeled["label_source"].to_list() == ["manual"]
    train = ["finetune", str(table), f"--out={tmp_path / 'run'}", "--steps=1", "--localizer-steps=0", *TINY]
    assert main(train) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["structures"] == ["LV", "MYO"]

    answer_with_squares(monkeypatch)
    predict(small_run, images / "study_frame00.nii.gz", tmp_path / "masks")
    assert main(["index", str(tmp_path / "lab"), *flags, f"--labels={tmp_path / 'masks'}"]) == 0
    labeled = read_cohort(table).filter(pl.col("label").is_not_null())
    assert sorted(labeled["scan"]) == ["study_frame00", "study_frame02"]
    assert labeled["label_source"].to_list() == ["manual", "manual"]


# Memory


class Repeated:
    """Pixels of many frames that take no memory."""

    def __init__(self, frame: np.ndarray, frames: int):
        self.shape, self.dtype, self.values = (frames, *frame.shape), frame.dtype, frame

    def frame(self, t: int) -> np.ndarray:
        return self.values.copy()


def test_memory_is_flat_in_frames(tmp_path):
    from fewbeats.recipes.labeling import Job, label_scan

    truth = make_truth(shape=(8, 128, 128), center=(60, 70))
    model = Model(ranked(oracle("segmenter")), None)
    peaks = []
    for frames in (4, 10, 100):
        scan = replace(make_scan(truth), pixels=Repeated(GRAY[truth], frames))
        labeler = RunLabeler(model, None)
        tracemalloc.start()
        label_scan(Job("scan", "subject", "scan.nii", lambda: None), scan, labeler, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 2.0, peaks  # MB; a frame has 0.5, its mask 0.125
