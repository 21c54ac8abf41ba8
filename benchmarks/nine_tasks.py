"""Cohorts of the nine tasks, and what can be told without looking at a heart.

    python benchmarks/nine_tasks.py --data DATA --out runs cohorts
    fewbeats study configs/nine_tasks.yaml
    python benchmarks/nine_tasks.py --data DATA --out runs classes
    python benchmarks/nine_tasks.py --data DATA --out runs real
    python benchmarks/nine_tasks.py --data DATA --out runs confounds

`cohorts` writes acdc.csv and emidec.csv (real scans; their training subjects also apart), exams.csv (phantoms
that are judged, of other settings than those that are learned from), pool.csv, which the encoders see, and
pool_scans.csv, the same without phantoms.
`classes` keeps what the study's networks said of each visit and of slices, and prints more than accuracy.
`real` asks the study's networks of sequences, whose labels are of phantoms alone, of real scans; encoders
that were pretrained here have seen those of cine4d, pig and volunteer.
`confounds` asks a linear model that sees geometry, gray values of whole slices and how these go along the
heart, and no more, for sequences, late enhancement and diseases, with the subjects that a network of the same
draw has; and one that sees where a slice lies and its gray values for late enhancement in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fewbeats.commands.finetune import Finetune
from fewbeats.data.cohort import join_cohorts, read_cohort, write_cohort
from fewbeats.data.files import open_scan
from fewbeats.evaluation.classes import Told, summarize_classes
from fewbeats.evaluation.tasks import judge_task, slice_truth
from fewbeats.finetuning.task import Task
from fewbeats.recipes.pools import rows_where
from fewbeats.study.budget import name_budget
from fewbeats.study.many import read_plans
from fewbeats.study.plan import Plan
from fewbeats.study.units import Unit, arms_of, cohort_of, predicted, trainer_of
from fewbeats.training.rundir import machine
from record import ROWS, append, call, is_recorded

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "nine_tasks.yaml"
TABLE = "confounds.csv"
TWIN = "Case_P072"
"""The heart of Case_P059 once more."""
TASKS = ("sequence", "lge_detection", "disease")
TOLD = "nine_tasks_told.csv"
CONFOUND = "position and gray values"
LEVELS = ("study", "slice within")
REAL = "sequences_real.csv"
SEQUENCES = {"acdc": "cine", "emidec": "lge", "cine4d": "cine", "pig": "cine"}
"""What the real scans are of; those of the volunteer are named as theirs."""
PERCENTILES = (5, 25, 50, 75, 95)


def main() -> None:
    """Carry out what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of acdc, emidec, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for cohorts")
    parser.add_argument("what", choices=["cohorts", "classes", "real", "confounds"])
    given = parser.parse_args()
    if given.what == "cohorts":
        make_cohorts(given.data, given.out)
        return
    for plan in read_plans(CONFIG):
        if given.what == "real" and plan.name == "sequence":
            judge_real(plan, given.out)
        if given.what == "confounds" and plan.name in TASKS:
            judge_confounds(plan)
            keep_slice_confounds(plan)
        if given.what == "classes" and plan.folds:
            keep_classes(plan)
            print_classes(plan.name)


def make_cohorts(data: Path, out: Path) -> None:
    """Write the tables; phantoms are made where they are not there."""
    splits = data / "splits"
    index = {
        "acdc": (data / "acdc", "acdc", "--split", splits / "acdc_study.csv"),
        "emidec": (data / "emidec", "folder", "--convention", "emidec", "--split", splits / "emidec.csv"),
        "cine4d": (data / "cine4d", "folder", "--convention", HERE / "cine4d_convention.csv"),
        "pig": (data / "preclinical", "folder"),
        "volunteer": (data / "lge_t1_dicom", "dicom"),
    }
    for name, (folder, layout, *flags) in index.items():
        call("index", folder, "--layout", layout, *flags, "--out", out / f"{name}.csv")
    emidec = read_cohort(out / "emidec.csv").filter(pl.col("subject") != TWIN)
    infarct = pl.col("subject").str.starts_with("Case_P")
    group = pl.when(infarct).then(pl.lit("infarct")).otherwise(pl.lit("normal"))
    write_cohort(emidec.with_columns(group=group), out / "emidec.csv")
    for name in ("acdc", "emidec"):  # of which rates are asked
        learners = read_cohort(out / f"{name}.csv").filter(pl.col("split") == "train")
        write_cohort(learners, out / f"{name}_train.csv")
    exams = {  # judged: another scanner's contrast, smaller pixels, other subjects
        "exams": ("--subjects", 48, "--seed", 7, "--contrast", "dark", "--pixel-mm", 1.3, 1.5),
        "exams_seen": ("--subjects", 24, "--seed", 70, "--contrast", "bright", "--pixel-mm", 1.6, 2.0),
    }
    for name, flags in exams.items():
        if not (out / name).is_dir():
            call("phantom", out / name, "--exam", "--frames", 4, "--matrix", 128, *flags)
        draw = (0.5, 0.1, 0.4) if name == "exams" else (1, 0, 0)
        call("index", out / name, "--layout", "phantom", "--draw", *draw, "--out", out / f"{name}.csv")
    learned = {}
    for name in ("acdc", "emidec", "cine4d", "pig", "volunteer", "exams_seen"):
        table = read_cohort(out / f"{name}.csv").with_columns(pl.col("split").fill_null("train"))
        learned[name] = table.filter(pl.col("split") == "train")
    others = pl.concat([learned.pop(name) for name in ("cine4d", "pig", "volunteer")], how="diagonal")
    write_cohort(join_cohorts({**learned, "others": others}, apart=True), out / "pool.csv")
    del learned["exams_seen"]
    write_cohort(join_cohorts({**learned, "others": others}, apart=True), out / "pool_scans.csv")


