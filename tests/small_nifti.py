"""Small NIfTI files of noise and of masks, for cohorts."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

from fewbeats.anatomy import whole_labels
from fewbeats.io.nifti import read_nifti

SHAPE = (4, 10, 12)  # (Z, Y, X)
suffixes = st.sampled_from([".nii", ".nii.gz"])
AFFINE = np.array([[1.4, 0, 0, 5], [0, 1.4, 0, 6], [0, 0, 8.0, 7], [0, 0, 0, 1]])


def image(path, frames=None, *, affine=AFFINE, seed=0, shape=SHAPE):
    """A NIfTI of noise, 4D when `frames` is given."""
    size = shape if frames is None else (frames, *shape)
    return save(path, np.random.default_rng(seed).integers(1, 900, size).astype(np.int16), affine=affine)


def label(path, frames=None, *, values=(1, 2, 3), drawn=None, affine=AFFINE, shape=SHAPE):
    """A mask with a block of each value, on frames `drawn` or all."""
    mask = np.zeros((frames or 1, *shape), np.uint8)
    for t in range(frames or 1) if drawn is None else drawn:
        for i, value in enumerate(values):
            mask[t, 1:3, 2 + i, 2:8] = value
    return save(path, mask if frames else mask[0], affine=affine)


def save(path, array, *, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, affine), path)
    return path


def read_labels(path):
    """All frames of a label map (T, Z, Y, X), in canonical orientation."""
    scan = read_nifti(path)
    return np.stack([whole_labels(scan.frame(t), file=path) for t in range(scan.shape[0])])


def replace_unnoticed(path, array, *, affine=AFFINE):
    """Other pixels in a file, its size and the time of its content kept."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems tick in milliseconds
        save(path, array, affine=affine)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def rows_of(cohort):
    return {row["scan"]: row for row in cohort.iter_rows(named=True)}


def exact_values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Random numbers of the type that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 500, shape).astype("f4").astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -(2**24)), min(limits.max, 2**24), shape, endpoint=True, dtype=dtype)


def save_plain(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A (T, Z, Y, X) or (Z, Y, X) array with nibabel."""
    nib.save(nib.Nifti1Image(array.T, np.diag([1.5, 1.5, 8, 1]) if affine is None else affine), path)
    return path


def gzip_of(array: np.ndarray) -> bytes:
    """A packed NIfTI file, the same each time."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        file.write(nib.Nifti1Image(array.T, np.eye(4)).to_bytes())
    return stream.getvalue()


def nifti_folder(tmp_path_factory) -> Path:
    """One folder for the examples of many tests."""
    return tmp_path_factory.mktemp("nifti")
