"""Which teacher is worth learning from: ranked without labels and, with some, by Dice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.evaluation.predictions import PredictedScan, read_predictions
from fewbeats.inference.compose import Cleaned
from fewbeats.inference.labeler import Labeler
from fewbeats.io.nifti import read_nifti
from fewbeats.metrics import dice
from fewbeats.recipes.jobs import Job
from fewbeats.recipes.labeling import label_scans
from fewbeats.self_training.filters import FilterSettings, Species, find_reasons, quality
from fewbeats.self_training.frames import judge, motion, tabulate_frames
from fewbeats.self_training.rounds import LEAST_QUALITY

TABLE = "audit.csv"


def audit_teachers(
    out: Path,
    jobs: Sequence[Job],
    teachers: Mapping[str, Labeler],
    cohort: pl.DataFrame,
    *,
    species: Species = "any",
    tell: Callable[[str], None] = print,
) -> pl.DataFrame:
    """Label scans with each teacher, and rank the teachers.

    Args:
        out: folder; each teacher's masks lie in `teacherN`, the table in `audit.csv`.
        jobs: the scans.
        teachers: spec -> labeler.
        cohort: whose manual labels judge, where it has some.
        species: whose volumes are plausible.
        tell: is given one line a teacher.

    Returns:
        one row a teacher, best first by `score`: scans, failed, plausibility (`filters.quality`), usable
        (share of frames with no reason against them), roughness_ml, stroke_ml, ejection_percent, agreement
        (mean Dice with the others), score (mean of plausibility and agreement), dice (with manual labels).

    Raises:
        InputError: no teacher labels a scan.
    """
    rows, folders = list[dict[str, Any]](), dict[str, Path]()
    all_but_one = (len(jobs) - 1) / len(jobs)
    for number, (spec, teacher) in enumerate(teachers.items(), 1):
        folder, about = out / f"teacher{number}", {"teacher": spec}
        quiet: Callable[[str], None] = lambda line: None  # noqa: E731
        try:
            failed = label_scans(
                jobs, Cleaned(teacher), folder, about=about, most_failed=all_but_one, tell=quiet
            )
        except InputError as error:
            tell(f"{spec}: {error}")
            continue
        folders[spec] = folder
        rows.append({"teacher": spec, **look_at_teacher(folder, cohort, species), "failed": len(failed)})
    if not rows:
        raise InputError(f"{out}: no teacher labels any of these scans; the lines above say why")
    agreement = agree(folders)
    for row in rows:
        row["agreement"] = agreement.get(row["teacher"])
        parts = [row["plausibility"], *([] if row["agreement"] is None else [row["agreement"]])]
        row["score"] = float(np.mean(parts))
    table = pl.DataFrame(rows, infer_schema_length=None).sort("score", descending=True)
    table.write_csv(out / TABLE)
    for row in table.iter_rows(named=True):
        tell(tell_teacher(row))
    if told := tell_rank(table):
        tell(told)
    return table


def look_at_teacher(folder: Path, cohort: pl.DataFrame, species: Species) -> dict[str, Any]:
    """What a folder of a teacher's masks is like; see `audit_teachers`."""
    table = tabulate_frames(folder)
    reasons = find_reasons(table, FilterSettings(qc=True, species=species, temporal=True))
    frames = table.select("scan", "frame").n_unique()
    moved, judged = list(motion(table).values()), judge(folder, cohort)["dice"]
    figures = {
        name: [one[name] for one in moved] for name in ("roughness_ml", "stroke_ml", "ejection_percent")
    }
    return {
        "scans": table["scan"].n_unique(),
        "plausibility": float(quality(table, species)["score"].mean()),  # type: ignore[arg-type]
        "usable": 1 - reasons.select("scan", "frame").n_unique() / frames,
        **{name: float(np.mean(values)) if values else None for name, values in figures.items()},
        "dice": None if judged.is_empty() else float(judged.mean()),  # type: ignore[arg-type]
    }


def agree(folders: Mapping[str, Path]) -> dict[str, float]:
    """Teacher -> mean Dice with each other one, over scans, frames and the structures of both."""
    scans = {spec: {one.scan: one for one in read_predictions(folder)[0]} for spec, folder in folders.items()}
    found: dict[str, list[float]] = {spec: [] for spec in folders}
    for a, b in combinations(folders, 2):
        shared = [compare_scans(scans[a][name], scans[b][name]) for name in scans[a].keys() & scans[b].keys()]
        values = [value for value in shared if value is not None]
        if values:
            for spec in (a, b):
                found[spec].append(float(np.mean(values)))
    return {spec: float(np.mean(values)) for spec, values in found.items() if values}


def compare_scans(a: PredictedScan, b: PredictedScan) -> float | None:
    """Mean Dice of two masks of one scan, over frames and the structures of both; None without such."""
    structures = [FEWBEATS_VALUES[s] for s in a.structures if s in b.structures]
    one, other = read_nifti(a.mask), read_nifti(b.mask)
    values = []
    for t in range(one.shape[0]):
        first, second = one.frame(t), other.frame(t)
        values += [dice(first == value, second == value) for value in structures]
    return float(np.mean(values)) if values else None


def tell_teacher(row: Mapping[str, Any]) -> str:
    """A line for the terminal."""
    parts = [f"score {row['score']:.2f}", f"plausibility {row['plausibility']:.2f}"]
    if row["agreement"] is not None:
        parts.append(f"agrees {row['agreement']:.2f}")
    if row["dice"] is not None:
        parts.append(f"Dice {row['dice']:.3f}")
    parts.append(f"{100 * row['usable']:.0f} % of frames usable")
    if row["failed"]:
        parts.append(f"failed on {row['failed']} scans")
    if row["plausibility"] < LEAST_QUALITY:
        parts.append("too weak to start from")
    return f"{row['teacher']}: {', '.join(parts)}"


def tell_rank(table: pl.DataFrame) -> str:
    """How well the rank without labels goes with that by Dice; empty where no two teachers have both."""
    from scipy.stats import kendalltau

    both = table.filter(pl.col("dice").is_not_null())
    if min(both["score"].n_unique(), both["dice"].n_unique()) < 2:
        return ""
    tau = float(kendalltau(both["score"], both["dice"]).statistic)
    best, chosen = both.sort("dice", descending=True)["teacher"][0], both["teacher"][0]
    same = "the same teacher is first" if best == chosen else f"by Dice {best} is first"
    return f"rank without labels against rank by Dice: Kendall's tau {tau:.2f}, {same}"
