"""NIfTI files: exact round trips, and the source's own grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.errors import InputError
from fewbeats.io import nifti
from fewbeats.io.nifti import read_nifti, write_frames, write_like, write_scan
from fewbeats.scan import ArrayPixels, Scan
from small_nifti import exact_values, nifti_folder, read_labels, save_plain, suffixes
from test_scan import affines

DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]
shapes = st.tuples(st.integers(1, 4), *[st.integers(1, 6)] * 3)
folder = pytest.fixture(nifti_folder, scope="module")


# Reading and writing


@given(shapes, st.sampled_from(DTYPES), affines(), suffixes, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_reads_what_nibabel_wrote(folder, shape, dtype, affine, suffix, seed):
    array = exact_values(shape, dtype, seed)
    path = folder / f"image{suffix}"
    nib.save(nib.Nifti1Image(array.T, affine, dtype=array.dtype), path)
    scan = read_nifti(path)
    assert scan.source.shape == shape[1:]
    np.testing.assert_array_equal(scan.source.affine, nib.load(path).affine)
    turn = scan.source.reorientation
    np.testing.assert_array_equal(scan.affine, turn.affine(scan.source.affine, shape[1:]))
    for t in reversed(range(shape[0])):  # frames may be asked for in any order
        np.testing.assert_array_equal(turn.invert(scan.frame(t)), array[t].astype(np.float32))


@given(shapes, st.sampled_from(DTYPES), affines(), suffixes, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(folder, shape, dtype, affine, suffix, seed):
    canonical = read_nifti(save_plain(folder / "canonical.nii", np.zeros(shape[1:], "u1"), affine))
    array = exact_values((shape[0], *canonical.shape[1:]), dtype, seed)
    scan = Scan(pixels=ArrayPixels(array), affine=canonical.affine)
    path = folder / f"again{suffix}"
    write_scan(path, scan)
    back = read_nifti(path)
    assert back.shape == scan.shape
    np.testing.assert_allclose(back.affine, scan.affine, rtol=1e-6, atol=1e-4)  # float32 in the header
    for t in range(scan.shape[0]):
        np.testing.assert_array_equal(back.frame(t), scan.frame(t))


@given(shapes, affines(), suffixes)
@settings(max_examples=40, deadline=None)
def test_masks_are_written_on_the_sources_own_grid(folder, shape, affine, suffix):
    image, mask = folder / "source.nii.gz", folder / f"mask{suffix}"
    labels = np.arange(np.prod(shape), dtype="u1").reshape(shape)
    save_plain(image, labels, affine)
    scan = read_nifti(image)
    write_like(mask, (scan.frame(t) for t in range(scan.shape[0])), scan=scan)
    stored, source = nib.load(mask), nib.load(image)
    np.testing.assert_array_equal(stored.affine, source.affine)
    assert stored.get_data_dtype() == np.uint8
    expected = labels.T if shape[0] > 1 else labels.T[..., 0]
    np.testing.assert_array_equal(np.asarray(stored.dataobj), expected)


def test_slope_and_intercept_are_applied(folder):
    image = nib.Nifti1Image(np.arange(24, dtype="i2").reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -7.0)
    nib.save(image, folder / "scaled.nii")
    np.testing.assert_allclose(read_nifti(folder / "scaled.nii").frame(0).T, image.get_fdata() * 0.5 - 7)


def test_integers_stay_integers_only_where_nothing_is_lost(folder):
    small = np.zeros((3, 2, 2, 2), "u2")
    large = small.copy()
    large[2, 1, 1, 1] = 40_000  # beyond int16, and only in the last frame
    for name, array, kind in (("small", small, "i"), ("large", large, "f")):
        write_scan(folder / f"{name}.nii", Scan(pixels=ArrayPixels(array), affine=np.eye(4)))
        assert nib.load(folder / f"{name}.nii").get_data_dtype().kind == kind
        np.testing.assert_array_equal(read_nifti(folder / f"{name}.nii").frame(2), array[2])
    scaled = Scan(pixels=ArrayPixels(small + 1, slope=0.5), affine=np.eye(4))
    write_scan(folder / "scaled.nii", scaled)
    np.testing.assert_array_equal(read_nifti(folder / "scaled.nii").frame(0), scaled.frame(0))


def test_single_frames_are_3d_files(folder):
    scan = read_nifti(save_plain(folder / "cine.nii.gz", exact_values((4, 3, 5, 6), "i2", 0)))
    write_scan(folder / "frame.nii.gz", scan, frames=[2])
    assert nib.load(folder / "frame.nii.gz").shape == (6, 5, 3)
    np.testing.assert_array_equal(read_nifti(folder / "frame.nii.gz").frame(0), scan.frame(2))


def test_labels_are_whole_numbers(folder):
    values = np.array([0, 1, 205, 820, 70_000], "i4").reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(read_labels(save_plain(folder / "labels.nii", values)), values)
    for bad in (0.5, 1e12):
        path = save_plain(folder / "labels.nii", np.full((1, 2, 2, 2), bad))
        with pytest.raises(InputError, match=r"labels\.nii: label values are not whole numbers"):
            read_labels(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_the_case_of_a_files_name_does_not_matter(tmp_path, name):
    array = exact_values((1, 3, 4, 5), "i2", 1)
    write_frames(tmp_path / name, array, affine=np.eye(4), shape=array.shape, dtype="i2")
    packed = (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"
    assert packed == name.lower().endswith(".gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / name).frame(0), array[0])


def test_odd_numbers_of_dimensions(folder):
    """Time in the fifth dimension is time; a single slice without a third dimension is a slice."""
    array = exact_values((3, 2, 4, 5), "i2", 2)
    nib.save(nib.Nifti1Image(array.T[:, :, :, None, :], np.eye(4)), folder / "five.nii")
    scan = read_nifti(folder / "five.nii")
    assert scan.shape == array.shape
    np.testing.assert_array_equal(scan.frame(2), array[2])
    nib.save(nib.Nifti1Image(array[0, 0].T, np.eye(4)), folder / "two.nii")
    np.testing.assert_array_equal(read_nifti(folder / "two.nii").frame(0), array[0, :1])


def test_one_slice_is_not_turned_on_its_side(folder):
    """Whatever depth the header gives it, in a cine too."""
    coronal = np.array([[1.4, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.4, 0, 0], [0, 0, 0, 1]])
    path = save_plain(folder / "one.nii", exact_values((4, 1, 32, 30), "i2", 7), coronal)
    assert read_nifti(path).shape == (4, 1, 32, 30)


def test_frames_are_written_as_they_come(tmp_path):
    """Never more than one frame in memory: the next is asked for when the last is on its way to disk."""
    alive = []

    def frames():
        for t in range(5):
            alive.append(t)
            assert len(list(tmp_path.glob(".*.partial"))) == 1
            assert not (tmp_path / "cine.nii").exists()
            yield np.full((64, 64, 64), t, "i2")

    write_frames(tmp_path / "cine.nii", frames(), affine=np.eye(4), shape=(5, 64, 64, 64), dtype="i2")
    assert alive == list(range(5))
    assert [p.name for p in tmp_path.iterdir()] == ["cine.nii"]


def test_wrong_frames_leave_nothing_behind(tmp_path):
    for frames in ([np.zeros((2, 2, 3))], [np.zeros((2, 2, 2))] * 3):
        with pytest.raises(ValueError, match="expected"):
            write_frames(tmp_path / "x.nii", frames, affine=np.eye(4), shape=(2, 2, 2, 2), dtype="u1")
        assert list(tmp_path.iterdir()) == []


def test_a_gzipped_file_is_unpacked_only_as_far_as_needed(folder, monkeypatch):
    monkeypatch.setattr(nifti, "CHUNK", 1024)
    array = exact_values((10, 4, 16, 16), "i2", 3)
    scan = read_nifti(save_plain(folder / "long.nii.gz", array))
    np.testing.assert_array_equal(scan.source.reorientation.invert(scan.frame(0)), array[0])
    assert scan.pixels._file._unpacked < array.nbytes / 4


@pytest.mark.parametrize(
    ("unit", "mm"), [("micron", 0.001), ("mm", 1.0), ("meter", 1000.0), ("unknown", 1.0)]
)
def test_lengths_are_in_the_headers_unit(folder, unit, mm):
    affine = np.diag([-1.4, -1.4, 8.0, 1.0])
    affine[:3, 3] = 30.0, -20.0, 10.0
    image = nib.Nifti1Image(np.zeros((4, 3, 2), "u1"), np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ affine)
    image.header.set_xyzt_units(unit, "msec")
    nib.save(image, folder / "units.nii")
    scan = read_nifti(folder / "units.nii")
    np.testing.assert_allclose(scan.source.affine, affine, rtol=1e-6)
    assert any("unit of length" in note for note in scan.source.notes) == (mm != 1.0)
    write_like(folder / "mask.nii", [scan.frame(0)], scan=scan)
    np.testing.assert_allclose(read_nifti(folder / "mask.nii").affine, scan.affine, rtol=1e-6)


@pytest.mark.parametrize(("shift_mm", "said"), [(0.0, False), (0.2, False), (12.0, True)])
def test_two_affines_that_disagree_are_said(folder, shift_mm, said):
    image = nib.Nifti1Image(np.zeros((4, 3, 2), "u1"), np.diag([1.4, 1.4, 8.0, 1.0]))
    other = image.affine.copy()
    other[0, 3] = shift_mm
    image.set_qform(other, code=1)
    nib.save(image, folder / "two.nii")
    scan = read_nifti(folder / "two.nii")
    assert any("sform and qform" in note for note in scan.source.notes) == said
    np.testing.assert_array_equal(scan.affine, image.affine)


@pytest.mark.realdata
def test_real_scans_agree_with_nibabel(realdata, tmp_path):
    for path in (
        realdata / "acdc/patient002/patient002_frame01.nii.gz",
        realdata / "cine4d/Case1002_4d.nii.gz",
    ):
        scan, stored = read_nifti(path), nib.load(path)
        values = np.asarray(stored.dataobj, np.float32).reshape(*stored.shape[:3], -1)
        for t in (0, scan.shape[0] - 1):
            np.testing.assert_array_equal(scan.source.reorientation.invert(scan.frame(t)).T, values[..., t])
        write_like(tmp_path / "back.nii.gz", map(scan.frame, range(scan.shape[0])), scan=scan, dtype="f4")
        back = nib.load(tmp_path / "back.nii.gz")
        np.testing.assert_array_equal(back.affine, stored.affine)
        np.testing.assert_array_equal(back.get_fdata().reshape(values.shape), values)


# Time


@pytest.mark.parametrize("axis", [4, 5])
@pytest.mark.parametrize(
    ("unit", "step", "expected_ms"),
    [("msec", 33.5, 33.5), ("sec", 0.04, 40.0), ("usec", 25_000.0, 25.0), ("sec", 1.0, None),
     ("msec", 0.0, None), ("unknown", 40.0, None)],
)  # fmt: skip
def test_frame_times_come_from_the_header(folder, unit, step, expected_ms, axis):
    image = nib.Nifti1Image(np.zeros((4, 4, 2, 3) if axis == 4 else (4, 4, 2, 1, 3), "u1"), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4:6] = 7.0
    image.header["pixdim"][axis] = step
    nib.save(image, folder / "times.nii")
    scan = read_nifti(folder / "times.nii")
    if expected_ms is None:
        assert scan.frame_times_ms is None
        assert any("frame time unknown" in note for note in scan.source.notes)
    else:
        np.testing.assert_allclose(scan.frame_times_ms, [0, expected_ms, 2 * expected_ms], rtol=1e-6)


def test_a_given_frame_time_wins_and_travels(folder):
    path = save_plain(folder / "cine.nii", np.zeros((3, 2, 4, 4), "u1"))
    assert read_nifti(path).frame_times_ms is None
    scan = read_nifti(path, frame_time_ms=31.25)
    np.testing.assert_array_equal(scan.frame_times_ms, [0, 31.25, 62.5])
    write_like(folder / "mask.nii", [scan.frame(t) for t in range(3)], scan=scan)
    np.testing.assert_array_equal(read_nifti(folder / "mask.nii").frame_times_ms, [0, 31.25, 62.5])
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="frame time"):
            read_nifti(path, frame_time_ms=bad)


def test_equal_images_are_equal_files(tmp_path):
    """Neither the time nor the name under which a file was begun stands in its gzip header."""
    for name in ("a.nii.gz", "b.nii.gz"):
        write_frames(tmp_path / name, [np.eye(4)[None]], affine=np.eye(4), shape=(1, 1, 4, 4), dtype=np.uint8)
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    assert first[3:8] == bytes(5)  # no name, and a time of 0
