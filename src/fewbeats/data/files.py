"""The files that a cohort's rows name: found, opened, and compared with what was indexed."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.anatomy import whole_labels
from fewbeats.disk import files_below
from fewbeats.errors import InputError, name_some
from fewbeats.io.nifti import read_nifti
from fewbeats.io.nifti_parts import find_parts, read_parts

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan


OFF_GRID = 0.1  # of a voxel: a mask that lies farther off is not on the image's grid


def check_files(cohort: pl.DataFrame, *, labels: bool = True) -> None:
    """Make sure that images and, where they are wanted, labels are there, before hours are spent.

    Raises:
        InputError: naming what is missing, and how many there are.
    """
    texts = dict.fromkeys([*cohort["image"], *(cohort["label"].drop_nulls() if labels else ())])
    if missing := [text for text in texts if not split_fragment(text)[0].exists()]:
        count = f" ({len(missing)} missing)" if len(missing) > 1 else ""
        raise InputError(f"{name_some(missing)}: no such file{count}; mend the cohort's paths")


def open_scan(row: Mapping[str, Any]) -> Scan:
    """The Scan of a row; NIfTI pixels stay on disk until asked for.

    Raises:
        InputError: the image cannot be read, or is not the one that was indexed.
    """
    path = split_fragment(row["image"])[0]
    scan = open_image(row["image"], frame_time_ms=row["frame_time_ms"])
    indexed = tuple(row[name] for name in ("frames", "slices", "rows", "columns"))
    if None not in indexed and scan.shape != indexed:
        raise InputError(f"{path}: shape {scan.shape} is not the {indexed} in the cohort; index it again")
    spacing: list[Any] = [row.get(f"spacing_{axis}_mm") for axis in "zyx"]
    if all(spacing) and not np.allclose(scan.spacing_mm, spacing, rtol=1e-2):
        raise InputError(f"{path}: voxel size is not the cohort's; mend the file's header, or index it again")
    return replace(scan, modality=scan.modality or row["modality"] or "")  # NIfTI does not tell


def bare_name(path: Path) -> str:
    """Name of a file or folder without the endings of image files."""
    return re.sub(r"(?i)\.(nii|nii\.gz|dcm)$", "", path.resolve().name)


def read_scans(path: Path, *, frame_time_ms: float | None = None) -> list[Scan]:
    """Every scan in a NIfTI file, a folder of NIfTI files that are one heart, or a DICOM file or folder.

    Raises:
        InputError: nothing readable is there.
    """
    if is_nifti(path) or not path.exists():
        return [read_nifti(path, frame_time_ms=frame_time_ms)]
    if path.is_dir() and (files := find_parts(path)):
        return [read_parts(files, frame_time_ms=frame_time_ms)]
    from fewbeats.io.dicom import read_dicom

    return read_dicom(path)


def open_image(image: str, *, frame_time_ms: float | None = None) -> Scan:
    """One of the scans that `read_scans` finds: FOLDER#2 is the second scan in a folder.

    Args:
        image: as in the cohort's column.
        frame_time_ms: between frames, where the file does not tell.

    Raises:
        InputError: it cannot be read, or holds fewer scans.
    """
    path, number = split_fragment(image)
    scans = read_scans(path, frame_time_ms=frame_time_ms)
    if number > len(scans):
        raise InputError(f"{path}: holds {len(scans)} scans; it asks for number {number}; index it again")
    return scans[number - 1]


class Labels(Mapping[int, np.ndarray]):
    """Frame -> its label map (Z, Y, X), read when it is asked for: a 4D label is larger than its image.

    Args:
        frames: of the scan -> of the file.
        read: a frame of the file.
    """

    def __init__(self, frames: Mapping[int, int], read: Callable[[int], np.ndarray]):
        self._frames, self._read = frames, read

    def __getitem__(self, t: int) -> np.ndarray:
        return self._read(self._frames[t])

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def open_labels(row: Mapping[str, Any], scan: Scan) -> Mapping[int, np.ndarray]:
    """The labels of a row, by frame of its scan.

    Returns:
        frame -> (Z, Y, X) integers in canonical orientation, values of the row's convention; empty where the
        row has no label.

    Raises:
        InputError: the label cannot be read, its grid is not the image's, or its frames are unknown.
    """
    if row["label"] is None:
        return {}
    path = Path(row["label"])
    named = [int(t) for t in (row["label_frames"] or "").split(";") if t]
    if max(named, default=0) >= scan.shape[0]:
        raise InputError(
            f"{path}: is said to label frames {row['label_frames']}, but the image has frames 0 to "
            f"{scan.shape[0] - 1}; mend the table"
        )
    if not is_nifti(path):
        from fewbeats.io.dicom_seg import read_seg, seg_frames

        drawn = dict(zip(seg_frames(path, scan), read_seg(path, scan), strict=True))
        return {t: labels.astype(np.int32) for t, labels in drawn.items() if t in (named or drawn)}
    mask = read_nifti(path)
    turned = _on_grid(mask, scan, path=path)
    places = {t: t for t in named or range(scan.shape[0])}
    count = mask.shape[0]
    if count != scan.shape[0]:
        if count != len(named):
            raise InputError(
                f"{path}: {count} frames for {scan.shape[0]} of the image; save a mask of all, or write "
                "into label_frames which they are, as 0;12 (or join channels, one a structure, to one mask)"
            )
        places = dict(zip(named, range(count)))
    slope = float(getattr(mask.pixels, "slope", 1.0))
    step = abs(slope) if mask.pixels.dtype.kind in "iu" and slope != 1.0 else 0.0
    return Labels(places, lambda place: whole_labels(turned(mask.frame(place)), file=path, step=step))


def _on_grid(mask: Scan, scan: Scan, *, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a mask's frames to the image's, by whichever of their transforms lay it on the image.

    Raises:
        InputError: none does.
    """
    one, other = mask.source, scan.source
    mine = [a for a in (one.affine, one.other_affine) if a is not None]
    theirs = [a for a in (other.affine, other.other_affine) if a is not None]
    if len(mine) + len(theirs) > 2 and one.shape == other.shape:
        for a, b in product(mine, theirs):
            if _apart_mm(a, b, other.shape) <= OFF_GRID * min(scan.spacing_mm):
                return lambda frame: other.reorientation.apply(one.reorientation.invert(frame))
    check_grid(mask, scan, path=path)
    return lambda frame: frame


