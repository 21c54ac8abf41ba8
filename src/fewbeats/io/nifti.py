"""NIfTI files <-> Scan, 3D and 4D, frame by frame.

Voxels are read straight from the file at the frame's offset. A gzipped file cannot be entered in the
middle, so it is unpacked once, as far as needed, into an unnamed temporary file. Masks are written the same
way, one frame after the other, so that memory stays flat in the number of frames.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from fewbeats.disk import DISK_FULL, atomic_path
from fewbeats.errors import InputError
from fewbeats.heartbeat import is_heart_time
from fewbeats.scan import Reorientation, Scan, Source, canonical_reorientation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nibabel.arrayproxy import ArrayProxy

# nibabel tells the screen what it repairs in a header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

CHUNK = 1 << 20
SPACE_UNIT_BITS = 0x07  # of the header's xyzt_units
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
TIME_UNIT_BITS = 0x38
MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}
# 30 beats a minute in 5 frames are 400 ms apart; a longer frame time is a default left in the header.
LONGEST_FRAME_MS = 400.0


VECTORS = (1004, 1005, 1006, 1007, 2003, 2004)  # intents of headers: matrices, vectors, colors


def _named_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


class UnpackedFile:
    """Random access to a file that may be gzipped; unpacks only as far as asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._packed: IO[bytes] | None = None
        if _named_gzip(path):
            self._packed = igzip.open(path, "rb")
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="fewbeats-")  # noqa: SIM115 (closed with self)
        else:
            self._file = path.open("rb")
        self._unpacked = 0

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from `offset` of the unpacked content.

        Raises:
            InputError: the file ends before that, or its compression is damaged.
        """
        with self._lock:
            if self._packed is not None:
                self._unpack(offset + count)
            if os.fstat(self._file.fileno()).st_size < offset + count:
                raise InputError(
                    f"{self.path}: truncated: the pixels end early; copy or export the file again"
                )
            buffer = bytearray(count)
            self._file.seek(offset)
            self._file.readinto(buffer)  # type: ignore[attr-defined]
            return buffer

    def _unpack(self, end: int) -> None:
        assert self._packed is not None
        self._file.seek(self._unpacked)
        try:
            while self._unpacked <= end:  # one byte more than asked for: the last frame meets the checksum
                chunk = self._packed.read(CHUNK)
                if not chunk:
                    break
                self._file.write(chunk)
                self._unpacked += len(chunk)
            self._file.flush()
        except (EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise InputError(
                    f"{tempfile.gettempdir()}: the disk is full; make room or set TMPDIR"
                ) from error
            raise InputError(
                f"{self.path}: truncated or damaged gzip; copy or export the file again"
            ) from error


class NiftiPixels:
    """Lazy pixels of a NIfTI file, in canonical orientation."""

    def __init__(
        self, path: Path, *, stored: ArrayProxy, shape: tuple[int, int, int, int], turn: Reorientation
    ):
        z, y, x = (shape[1:][axis] for axis in turn.order)
        self.shape = (shape[0], z, y, x)
        self.dtype, self.slope, self.intercept = stored.dtype, stored.slope, stored.inter
        self._stored_shape, self._turn = shape[1:], turn
        self._offset = int(stored.offset)
        self._path = path
        self._file: UnpackedFile | None = None

    def frame(self, t: int) -> np.ndarray:
        if not 0 <= t < self.shape[0]:
            raise IndexError(f"frame {t} of {self.shape[0]}")
        if self._file is None:
            self._file = UnpackedFile(self._path)
        count = int(np.prod(self._stored_shape)) * self.dtype.itemsize
        raw = self._file.read(self._offset + t * count, count)
        stored = np.frombuffer(raw, self.dtype).reshape(self._stored_shape)
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is infinite; Scan refuses it
            values = np.ascontiguousarray(self._turn.apply(stored), np.float32)
            if self.slope != 1.0 or self.intercept != 0.0:
                values *= np.float32(self.slope)
                values += np.float32(self.intercept)
        return values


def read_nifti(path: Path | str, *, frame_time_ms: float | None = None) -> Scan:
    """Read a NIfTI image, 3D or 4D; only the header now, pixels when asked for.

    Args:
        path: `.nii` or `.nii.gz`.
        frame_time_ms: time between frames, where the header does not know it.

    Raises:
        InputError: missing, empty, truncated or foreign file; color or complex pixels; an unusable grid.
    """
    path = Path(path)
    image = _load(path)
    header = image.header
    shape, affine = _grid(path, image)
    turn = canonical_reorientation(affine, shape[1:])
    times, notes = _frame_times(header, shape[0], frame_time_ms)
    notes += _grid_notes(header, affine, shape[1:])
    if turn != Reorientation():
        notes.append("axes turned to the canonical orientation; results are written on the file's own grid")
    return Scan(
        pixels=NiftiPixels(path, stored=image.dataobj, shape=shape, turn=turn),
        affine=turn.affine(affine, shape[1:]),
        frame_times_ms=times,
        source=Source(path=path, affine=affine, shape=shape[1:], reorientation=turn, notes=tuple(notes)),
    )


def _load(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a NIfTI file (.nii or .nii.gz)")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or export it again")
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises whatever its guesses meet in a foreign file
        what = "truncated or damaged" if _named_gzip(path) and _is_gzip(path) else "not a NIfTI image"
        raise InputError(f"{path}: {what}; give a readable .nii or .nii.gz file") from error
    if not isinstance(image, nib.Nifti1Image) or not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a single-file NIfTI image; convert it to .nii.gz")
    dtype = image.header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise InputError(f"{path}: color or complex pixels; convert the image to gray values")
    return image


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _grid(path: Path, image: Any) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Stored shape (T, Z, Y, X) and affine."""
    header = image.header
    shape = list(header.get_data_shape())
    if header.get_intent("code")[0] in VECTORS:
        raise InputError(f"{path}: holds vectors, not gray values; give the image they belong to")
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
    affine = np.array(header.get_best_affine(), float)
    affine[:3] *= _mm_per_unit(header)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{path}: the header's affine is not usable (a spacing of 0 or NaN?); rewrite the header"
        )
    if header["sform_code"] == 0 and _lacks_spacing(path, image, (x, y, z)):
        raise InputError(f"{path}: the header has a spacing of 0; rewrite the header with the true spacing")
    needed = int(image.dataobj.offset) + x * y * z * t * header.get_data_dtype().itemsize
    if not _named_gzip(path) and path.stat().st_size < needed:
        raise InputError(f"{path}: truncated: the pixels end early; copy or export the file again")
    return (t, z, y, x), affine


