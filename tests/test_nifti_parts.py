"""One file a frame, or one a slice: joined where that is certain."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from fewbeats.cli import main
from fewbeats.data.files import open_image, read_scans
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.io.nifti_parts import find_parts
from refusals import is_one_line, refuse

TURN = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])


@pytest.fixture
def whole(tmp_path):
    """A cine of 4 frames and 5 oblique slices, as one file."""
    values = np.random.default_rng(0).integers(0, 900, (12, 14, 5, 4)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN @ np.diag([1.5, 1.5, 8.0]), (30.0, -40.0, 20.0)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 35.0
    nib.save(image, tmp_path / "whole.nii.gz")
    return image


def in_frames(image, folder):
    folder.mkdir()
    for t in range(image.shape[3]):
        nib.save(nib.Nifti1Image(image.dataobj[..., t], image.affine), folder / f"q_t{t * 225}.nii.gz")
    return folder


def in_slices(image, folder, *, first: int = 7, skip: int | None = None, shift=(0.0, 0.0, 0.0)):
    folder.mkdir()
    for z in range(image.shape[2]):
        affine = image.affine.copy()
        affine[:3, 3] = image.affine[:3, :3] @ [0, 0, z] + image.affine[:3, 3] + np.array(shift) * (z == 2)
        if z != skip:
            part = nib.Nifti1Image(image.dataobj[:, :, z : z + 1], affine)
            part.header["pixdim"][4] = 35.0
            part.header.set_xyzt_units("mm", "msec")
            nib.save(part, folder / f"sax_s{first + image.shape[2] - z}.nii")
    return folder


@pytest.mark.parametrize("split", [in_frames, in_slices])
def test_parts_are_the_whole(whole, tmp_path, split):
    folder = split(whole, tmp_path / "parts")
    (joined,), wanted = read_scans(folder), read_nifti(tmp_path / "whole.nii.gz")
    assert joined.shape == wanted.shape
    assert np.allclose(joined.affine, wanted.affine, atol=1e-4)
    for t in range(4):
        assert np.array_equal(joined.frame(t), wanted.frame(t))
    with pytest.raises(IndexError):
        joined.pixels.frame(4)
    assert len(joined.source.notes) == 1
    known = joined.frame_times_ms
    assert known is None if split is in_frames else known.tolist() == [0, 35, 70, 105]
    timed = open_image(str(folder), frame_time_ms=40.0)
    assert timed.frame_times_ms.tolist() == [0, 40, 80, 120]


def test_convert_joins(whole, tmp_path):
    folder = in_slices(whole, tmp_path / "parts")
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    joined, wanted = read_nifti(tmp_path / "out" / "parts_4d.nii.gz"), read_nifti(tmp_path / "whole.nii.gz")
    assert np.array_equal(joined.frame(3), wanted.frame(3))
    assert np.allclose(joined.affine, wanted.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"skip": 2}, "a slice is missing"),
        ({"shift": (0.0, 3.0, 0.0)}, "do not lie above one another"),
        ({"shift": tuple(TURN @ [0, 0, 8.0])}, "hold a slice twice"),
    ],
)
def test_slices_that_make_no_stack_are_refused(whole, tmp_path, given, why):
    folder = in_slices(whole, tmp_path / "parts", **given)
    with pytest.raises(InputError, match=why) as error:
        read_scans(folder)
    is_one_line(error, "parts")


def test_scans_of_several_people_are_not_joined(tmp_path):
    """Files of one shape that all lie at the origin may be of anybody."""
    folder = tmp_path / "patients"
    folder.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 9, (6, 6, 4)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1, 1, 8, 1])), folder / f"vol{number:03d}.nii.gz")
    with pytest.raises(InputError, match="do not say where they lie"):
        read_scans(folder)
    for number in range(3):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = TURN @ np.diag([1.2, 1.2, 8.0]), 20 + number
        nib.save(nib.Nifti1Image(np.ones((6, 6, 4)), affine), folder / f"vol{number:03d}.nii.gz")
    with pytest.raises(InputError, match="are neither frames of one place nor single slices"):
        read_scans(folder)
    nib.save(nib.Nifti1Image(np.ones((6, 6, 5)), affine), folder / "vol000.nii.gz")
    with pytest.raises(InputError, match="differ in size or direction"):
        read_scans(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("patient{}", "it holds NIfTI files: give one of them"),
        ("P01_201{}0312", "it holds NIfTI files: give one of them"),
        ("heart{}", "do not look like frames of one heart"),
        ("{}", "do not look like frames of one heart"),
        ("heart_slice{}", "are called slices, yet lie in one place"),
    ],
)
def test_people_on_one_grid_are_not_joined(tmp_path, name, why):
    """As in any cohort that was resampled alike."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN @ np.diag([1.2, 1.2, 8.0]), 20
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 900, (16, 16, 4)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, affine), folder / f"{name.format(number)}.nii.gz")
    with pytest.raises(InputError, match=why):
        read_scans(folder)


def test_frames_without_a_word_are_joined_where_they_look_alike(tmp_path):
    folder = tmp_path / "cine"
    folder.mkdir()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN @ np.diag([1.2, 1.2, 8.0]), 20
    still = np.random.default_rng(0).integers(0, 900, (16, 16, 4)).astype(np.int16)
    for number in range(4):
        nib.save(nib.Nifti1Image(still + 10 * number, affine), folder / f"heart{number}.nii.gz")
    assert read_scans(folder)[0].shape[0] == 4


@pytest.mark.parametrize("names", [["a1", "b2"], ["a", "b"], ["a1"], ["a01", "a1"]])
def test_other_names_are_no_parts(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    assert find_parts(tmp_path) == []
    assert find_parts(tmp_path / "nowhere") == []


def test_index_says_how_to_join_them(whole, tmp_path, capfd):
    in_frames(whole, tmp_path / "parts")
    words = ["index", str(tmp_path / "parts"), "--layout=folder", f"--out={tmp_path / 'cohort.csv'}"]
    assert main(words) == 0
    told = capfd.readouterr().out
    assert "4 files, q_t0.nii.gz to q_t675.nii.gz, are frames" in told
    assert f"fewbeats convert {tmp_path / 'parts'} OUT" in told


def test_a_folder_of_anything_is_still_refused(tmp_path, capfd):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    assert "index the folder first" in refuse(capfd, "info", tmp_path)
