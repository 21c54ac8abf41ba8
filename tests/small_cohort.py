"""A small cohort of drawn hearts, its predictions, and how they are judged."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.cohort import new_cohort
from fewbeats.evaluation.evaluate import evaluate

SPACING_MM = (8.0, 1.5, 1.5)
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])
SHAPE = (5, 40, 44)
STRUCTURES = ("LV", "MYO", "RV")
ACDC = {"LV": 3, "MYO": 2, "RV": 1}


def heart(radius: float, *, shift: int = 0) -> dict[str, np.ndarray]:
    """Structure -> (Z, Y, X) mask: round cavity, ring of muscle, RV beside it."""
    z, y, x = np.indices(SHAPE)
    far = np.hypot(y - 20, x - 24 - shift)
    inside = (z > 0) & (z < 4)
    rv = (np.hypot(y - 20, x - 10 - shift) < radius) & (far >= radius + 4)
    return {
        "LV": inside & (far < radius),
        "MYO": inside & (far >= radius) & (far < radius + 4),
        "RV": inside & rv,
    }


def save(path: Path, frames: list[np.ndarray], *, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.stack(frames).T if len(frames) > 1 else frames[0].T
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def labels(masks: dict[str, np.ndarray], values: dict[str, int]) -> np.ndarray:
    out = np.zeros(SHAPE, np.uint8)
    for structure, mask in masks.items():
        out[mask] = values[structure]
    return out


def gray(masks: dict[str, np.ndarray]) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    return (100 + 300 * masks["LV"] + 250 * masks["RV"] - 40 * masks["MYO"] + noise).astype(np.int16)


class Cohort:
    """Files and rows of a small cohort with its predictions, built one scan at a time."""

    def __init__(self, folder: Path):
        self.folder, self.predictions = folder, folder / "predictions"
        self.rows: list[dict] = []
        self.predicted: list[dict] = []
        self.run = {
            "structures": list(STRUCTURES),
            "seconds": 3.5,
            "peak_memory_mb": 300,
            "labeled_subjects": ["t1"],
            "config": {"training": {"steps": 10, "pool": "/home/someone/cohort.csv"}},
        }

    def add(self, scan: str, predicted: list[np.ndarray], manual: list[np.ndarray] | None, **about) -> None:
        truth = [gray(heart(8)) for _ in predicted]
        image = save(self.folder / "DOE_JANE" / f"{scan}.nii.gz", truth)
        mask = save(self.predictions / "masks" / f"{scan}.nii.gz", predicted)
        label = save(self.folder / "labels" / f"{scan}.nii.gz", manual) if manual else None
        ends, warnings = about.pop("ends", ("", "")), about.pop("warnings", "")
        self.predicted.append({
            "scan": scan, "subject": about["subject"], "image": str(image), "mask": f"masks/{mask.name}",
            "ed_frame": ends[0], "es_frame": ends[1], "warnings": warnings, "seconds": 0.5,
        })  # fmt: skip
        self.rows.append({
            "scan": scan, "study": "", "frame": None, "phase": None, "view": "SAX", "image": str(image),
            "label": label and str(label), "label_frames": None, "convention": "acdc", "split": "dev",
            "group": "NOR", "height_cm": None, "weight_kg": None, "spacing_trusted": None, **about,
        })  # fmt: skip

    def add_pair(self, subject: str, *, shift: int = 0, drop: str = "", **about) -> None:
        """ED and ES as single files; the prediction is shifted, and may lack a structure at ES."""
        for frame, (phase, radius) in enumerate((("ED", 9.0), ("ES", 6.0))):
            found = heart(radius, shift=shift)
            if drop and phase == "ES":
                found.pop(drop)
            predicted, manual = labels(found, FEWBEATS_VALUES), labels(heart(radius), ACDC)
            self.add(
                f"{subject}_{phase}",
                [predicted],
                [manual],
                subject=subject,
                phase=phase,
                frame=frame,
                **about,
            )

    def add_cine(self, subject: str, *, manual: list[np.ndarray] | None = None, **about) -> None:
        """A 4D scan of 6 frames that contracts and relaxes."""
        frames = [labels(heart(r), FEWBEATS_VALUES) for r in (9, 8, 6, 6.5, 7, 8)]
        self.add(f"{subject}_4d", frames, manual, subject=subject, ends=(0, 2), **about)

    def write(self) -> tuple[Path, pl.DataFrame]:
        pl.DataFrame(self.predicted).write_csv(self.predictions / "predictions.csv")
        (self.predictions / "run.json").write_text(json.dumps(self.run))
        return self.predictions, new_cohort(self.rows)


def volume_ml(mask: np.ndarray) -> float:
    return mask.sum() * 8.0 * 1.5 * 1.5 / 1000


def empty_cohort(tmp_path) -> Cohort:
    return Cohort(tmp_path)


def judge(cohort: Cohort) -> tuple[dict, pl.DataFrame, pl.DataFrame, str]:
    out = cohort.folder / "out"
    summary = evaluate(*cohort.write(), out)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    tables = (pl.read_csv(out / f"{name}.csv") for name in ("subjects", "clinical"))
    return summary, *tables, (out / "report.html").read_text()
