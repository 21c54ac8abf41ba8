"""NIfTI files <-> Scan, 3D and 4D, frame by frame.

Voxels are read straight from the file at the frame's offset. A gzipped file cannot be entered in the
middle, so it is unpacked once, as far as needed, into an unnamed temporary file. Masks are written the same
way, one frame after the other, so that memory stays flat in the number of frames.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip

from fewbeats.disk import DISK_FULL, atomic_path
from fewbeats.errors import InputError
from fewbeats.io.nifti_header import (
    HEADER_BYTES,
    load_image,
    named_gzip,
    other_affine,
    read_frame_times,
    read_grid,
    read_placement,
    tell_grid,
)
from fewbeats.scan import Reorientation, Scan, Source, canonical_reorientation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nibabel.arrayproxy import ArrayProxy

CHUNK = 1 << 20


class UnpackedFile:
    """Random access to a file that may be gzipped; unpacks only as far as asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._packed: IO[bytes] | None = None
        if named_gzip(path):
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
        self._offset = max(HEADER_BYTES, int(stored.offset))
        self._moved = int(stored.offset) < HEADER_BYTES
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
        if self._has_edge:
            missing = _without_value(self._turn.apply(stored))
            if missing.any() and not missing.all():
                values[missing] = values[~missing].min()
        return values

    def notes(self) -> list[str]:
        """What there is to say of where pixels lie, and of such as have no value."""
        notes = []
        if self._moved:
            notes.append(f"the header says that pixels begin within it; read from byte {HEADER_BYTES} on")
        if self._has_edge:
            notes.append("voxels without a value (NaN, -inf) are taken as background")
        return notes

    @cached_property
    def _has_edge(self) -> bool:
        """Whether voxels without a value reach the border of the first frame; inside, a file is spoiled."""
        if self.dtype.kind != "f":
            return False
        count = int(np.prod(self._stored_shape)) * self.dtype.itemsize
        try:
            raw = UnpackedFile(self._path).read(self._offset, count)
        except InputError:
            return False  # whoever reads the frame will say it
        missing = _without_value(np.frombuffer(raw, self.dtype).reshape(self._stored_shape))
        return bool(missing[:, [0, -1]].any() or missing[:, :, [0, -1]].any())


def _without_value(stored: np.ndarray) -> np.ndarray:
    return np.isnan(stored) | np.isneginf(stored)


def read_nifti(path: Path | str, *, frame_time_ms: float | None = None) -> Scan:
    """Read a NIfTI image, 3D or 4D; only the header now, pixels when asked for.

    Args:
        path: `.nii` or `.nii.gz`.
        frame_time_ms: time between frames, where the header does not know it.

    Raises:
        InputError: missing, empty, truncated or foreign file; color or complex pixels; an unusable grid.
    """
    path = Path(path)
    image = load_image(path)
    header = image.header
    shape, affine = read_grid(path, image)
    turn = canonical_reorientation(affine, shape[1:])
    times, notes = read_frame_times(header, shape[0], frame_time_ms)
    other = other_affine(header)
    notes += tell_grid(header, affine, other, shape[1:])
    pixels = NiftiPixels(path, stored=image.dataobj, shape=shape, turn=turn)
    notes += pixels.notes()
    if turn != Reorientation():
        notes.append("axes turned to the canonical orientation; results are written on the file's own grid")
    return Scan(
        pixels=pixels,
        affine=turn.affine(affine, shape[1:]),
        frame_times_ms=times,
        source=Source(
            path=path,
            affine=affine,
            shape=shape[1:],
            reorientation=turn,
            notes=tuple(notes),
            placement=read_placement(header),
            other_affine=other,
        ),
    )


def write_frames(
    path: Path | str,
    frames: Iterable[np.ndarray],
    *,
    affine: np.ndarray,
    shape: tuple[int, int, int, int],
    dtype: np.dtype | type,
    frame_time_ms: float | None = None,
    placement: Mapping[str, Any] | None = None,
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
        placement: both transforms of the header of an image on this grid, as they are to be.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    header = _header(affine, shape, np.dtype(dtype), frame_time_ms)
    for name, value in (placement or {}).items():
        if name == "qfac":
            header["pixdim"][0] = value
        else:
            header[name] = value
    with atomic_path(path) as partial, _open_packed(partial, packed=named_gzip(path)) as file:
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
        placement=source.placement,
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
