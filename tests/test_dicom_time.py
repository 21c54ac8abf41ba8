"""DICOM frames in time: which tag orders them, and when each was taken."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from fewbeats.io.dicom import read_dicom
from synthetic_dicom import Grid, assert_truth, only, write_cine

TIMED = {"TriggerTime", "AcquisitionTime"}


@pytest.mark.parametrize("series_per_slice", [True, False])
@pytest.mark.parametrize(
    "tag", ["TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "ContentTime", "InstanceNumber"]
)
def test_frames_are_ordered_by_the_first_tag_that_tells_them_apart(tmp_path, tag, series_per_slice):
    write_cine(tmp_path, frames=4, time_tag=tag, series_per_slice=series_per_slice)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 4)
    assert any(note.startswith(f"frames ordered by {tag}") for note in scan.source.notes)
    if tag in TIMED:
        np.testing.assert_allclose(scan.frame_times_ms, [0, 40, 80, 120], atol=1e-3)
    else:
        assert scan.frame_times_ms is None
        assert any("TriggerTime not unique" in note for note in scan.source.notes)
    assert scan.cycle_ms == 160


def test_trigger_time_goes_before_the_other_tags(tmp_path):
    """Instance numbers run backward; the trigger time is believed."""
    for file in write_cine(tmp_path, frames=3):
        data = pydicom.dcmread(file)
        data.InstanceNumber = 1000 - int(data.TriggerTime)
        data.save_as(file)
    assert_truth(only(read_dicom(tmp_path)), 3)


def test_an_acquisition_over_midnight(tmp_path):
    for file in write_cine(tmp_path, frames=3, time_tag="InstanceNumber"):
        data = pydicom.dcmread(file)
        t = data.InstanceNumber - 1
        data.AcquisitionTime, data.AcquisitionDate = [("235959.97", "20240229"), ("000000.01", "20240301"),
                                                      ("000000.05", "20240301")][t]  # fmt: skip
        data.save_as(file)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    np.testing.assert_allclose(scan.frame_times_ms, [0, 40, 80], atol=0.1)


def test_times_that_differ_between_slices_are_averaged_and_said(tmp_path):
    for file in write_cine(tmp_path, frames=2, grid=Grid(slices=2)):
        data = pydicom.dcmread(file)
        if data.SeriesNumber == 8 and data.TriggerTime > 5:
            data.TriggerTime = 55.0  # 50 ms after the first, in the other slice 40
            data.save_as(file)
    scan = only(read_dicom(tmp_path))
    np.testing.assert_allclose(scan.frame_times_ms, [0, 45])
    assert any("average over positions" in note for note in scan.source.notes)


def test_frames_beyond_one_heartbeat_are_not_circular(tmp_path):
    write_cine(tmp_path, frames=4, NominalInterval=100)
    scan = only(read_dicom(tmp_path))
    assert scan.cycle_ms is None
    assert any("not one cycle" in note for note in scan.source.notes)
