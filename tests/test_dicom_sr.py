"""Structured reports of points and classes: each point lies in the right image, on the right pixel."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from fewbeats.errors import InputError
from fewbeats.io.dicom_seg import stack_headers
from fewbeats.io.dicom_sr import LEAST_CONFIDENCE, place_in_image, write_sr
from fewbeats.io.nifti import read_nifti, write_scan
from synthetic_dicom import PATIENT_NAME
from test_dicom_seg import write_source


def point(scan, t: int, z: int, y: float, x: float, *, confidence: float = 0.9) -> dict:
    """A row of a task for a voxel of the canonical scan."""
    x_mm, y_mm, z_mm = (scan.affine @ [x, y, z, 1.0])[:3]
    return {"scan": "s", "frame": t, "slice": z, "point": "lv_center", "x_mm": x_mm, "y_mm": y_mm,
            "z_mm": z_mm, "confidence": confidence}  # fmt: skip


@pytest.mark.parametrize("kind", ["cine", "ct", "enhanced MR"])
def test_points_lie_on_the_pixels_that_they_were_found_in(tmp_path, kind):
    scan = write_source(tmp_path / "scan", kind)
    t, z, y, x = scan.shape[0] - 1, 2, 5, 4
    file = tmp_path / "sr.dcm"
    write_sr(
        file, [("s", scan)], [point(scan, t, z, y, x), point(scan, t, 1, 3, 3, confidence=0.1)], title="P"
    )
    report = hd.sr.srread(file)
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == 1, f"points below {LEAST_CONFIDENCE} are for the table alone"
    (column, row) = groups[0].roi.value[0]
    told = groups[0].roi
    reference = told.ContentSequence[0].ReferencedSOPSequence[0]
    header = next(
        h for h in stack_headers(scan)[t]
        if h.sop_uid == reference.ReferencedSOPInstanceUID
        and (not h.is_multi_frame or h.index + 1 == int(reference.ReferencedFrameNumber))
    )  # fmt: skip
    images = np.zeros(scan.shape[1:], int)
    images[z, y, x] = 1
    there = np.argwhere(scan.source.reorientation.invert(images))[0]
    slices = stack_headers(scan)[t]
    assert slices[there[0]].sop_uid == header.sop_uid
    assert (column, row) == pytest.approx((there[2] + 0.5, there[1] + 0.5), abs=0.02)
    assert place_in_image(header, [point(scan, t, z, y, x)[a] for a in ("x_mm", "y_mm", "z_mm")]) == (
        pytest.approx((column, row), abs=0.02)
    )


def test_where_no_point_is_sure_enough_there_is_no_report(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    write_sr(tmp_path / "sr.dcm", [("s", scan)], [point(scan, 0, 1, 3, 3, confidence=0.1)], title="P")
    assert not (tmp_path / "sr.dcm").exists()


def test_classes_are_told_of_scans_and_studies(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    rows = [
        {"level": "study", "class": "DCM", "confidence": 0.71, "p_NOR": 0.29, "p_DCM": 0.71},
        {"level": "slice", "scan": "s", "frame": 0, "slice": 0, "attention": 1.0},
    ]
    write_sr(tmp_path / "sr.dcm", [("s", scan)], rows, title="Cardiac disease")
    (group,) = hd.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    (said,) = group.get_qualitative_evaluations()
    assert (said.name.meaning, said.value.meaning) == ("Cardiac disease", "DCM")
    told = {measured.name.meaning: measured.value for measured in group.get_measurements()}
    assert told == {"confidence": 0.71, "probability of NOR": 0.29, "probability of DCM": 0.71}


def test_the_patient_stays_the_same_and_no_warning_names_him(tmp_path, recwarn):
    scan = write_source(tmp_path / "scan", "cine")
    write_sr(tmp_path / "sr.dcm", [("s", scan)], [point(scan, 0, 1, 2, 3)], title="P")
    assert pydicom.dcmread(tmp_path / "sr.dcm").PatientName == PATIENT_NAME
    assert not any(PATIENT_NAME in str(warning.message) for warning in recwarn)


def test_scans_that_are_not_of_dicom_have_no_report(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    write_scan(tmp_path / "a.nii.gz", scan)
    nifti = read_nifti(Path(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match="not read from DICOM"):
        write_sr(tmp_path / "sr.dcm", [("s", nifti)], [], title="P")
