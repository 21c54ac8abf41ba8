"""DICOM that is refused: one line with the file and the mend, and never the patient's name."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from fewbeats.errors import InputError
from fewbeats.io.dicom import read_dicom
from synthetic_dicom import PATIENT_NAME, Grid, write_cine, write_color, write_ct, write_enhanced


def change(file, **tags):
    data = pydicom.dcmread(file)
    for tag, value in tags.items():
        setattr(data, tag, value)
    data.save_as(file)


def refuse_tilt_by_tag(folder):
    write_ct(folder, GantryDetectorTilt=12.0)


def refuse_tilt_by_shear(folder):
    write_ct(folder, grid=Grid(slices=6, distance=1.5, spacing=(1.0, 1.0), shear=0.2))


def refuse_mixed_spacing(folder):
    files = write_cine(folder, series_per_slice=False)
    change(files[4], PixelSpacing=[2.0, 2.0])


def refuse_missing_slice(folder):
    for file in write_cine(folder, grid=Grid(slices=6)):
        if "_002_" in file.name:
            file.unlink()


def refuse_missing_slice_in_one_series(folder):
    for file in write_cine(folder, grid=Grid(slices=6), series_per_slice=False):
        if "_004_" in file.name:
            file.unlink()


def refuse_missing_frame(folder):
    write_cine(folder)[5].unlink()


def refuse_missing_slice_of_one_phase(folder):
    write_ct(folder)[3].unlink()


def refuse_duplicate_with_another_uid(folder):
    file = shutil.copy(write_cine(folder)[2], folder / "copy.dcm")
    change(file, SOPInstanceUID="1.2.3.66")


def refuse_duplicates_everywhere(folder):
    for file in write_cine(folder, frames=1):
        change(shutil.copy(file, folder / f"copy_{file.name}"), SOPInstanceUID=f"1.2.3.66.1{file.name[4:6]}")


def refuse_surplus_frame(folder):
    """The other positions lack a frame; this one has no copy."""
    for file in write_cine(folder, frames=4):
        if file.name.endswith("_003.dcm") and "_002_" not in file.name:
            file.unlink()


def refuse_repeated_slice(folder):
    write_cine(folder, grid=Grid(slices=6))
    again = Grid(slices=1, origin=(-11.0, 7.0, 23.0 + 16.9))
    write_cine(folder / "again", grid=again, SeriesNumber=20, SeriesInstanceUID="1.2.3.20")


def refuse_color_alone(folder):
    write_color(folder / "color.dcm")


def refuse_nan_slope(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(write_cine(folder)[-1], RescaleSlope="nan", RescaleIntercept="0")


def refuse_no_position(folder):
    data = pydicom.dcmread(write_cine(folder)[0])
    del data.ImagePositionPatient
    data.save_as(folder / "im_000_000.dcm")


def refuse_zero_bytes_alone(folder):
    (folder / "empty.dcm").write_bytes(b"")


def refuse_an_emptied_frame(folder):
    """What is empty is passed over with a note; that a frame is missing is not."""
    write_cine(folder)[5].write_bytes(b"")


def refuse_foreign(folder):
    write_cine(folder)
    (folder / "foreign.dcm").write_bytes(b"GIF89a" + bytes(range(256)) * 4)


def refuse_no_image(folder):
    (folder / "README.txt").write_text("nothing here")


def refuse_nifti(folder):
    (folder / "sub").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), "u1"), np.eye(4)), folder / "sub" / "heart.nii.gz")


def refuse_two_file_nifti(folder):
    nib.save(nib.Nifti1Pair(np.zeros((4, 3, 2), "u1"), np.eye(4)), folder / "heart.img")


def refuse_truncated_pixels(folder):
    file = write_cine(folder)[4]
    file.write_bytes(file.read_bytes()[:-100])


def refuse_truncated_header(folder):
    file = write_cine(folder)[4]
    file.write_bytes(file.read_bytes()[:700])


@pytest.mark.parametrize(
    ("write", "named", "said"),
    [
        (refuse_tilt_by_tag, ".dcm", "gantry tilt of 12.0 degrees"),
        (refuse_tilt_by_shear, ".dcm", "gantry tilt"),
        (refuse_mixed_spacing, "im_", "mixed spacings"),
        (refuse_missing_slice, "im_001", "slice positions are missing"),
        (refuse_missing_slice_in_one_series, "im_003", "slice positions are missing"),
        (refuse_missing_frame, "im_001", "frames are missing"),
        (refuse_missing_slice_of_one_phase, "0003.dcm", "frames are missing"),
        (refuse_duplicate_with_another_uid, "im_000_002.dcm", "duplicate frames"),
        (refuse_duplicates_everywhere, "im_000", "duplicate frames"),
        (refuse_surplus_frame, "im_002", "has 4 frames where others have 3, each at another time; add"),
        (refuse_repeated_slice, "im_002", "only 0.9 mm away, others 8 mm; remove one of the two"),
        (refuse_color_alone, "color.dcm", "color"),
        (refuse_nan_slope, "im_003_002.dcm", "RescaleSlope is nan"),
        (refuse_no_position, "im_000_000.dcm", "ImagePositionPatient"),
        (refuse_zero_bytes_alone, "empty.dcm", "zero bytes"),
        (refuse_an_emptied_frame, "im_001", "frames are missing"),
        (refuse_foreign, "foreign.dcm", "not a DICOM file"),
        (refuse_no_image, "", "no DICOM image"),
        (
            refuse_nifti,
            "",
            "no DICOM image in it; it holds NIfTI files: give one of them, or index the folder",
        ),
        (refuse_two_file_nifti, "", "no DICOM image in it; convert"),
        (refuse_truncated_pixels, "im_001_001.dcm", "truncated"),
        (refuse_truncated_header, "im_001_001.dcm", "truncated"),
    ],
)
def test_refused_with_the_file_and_the_mend(tmp_path, write, named, said):
    write(tmp_path)
    with pytest.raises(InputError) as caught:
        read_dicom(tmp_path)
    message = str(caught.value)
    assert said in message
    assert named in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert "; " in message, "the mend is missing"
    assert not any(part in message for part in PATIENT_NAME.split("^"))


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    write_cine(tmp_path / "open")
    (tmp_path / "closed").mkdir()
    enter = os.scandir

    def scandir(folder):
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return enter(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"closed: cannot be read .*; check its rights"):
        read_dicom(tmp_path)


def test_missing_path(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_dicom(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["cine", "enhanced", "jpeg2000"])
def test_damaged_files_are_refused_or_read(tmp_path, kind):
    """Bits flipped and ends cut at random: an InputError or a Scan, never another exception."""
    grid = Grid(rows=32, columns=32, slices=2)
    if kind == "enhanced":
        file = write_enhanced(tmp_path / "e.dcm", grid=grid, frames=2)
    else:
        file = write_cine(
            tmp_path, grid=grid, frames=2, syntax=JPEG2000Lossless if kind == "jpeg2000" else None
        )[1]
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(120):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(whole)) :]
        else:
            reach = len(whole) if rng.random() < 0.3 else min(len(whole), 3000)
            for at in rng.integers(reach, size=rng.integers(1, 6)):
                damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            for scan in read_dicom(tmp_path):
                scan.frame(0)
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5, outcomes