def _mm_per_unit(header: nib.Nifti1Header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) & SPACE_UNIT_BITS, 1.0)


def _grid_notes(header: nib.Nifti1Header, affine: np.ndarray, shape: tuple[int, int, int]) -> list[str]:
    factor, notes = _mm_per_unit(header), []
    if factor != 1.0:
        notes.append(f"the header's unit of length is {factor:g} mm; results are written in mm")
    if header["sform_code"] and header["qform_code"]:
        try:
            other = header.get_qform() * factor
        except (ValueError, HeaderDataError):  # unusable, and not used
            return notes
        z, y, x = shape
        off_mm = (np.abs(other - affine)[:3] @ [x - 1, y - 1, z - 1, 1]).max()
        if off_mm > np.linalg.norm(affine[:3, :3], axis=0).min():
            notes.append(f"sform and qform of the header are up to {off_mm:.3g} mm apart; the sform is used")
    return notes


def _lacks_spacing(path: Path, image: Any, shape: tuple[int, int, int]) -> bool:
    """Whether an axis of several voxels has spacing 0 in the file, which nibabel reads as 1 mm."""
    with ImageOpener(str(path)) as file:
        stored = image.header_class.from_fileobj(file, check=False)
    return any(count > 1 and spacing == 0 for count, spacing in zip(shape, stored["pixdim"][1:4]))


