"""NIfTI files: exact round trips, the source's own grid, and one clear line for every unusable file."""

from __future__ import annotations

import errno
import gzip
import io
import os
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.io import nifti
from fewbeats.io.nifti import read_nifti, write_frames, write_like, write_scan
from fewbeats.scan import ArrayPixels, Scan
from small_nifti import read_labels
from test_scan import affines

DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]
suffixes = st.sampled_from([".nii", ".nii.gz"])
shapes = st.tuples(st.integers(1, 4), *[st.integers(1, 6)] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("nifti")


def _values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Random numbers of the type that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 500, shape).astype("f4").astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(2**24)), min(limits.max, 2**24), shape, endpoint=True, dtype=dtype)


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A (T, Z, Y, X) or (Z, Y, X) array with nibabel."""
    nib.save(nib.Nifti1Image(array.T, np.diag([1.5, 1.5, 8, 1]) if affine is None else affine), path)
    return path


# Reading and writing


@given(shapes, st.sampled_from(DTYPES), affines(), suffixes, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_reads_what_nibabel_wrote(folder, shape, dtype, affine, suffix, seed):
    array = _values(shape, dtype, seed)
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
    canonical = read_nifti(_save(folder / "canonical.nii", np.zeros(shape[1:], "u1"), affine))
    array = _values((shape[0], *canonical.shape[1:]), dtype, seed)
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
    _save(image, labels, affine)
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
    scan = read_nifti(_save(folder / "cine.nii.gz", _values((4, 3, 5, 6), "i2", 0)))
    write_scan(folder / "frame.nii.gz", scan, frames=[2])
    assert nib.load(folder / "frame.nii.gz").shape == (6, 5, 3)
    np.testing.assert_array_equal(read_nifti(folder / "frame.nii.gz").frame(0), scan.frame(2))


def test_labels_are_whole_numbers(folder):
    values = np.array([0, 1, 205, 820, 70_000], "i4").reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(read_labels(_save(folder / "labels.nii", values)), values)
    for bad in (0.5, 1e12):
        path = _save(folder / "labels.nii", np.full((1, 2, 2, 2), bad))
        with pytest.raises(InputError, match=r"labels\.nii: label values are not whole numbers"):
            read_labels(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_the_case_of_a_files_name_does_not_matter(tmp_path, name):
    array = _values((1, 3, 4, 5), "i2", 1)
    write_frames(tmp_path / name, array, affine=np.eye(4), shape=array.shape, dtype="i2")
    packed = (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"
    assert packed == name.lower().endswith(".gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / name).frame(0), array[0])


def test_odd_numbers_of_dimensions(folder):
    """Time in the fifth dimension is time; a single slice without a third dimension is a slice."""
    array = _values((3, 2, 4, 5), "i2", 2)
    nib.save(nib.Nifti1Image(array.T[:, :, :, None, :], np.eye(4)), folder / "five.nii")
    scan = read_nifti(folder / "five.nii")
    assert scan.shape == array.shape
    np.testing.assert_array_equal(scan.frame(2), array[2])
    nib.save(nib.Nifti1Image(array[0, 0].T, np.eye(4)), folder / "two.nii")
    np.testing.assert_array_equal(read_nifti(folder / "two.nii").frame(0), array[0, :1])


def test_one_slice_is_not_turned_on_its_side(folder):
    """Whatever depth the header gives it, in a cine too."""
    coronal = np.array([[1.4, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.4, 0, 0], [0, 0, 0, 1]])
    path = _save(folder / "one.nii", _values((4, 1, 32, 30), "i2", 7), coronal)
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
    array = _values((10, 4, 16, 16), "i2", 3)
    scan = read_nifti(_save(folder / "long.nii.gz", array))
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
    path = _save(folder / "cine.nii", np.zeros((3, 2, 4, 4), "u1"))
    assert read_nifti(path).frame_times_ms is None
    scan = read_nifti(path, frame_time_ms=31.25)
    np.testing.assert_array_equal(scan.frame_times_ms, [0, 31.25, 62.5])
    write_like(folder / "mask.nii", [scan.frame(t) for t in range(3)], scan=scan)
    np.testing.assert_array_equal(read_nifti(folder / "mask.nii").frame_times_ms, [0, 31.25, 62.5])
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="frame time"):
            read_nifti(path, frame_time_ms=bad)


# Files that cannot be used


def _header(**fields) -> bytes:
    header = nib.Nifti1Image(np.zeros((4, 3, 2), "i2"), np.diag([1, 1, 8, 1])).header
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + bytes(4 * 3 * 2 * 2)


def _gz_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        file.write(nib.Nifti1Image(array.T, np.eye(4)).to_bytes())
    return stream.getvalue()


NOISE = _values((1, 4, 64, 64), "i2", 4)


def _with_wrong_checksum() -> bytes:
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)  # uncompressed blocks: a flipped bit stays readable
    packed = bytearray(stored.compress(nib.Nifti1Image(NOISE.T, np.eye(4)).to_bytes()) + stored.flush())
    packed[-2000] ^= 4
    return bytes(packed)


RGB = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD = {
    "missing.nii": (None, "no such file"),
    "zero.nii": (b"", "is empty"),
    "zero.nii.gz": (b"", "is empty"),
    "text.nii": (b"dear reader\n" * 40, "not a NIfTI image"),
    "text.nii.gz": (b"dear reader\n" * 40, "not a NIfTI image"),
    "packedtext.nii.gz": (gzip.compress(b"dear reader\n" * 400), "truncated or damaged|not a NIfTI"),
    "cut.nii": (_header()[:-1], "truncated"),
    "cuthead.nii": (_header()[:200], "not a NIfTI image"),
    "cut.nii.gz": (_gz_of(NOISE)[:-500], "truncated"),
    "cuttrailer.nii.gz": (_gz_of(NOISE)[:-4], "truncated"),
    "cuthead.nii.gz": (_gz_of(NOISE)[:40], "truncated"),
    "checksum.nii.gz": (_with_wrong_checksum(), "damaged"),
    "short.nii.gz": (gzip.compress(_header(dim=[3, 400, 300, 20, 1, 1, 1, 1])), "truncated"),
    "giant.nii.gz": (gzip.compress(_header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])), "truncated"),
    "giant.nii": (_header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "truncated"),
    "rgb.nii": (nib.Nifti1Image(RGB, np.eye(4)).to_bytes(), "color or complex"),
    "complex.nii": (nib.Nifti1Image(np.zeros((4, 3, 2), "c8"), np.eye(4)).to_bytes(), "color or complex"),
    "nan.nii": (nib.Nifti1Image(np.full((4, 3, 2), np.nan, "f4"), np.eye(4)).to_bytes(), "NaN or inf"),
    "inf.nii": (nib.Nifti1Image(np.full((4, 3, 2), np.inf, "f8"), np.eye(4)).to_bytes(), "NaN or inf"),
    "huge.nii": (nib.Nifti1Image(np.full((4, 3, 2), 1e300, "f8"), np.eye(4)).to_bytes(), "NaN or inf"),
    "five.nii": (nib.Nifti1Image(np.zeros((2, 3, 4, 2, 5), "u1"), np.eye(4)).to_bytes(), "3D or 4D"),
    "one.nii": (nib.Nifti1Image(np.zeros(7, "u1"), np.eye(4)).to_bytes(), "3D or 4D"),
    "flat.nii": (_header(sform_code=1, srow_x=[0, 0, 0, 0]), "affine is not usable"),
    "nanaffine.nii": (_header(sform_code=1, srow_x=[1, 0, 0, np.nan]), "affine is not usable"),
    "spacing.nii": (_header(sform_code=0, pixdim=[1, 1, 0, 8, 1, 1, 1, 1]), "spacing of 0"),
    "pair.img": (_header(), "not a NIfTI image|single-file"),
    "intercept.nii": (_header(scl_slope=1, scl_inter=np.inf), "not a NIfTI image"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_files_get_one_clear_line(tmp_path, name, capfd):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_nifti(tmp_path / name).frame(0)
    _is_one_line(error, name)
    assert capfd.readouterr() == ("", "")


def _is_one_line(error, name: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert name in text
    assert len(text.split(";")[-1].split()) >= 2  # what to do about it


def test_folders_and_foreign_packings_are_refused(tmp_path):
    (tmp_path / "scan.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_nifti(tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 3, 2), "u1"), np.eye(4)), tmp_path / "scan.nii.bz2")
    with pytest.raises(InputError, match=r"convert it to \.nii\.gz"):
        read_nifti(tmp_path / "scan.nii.bz2")


def test_a_damaged_file_stays_damaged_when_asked_again(tmp_path):
    (tmp_path / "cut.nii.gz").write_bytes(_gz_of(np.concatenate([NOISE] * 3))[:-9000])
    scan = read_nifti(tmp_path / "cut.nii.gz")
    for _ in range(2):
        with pytest.raises(InputError, match="truncated"):
            scan.frame(2)


@given(st.binary(max_size=600), suffixes)
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused(folder, content, suffix):
    path = folder / f"random{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_nifti(path)


WHOLE = {
    ".nii": nib.Nifti1Image(_values((2, 3, 4, 5), "i2", 5).T, np.diag([1, 1, 8, 1])).to_bytes(),
    ".nii.gz": _gz_of(_values((2, 3, 4, 5), "f4", 6)),
}


@given(
    suffixes, st.lists(st.integers(0, 8 * 400), min_size=1, max_size=4), st.floats(0.3, 1.3), st.booleans()
)
@settings(max_examples=400, deadline=None)
def test_flipped_bits_give_an_error_or_a_scan(folder, suffix, bits, length, inside):
    """`inside` damages what is packed, not the packing."""
    packed = suffix == ".nii.gz" and inside
    content = bytearray(gzip.decompress(WHOLE[suffix]) if packed else WHOLE[suffix])
    for bit in bits:
        content[bit // 8 % len(content)] ^= 1 << bit % 8
    content = content[: int(len(content) * length)]
    path = folder / f"flipped{suffix}"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    with suppress(InputError):
        scan = read_nifti(path)
        for t in range(min(scan.shape[0], 3)):
            assert np.isfinite(scan.frame(t)).all()


# Files that cannot be written


def _write(path: Path, side: int = 4) -> None:
    frame = np.random.default_rng(0).random((4, side, side)).astype("f4")
    write_frames(path, [frame], affine=np.eye(4), shape=(1, 4, side, side), dtype="f4")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"mask{suffix}"
    _write(path)
    before = path.read_bytes()
    (tmp_path / f".mask{suffix}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="the disk is full") as error:
        _write(path, side=512)
    _is_one_line(error, path.name)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _break_off(path: Path, error: BaseException) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_one_line(tmp_path, number):
    with pytest.raises(InputError) as error:
        _break_off(tmp_path / "mask.nii", OSError(number, os.strerror(number)))
    _is_one_line(error, "mask.nii")
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "mask.nii", tmp_path / "folder", tmp_path / ("m" * 250 + ".nii")):
        with pytest.raises(InputError, match="cannot be written"):
            _write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _break_off(tmp_path / "new" / "mask.nii", KeyboardInterrupt())
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_folder_for_unpacking_is_named(folder, monkeypatch):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = folder / "unpacked"
    monkeypatch.setattr(nifti.tempfile, "TemporaryFile", lambda prefix: io.BufferedRandom(Full(name, "w+")))
    for array in (NOISE[:, :1, :4, :4], NOISE):  # below and above what is buffered
        scan = read_nifti(_save(folder / "packed.nii.gz", array))
        with pytest.raises(InputError, match="disk is full; make room or set TMPDIR"):
            scan.frame(0)


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


def test_a_gzip_of_several_parts_is_one_file(tmp_path):
    """Several members in one file, as some archives hold."""
    whole = WHOLE[".nii"]
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]))
    (tmp_path / "whole.nii").write_bytes(whole)
    for t in (0, 1):
        np.testing.assert_array_equal(
            read_nifti(tmp_path / "parts.nii.gz").frame(t), read_nifti(tmp_path / "whole.nii").frame(t)
        )
