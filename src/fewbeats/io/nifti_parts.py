"""A heart in several NIfTI files of one folder: one file a frame, or one a slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from fewbeats.errors import InputError, name_some
from fewbeats.io.dicom_series import is_even
from fewbeats.io.nifti import read_nifti
from fewbeats.scan import Scan, Source, is_orientation_lost

NUMBER = re.compile(r"(\d+)(?=(?:\.nii)?(?:\.gz)?$)", re.IGNORECASE)
FRAME_WORDS = ("frame", "fr", "phase", "ph", "time", "t", "trigger", "dyn", "dynamic", "vol", "volume")
SLICE_WORDS = ("slice", "sl", "s", "z")
PEOPLE_WORDS = (
    "patient", "pat", "pt", "p", "case", "subject", "subj", "sub", "id", "person", "volunteer", "animal",
    "pig", "swine", "dog", "sheep", "mouse", "rat", "visit", "ses", "session", "scan", "study", "exam",
)  # fmt: skip
"""What stands before a number that tells people or visits apart, and no frames."""
DATE = re.compile(r"(19|20)\d{6}")
MOST_PAIRS = 8  # of neighbors that are compared
ALIKE = 0.8  # correlation of neighbors: frames of a heart lie above 0.9, hearts on one grid below 0.7
SAME_MM = 0.1  # two corners or directions that lie no farther apart are equal
SHEAR = 0.5  # of a pixel: slices of a stack lie above one another but for less than this


class PartPixels:
    """Pixels of several scans as one: their frames in turn, or their slices above one another."""

    def __init__(self, scans: Sequence[Scan], *, slices: bool):
        self._scans, self._slices = scans, slices
        frames, depth, rows, columns = scans[0].shape
        count = len(scans)
        self.shape = (frames, count, rows, columns) if slices else (count, depth, rows, columns)
        self.dtype = np.result_type(*(scan.pixels.dtype for scan in scans))

    def frame(self, t: int) -> np.ndarray:
        if not 0 <= t < self.shape[0]:
            raise IndexError(f"frame {t} of {self.shape[0]}")
        if self._slices:
            return np.concatenate([scan.frame(t) for scan in self._scans])
        return self._scans[t].frame(0)


def find_parts(folder: Path) -> list[Path]:
    """NIfTI files of a folder whose names differ in their last number alone, in its order; else none.

    None either where the number tells people, visits or days apart by the word before it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("q_t225.nii.gz", "q_t0.nii.gz", "q_t1350.nii.gz"):
    ...     (folder / name).touch()
    >>> [file.name for file in find_parts(folder)]
    ['q_t0.nii.gz', 'q_t225.nii.gz', 'q_t1350.nii.gz']
    """
    listed = folder.iterdir() if folder.is_dir() else ()
    files = [f for f in listed if re.search(r"(?i)\.nii(\.gz)?$", f.name) and f.name[0] != "."]
    numbered = [(int(found[1]), f) for f in files if (found := NUMBER.search(f.name))]
    stems = {NUMBER.sub("", f.name) for f in files}
    if len(files) < 2 or len(numbered) < len(files) or len(stems) > 1 or len(dict(numbered)) < len(files):
        return []
    dated = all(DATE.fullmatch(str(number)) for number, _ in numbered)
    return [] if dated or _word(files[0]) in PEOPLE_WORDS else [file for _, file in sorted(numbered)]


def _word(file: Path) -> str:
    """The word before a file's number, in small letters.

    >>> _word(Path("heart_T07.nii.gz")), _word(Path("P01_slice-3.nii")), _word(Path("07.nii"))
    ('t', 'slice', '')
    """
    found = re.search(r"([A-Za-z]+)[ _\-]*$", NUMBER.split(file.name)[0])
    return found[1].lower() if found else ""


def say_parts(files: Sequence[Path]) -> bool:
    """Whether names say that files are frames or slices."""
    return _word(files[0]) in (*FRAME_WORDS, *SLICE_WORDS)


def _are_alike(scans: Sequence[Scan]) -> bool:
    """Whether neighbors show the same, as frames of a heart do; by a few of them."""
    pairs = list(pairwise(scans))
    found = []
    for at in sorted({round(i) for i in np.linspace(0, len(pairs) - 1, MOST_PAIRS)}):
        one, other = (scan.frame(0)[..., ::2, ::2].ravel().astype(np.float32) for scan in pairs[at])
        if np.ptp(one) > 0 < np.ptp(other):
            found.append(float(np.corrcoef(one, other)[0, 1]))
    return bool(found) and float(np.median(found)) > ALIKE


def read_parts(files: Sequence[Path], *, frame_time_ms: float | None = None) -> Scan:
    """The scan that files of one frame or of one slice each make together.

    Args:
        files: in the order of the frames; see `find_parts`.
        frame_time_ms: time between frames, where the files do not tell.

    Raises:
        InputError: a file cannot be read, or they are neither.
    """
    folder, scans = files[0].parent, [read_nifti(file) for file in files]
    step = np.array([scan.affine[:3, 3] - scans[0].affine[:3, 3] for scan in scans])
    turned = max(np.abs(scan.affine[:3, :2] - scans[0].affine[:3, :2]).max() for scan in scans)
    if len({scan.shape for scan in scans}) > 1 or turned * max(scans[0].shape[2:]) > SAME_MM:
        raise _no_parts(files, "differ in size or direction")
    if is_orientation_lost(scans[0].source.affine, scans[0].source.shape):  # of many patients, all are at 0
        raise _no_parts(files, "do not say where they lie")
    note = f"{len(files)} files, {files[0].name} to {files[-1].name}, are"
    if np.abs(step).max() < SAME_MM and scans[0].shape[0] == 1:
        if _word(files[0]) in SLICE_WORDS:
            raise _no_parts(files, "are called slices, yet lie in one place")
        if _word(files[0]) not in FRAME_WORDS and not _are_alike(scans):
            raise _no_parts(files, "do not look like frames of one heart")
        note = f"{note} frames, in the order of their numbers"
        order, slices, affine = list(range(len(files))), False, scans[0].affine
    elif scans[0].shape[1] == 1:
        order, affine = _stack(files, scans, step)
        note, slices = f"{note} slices, in the order of their positions", True
    else:
        raise _no_parts(files, "are neither frames of one place nor single slices")
    pixels = PartPixels([scans[i] for i in order], slices=slices)
    times = scans[0].frame_times_ms if slices else None
    source = Source(path=folder, affine=affine, shape=pixels.shape[1:], notes=(note,), parts=tuple(files))
    joined = Scan(pixels=pixels, affine=affine, frame_times_ms=times, source=source)
    return joined if frame_time_ms is None else joined.with_times(frame_time_ms)


def _stack(files: Sequence[Path], scans: Sequence[Scan], step: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Order of single slices along their normal, and the affine of the stack."""
    affine = scans[0].affine.copy()
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    depth = step @ normal
    order = np.argsort(depth).tolist()
    aside = np.linalg.norm(step - depth[:, None] * normal, axis=1)
    if np.diff(np.sort(depth)).min() < SAME_MM:
        raise _no_parts(files, "hold a slice twice")
    if not is_even(np.sort(depth)):
        raise _no_parts(files, "lie at uneven distances: a slice is missing")
    if np.diff(aside[order]).max() > SHEAR * min(scans[0].spacing_mm[1:]):
        raise _no_parts(files, "do not lie above one another")
    affine[:3, 3] = scans[order[0]].affine[:3, 3]
    affine[:3, 2] = (step[order[-1]] - step[order[0]]) / (len(files) - 1)
    return order, affine


def _no_parts(files: Sequence[Path], why: str) -> InputError:
    return InputError(
        f"{files[0].parent}: {name_some([f.name for f in files], 3)} {why}, so they are not joined; give "
        "one of them, or index the folder first and give the cohort table"
    )
