"""Cohorts of phantoms on disk, as ordinary NIfTI files and a table of the truth."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fewbeats.heartbeat import ejection_fraction_percent
from fewbeats.io.nifti import frame_step_ms, write_frames, write_scan
from fewbeats.phantom.anatomy import Anatomy
from fewbeats.phantom.exam import EXAM, make_exam, with_scar
from fewbeats.phantom.pig import GROUPS as PIGS
from fewbeats.phantom.pig import make_pig
from fewbeats.phantom.randomized import random_subject
from fewbeats.phantom.scan import PhantomSettings, frame_phases, make_scan, truth_ml
from fewbeats.phantom.subject import GROUPS, make_subject
from fewbeats.scan import Scan


def cohort_subject(settings: PhantomSettings, index: int) -> Anatomy:
    """Subject number `index` of a cohort."""
    seed = int(np.random.SeedSequence([settings.seed, index]).generate_state(1)[0])
    if settings.contrast == "any":
        return random_subject(seed)
    if settings.species == "pig":
        return make_pig(seed, group=PIGS[index % len(PIGS)], gap=settings.gap)
    return make_subject(seed, group=GROUPS[index % len(GROUPS)])


def write_cohort(
    out: Path, settings: PhantomSettings, *, exam: bool = False, jobs: int = 1
) -> list[dict[str, Any]]:
    """Write `images/NAME_4d.nii.gz`, `labels/NAME_4d.nii.gz` and `subjects.csv` under `out`.

    Args:
        out: the folder.
        settings: which subjects.
        exam: all scans of an exam, NAME_SEQUENCE_VIEW_4d.nii.gz, and `scans.csv`, which tells what they are;
            every second heart has a scar.
        jobs: processes that make them; what they make does not depend on it.

    Returns:
        The rows of `subjects.csv`: subject, group, height_cm, weight_kg, cycle_ms, ed_frame, es_frame, and
        exactly at those frames lv_edv_ml, lv_esv_ml, lv_ef_percent, the same for rv, and myo_ml.
    """
    import polars as pl

    write, indices = partial(_write_subject, out, settings, exam=exam), range(settings.subjects)
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            rows = list(pool.map(write, indices))
    else:
        rows = [write(index) for index in indices]
    pl.DataFrame(rows).write_csv(out / "subjects.csv")
    if exam:
        scans = [
            {"scan": _scan_name(row["subject"], *kind), "subject": row["subject"], "sequence": kind[0],
             "view": kind[1]}
            for row in rows for kind in EXAM
        ]  # fmt: skip
        pl.DataFrame(scans).write_csv(out / "scans.csv")
    return rows


def _scan_name(subject: str, sequence: str, view: str) -> str:
    return f"{subject}_{sequence}_{view}_4d"


def _write_subject(out: Path, settings: PhantomSettings, index: int, *, exam: bool) -> dict[str, Any]:
    subject, name = cohort_subject(settings, index), f"phantom{index:03d}"
    if exam:
        subject = with_scar(subject) if index % 2 else subject
        for sequence, view, scan, mask in make_exam(subject, settings):
            _write_scan(out, _scan_name(name, sequence, view), scan, mask)
        return {"subject": name, **_describe(subject, settings), "scar": "yes" if index % 2 else "no"}
    _write_scan(out, f"{name}_4d", *make_scan(subject, settings))
    return {"subject": name, **_describe(subject, settings)}


def _write_scan(out: Path, name: str, scan: Scan, mask: np.ndarray) -> None:
    write_scan(out / "images" / f"{name}.nii.gz", scan)
    write_frames(
        out / "labels" / f"{name}.nii.gz",
        mask,
        affine=scan.affine,
        shape=scan.shape,
        dtype=mask.dtype,
        frame_time_ms=frame_step_ms(scan),
    )


def _describe(subject: Anatomy, settings: PhantomSettings) -> dict[str, Any]:
    truth = truth_ml(subject, frame_phases(subject, settings))
    ed, es = int(truth["LV"].argmax()), int(truth["LV"].argmin())
    row: dict[str, Any] = {
        "group": subject.group,
        "height_cm": subject.height_cm,
        "weight_kg": subject.weight_kg,
        "cycle_ms": round(subject.cycle_ms, 1),
        "ed_frame": ed,
        "es_frame": es,
    }
    for name in ("LV", "RV"):
        full, empty = float(truth[name][ed]), float(truth[name][es])
        row[f"{name.lower()}_edv_ml"] = round(full, 2)
        row[f"{name.lower()}_esv_ml"] = round(empty, 2)
        row[f"{name.lower()}_ef_percent"] = round(ejection_fraction_percent(full, empty) or 0.0, 2)
    return row | {"myo_ml": round(float(truth["MYO"][ed]), 2)}
