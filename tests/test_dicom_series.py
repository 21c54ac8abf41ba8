"""Which DICOM series are one scan: a series for each slice, for each phase, or for all."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from fewbeats.io.dicom import read_dicom
from synthetic_dicom import CORONAL, Grid, assert_truth, only, write_cine, write_ct, write_enhanced


@pytest.mark.parametrize(
    ("phase_in", "times"),
    [("tag", [0, 350, 700]), ("CTA 0.6 {:g} %", [0, 350, 700]), ("CTA {:g}ms", [0, 35, 70]), ("order", None)],
)
def test_ct_with_one_series_per_phase(tmp_path, phase_in, times):
    write_ct(tmp_path, phase_in=phase_in)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3, tolerance=1.0)  # values are stored with a slope of 2
    assert scan.modality == "CT"
    assert not scan.is_stack
    if times is None:
        assert scan.frame_times_ms is None
    else:
        np.testing.assert_allclose(scan.frame_times_ms, times)


@pytest.mark.parametrize("phase_in", ["tag", "Heart {:g}%", "ASiR 50% CTA {:g}%", "order"])
@pytest.mark.parametrize("constant", [{}, {"TriggerTime": 0}, {"TemporalPositionIdentifier": 1}], ids=str)
def test_a_tag_that_never_changes_does_not_hide_the_phase(tmp_path, phase_in, constant):
    write_ct(tmp_path, phase_in=phase_in, **constant)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3, tolerance=1.0)
    if phase_in != "order":
        np.testing.assert_allclose(scan.frame_times_ms, [0, 350, 700])


@pytest.mark.parametrize("constant", [{"TriggerTime": 400}, {"NominalPercentageOfCardiacPhase": 70}], ids=str)
def test_reconstructions_of_one_phase_are_scans_of_their_own(tmp_path, constant):
    write_ct(tmp_path, phases=(30.0, 60.0), phase_in="ASiR {:g}%", **constant)
    assert [scan.shape[0] for scan in read_dicom(tmp_path)] == [1, 1]


def test_enhanced_mr_with_one_file_per_phase(tmp_path):
    """Each file counts its own temporal positions from 1; the trigger delays tell them apart."""
    for t in range(3):
        write_enhanced(tmp_path / f"{t}.dcm", only=t)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    np.testing.assert_allclose(scan.frame_times_ms, [0, 40, 80])


def test_ct_phases_are_sorted_by_phase_not_by_series(tmp_path):
    write_ct(tmp_path, phases=(70.0, 0.0, 35.0))
    scan = only(read_dicom(tmp_path))
    first = {file.parent.name for file, _ in scan.source.instances[0]}
    assert first == {"phase1"}


def test_two_kernels_of_one_phase_are_two_scans(tmp_path):
    write_ct(tmp_path / "soft", phases=(70.0,))
    for file in write_ct(tmp_path / "sharp", phases=(70.0,)):
        data = pydicom.dcmread(file)
        data.SeriesInstanceUID, data.ConvolutionKernel = "1.2.3.99", "B46f"
        data.SOPInstanceUID = f"1.2.3.98.{data.InstanceNumber}"
        data.save_as(file)
    assert [scan.shape[0] for scan in read_dicom(tmp_path)] == [1, 1]


def test_other_orientations_and_kinds_are_other_scans_largest_first(tmp_path):
    write_cine(tmp_path / "a_localizer", grid=Grid(orientation=CORONAL), frames=1, SeriesNumber=1,
               SeriesInstanceUID="1.2.3.1")  # fmt: skip
    write_cine(tmp_path / "b_phase", frames=3, SeriesNumber=40, SeriesInstanceUID="1.2.3.40",
               ImageType=["ORIGINAL", "PRIMARY", "P"], grid=Grid(slices=3))  # fmt: skip
    write_cine(tmp_path / "c_cine")
    scans = read_dicom(tmp_path)
    assert [scan.shape[:2] for scan in scans] == [(3, 4), (3, 3), (1, 4)]
    assert [scan.source.path.name for scan in scans] == ["c_cine", "b_phase", "a_localizer"]
    for scan in scans:
        assert_truth(scan, scan.shape[0])


def test_a_stack_acquired_twice_is_two_scans(tmp_path):
    write_cine(tmp_path / "first")
    for file in write_cine(tmp_path / "again"):
        data = pydicom.dcmread(file)
        data.SeriesNumber += 20
        data.SeriesInstanceUID = data.SeriesInstanceUID + ".20"
        data.save_as(file)
    scans = read_dicom(tmp_path)
    assert [scan.shape for scan in scans] == [(3, 4, 12, 16)] * 2
    assert {scan.source.path.name for scan in scans} == {"first", "again"}
