"""Reading DICOM: every voxel against an analytic truth, in every order and layout of files."""

from __future__ import annotations

import io
import shutil
import time

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fewbeats.io.dicom import read_dicom
from synthetic_dicom import (
    AXIAL,
    CORONAL,
    PATIENT_NAME,
    SAGITTAL,
    Grid,
    assert_truth,
    oblique,
    only,
    write_cine,
    write_color,
    write_ct,
    write_enhanced,
)

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP"])
@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, oblique(31, -24, 57)])
def test_voxels_lie_where_the_headers_say(tmp_path, orientation, position):
    """Patient position changes nothing: ImagePositionPatient already speaks of the patient."""
    write_cine(tmp_path, grid=Grid(orientation=orientation), PatientPosition=position)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert sorted(scan.spacing_mm) == pytest.approx([1.25, 1.5, 8.0])


@QUICK
@given(st.tuples(*[st.floats(-180, 180)] * 3), st.floats(0.8, 9), st.booleans())
def test_any_oblique_stack_or_volume(tmp_path_factory, angles, distance, upward):
    folder = tmp_path_factory.mktemp("oblique")
    grid = Grid(orientation=oblique(*angles), distance=distance if upward else -distance, slices=3)
    write_cine(folder, grid=grid, frames=2, series_per_slice=False)
    scan = only(read_dicom(folder))
    assert_truth(scan, 2)
    shutil.rmtree(folder)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, oblique(100, 20, -130)])
def test_source_grid_and_instances(tmp_path, orientation):
    """`source` leads back to the stored stack, and `instances` to the file of every canonical slice."""
    grid = Grid(orientation=orientation)
    write_cine(tmp_path, grid=grid)
    scan = only(read_dicom(tmp_path))
    stored = scan.source.reorientation.invert(scan.frame(1))
    assert stored.shape == scan.source.shape == (4, 12, 16)
    for z in range(4):
        np.testing.assert_array_equal(stored[z], grid.image(z, 1))
    assert scan.source.reorientation.order == (0, 1, 2)
    for z, (file, index) in enumerate(scan.source.instances[1]):
        pixels = pydicom.dcmread(file).pixel_array.astype(np.float32)
        flips = tuple(slice(None, None, -1 if f else 1) for f in scan.source.reorientation.flipped[1:])
        np.testing.assert_array_equal(scan.frame(1)[z], pixels[flips])
        assert index == 0
    origin = scan.source.affine[:3, 3] * [-1, -1, 1]
    np.testing.assert_allclose(origin, grid.corner(0), atol=1e-6)


@pytest.mark.parametrize("in_plane_mm", [0.4, 0.5])
def test_axial_ct_is_turned_alike_whatever_its_pixel_size(tmp_path, in_plane_mm):
    write_ct(tmp_path, phases=(0.0,), grid=Grid(slices=6, distance=0.9, spacing=(in_plane_mm, in_plane_mm)))
    scan = only(read_dicom(tmp_path))
    assert aff2axcodes(scan.affine) == ("R", "A", "S")
    assert_truth(scan, 1, tolerance=1.0)


def test_thick_axial_ct_has_not_lost_its_orientation(tmp_path):
    write_ct(tmp_path, phases=(0.0,), grid=Grid(distance=3.0, spacing=(0.7, 0.7)))
    scan = only(read_dicom(tmp_path))
    assert aff2axcodes(scan.affine) == ("L", "P", "I")
    assert scan.is_stack
    assert_truth(scan, 1, tolerance=1.0)


@pytest.mark.parametrize("thickness", [None, 1.0])
def test_one_slice_without_a_thick_slice_stays_a_slice(tmp_path, thickness):
    grid = Grid(slices=1, orientation=CORONAL, spacing=(1.4, 1.4))
    write_cine(tmp_path, grid=grid, SliceThickness=thickness)
    scan = only(read_dicom(tmp_path))
    assert scan.shape == (3, 1, 12, 16)
    assert scan.is_stack


def test_ct_of_320_slices(tmp_path):
    grid = Grid(rows=4, columns=5, slices=320, distance=0.5, spacing=(0.5, 0.5))
    write_ct(tmp_path, grid=grid, phases=(80.0,))
    scan = only(read_dicom(tmp_path))
    assert scan.shape == (1, 320, 4, 5)
    assert_truth(scan, 1, tolerance=1.0)


@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("orientation", [AXIAL, oblique(20, 40, 60)])
def test_enhanced_multi_frame(tmp_path, modality, orientation):
    file = write_enhanced(tmp_path / "e.dcm", grid=Grid(orientation=orientation), modality=modality)
    scan = only(read_dicom(file))
    assert_truth(scan, 3)
    assert scan.cycle_ms == 800
    assert scan.source.path == file
    np.testing.assert_allclose(scan.frame_times_ms, [0, 40, 80] if modality == "MR" else [0, 200, 400])


@pytest.mark.parametrize(
    "syntax", [JPEG2000Lossless, RLELossless, JPEGLSLossless, JPEGLossless, JPEGLosslessSV1]
)
def test_compressed_pixels(tmp_path, syntax):
    grid = Grid(rows=48, columns=64, slices=2)
    write_cine(tmp_path / "cine", grid=grid, frames=2, syntax=syntax)
    assert_truth(only(read_dicom(tmp_path / "cine")), 2)
    file = write_enhanced(tmp_path / "enhanced.dcm", grid=grid, frames=2, syntax=syntax)
    assert_truth(only(read_dicom(file)), 2)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_preamble(tmp_path, syntax, meta):
    for file in write_cine(tmp_path):
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        whole = io.BytesIO()
        data.save_as(whole, enforce_file_format=True)
        unmarked = whole.getvalue()[132:]
        file.write_bytes(unmarked if meta else unmarked[12 + int.from_bytes(unmarked[8:12], "little") :])
    assert_truth(only(read_dicom(tmp_path)), 3)


