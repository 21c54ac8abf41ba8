"""Phantoms that may be spoiled, and ways to spoil them."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from conftest import TINY

SHORT = ("--steps=2", "--localizer-steps=2", *TINY)


def files_below(folder: Path) -> set[Path]:
    return {f for f in folder.rglob("*") if f.is_file()} if folder.is_dir() else set()


def copy_phantoms(phantoms, tmp_path) -> Path:
    """A copy of the phantoms that may be spoiled."""
    shutil.copytree(phantoms.parent / "source", tmp_path / "source")
    shutil.copy(phantoms, tmp_path / "cohort.csv")
    return tmp_path / "cohort.csv"


def image_of(cohort: Path, number: int = 0) -> Path:
    return cohort.parent / "source" / "images" / f"phantom{number:03d}_4d.nii.gz"


def label_of(cohort: Path, number: int = 0) -> Path:
    return cohort.parent / "source" / "labels" / f"phantom{number:03d}_4d.nii.gz"


def rewrite(path: Path, change, *, affine=None) -> None:
    """Change the array of a NIfTI file."""
    stored = nib.load(path)
    nib.save(
        nib.Nifti1Image(
            change(stored.get_fdata(dtype=np.float32)), stored.affine if affine is None else affine
        ),
        path,
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_value(value, where):
    def change(array):
        array[where] = value
        return array

    return change


def colored(path: Path) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(nib.load(path).shape[:3], dtype), np.eye(4)), path)
