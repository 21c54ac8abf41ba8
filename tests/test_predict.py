"""From a scan to masks on its own grid: kinds of files, exact places, flat memory, runtimes that agree."""

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
from fewbeats.finetuning.segmentation import SegmentationSettings, localizer_settings
from fewbeats.inference.engine import Engine
from fewbeats.inference.labeler import RunLabeler
from fewbeats.inference.localize import Region, locate_heart, whole_image
from fewbeats.inference.segment import Model, find_region, segment_frames, widen_grid
from fewbeats.io.dicom import read_dicom
from fewbeats.io.dicom_seg import read_seg
from fewbeats.models.network import NetworkSettings
from fewbeats.scan import ArrayPixels, Scan, Source
from fewbeats.transforms.preprocess import PreprocessSettings
from small_nifti import read_labels

STRUCTURES = ("LV", "MYO", "RV")
SIDE = 32


def predict(run, path, out, *flags) -> list[dict]:
    """Rows of predictions.csv."""
    assert main(["predict", str(run), str(path), f"--out={out}", *map(str, flags)]) == 0
    return pl.read_csv(out / "predictions.csv", infer_schema=False).rows(named=True)


@pytest.fixture
def cine(phantoms) -> Path:
    return phantoms.parent / "source" / "images" / "phantom004_4d.nii.gz"


@pytest.fixture(scope="module")
def expected(phantoms, small_run, tmp_path_factory) -> np.ndarray:
    """Mask of `cine`, (x, y, z, t)."""
    out = tmp_path_factory.mktemp("expected")
    predict(small_run, phantoms.parent / "source" / "images" / "phantom004_4d.nii.gz", out)
    mask = np.asarray(nib.load(out / "phantom004_4d.nii.gz").dataobj)
    assert all((mask == value).sum() > 50 for value in (1, 2, 3)), "the network must find something"
    return mask


def masks_of(folder: Path, name: str):
    return nib.load(folder / f"{name}.nii.gz")


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


def test_runtimes_agree(cine, small_run, tmp_path, expected):
    for runtime in ("torch", "onnxruntime", "openvino"):
        predict(small_run, cine, tmp_path / runtime, f"--runtime={runtime}")
        mask = np.asarray(masks_of(tmp_path / runtime, "phantom004_4d").dataobj)
        assert (mask == expected).mean() > 0.9999
        assert json.loads((tmp_path / runtime / "run.json").read_text())["runtime"] == runtime


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


@pytest.mark.parametrize("corner", [0, SIDE - 3])
def test_a_heart_seen_only_beside_the_image_is_no_heart(corner):
    """The field of view reaches beyond a small image; what is found there has no voxel."""

    def logits(batch):
        out = np.zeros((len(batch), 4, SIDE, SIDE), np.float32)
        out[:, 1, corner : corner + 3, corner : corner + 3] = 5.0
        return out

    model = Model(replace(oracle("segmenter"), call=logits), None)
    pixels = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    scan = Scan(pixels=ArrayPixels(pixels), affine=np.diag([2.5, 2.5, 8.0, 1.0]))
    (mask,) = segment_frames(scan, model, whole_image(scan))
    assert mask.shape == (4, 8, 8)
    assert not mask.any()


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


def test_converted_drawn_and_corrected_labels_come_back(dicom, small_run, tmp_path, monkeypatch):
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
    monkeypatch.setattr("fewbeats.inference.engine.can_export", lambda: False)
    train = ["finetune", str(table), f"--out={tmp_path / 'run'}", "--steps=1", "--localizer-steps=0", *TINY]
    assert main(train) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["structures"] == ["LV", "MYO"]

    answer_with_squares(monkeypatch)
    predict(small_run, images / "study_frame00.nii.gz", tmp_path / "masks")
    assert main(["index", str(tmp_path / "lab"), *flags, f"--labels={tmp_path / 'masks'}"]) == 0
    labeled = read_cohort(table).filter(pl.col("label").is_not_null())
    assert sorted(labeled["scan"]) == ["study_frame00", "study_frame02"]
    assert labeled["label_source"].to_list() == ["manual", "manual"]


# Geometry without learning: a network that knows the answer


def oracle(kind: str, *, dims: int = 2, size: int = SIDE, spacing_mm: float = 2.5) -> Engine:
    """A network that reads the answer off the image: `GRAY` has a value for each class, evenly apart."""
    if kind == "localizer":
        settings = localizer_settings(
            SegmentationSettings(network=NetworkSettings(kind="unet2d", levels=4, context=0))
        )
        structures: tuple[str, ...] = ("heart",)
    else:
        settings = SegmentationSettings(
            network=NetworkSettings(kind="unet2d" if dims == 2 else "unet3d", levels=3, context=0),
            preprocess=PreprocessSettings(size=size, spacing_mm=spacing_mm, clip_percent=(0.0, 100.0)),
            slab_slices=8,
        )
        structures = STRUCTURES

    def call(batch: np.ndarray) -> np.ndarray:
        gray = batch[:, 0]
        levels = LEVELS[kind](gray)
        return np.stack([-np.abs(gray - level) * 50 for level in levels], 1).astype(np.float32)

    return Engine(Path("oracle"), settings, structures, "oracle", call, {})


