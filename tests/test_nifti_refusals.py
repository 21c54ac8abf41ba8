"""NIfTI files that cannot be used, or only seem so: one clear line for each."""

from __future__ import annotations

import errno
import gzip
import io
import os
import zlib
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.errors import InputError
from fewbeats.io import nifti
from fewbeats.io.nifti import read_nifti
from refusals import is_one_line
from small_nifti import exact_values, gzip_of, nifti_folder, save_plain, suffixes

folder = pytest.fixture(nifti_folder, scope="module")


def _header(**fields) -> bytes:
    header = nib.Nifti1Image(np.zeros((4, 3, 2), "i2"), np.diag([1, 1, 8, 1])).header
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + bytes(4 * 3 * 2 * 2)


NOISE = exact_values((1, 4, 64, 64), "i2", 4)


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
    "cut.nii.gz": (gzip_of(NOISE)[:-500], "truncated"),
    "cuttrailer.nii.gz": (gzip_of(NOISE)[:-4], "truncated"),
    "cuthead.nii.gz": (gzip_of(NOISE)[:40], "truncated"),
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
    is_one_line(error, name)
    assert capfd.readouterr() == ("", "")


def test_folders_and_foreign_packings_are_refused(tmp_path):
    (tmp_path / "scan.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_nifti(tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 3, 2), "u1"), np.eye(4)), tmp_path / "scan.nii.bz2")
    with pytest.raises(InputError, match=r"convert it to \.nii\.gz"):
        read_nifti(tmp_path / "scan.nii.bz2")


def test_a_damaged_file_stays_damaged_when_asked_again(tmp_path):
    (tmp_path / "cut.nii.gz").write_bytes(gzip_of(np.concatenate([NOISE] * 3))[:-9000])
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
    ".nii": nib.Nifti1Image(exact_values((2, 3, 4, 5), "i2", 5).T, np.diag([1, 1, 8, 1])).to_bytes(),
    ".nii.gz": gzip_of(exact_values((2, 3, 4, 5), "f4", 6)),
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


def test_a_full_folder_for_unpacking_is_named(folder, monkeypatch):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = folder / "unpacked"
    monkeypatch.setattr(nifti.tempfile, "TemporaryFile", lambda prefix: io.BufferedRandom(Full(name, "w+")))
    for array in (NOISE[:, :1, :4, :4], NOISE):  # below and above what is buffered
        scan = read_nifti(save_plain(folder / "packed.nii.gz", array))
        with pytest.raises(InputError, match="disk is full; make room or set TMPDIR"):
            scan.frame(0)


def test_a_gzip_of_several_parts_is_one_file(tmp_path):
    """Several members in one file, as some archives hold."""
    whole = WHOLE[".nii"]
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]))
    (tmp_path / "whole.nii").write_bytes(whole)
    for t in (0, 1):
        np.testing.assert_array_equal(
            read_nifti(tmp_path / "parts.nii.gz").frame(t), read_nifti(tmp_path / "whole.nii").frame(t)
        )
