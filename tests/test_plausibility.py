"""What is like the training set gets no warning; what is unlike it gets one, and no ejection fraction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort
from fewbeats.data.files import open_labels, open_scan
from fewbeats.data.provenance import Provenance
from fewbeats.data.samples import prepare_labeled
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.inference.engine import Engine
from fewbeats.inference.fingerprint import SHORT_AXIS, take_fingerprint
from fewbeats.inference.labeler import Labeled, RunLabeler
from fewbeats.inference.localize import Region, whole_image
from fewbeats.inference.plausibility import Inspector, border_length_mm
from fewbeats.inference.segment import Model
from fewbeats.metrics import enclosed_share
from fewbeats.phantom.cohort import cohort_subject
from fewbeats.phantom.scan import PhantomSettings, make_scan
from fewbeats.scan import ArrayPixels, Scan
from fewbeats.training.runconfig import RunConfig
from fewbeats.transforms.preprocess import PreprocessSettings

STRUCTURES = ("LV", "MYO", "RV")
SETTINGS = SegmentationSettings(preprocess=PreprocessSettings(size=64, spacing_mm=2.5))


def model_of(
    cohort: Path, cache: Path, *, settings=SETTINGS, subjects: int = 3, change=lambda mask: mask
) -> Model:
    """What a run on the cohort's first training subjects (with other masks) knows of them, no network."""
    table = read_cohort(cohort).filter(pl.col("split") == "train", pl.col("label").is_not_null())
    chosen = table["subject"].unique(maintain_order=True)[:subjects]
    rows = table.filter(pl.col("subject").is_in(chosen.implode())).rows(named=True)
    samples = prepare_labeled(rows, settings.preprocess, structures=STRUCTURES, cache=cache)
    samples = [replace(sample, mask=change(np.array(sample.mask))) for sample in samples]
    fingerprint = take_fingerprint(
        samples, settings.preprocess, STRUCTURES, scans=map(open_scan, rows),
        short_axis=all(row["view"] == "SAX" for row in rows),
    )  # fmt: skip
    fingerprint = json.loads(json.dumps(fingerprint))  # as it comes back from run.json
    config = RunConfig(task="segmentation", fingerprint=fingerprint, modalities=("MR",))
    return Model(Engine(Path("run"), settings, STRUCTURES, "none", None, config), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(phantoms, tmp_path_factory) -> Model:
    return model_of(phantoms, tmp_path_factory.mktemp("cache"))


def phantom(number: int = 4, **changes) -> tuple[Scan, np.ndarray]:
    settings = PhantomSettings(**{"subjects": 6, "frames": 3, "matrix": 64, "pixel_mm": (2.3, 2.4)} | changes)
    return make_scan(cohort_subject(settings, number), settings)


def warnings_of(model: Model, scan: Scan, masks: np.ndarray, *, found: bool = True) -> tuple[str, ...]:
    inspector, region = inspector_of(model, scan), replace(whole_image(scan), found=found)
    for t, mask in enumerate(masks):
        assert inspector.see(t, Labeled(mask, region=region)) is mask
    return inspector.warnings()


def inspector_of(model: Model, scan: Scan) -> Inspector:
    return Inspector(scan, STRUCTURES, RunLabeler(model, Provenance(run="run")).known)


def shown(scan: Scan, frames: np.ndarray, *, scale=1.0, axes=None) -> Scan:
    """Other pixels or another place for a scan."""
    affine = scan.affine.copy()
    affine[:3, :3] *= scale
    if axes is not None:
        affine[:3, :3] = np.array(axes, float) * scan.spacing_mm[::-1]
    source = replace(scan.source, affine=affine)
    return replace(scan, pixels=ArrayPixels(frames), affine=affine, source=source)


@pytest.mark.parametrize("number", range(12))
def test_phantoms_like_those_trained_on_get_no_warning(number, model):
    scan, masks = phantom(number)
    expected = ("RV is cut by the image's border",) if number == 7 else ()  # it runs out of the 150 mm
    assert warnings_of(model, scan, masks) == expected
    brighter = shown(scan, scan.pixels.array * 30.0)  # the scale means nothing
    assert warnings_of(model, brighter, masks) == expected


def noise(array, seed=0):
    return np.random.default_rng(seed).normal(100, 20, array.shape)


SAGITTAL = [[0, 0, 1], [-1, 0, 0], [0, 1, 0]]
UNLIKE = {
    "noise": (lambda s: shown(s, noise(s.pixels.array)), "gray values"),
    "smooth noise": (
        lambda s: shown(s, ndimage.gaussian_filter(noise(s.pixels.array), (0, 0, 3, 3))), "gray values"),
    "inverted": (lambda s: shown(s, s.pixels.array.max() - s.pixels.array), "gray values"),
    "sagittal": (lambda s: shown(s, s.pixels.array, axes=SAGITTAL), "direction"),
    "twice as large": (lambda s: shown(s, s.pixels.array, scale=2.0), "voxels of"),
    "half as large": (lambda s: shown(s, s.pixels.array, scale=0.5), "mL is far"),
    "CT": (lambda s: replace(s, modality="CT"), "trained on MR"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_images_unlike_those_trained_on(name, model):
    scan, masks = phantom()
    change, complaint = UNLIKE[name]
    assert complaint in " ".join(warnings_of(model, change(scan), masks))


def test_ct_that_does_not_say_so(model):
    """A NIfTI file in Hounsfield units, shown to a network for MR."""
    ct, masks = phantom(modality="ct", matrix=64, pixel_mm=(2.5, 2.5))
    assert warnings_of(model, replace(ct, modality="MR"), np.where(masks > 3, 0, masks))


def without(masks: np.ndarray, structure: str) -> np.ndarray:
    return np.where(masks == FEWBEATS_VALUES[structure], 0, masks)


def opened(masks: np.ndarray) -> np.ndarray:
    """Without the wall on one side of the cavity's middle, as the base is in a long-axis view."""
    lv, wall = (masks == FEWBEATS_VALUES[name] for name in ("LV", "MYO"))
    base = np.arange(masks.shape[-1]) > np.nonzero(lv)[-1].mean()
    return np.where(wall & base, 0, masks)


def test_a_cavity_may_be_open_where_those_of_the_training_are(phantoms, tmp_path):
    model = model_of(phantoms, tmp_path, change=opened)
    assert 0.3 < model.segmenter.config.fingerprint["enclosed"] < 0.8
    scan, masks = phantom()
    assert not any("not enclosed" in w for w in warnings_of(model, scan, opened(masks)))
    assert any("not enclosed" in w for w in warnings_of(model, scan, without(masks, "MYO")))


def test_masks_no_heart_could_have(model):
    scan, masks = phantom()
    assert "no RV was found" in warnings_of(model, scan, without(masks, "RV"))
    assert len(warnings_of(model, scan, np.zeros_like(masks))) == 3
    assert "no heart was found at low resolution" in warnings_of(model, scan, masks, found=False)[0]
    grown = np.stack([np.where(ndimage.binary_dilation(m > 0, iterations=8), 1, m) for m in masks])
    assert any("LV" in w and "far from" in w for w in warnings_of(model, scan, grown))
    moved = without(masks, "LV")
    moved[np.roll(masks == FEWBEATS_VALUES["LV"], 22, axis=3)] = FEWBEATS_VALUES["LV"]  # beside its wall
    assert any("not enclosed" in w for w in warnings_of(model, scan, moved))
    assert any("not enclosed" in w for w in warnings_of(model, scan, opened(masks)))
    cut = np.where(np.arange(masks.shape[3]) < 3, 3, masks)  # the RV runs out of the image
    assert "RV is cut by the image's border" in warnings_of(model, scan, cut)


def test_length_along_the_border():
    mask = np.zeros((2, 6, 5), bool)
    mask[0, 2:4, 0] = mask[1, 0, 1:4] = True
    assert border_length_mm(mask, 1, (8.0, 4.0, 4.0)) == pytest.approx(2 * 4.0 + 3 * 4.0)
    assert border_length_mm(mask[:, 1:-1, 1:-1], 1, (8.0, 4.0, 4.0)) == 0.0
    near = np.zeros((1, 20, 20), bool)
    near[0, 5:9, 2] = True  # the third pixel of 1 mm from the left
    assert border_length_mm(near, 1, (8.0, 1.0, 1.0)) == pytest.approx(4.0)
    assert border_length_mm(np.roll(near, 1, 2), 1, (8.0, 1.0, 1.0)) == 0.0


def test_a_volume_that_jumps(model):
    scan, masks = phantom(frames=12)
    assert warnings_of(model, scan, masks) == ()
    masks[1] = np.where((masks[1] == 1) & (np.arange(64) % 3 > 0), 2, masks[1])  # a third is left
    assert any("jumps" in w for w in warnings_of(model, scan, masks))


def test_a_ring_is_closed_and_a_half_moon_is_not():
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 5:15, 5:15], mask[0, 7:13, 7:13] = 2, 1
    assert enclosed_share(mask == 1, mask == 2) == 1.0
    mask[0, :, 13:] = 0
    assert enclosed_share(mask == 1, mask == 2) == pytest.approx(0.75, abs=0.05)


def test_a_lost_orientation_is_not_judged(model):
    scan, masks = phantom()
    axial = shown(scan, scan.pixels.array, axes=np.eye(3))
    assert warnings_of(model, axial, masks) == ()


def test_runs_without_a_fingerprint_still_judge_masks(model):
    scan, masks = phantom()
    bare = replace(model, segmenter=replace(model.segmenter, config=RunConfig(task="segmentation")))
    assert warnings_of(bare, scan, masks) == ()
    assert warnings_of(bare, scan, np.zeros_like(masks))


def test_a_warned_scan_gets_no_ejection_fraction(phantoms, small_run, tmp_path, capfd):
    scan, _ = phantom()
    image = nib.Nifti1Image(noise(scan.pixels.array).astype(np.float32).transpose(3, 2, 1, 0), scan.affine)
    nib.save(image, tmp_path / "noise.nii.gz")
    assert main(["predict", str(small_run), str(tmp_path / "noise.nii.gz"), f"--out={tmp_path / 'out'}"]) == 0
    printed = capfd.readouterr().out
    assert "warning: " in printed
    assert "EF" not in printed.split("report:")[0]
    row = pl.read_csv(tmp_path / "out" / "predictions.csv").row(0, named=True)
    assert "gray values" in row["warnings"]


def test_warnings_are_read_back_one_by_one(model):
    scan, masks = phantom()
    found = warnings_of(model, shown(scan, noise(scan.pixels.array)), np.zeros_like(masks), found=False)
    assert len(found) == 5
    assert not any(";" in warning for warning in found)  # they are joined by it in predictions.csv


# Real scans: short-axis cines of one hospital are the training set


@pytest.fixture(scope="module")
def real(realdata, tmp_path_factory) -> tuple[Model, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("acdc")
    split, table = realdata / "splits" / "acdc_study.csv", folder / "acdc.csv"
    flags = ["--layout=acdc", f"--split={split}", f"--out={table}"]
    assert main(["index", str(realdata / "acdc"), *flags]) == 0
    model = model_of(table, folder / "cache", settings=SegmentationSettings(), subjects=7)
    return model, read_cohort(table)


def region_of(labels: np.ndarray) -> Region:
    """Where a perfect localizer would look."""
    rows, columns = (np.flatnonzero(labels.any((0, axis))) for axis in (2, 1))
    return Region((float(rows[[0, -1]].mean()), float(columns[[0, -1]].mean())), 0.0)


@pytest.mark.realdata
def test_real_scans_of_the_same_kind_get_no_gray_or_shape_warning(real):
    model, cohort = real
    swap = np.array([0, 3, 2, 1])  # ACDC: RV, MYO, LV
    warned = []
    for row in cohort.filter(pl.col("split") == "tune").iter_rows(named=True):
        scan = replace(open_scan(row), modality="MR")
        labels = swap[next(iter(open_labels(row, scan).values()))]
        inspector = inspector_of(model, scan)
        inspector.see(0, Labeled(labels, region=region_of(labels)))
        warned += [warning for warning in inspector.warnings() if "mL is far" not in warning]
    assert warned == []


@pytest.mark.realdata
def test_real_scans_of_another_kind_are_warned_about(real, realdata):
    from fewbeats.data.files import read_scans

    model, _ = real
    (sagittal,) = read_scans(realdata / "cine_dicom")
    images = inspector_of(model, sagittal)._image_warnings()
    assert any("direction" in warning for warning in images)
    for cine in sorted((realdata / "cine4d").glob("*_4d.nii.gz")):
        (scan,) = read_scans(cine)
        assert inspector_of(model, scan)._image_warnings() == []


def test_the_usual_short_axis_is_a_direction():
    assert np.linalg.norm(SHORT_AXIS) == pytest.approx(1.0, abs=0.01)