def _class_levels(gray: np.ndarray) -> list[float]:
    low, high = float(gray.min()), float(gray.max())
    return [low + (high - low) * share for share in (0, 1 / 3, 2 / 3, 1)]


LEVELS = {
    "segmenter": _class_levels,
    "localizer": lambda gray: _class_levels(gray)[:2],
}


def make_truth(shape=(6, 60, 70), center=(22, 45), reach=(9, 6, 3)) -> np.ndarray:
    """(Z, Y, X) nested boxes RV, MYO, LV off the middle; slices 0 and 5 are empty."""
    truth = np.zeros(shape, np.uint8)
    for value, side in zip((3, 2, 1), reach):
        rows, columns = (slice(c - side, c + side + 1) for c in center)
        truth[1:5, rows, columns] = value
    return truth


GRAY = np.array([0, 300, 200, 100], np.float32)  # of background, LV, MYO, RV


def make_scan(truth: np.ndarray, *, spacing=(8.0, 2.5, 2.5), frames: int = 1) -> Scan:
    image = np.repeat(GRAY[truth][None], frames, 0)
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    source = Source(affine=affine, shape=truth.shape)
    return Scan(pixels=ArrayPixels(image), affine=affine, modality="MR", source=source)


RANKED = ("RV", "MYO", "LV")  # classes of the oracle in the order of their gray values


def ranked(engine: Engine) -> Engine:
    return replace(engine, structures=RANKED)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_answer_lands_where_it_belongs(dims):
    truth = make_truth()
    scan = make_scan(truth)
    model = Model(ranked(oracle("segmenter", dims=dims)), None)
    region = Region((22.0, 45.0), 50.0)
    (found,) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


def test_the_localizer_leads_there():
    truth = make_truth(shape=(6, 120, 140), center=(40, 95))
    scan = make_scan(truth, spacing=(8.0, 2.5, 2.5))
    model = Model(ranked(oracle("segmenter")), oracle("localizer"))
    region = find_region(scan, model)
    assert region.center == pytest.approx((40, 95), abs=2)
    (found,) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("spacing", [1.25, 1.7, 3.1])
def test_other_pixel_sizes_are_off_by_less_than_half_a_pixel_of_the_network(spacing):
    truth = make_truth(reach=(10, 8, 4)) if spacing < 2.5 else make_truth(reach=(7, 5, 3))
    scan = make_scan(truth, spacing=(8.0, spacing, spacing))
    (found,) = segment_frames(scan, Model(ranked(oracle("segmenter")), None), Region((22.0, 45.0), 0.0))
    for value in (1, 2, 3):
        for axis in (1, 2):
            here, there = (np.flatnonzero((m >= 1).any((0, 3 - axis)) if value == 3 else
                           (m == value).any((0, 3 - axis))) for m in (found, truth))  # fmt: skip
            assert abs(here[[0, -1]] - there[[0, -1]]).max() * spacing <= 0.5 * 2.5 + 0.5 * spacing


def test_a_cropped_image_is_padded_and_no_localizer_is_asked():
    truth = make_truth(shape=(6, 22, 24), center=(11, 12))
    asked = []
    localizer = replace(oracle("localizer"), call=lambda batch: asked.append(1))
    model = Model(ranked(oracle("segmenter")), localizer)
    scan = make_scan(truth)
    region = find_region(scan, model)
    assert region == whole_image(scan)
    assert not asked
    (found,) = segment_frames(scan, model, region)
    np.testing.assert_array_equal(found, truth)


def test_a_heart_larger_than_the_field_of_view_is_zoomed_out():
    truth = make_truth(shape=(6, 160, 160), center=(80, 80), reach=(22, 15, 8))  # 112 mm; the view is 80 mm
    scan = make_scan(truth)
    model = Model(ranked(oracle("segmenter")), oracle("localizer"))
    region = find_region(scan, model)
    view = widen_grid(model.segmenter.settings.preprocess, region)
    assert 112 <= view.field_of_view_mm <= 1.5 * 80
    (found,) = segment_frames(scan, model, region)
    for value in (1, 2, 3):
        both = 2 * ((found == value) & (truth == value)).sum()
        assert both / ((found == value).sum() + (truth == value).sum()) > 0.85


def test_no_heart_at_low_resolution_is_said():
    scan = make_scan(np.zeros((4, 100, 100), np.uint8))
    nothing = replace(
        oracle("localizer"), call=lambda batch: np.stack([batch[:, 0] * 0 + 1, batch[:, 0] * 0], 1)
    )
    assert locate_heart(scan, nothing) == whole_image(scan, found=False)


def test_slab_by_slab_is_the_whole_at_once(monkeypatch):
    truth = np.concatenate([make_truth(), make_truth(center=(30, 40)), make_truth()])
    scan, region = make_scan(truth), Region((24.0, 43.0), 0.0)
    model = Model(ranked(oracle("segmenter")), None)
    results = []
    for slab in (1, 5, 16, 100):
        monkeypatch.setattr("fewbeats.inference.segment.SLAB", slab)
        results.append(next(segment_frames(scan, model, region)))
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert results[0].any()


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