def test_one_frame_is_decoded_without_the_others(tmp_path, monkeypatch):
    write_cine(tmp_path / "cine")
    scan = only(read_dicom(tmp_path / "cine"))
    wanted = {file for file, _ in scan.source.instances[1]}
    for file in (tmp_path / "cine").iterdir():
        if file not in wanted:
            file.unlink()
    assert scan.frame(1).shape == (4, 12, 16)

    decoded, original = [], pydicom.pixels.iter_pixels

    def watched(file, *, indices, raw):
        decoded.extend(indices)
        return original(file, indices=indices, raw=raw)

    monkeypatch.setattr(pydicom.pixels, "iter_pixels", watched)
    scan = only(read_dicom(write_enhanced(tmp_path / "e.dcm")))
    assert not decoded
    scan.frame(2)
    assert len(decoded) == 4


def test_slope_and_intercept_are_those_of_each_file(tmp_path):
    for i, file in enumerate(write_cine(tmp_path)):
        data = pydicom.dcmread(file)
        data.RescaleSlope, data.RescaleIntercept = 1 + i % 3, -i
        data.PixelData = ((data.pixel_array.astype(int) + i) // (1 + i % 3)).astype("<u2").tobytes()
        data.save_as(file)
    assert_truth(only(read_dicom(tmp_path)), 3, tolerance=2.5)  # whole-number division loses up to 2


@QUICK
@given(seed=st.integers(0, 2**32 - 1), per_slice=st.booleans())
def test_shuffled_files_give_the_same_scan(tmp_path_factory, seed, per_slice):
    folder = tmp_path_factory.mktemp("shuffled")
    files = write_cine(folder / "a", grid=Grid(slices=3), frames=2, series_per_slice=per_slice)
    before = only(read_dicom(folder / "a"))
    expected = [before.frame(t) for t in range(2)]
    rng = np.random.default_rng(seed)
    for name, file in zip(rng.permutation(len(files)), files):
        target = folder / "b" / f"d{rng.integers(3)}" / f"IM{name:04d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    after = only(read_dicom(folder / "b"))
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.frame_times_ms, before.frame_times_ms)
    for t in range(2):
        np.testing.assert_array_equal(after.frame(t), expected[t])
    assert after.source.notes == before.source.notes
    shutil.rmtree(folder)


def test_files_that_are_no_images_are_passed_over(tmp_path):
    write_cine(tmp_path / "series")
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / "notes").write_bytes(b"\x08\x00 hardly DICOM either")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "DICOMDIR").write_bytes(bytes(200))
    report = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.SOPInstanceUID, report.Modality = "1.2.3.77", "SR"
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.save_as(tmp_path / "report.dcm")
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert scan.source.path == tmp_path / "series"


def test_linked_folders_are_read_once_and_circles_do_no_harm(tmp_path):
    write_cine(tmp_path / "disk")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "series").symlink_to(tmp_path / "disk")
    (tmp_path / "study" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "study")
    (tmp_path / "disk" / "gone").symlink_to(tmp_path / "nowhere")
    assert_truth(only(read_dicom(tmp_path / "study")), 3)


def test_a_color_snapshot_beside_a_scan_is_left_out_and_said(tmp_path):
    write_cine(tmp_path)
    write_color(tmp_path / "snapshot.dcm")
    scan = only(read_dicom(tmp_path))
    assert any("snapshot.dcm" in note and "color" in note for note in scan.source.notes)


def test_one_file_is_a_scan_of_one_slice(tmp_path):
    file = write_cine(tmp_path)[5]
    scan = only(read_dicom(file))
    assert scan.shape == (1, 1, 12, 16)
    assert scan.spacing_mm == pytest.approx((5.0, 1.5, 1.25))
    assert any("SliceThickness" in note for note in scan.source.notes)


def test_slice_distance_comes_from_positions(tmp_path):
    write_cine(tmp_path, SpacingBetweenSlices=6.0)
    scan = only(read_dicom(tmp_path))
    assert scan.spacing_mm[0] == pytest.approx(8.0)
    assert any("SpacingBetweenSlices says 6 mm" in note for note in scan.source.notes)


def test_notes_hold_nothing_about_the_patient(tmp_path, capfd):
    write_cine(tmp_path, SeriesDescription=f"cine of {PATIENT_NAME}")
    scan = only(read_dicom(tmp_path))
    scan.frame(0)
    captured = capfd.readouterr()
    said = " ".join(scan.source.notes) + captured.out + captured.err
    assert not any(part in said for part in PATIENT_NAME.split("^"))


@pytest.mark.realdata
def test_the_volunteer_is_one_scan(realdata):
    start = time.perf_counter()
    scan = only(read_dicom(realdata / "cine_dicom"))
    assert time.perf_counter() - start < 10  # about one second on an idle machine
    assert scan.shape == (32, 14, 256, 256)
    assert scan.spacing_mm == pytest.approx((12.0, 1.484375, 1.484375), abs=1e-3)
    assert scan.modality == "MR"
    assert any("AcquisitionTime (TriggerTime not unique" in note for note in scan.source.notes)
    assert any("SpacingBetweenSlices says 6 mm" in note for note in scan.source.notes)
    assert 34.6 < np.diff(scan.frame_times_ms).mean() < 37.3
    frame = scan.frame(7)
    file, index = scan.source.instances[7][3]
    np.testing.assert_array_equal(frame[3], pydicom.dcmread(file).pixel_array)
    assert index == 0
    assert frame.shape == (14, 256, 256)