def keep_classes(plan: Plan) -> None:
    """What the arms of a study said that lie here and are not kept yet: a row an item."""
    for unit in arms_of(plan):
        answers = predicted(plan, Path(trainer_of(plan, unit).out))
        key = {"task": plan.name, "arm": unit.name, "labeled": unit.labeled, "seed": unit.seed}
        if is_recorded(TOLD, **key) or not (answers / "report" / "summary.json").is_file():
            continue
        told = judge_task(answers, read_cohort(cohort_of(plan, unit.seed))).told
        for level in LEVELS:
            if level in told:
                keep(told[level], {**key, "level": level})


def keep(told: Told, key: dict[str, Any]) -> None:
    """A row an item."""
    rows = [
        {**key, "subject": subject, "truth": int(truth), "shares": " ".join(f"{s:.4f}" for s in shares)}
        for subject, truth, shares in zip(told.subject, told.truth, told.shares)
    ]
    append(TOLD, pl.DataFrame(rows))


def print_classes(task: str) -> None:
    """Figures of each arm and budget, over the items of all its folds, with intervals over subjects."""
    rows = pl.read_csv(ROWS / TOLD).filter(pl.col("task") == task)
    for (level, labeled, arm), own in rows.group_by("level", "labeled", "arm", maintain_order=True):
        shares = np.array([[float(share) for share in text.split()] for text in own["shares"]])
        names = tuple(map(str, range(shares.shape[1])))
        told = Told(
            classes=names, subject=own["subject"].to_numpy(), truth=own["truth"].to_numpy(), shares=shares
        )
        found = summarize_classes(told)
        print(f"{task} {level}, {name_budget(labeled)} labeled, {arm}, {own['seed'].n_unique()} folds:")
        for name in ("accuracy", "balanced_accuracy", "macro_auc", "calibration_error"):
            low, high = found[name]["ci95"]
            print(f"    {name} {found[name]['value']:.3f} ({low:.3f} to {high:.3f})")


def judge_real(plan: Plan, out: Path) -> None:
    """Rows a source: the share of its slices whose sequence each network of the study told."""
    tables = {name: read_cohort(out / f"{name}.csv") for name in (*SEQUENCES, "volunteer")}
    judged = pl.col("split").fill_null("dev") == "dev"
    named = [
        table.filter(judged).with_columns(
            source=pl.lit(name),
            sequence=pl.lit(SEQUENCES[name]) if name in SEQUENCES else pl.col("subject"),
        )
        for name, table in tables.items()
    ]
    real = pl.concat(named, how="diagonal")
    cohort = out / "sequences.csv"
    write_cohort(real, cohort)
    known = read_cohort(cohort)
    sources = dict(real.select("subject", "source").iter_rows())
    for unit in arms_of(plan):
        run = Path(trainer_of(plan, unit).out)
        key = {"arm": unit.name, "labeled": unit.labeled, "seed": unit.seed}
        if is_recorded(REAL, **key) or not (run / "run.json").is_file():
            continue
        answers = run.with_name(f"{run.name}_real")
        call("predict", run, cohort, "--out", answers)
        told = judge_task(answers, known).told["slice"]
        right = pl.DataFrame({"subject": told.subject, "right": (told.found == told.truth).astype(float)})
        shares = (
            right.with_columns(source=pl.col("subject").replace_strict(sources))
            .group_by("source", maintain_order=True)
            .agg(pl.len().alias("slices"), pl.col("right").mean().round(5))
        )
        append(REAL, pl.DataFrame([{**key, **row} for row in shares.iter_rows(named=True)]))


