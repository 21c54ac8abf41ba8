"""What a NIfTI file says of itself: its grid, both of its transforms, its frames' times, and what is odd."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from fewbeats.errors import InputError
from fewbeats.heartbeat import is_heart_time

# nibabel tells the screen what it repairs in a header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

SPACE_UNIT_BITS = 0x07  # of the header's xyzt_units
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
TIME_UNIT_BITS = 0x38
MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}
# 30 beats a minute in 5 frames are 400 ms apart; a longer frame time is a default left in the header.
LONGEST_FRAME_MS = 400.0
MOST_PACKED = 1033  # bytes that a byte of gzip can hold
MOST_FRAMES = 100_000
HEADER_BYTES = 352  # of a single file: pixels begin no earlier
PLACED = (
    "sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip
VECTORS = (1004, 1005, 1006, 1007, 2003, 2004)  # intents of headers: matrices, vectors, colors


def named_gzip(path: Path) -> bool:
    """Whether a file is called a gzipped one."""
    return path.suffix.lower() == ".gz"


def load_image(path: Path) -> Any:
    """A NIfTI image as nibabel opens it, without its pixels.

    Raises:
        InputError: missing, empty or foreign file, a wrong suffix, color or complex pixels.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a NIfTI file (.nii or .nii.gz)")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or export it again")
    if _is_gzip(path) != named_gzip(path) and path.name.lower().endswith((".nii", ".nii.gz")):
        _refuse_suffix(path)
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises whatever its guesses meet in a foreign file
        image = _load_turned(path)
        if image is None:
            what = "truncated or damaged" if named_gzip(path) and _is_gzip(path) else "not a NIfTI image"
            raise InputError(f"{path}: {what}; give a readable .nii or .nii.gz file") from error
    if not isinstance(image, nib.Nifti1Image) or not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a single-file NIfTI image; convert it to .nii.gz")
    dtype = image.header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise InputError(f"{path}: color or complex pixels; convert the image to gray values")
    return image