def check_grid(mask: Scan, scan: Scan, *, path: Path) -> None:
    """Refuse a mask that does not lie on the image's grid, to a tenth of a voxel.

    Raises:
        InputError: naming `path`.
    """
    if mask.shape[1:] != scan.shape[1:]:
        raise InputError(
            f"{path}: shape {mask.shape[1:]} is not the image's {scan.shape[1:]} (z, y, x); "
            "save the mask on the image's own grid"
        )
    off_mm = _apart_mm(mask.affine, scan.affine, scan.shape[1:])
    if off_mm > OFF_GRID * min(scan.spacing_mm):
        raise InputError(
            f"{path}: lies up to {off_mm:.1f} mm off the image's grid; save the mask on the image's own grid"
        )


def _apart_mm(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int]) -> float:
    """How far apart two affines lay the corners of a grid (Z, Y, X), at most."""
    z, y, x = shape
    corners = np.array([[i, j, k, 1.0] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())


def content_digest(text: str) -> str:
    """Of the bytes of a file (unzipped), or of all files in a folder, wherever they lie.

    Args:
        text: as in a cohort's column.

    Raises:
        InputError: there is no such file.
    """
    path = split_fragment(text)[0]
    if not path.exists():
        raise InputError(f"{path}: no such file; mend the cohort's paths")
    digest = hashlib.sha256()
    for file in files_below(path) if path.is_dir() else [path]:
        content = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{file}: truncated or damaged; restore it from a copy") from error
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def split_fragment(image: str) -> tuple[Path, int]:
    """`FOLDER#2` -> (FOLDER, 2); without a fragment the number is 1."""
    found = re.fullmatch(r"(.+)#([1-9]\d*)", image, re.DOTALL)
    if found is None or Path(image).exists():
        return Path(image), 1
    return Path(found[1]), int(found[2])
