"""The command that predicts, as a user runs it, and what it finds in a cine."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl

from fewbeats.cli import main


def predict(run, path, out, *flags) -> list[dict]:
    """Rows of predictions.csv."""
    assert main(["predict", str(run), str(path), f"--out={out}", *map(str, flags)]) == 0
    return pl.read_csv(out / "predictions.csv", infer_schema=False).rows(named=True)


def find_cine(phantoms) -> Path:
    """The cine that is predicted."""
    return phantoms.parent / "source" / "images" / "phantom004_4d.nii.gz"


def predict_cine(phantoms, small_run, tmp_path_factory) -> np.ndarray:
    """Mask of that cine, (x, y, z, t)."""
    out = tmp_path_factory.mktemp("expected")
    predict(small_run, phantoms.parent / "source" / "images" / "phantom004_4d.nii.gz", out)
    mask = np.asarray(nib.load(out / "phantom004_4d.nii.gz").dataobj)
    assert all((mask == value).sum() > 50 for value in (1, 2, 3)), "the network must find something"
    return mask


def masks_of(folder: Path, name: str):
    return nib.load(folder / f"{name}.nii.gz")