def _refuse_suffix(path: Path) -> None:
    """Name a gzipped file that is not called so, and the other way round.

    Raises:
        InputError: it is one.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head[:2] == b"\x1f\x8b":
        raise InputError(f"{path}: is gzipped; rename it to {path.name}.gz")
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        raise InputError(f"{path}: is not gzipped; rename it to {path.name[:-3]}")


class _RoundedHeader(nib.Nifti1Header):
    """Takes quaternions a little longer than 1, as rounding to few digits makes those of half a turn."""

    quaternion_threshold = np.float64(-0.05)


class _RoundedImage(nib.Nifti1Image):
    header_class = _RoundedHeader


def _load_turned(path: Path) -> Any:
    """The image where nothing but its quaternion's rounding was in the way; None where something else was."""
    try:
        return _RoundedImage.from_filename(path)
    except Exception:  # as above
        return None


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_grid(path: Path, image: Any) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Stored shape (T, Z, Y, X) and affine."""
    header = image.header
    shape = [int(count) for count in header.get_data_shape()]
    if header.get_intent("code")[0] in VECTORS:
        mend = "give the image they belong to"
        if len(shape) == 5 and shape[3] == 1 and shape[4] > 3:
            mend += ", or if they are frames, save them as x, y, z, time with no intent"
        raise InputError(f"{path}: holds vectors, not gray values; {mend}")
    while len(shape) > 4 and shape[3] == 1:  # some writers put time in the fifth dimension
        del shape[3]
    while len(shape) > 4 and shape[-1] == 1:
        del shape[-1]
    if len(shape) == 2:
        shape.append(1)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise InputError(
            f"{path}: shape {tuple(header.get_data_shape())} is not a 3D or 4D image; split or convert it"
        )
    x, y, z, t = (*shape, 1)[:4]
    if t > MOST_FRAMES:
        raise InputError(f"{path}: says that it has {t} frames; write the true shape into the header")
    affine = np.array(header.get_best_affine(), float)
    affine[:3] *= _mm_per_unit(header)
    if header["sform_code"] and not _is_usable(affine) and (other := other_affine(header)) is not None:
        affine = other
    if not _is_usable(affine):
        raise InputError(
            f"{path}: the header's affine is not usable (a spacing of 0 or NaN?); rewrite the header"
        )
    if header["sform_code"] == 0 and _lacks_spacing(path, image, (x, y, z)):
        raise InputError(f"{path}: the header has a spacing of 0; rewrite the header with the true spacing")
    needed = max(HEADER_BYTES, int(image.dataobj.offset)) + x * y * z * t * header.get_data_dtype().itemsize
    if needed > path.stat().st_size * (MOST_PACKED if named_gzip(path) else 1):
        raise InputError(f"{path}: truncated: the pixels end early; copy or export the file again")
    return (t, z, y, x), affine


def _mm_per_unit(header: nib.Nifti1Header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) & SPACE_UNIT_BITS, 1.0)


def other_affine(header: nib.Nifti1Header) -> np.ndarray | None:
    """The qform of a header that holds a sform, too; None where there is none, or it cannot be used."""
    if not (header["sform_code"] and header["qform_code"]):
        return None
    try:
        other = np.array(header.get_qform(), float)
    except (ValueError, HeaderDataError):
        return None
    other[:3] *= _mm_per_unit(header)
    return other if _is_usable(other) else None


def _is_usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) > 1e-9


def tell_grid(
    header: nib.Nifti1Header, affine: np.ndarray, other: np.ndarray | None, shape: tuple[int, int, int]
) -> list[str]:
    """What there is to say of the two transforms and of the unit of length."""
    factor, notes = _mm_per_unit(header), []
    if factor != 1.0:
        notes.append(f"the header's unit of length is {factor:g} mm; results are written in mm")
    if not header["sform_code"] and not header["qform_code"]:
        notes.append("the header does not say how the image lies (both codes are 0); its axes are a guess")
    if other is None:
        return notes
    if other is not affine and np.array_equal(other, affine) and not _is_usable(header.get_sform()):
        return [*notes, "the header's sform is empty or unusable; the qform is used"]
    z, y, x = shape
    off_mm = (np.abs(other - affine)[:3] @ [x - 1, y - 1, z - 1, 1]).max()
    if off_mm > np.linalg.norm(affine[:3, :3], axis=0).min():
        notes.append(f"sform and qform of the header are up to {off_mm:.3g} mm apart; the sform is used")
    return notes


def read_placement(header: nib.Nifti1Header) -> dict[str, Any]:
    """The fields that place an image, with lengths in mm."""
    fields = {name: np.array(header[name]) for name in PLACED}
    for name in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        fields[name] = fields[name] * _mm_per_unit(header)
    return {**fields, "qfac": float(header["pixdim"][0])}


def _lacks_spacing(path: Path, image: Any, shape: tuple[int, int, int]) -> bool:
    """Whether an axis of several voxels has spacing 0 in the file, which nibabel reads as 1 mm."""
    with ImageOpener(str(path)) as file:
        stored = image.header_class.from_fileobj(file, check=False)
    return any(count > 1 and spacing == 0 for count, spacing in zip(shape, stored["pixdim"][1:4]))


def read_frame_times(
    header: nib.Nifti1Header, frames: int, given_ms: float | None
) -> tuple[np.ndarray | None, list[str]]:
    """When frames were taken, ms after the first, and a note; None where nobody knows.

    Raises:
        InputError: a given time between frames that is none.
    """
    if given_ms is not None:
        if not (np.isfinite(given_ms) and given_ms > 0):
            raise InputError(f"frame time {given_ms} ms: must be a positive number")
        return np.arange(frames) * given_ms, [f"frame time {given_ms:g} ms as given"]
    if frames == 1:
        return None, []
    unit_ms = MS_PER_UNIT.get(int(header["xyzt_units"]) & TIME_UNIT_BITS)
    if unit_ms is None:
        return None, ["frame time unknown: the header names no unit of time"]
    axis = next(i for i in range(4, 8) if header["dim"][i] > 1)  # time is the fifth where the fourth is empty
    step_ms = float(header["pixdim"][axis]) * unit_ms
    if not 0.0 < step_ms <= LONGEST_FRAME_MS:
        return None, [f"frame time unknown: {step_ms:g} ms in the header is no time between heart phases"]
    if not is_heart_time(frames, step_ms * (frames - 1)):
        what = f"{frames} frames in {step_ms * frames:g} ms, as the header says, are no heartbeat"
        return None, [f"frame time unknown: {what}"]
    return np.arange(frames) * step_ms, [f"frame time {step_ms:g} ms from the header"]
