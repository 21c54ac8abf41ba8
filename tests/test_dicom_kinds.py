"""DICOM images that are no phases of one heartbeat, and stacks that may be one heart."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fewbeats.cli import main
from fewbeats.errors import InputError
from fewbeats.inference.plausibility import Inspector
from fewbeats.io.dicom import read_dicom
from synthetic_dicom import Grid, assert_truth, header, only, save, write_cine, write_color


def edit(file: Path, **tags) -> None:
    """Change tags; None takes one away."""
    data = pydicom.dcmread(file)
    for tag, value in tags.items():
        if value is None:
            data.pop(tag, None)
        else:
            setattr(data, tag, value)
    data.save_as(file)


def place_of(file: Path) -> tuple[int, int]:
    """(z, t) of a file of `write_cine`."""
    return int(file.stem[3:6]), int(file.stem[7:10])


def said(scan) -> str:
    return "; ".join(scan.source.notes)


# What is no cine


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("EchoTime", [2.0, 4.3, 6.6]),
        ("InversionTime", [100.0, 180.0, 260.0]),
        ("DiffusionBValue", [0.0, 50.0, 400.0]),
    ],
)
def test_other_echoes_and_inversion_times_are_no_phases(tmp_path, tag, values):
    for file in write_cine(tmp_path, frames=3, series_per_slice=False):
        edit(file, **{tag: values[place_of(file)[1]]})
    scans = read_dicom(tmp_path)
    assert [scan.shape[:2] for scan in scans] == [(1, 4)] * 3
    assert all(f"images of one position differ in {tag}" in said(scan) for scan in scans)
    assert len({scan.frame(0).sum() for scan in scans}) == 3


def test_an_inversion_time_that_drifts_from_slice_to_slice_parts_nothing(tmp_path):
    for file in write_cine(tmp_path, frames=1, series_per_slice=False):
        edit(file, InversionTime=250.0 + 10 * place_of(file)[0])
    assert only(read_dicom(tmp_path)).shape[:2] == (1, 4)


def test_water_and_fat_of_one_series_are_two_scans(tmp_path):
    for file in write_cine(tmp_path, frames=2, series_per_slice=False):
        edit(file, ImageType=["DERIVED", "PRIMARY", "M", ("WATER", "FAT")[place_of(file)[1]]])
    assert [scan.shape[:2] for scan in read_dicom(tmp_path)] == [(1, 4)] * 2


@pytest.mark.parametrize("series", [1, 2])
def test_minutes_between_images_make_two_scans(tmp_path, series):
    """Late enhancement twice, as one series or as two, each with its own trigger time."""
    for file in write_cine(tmp_path, frames=2, series_per_slice=False):
        z, t = place_of(file)
        number = 20 + (t if series == 2 else 0)
        edit(file, AcquisitionTime=f"10{5 + 8 * t:02}{z:02}.0", SeriesNumber=number,
             SeriesInstanceUID=f"1.2.3.{number}")  # fmt: skip
    assert [scan.shape[:2] for scan in read_dicom(tmp_path)] == [(1, 4)] * 2


def test_magnitude_and_phase_that_no_tag_tells_apart_are_two_cines(tmp_path):
    write_cine(tmp_path / "m", frames=3, series_per_slice=False)
    for i, file in enumerate(write_cine(tmp_path / "p", frames=3, series_per_slice=False)):
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = f"1.2.3.77.{i}"
        data.InstanceNumber = 1000 + i
        data.PixelData = bytes(len(data.PixelData))
        data.save_as(file)
    scans = read_dicom(tmp_path)
    assert [scan.shape[:2] for scan in scans] == [(3, 4)] * 2
    assert_truth(scans[0], 3)
    assert not any(scans[1].frame(t).any() for t in range(3))
    assert "no cardiac phases" in said(scans[0])


def test_beats_after_one_another_stay_one_scan(tmp_path):
    """Each beat has the same trigger delays, and every frame a time of its own."""
    for file in write_cine(tmp_path, frames=4, series_per_slice=False):
        t = place_of(file)[1]
        edit(file, TriggerTime=40.0 * (t % 2), AcquisitionTime=f"10000{t}.0")
    assert_truth(only(read_dicom(tmp_path)), 4)


# Order in time


def test_a_frame_without_its_time_is_placed_by_the_next_tag_that_agrees(tmp_path):
    for file in write_cine(tmp_path, frames=4):
        z, t = place_of(file)
        edit(file, ContentTime=f"10000{(2, 0, 3, 1)[t]}.0", InstanceNumber=t)  # one contradicts the triggers
        if (z, t) == (1, 2):
            edit(file, TriggerTime=None)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 4)
    assert "ordered by TriggerTime, 1 that it leaves untold by InstanceNumber" in said(scan)
    np.testing.assert_allclose(scan.frame_times_ms, [0, 40, 80, 120])  # of the slices that have all


def test_equal_times_in_every_slice_are_ordered_and_unknown(tmp_path):
    for file in write_cine(tmp_path, frames=4):
        t = place_of(file)[1]
        edit(file, TriggerTime=(0.0, 0.0, 80.0, 120.0)[t], InstanceNumber=t)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 4)
    assert scan.frame_times_ms is None
    assert "frame times are unknown (TriggerTime leaves frames untold)" in said(scan)


def test_tags_that_contradict_each_other_are_refused(tmp_path):
    for file in write_cine(tmp_path, frames=4):
        t = place_of(file)[1]
        edit(file, TriggerTime=(0.0, 0.0, 80.0, 120.0)[t], InstanceNumber=9 - t)
    with pytest.raises(InputError, match=r"TriggerTime leaves frames .* export the series again with its"):
        read_dicom(tmp_path)


def test_an_impossible_time_is_none(tmp_path):
    for file in write_cine(tmp_path, frames=10):
        edit(file, TriggerTime=2.8 * place_of(file)[1])
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 10)
    assert scan.frame_times_ms is None
    assert "10 frames in 25.2 ms are no heartbeat" in said(scan)


def test_slices_with_phases_of_their_own_are_named_as_such(tmp_path):
    write_cine(tmp_path / "a", grid=Grid(slices=2), frames=4)
    beyond = Grid(slices=2, origin=(-11.0, 7.0, 23.0 + 16.0))
    for file in write_cine(tmp_path / "b", grid=beyond, frames=3, SeriesNumber=30):
        edit(file, TriggerTime=53.0 * place_of(file)[1], SeriesInstanceUID=f"1.2.3.9{place_of(file)[0]}",
             SOPInstanceUID=f"1.2.3.88.{file.stem[3:6]}{file.stem[7:]}".replace(".0", ".1"))  # fmt: skip
    with pytest.raises(InputError, match="slices have different numbers of phases"):
        read_dicom(tmp_path)


# What lies in the folder


def test_true_copies_are_passed_over(tmp_path):
    write_cine(tmp_path / "scan")
    shutil.copytree(tmp_path / "scan", tmp_path / "backup")
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert "left out: 12 copied files, among them" in said(scan)


@pytest.mark.parametrize("uid", [None, "1.2.3.4"])
def test_images_that_differ_are_no_copies_whatever_their_uid(tmp_path, uid):
    for file in write_cine(tmp_path):
        edit(file, SOPInstanceUID=uid)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert ("told apart by content" in said(scan)) == (uid is not None)


def test_screenshots_and_empty_files_beside_a_scan_are_named(tmp_path):
    write_cine(tmp_path)
    for i in range(40):
        write_color(tmp_path / "report" / f"{i}.dcm", SOPInstanceUID=f"1.2.3.55.{i}")
    (tmp_path / "LOCKFILE").write_bytes(b"")
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert "left out: 1 empty file, LOCKFILE" in said(scan)
    assert "a color image, not a scan" in said(scan)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("export.zip", "unpack it and give the folder"),
        ("a.dcm.gz", "unpack them (gunzip)"),
        ("heart.nrrd", "save it as .nii.gz"),
        ("scan.PAR", "save it as .nii.gz"),
    ],
)
def test_what_cannot_be_read_is_called_by_its_name(tmp_path, name, mend):
    (tmp_path / name).write_bytes(b"nothing of a DICOM file")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(InputError) as caught:
            read_dicom(given)
        assert mend in str(caught.value)


def test_a_decimal_comma_is_named_with_its_tag(tmp_path):
    for file in write_cine(tmp_path, frames=1):
        raw = file.read_bytes()
        at = raw.index(b"\x28\x00\x30\x00DS") + 8
        file.write_bytes(raw[:at] + raw[at : at + 8].replace(b".", b",") + raw[at + 8 :])
    with pytest.raises(InputError, match="PixelSpacing is no number as DICOM writes it"):
        read_dicom(tmp_path)


def test_a_mosaic_is_refused_as_one(tmp_path):
    for file in write_cine(tmp_path, frames=1):
        edit(file, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    with pytest.raises(InputError, match="a mosaic: all slices tiled in one image"):
        read_dicom(tmp_path)


# Pixels and places


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_turned_so_that_bright_is_white(tmp_path, signed):
    for file in write_cine(tmp_path):
        data = pydicom.dcmread(file)
        stored = data.pixel_array
        turned = (-1 - stored.astype(int)) if signed else (2**data.BitsStored - 1 - stored.astype(int))
        data.PixelRepresentation = int(signed)
        data.PixelData = turned.astype("<i2" if signed else "<u2").tobytes()
        data.PhotometricInterpretation = "MONOCHROME1"
        data.save_as(file)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3)
    assert "bright is white (MONOCHROME1)" in said(scan)


def test_slices_that_follow_the_breath_are_one_stack(tmp_path):
    jitter = np.random.default_rng(0).uniform(-0.05, 0.05, (4, 3))
    for file in write_cine(tmp_path):
        data = pydicom.dcmread(file)
        data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + jitter[place_of(file)]
        data.save_as(file)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 3, tolerance=1.0)
    assert scan.spacing_mm[0] == pytest.approx(8.0, abs=0.05)
    moved = float(np.ptp(jitter, axis=1).max())
    told = re.search(r"the position of a slice moves by up to ([0-9.]+) mm", said(scan))
    assert float(told[1]) == pytest.approx(moved, abs=0.01)


def test_one_frame_without_a_time_and_no_other_order_is_refused(tmp_path):
    for file in write_cine(tmp_path):
        _, t = place_of(file)
        others = dict.fromkeys(("AcquisitionTime", "ContentTime"))
        edit(file, TriggerTime=None if t == 1 else 40.0 * t, InstanceNumber=1, **others)
    with pytest.raises(InputError, match="TriggerTime leaves frames of its position untold"):
        read_dicom(tmp_path)


def test_contours_are_not_passed_over_in_silence(tmp_path, capfd):
    folder = tmp_path / "source" / "p1"
    write_cine(folder)
    assert "contours" not in said(only(read_dicom(folder)))
    structure_set = header("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3", StructureSetLabel="heart")
    save(structure_set, folder / "rt.dcm")
    assert "not read: contours (RTSTRUCT), 1 file, rt.dcm; export" in said(only(read_dicom(folder)))
    words = ["index", str(folder.parent), "--layout=dicom", f"--out={tmp_path / 'c.csv'}"]
    assert main(words) == 0
    assert "contours (RTSTRUCT) are not read as labels: p1" in capfd.readouterr().out


@pytest.mark.parametrize("tag", ["FrameOfReferenceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("timed", [True, False])
def test_stacks_that_continue_one_another_are_joined_or_told(tmp_path, tag, timed):
    """Where times say that the second half follows at once, it is certain."""
    for file in write_cine(tmp_path, grid=Grid(slices=6)):
        z, _ = place_of(file)
        edit(file, **{tag: f"1.2.3.4.{z // 3}"}, AcquisitionTime=f"1000{z:02}.0" if timed else None)
    scans = read_dicom(tmp_path)
    if timed:
        assert_truth(only(scans), 3)
        assert f"joined though its series differ in {tag}" in said(scans[0])
        return
    assert [scan.shape[:2] for scan in scans] == [(3, 3)] * 2
    for i, scan in enumerate(scans):
        assert f"scan {2 - i} seems to continue this one" in said(scan)
        [warning] = [w for w in Inspector(scan, ["LV"]).warnings() if "part of the heart" in w]
        assert "seems to continue" in warning


def test_a_slice_that_was_taken_again_is_named(tmp_path):
    write_cine(tmp_path / "stack")
    again = Grid(slices=1, origin=(-11.0, 7.0, 23.0 + 8.0))
    for file in write_cine(tmp_path / "again", grid=again, SeriesNumber=40, SeriesInstanceUID="1.2.3.40"):
        edit(file, SOPInstanceUID=f"1.2.3.66.{place_of(file)[1]}")
    scans = read_dicom(tmp_path)
    assert [scan.shape[1] for scan in scans] == [4, 1]
    assert "scan 2 is of a position of this one; it was not used here" in said(scans[0])