def judge_confounds(plan: Plan) -> None:
    """Rows of each draw of a study's baseline."""
    for unit in arms_of(plan):
        if unit.name == plan.baseline:
            key = {"task": plan.name, "labeled": unit.labeled, "seed": unit.seed}
            if not is_recorded(TABLE, **key):
                append(TABLE, pl.DataFrame([{**key, **row} for row in judge_draw(plan, unit)]))


def judge_draw(plan: Plan, unit: Unit) -> list[dict[str, Any]]:
    """One row a subject: whether the class of its study (else the share of its scans) was told."""
    trainer = trainer_of(plan, unit)
    assert isinstance(trainer, Finetune)
    task = trainer.from_file
    assert task is not None
    cohort = read_cohort(cohort_of(plan, unit.seed))
    told = pl.col(task.column).is_in(list(task.classes))
    judged = rows_where(cohort, task.where).filter(pl.col("split") == plan.split, told)
    x, y = look_at(trainer.choose().labeled, task.column)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(x, y)
    own, truth = look_at(judged, task.column)
    right = judged.with_columns(right=pl.Series(model.predict(own) == truth).cast(pl.Float64))
    studies = right.group_by("subject", "study", maintain_order=True).agg(pl.col("right").mean())
    subjects = studies.group_by("subject", maintain_order=True).agg(pl.col("right").mean())
    about = {"machine": machine(), "date": date.today().isoformat()}
    return [{"subject": subject, "accuracy": value, **about} for subject, value in subjects.iter_rows()]


def look_at(rows: pl.DataFrame, column: str) -> tuple[np.ndarray, Sequence[str]]:
    """(N, F) what is seen of each scan, and its class."""
    return np.stack([see(row) for row in rows.iter_rows(named=True)]), rows[column].to_list()


def keep_slice_confounds(plan: Plan) -> None:
    """What a linear model tells of slices in hearts that hold late enhancement, beside the networks."""
    for unit in arms_of(plan):
        key = {"task": plan.name, "arm": CONFOUND, "labeled": unit.labeled, "seed": unit.seed}
        if unit.name != plan.baseline or is_recorded(TOLD, **key):
            continue
        trainer = trainer_of(plan, unit)
        assert isinstance(trainer, Finetune)
        task = trainer.from_file
        if task is None or not task.present:
            continue
        cohort = read_cohort(cohort_of(plan, unit.seed)).filter(pl.col("label").is_not_null())
        x, y, _ = look_at_slices(task, trainer.choose().labeled)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(x, y)
        x, y, subject = look_at_slices(task, cohort.filter(pl.col("split") == plan.split))
        holding = np.isin(subject, subject[y == 1])
        told = Told(classes=task.slice_classes, subject=subject[holding], truth=y[holding],
                    shares=model.predict_proba(x[holding]))  # fmt: skip
        keep(told, key | {"level": "slice within"})


def look_at_slices(task: Task, rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, F) what is seen of each slice with a mask, (N,) its class and (N,) its subject."""
    known = {row["scan"]: row for row in rows.iter_rows(named=True)}
    truth = slice_truth(task, set(known), known)
    seen = {name: see_slices(open_scan(row).frame(0)) for name, row in known.items()}
    x = []
    for name, _, z in truth:
        heights, grays, _ = seen[name]
        x.append(np.array([heights[z], heights[z] ** 2, *grays[z]]))
    subject = np.array([known[name]["subject"] for name, _, _ in truth])
    return np.stack(x), np.array([task.slice_classes.index(told) for told in truth.values()]), subject


def see_slices(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of (Z, Y, X): (Z,) where slices lie, (Z, F) their gray values as shares of the scan's own, and that."""
    scale = max(1e-6, float(np.percentile(image, 99)))
    slices = np.stack([[*np.percentile(z, PERCENTILES), z.mean(), z.std()] for z in image]) / scale
    heights = np.linspace(-1, 1, len(slices)) if len(slices) > 1 else np.zeros(1)
    return heights, slices, scale


def see(row: dict[str, Any]) -> np.ndarray:
    """(F,) geometry of a scan, and how its slices' gray values go along the heart."""
    image = open_scan(row).frame(0)
    geometry = [row[name] or 0 for name in ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm", "slices", "rows",
                                            "columns", "frames")]  # fmt: skip
    heights, slices, scale = see_slices(image)
    slope = (heights[:, None] * (slices - slices.mean(0))).mean(0)
    return np.array([*geometry, scale, *slices.mean(0), *slices.std(0), *slope])


if __name__ == "__main__":
    main()
