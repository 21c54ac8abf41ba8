"""Odd NIfTI headers: two transforms, rounded quaternions, wrong suffixes, pixels without a value."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fewbeats.data.files import open_labels
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti, write_like
from fewbeats.scan import Scan

PIXELS = np.random.default_rng(0).integers(1, 900, (8, 7, 5, 2)).astype(np.int16)
TILTED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3) * [1.5, 1.5, 8.0], [9, -20, 31])
SHIFTED = nib.affines.from_matvec(np.diag([1.5, 1.5, 8.0]), [-40, 12, 3])


def save(path: Path, *, sform=None, qform=None, codes=(2, 1), pixels=PIXELS) -> Path:
    image = nib.Nifti1Image(pixels, None)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][1:5] = (1.5, 1.5, 8.0, 35.0)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def raw(path: Path, offset: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)
    return path


def said(scan: Scan) -> str:
    return "; ".join(scan.source.notes)


@pytest.mark.parametrize(
    ("sform", "qform", "codes"),
    [(TILTED, SHIFTED, (2, 1)), (TILTED, TILTED, (1, 3)), (None, SHIFTED, (0, 1)), (SHIFTED, None, (4, 0))],
)
def test_a_mask_carries_both_transforms_and_their_codes(tmp_path, sform, qform, codes):
    file = save(tmp_path / "a.nii.gz", sform=sform, qform=qform, codes=codes)
    scan = read_nifti(file)
    masks = [np.zeros(scan.shape[1:], np.uint8)] * scan.shape[0]
    write_like(tmp_path / "mask.nii.gz", masks, scan=scan)
    one, other = (nib.load(tmp_path / name).header for name in ("a.nii.gz", "mask.nii.gz"))
    for name in ("sform_code", "qform_code"):
        assert one[name] == other[name]
    for name in ("get_sform", "get_qform", "get_best_affine"):
        np.testing.assert_allclose(getattr(one, name)(), getattr(other, name)(), atol=1e-4)


def test_a_mask_on_either_transform_is_taken_and_lies_right(tmp_path):
    """Programs differ in which transform they take, and write a mask on that one alone."""
    scan = read_nifti(save(tmp_path / "a.nii", sform=TILTED, qform=SHIFTED))
    labels = (PIXELS[..., 0] > 500).astype(np.uint8)
    by_sform = save(tmp_path / "s.nii", sform=TILTED, qform=None, codes=(1, 0), pixels=labels)
    by_qform = save(tmp_path / "q.nii", sform=None, qform=SHIFTED, codes=(0, 1), pixels=labels)
    for file in (by_sform, by_qform):
        row = {"label": str(file), "label_frames": "0", "convention": "acdc"}
        found = open_labels(row, scan)[0]
        assert np.array_equal(scan.source.reorientation.invert(found), labels.T)
    elsewhere = save(tmp_path / "x.nii", sform=np.diag([1.5, 1.5, 8, 1]), codes=(1, 0), pixels=labels)
    with pytest.raises(InputError, match="off the image's grid"):
        open_labels({"label": str(elsewhere), "label_frames": "0", "convention": "acdc"}, scan)


@pytest.mark.parametrize("half", [0.70711, 0.708, 0.71])
def test_a_quaternion_that_rounding_made_too_long_is_half_a_turn(tmp_path, half):
    turned = np.diag([1.5, 1.5, 8.0]) @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])
    file = save(tmp_path / "a.nii", qform=nib.affines.from_matvec(turned, [0, 0, 0]), codes=(0, 1))
    raw(file, 256, np.array([half, half, 0.0], "<f4").tobytes())  # half^2 * 2 is beyond 1
    scan = read_nifti(file)
    np.testing.assert_allclose(scan.source.affine[:3, :3], np.rint(turned * 2) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("at", "row"), [(280, bytes(48)), (312, bytes(16)), (280, np.float32(np.nan).tobytes())]
)
def test_an_unusable_sform_gives_way_to_the_qform(tmp_path, at, row):
    file = raw(save(tmp_path / "a.nii", sform=SHIFTED, qform=TILTED), at, row)
    scan = read_nifti(file)
    np.testing.assert_allclose(scan.source.affine, TILTED, atol=1e-4)
    assert "the header's sform is empty or unusable; the qform is used" in said(scan)


def test_an_image_that_does_not_say_how_it_lies_is_told(tmp_path):
    file = save(tmp_path / "a.nii", sform=SHIFTED, codes=(0, 0))
    assert "both codes are 0" in said(read_nifti(file))


def test_pixels_do_not_begin_in_the_header(tmp_path):
    file = raw(save(tmp_path / "a.nii", sform=SHIFTED), 108, np.float32(0).tobytes())
    scan = read_nifti(file)
    assert np.array_equal(scan.source.reorientation.invert(scan.frame(1)), PIXELS[..., 1].T)
    assert "read from byte 352 on" in said(scan)


def test_a_wrong_suffix_is_called_one(tmp_path):
    file = save(tmp_path / "a.nii", sform=SHIFTED)
    (tmp_path / "b.nii.gz").write_bytes(file.read_bytes())
    (tmp_path / "c.nii").write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(InputError, match=r"b.nii.gz: is not gzipped; rename it to b.nii$"):
        read_nifti(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match=r"c.nii: is gzipped; rename it to c.nii.gz$"):
        read_nifti(tmp_path / "c.nii")


@pytest.mark.parametrize("nothing", [np.nan, -np.inf])
def test_voxels_without_a_value_are_background(tmp_path, nothing):
    pixels = PIXELS.astype(np.float32)
    pixels[:2] = nothing
    scan = read_nifti(save(tmp_path / "a.nii.gz", sform=SHIFTED, pixels=pixels))
    found = scan.source.reorientation.invert(scan.frame(0)).T
    assert np.array_equal(found[2:], PIXELS[2:, ..., 0])
    assert (found[:2] == PIXELS[2:, ..., 0].min()).all()
    assert "(NaN, -inf) are taken as background" in said(scan)
    assert "NaN" not in said(read_nifti(save(tmp_path / "b.nii", sform=SHIFTED, pixels=PIXELS * 1.5)))


def test_voxels_without_a_value_may_lie_in_one_slice(tmp_path):
    pixels = PIXELS.astype(np.float32)
    pixels[0, :, -1] = np.nan
    scan = read_nifti(save(tmp_path / "a.nii.gz", sform=SHIFTED, pixels=pixels))
    assert all(np.isfinite(scan.frame(t)).all() for t in range(scan.shape[0]))


@pytest.mark.parametrize(
    ("frames", "step", "told"),
    [(25, 300, "7500 ms"), (25, 2.8, "70 ms"), (25, 0.035, "0.875 ms"), (2, 35, "")],
)
def test_a_time_that_no_heart_has_is_unknown(tmp_path, frames, step, told):
    file = save(tmp_path / "a.nii", sform=SHIFTED, pixels=np.zeros((4, 4, 2, frames), np.int16))
    raw(file, 76 + 16, np.float32(step).tobytes())
    scan = read_nifti(file)
    assert (scan.frame_times_ms is None) == bool(told)
    assert not told or f"{frames} frames in {told}, as the header says, are no heartbeat" in said(scan)


def test_frames_saved_as_components_are_named(tmp_path):
    image = nib.Nifti1Image(PIXELS[:, :, :, None].repeat(2, -1), SHIFTED)
    image.header.set_intent("vector")
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="if they are frames, save them as x, y, z, time"):
        read_nifti(tmp_path / "a.nii")