def _frame_times(
    header: nib.Nifti1Header, frames: int, given_ms: float | None
) -> tuple[np.ndarray | None, list[str]]:
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


def write_frames(
    path: Path | str,
    frames: Iterable[np.ndarray],
    *,
    affine: np.ndarray,
    shape: tuple[int, int, int, int],
    dtype: np.dtype | type,
    frame_time_ms: float | None = None,
) -> None:
    """Write frames (Z, Y, X) one by one as one NIfTI file; a 3D file when T = 1.

    The file appears under its name only when it is whole.

    Args:
        path: `.nii` or `.nii.gz`.
        frames: T arrays (Z, Y, X) on the grid of `affine`.
        affine: (4, 4), voxel (x, y, z, 1) -> RAS+ mm.
        shape: (T, Z, Y, X).
        dtype: type on disk.
        frame_time_ms: written to the header where known.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    header = _header(affine, shape, np.dtype(dtype), frame_time_ms)
    with atomic_path(path) as partial, _open_packed(partial, packed=_named_gzip(path)) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        count = 0
        for frame in frames:
            if frame.shape != shape[1:]:
                raise ValueError(f"frame of shape {frame.shape}, expected {shape[1:]}")
            file.write(np.ascontiguousarray(frame, dtype).tobytes())
            count += 1
        if count != shape[0]:
            raise ValueError(f"{count} frames, expected {shape[0]}")


def write_like(
    path: Path | str, frames: Iterable[np.ndarray], *, scan: Scan, dtype: np.dtype | type = np.uint8
) -> None:
    """Write canonical frames (Z, Y, X) of `scan` on the source's own grid and affine."""
    source = scan.source
    step = frame_step_ms(scan)
    write_frames(
        path,
        (source.reorientation.invert(frame) for frame in frames),
        affine=source.affine,
        shape=(scan.shape[0], *source.shape),
        dtype=dtype,
        frame_time_ms=step,
    )


def write_scan(path: Path | str, scan: Scan, *, frames: Iterable[int] | None = None) -> None:
    """Write a Scan in canonical orientation, as float32 or, where it loses nothing, its stored integers.

    Args:
        path: `.nii` or `.nii.gz`.
        scan: what to write.
        frames: only these frames.
    """
    chosen = list(range(scan.shape[0])) if frames is None else list(frames)
    whole = scan.pixels.dtype.kind in "iu" and all(_fits_int16(scan.frame(t)) for t in chosen)
    write_frames(
        path,
        (scan.frame(t) for t in chosen),
        affine=scan.affine,
        shape=(len(chosen), *scan.shape[1:]),
        dtype=np.int16 if whole else np.float32,
        frame_time_ms=frame_step_ms(scan) if len(chosen) > 1 else None,
    )


def _fits_int16(values: np.ndarray) -> bool:
    return bool(np.abs(values).max(initial=0) < 2**15) and np.array_equal(np.rint(values), values)


def frame_step_ms(scan: Scan) -> float | None:
    """Mean time between frames in ms, None where unknown."""
    if scan.frame_times_ms is None or scan.shape[0] < 2:
        return None
    return float(np.diff(scan.frame_times_ms).mean())


def _header(
    affine: np.ndarray, shape: tuple[int, int, int, int], dtype: np.dtype, frame_time_ms: float | None
) -> nib.Nifti1Header:
    t, z, y, x = shape
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape((x, y, z, t) if t > 1 else (x, y, z))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_zooms((*spacing, frame_time_ms or 0.0) if t > 1 else tuple(spacing))
    header.set_xyzt_units("mm", "msec" if frame_time_ms else None)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header.set_slope_inter(1.0, 0.0)
    return header


@contextmanager
def _open_packed(path: Path, *, packed: bool) -> Iterator[IO[bytes]]:
    """Without the time and a name in the header of a gzip: equal images are equal files."""
    with path.open("wb") as file:
        if not packed:
            yield file
            return
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream:
            yield cast("IO[bytes]", stream)
