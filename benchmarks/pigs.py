"""From people to pigs without a label: a teacher that saw human phantoms, students on pigs, the truth.

    python benchmarks/pigs.py --work runs/pigs --gaps 0.5 1.0 1.5 --seeds 0
    python benchmarks/pigs.py --work runs/pigs --gaps 1.0 --seeds 1 2 3 4

The teacher is trained once, on CT of human phantoms. For each gap from person to pig and each seed a cohort
of pigs is drawn, 12 to learn from and 6 held out; two rounds of self-training never see a label. A row of
`rows/pigs.csv` is one figure of one held-out pig; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.cohort import read_cohort
from fewbeats.evaluation.temporal import beating
from fewbeats.heartbeat import ejection_fraction_percent, find_phases
from fewbeats.io.nifti import read_nifti
from fewbeats.metrics import dice
from fewbeats.training.rundir import machine
from record import append, call, is_recorded

TABLE = "pigs.csv"
STRUCTURES = ("LV", "MYO", "RV", "LA", "RA", "AO", "PA")
CT = ("--modality", "ct", "--matrix", 64, "--pixel-mm", 2.8, 3.2)
PIGS = 18
FRAMES = 8
NETWORK = (
    "--network.kind", "unet3d", "--network.base-channels", 8, "--network.levels", 4, "--network.isotropic",
    "--preprocess.spacing-mm", 3.5, "--preprocess.through-plane-mm", 3.5, "--preprocess.size", 48,
    "--slab-slices", 48, "--batch-size", 2, "--spatial.turned", 0, "--localizer-steps", 0,
)  # fmt: skip
TEACHER = ("--init", "scratch", "--optim.learning-rate", 3e-3, "--steps", 600)
STUDENT = ("--optim.learning-rate", 1e-3, "--steps", 300)
ROUNDS = 2


def main() -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gaps", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only-teacher", action="store_true", help="the gate: no student")
    parser.add_argument("--arm", default="plain", help="name of the student's rows")
    parser.add_argument(
        "--oracle", default="", help="kind of spoiled truth that teaches in place of a network"
    )
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of fewbeats selftrain")
    given = parser.parse_args()
    human = make_cohort(given.work / "human", subjects=24, frames=4, seed=100, draw=(1, 0, 0))
    teacher = given.work / "teacher"
    call("finetune", human, "--out", teacher, *NETWORK, *TEACHER)
    for gap in given.gaps:
        for seed in given.seeds:
            folder = given.work / f"gap{gap}_seed{seed}"
            pigs = ("--species", "pig", "--gap", gap)
            table = make_cohort(
                folder / "pigs", *pigs, subjects=PIGS, frames=FRAMES, seed=seed, draw=(2 / 3, 0, 1 / 3)
            )
            spec = f"oracle:{given.oracle}" if given.oracle else f"run:{teacher}"
            taught = folder / (given.oracle or "teacher")
            if given.oracle:
                call("audit", table, "--teacher", spec, "--split", "dev", "--out", taught)
                judge(None, table, taught / "teacher1", arm=f"oracle-{given.oracle}", gap=gap, seed=seed)
            else:
                judge(teacher, table, taught, arm="teacher", gap=gap, seed=seed)
            if given.only_teacher:
                continue
            rounds = folder / given.arm
            call(
                "selftrain", table, "--teacher", spec, "--rounds", ROUNDS, "--settled", 1,
                "--seed", seed, "--init", teacher, "--out", rounds, *NETWORK, *STUDENT, *given.flags,
            )  # fmt: skip
            best = json.loads((rounds / "self_training.json").read_text())["best"]
            if not best and given.oracle:
                continue  # its masks are judged
            run = rounds / "best" if best else teacher  # whose masks no student bettered
            judge(run, table, rounds / "held_out", arm=given.arm, gap=gap, seed=seed, best=best)


def make_cohort(folder: Path, *flags: Any, subjects: int, frames: int, seed: int, draw: Any) -> Path:
    """Phantoms and their table."""
    table = folder.with_suffix(".csv")
    if not table.is_file():
        call("phantom", folder, *CT, *flags, "--subjects", subjects, "--frames", frames, "--seed", seed)
        call("index", folder, "--layout", "phantom", "--draw", *draw, "--out", table)
    return table


def judge(
    run: Path | None, table: Path, masks: Path, *, arm: str, gap: float, seed: int, best: int = 0
) -> None:
    """Rows of every held-out pig; `best` is the round whose network it is; without a run masks are there."""
    key: dict[str, Any] = {"arm": arm, "gap": gap, "seed": seed}
    if is_recorded(TABLE, **key):
        return
    if run is not None:
        call("predict", run, table, "--split", "dev", "--out", masks)
    rows = []
    for scan in read_cohort(table).filter(pl.col("split") == "dev").iter_rows(named=True):
        found, truth = (read_masks(file) for file in (masks / f"{scan['scan']}.nii.gz", scan["label"]))
        voxel_ml = scan["spacing_z_mm"] * scan["spacing_y_mm"] * scan["spacing_x_mm"] / 1000.0
        for structure, metric, value in figures(found, truth, voxel_ml):
            rows.append({**key, "round": best, "subject": f"{seed}-{scan['subject']}", "group": scan["group"],
                         "structure": structure, "metric": metric, "value": round(value, 5),
                         "machine": machine(), "date": date.today().isoformat()})  # fmt: skip
    append(TABLE, pl.DataFrame(rows))


def read_masks(file: Path | str) -> np.ndarray:
    """(T, Z, Y, X) masks of a scan, in the `fewbeats` convention."""
    scan = read_nifti(file)
    return np.stack([scan.frame(t) for t in range(scan.shape[0])])


def figures(found: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Iterator[tuple[str, str, float]]:
    """What a heartbeat's masks (T, Z, Y, X) are worth: structure, figure, value.

    ED and ES are those of the LV, of the RV's volumes, too. What is nowhere found has no figures of time.
    """
    left = [(masks == FEWBEATS_VALUES["LV"]).sum((1, 2, 3)) for masks in (found, truth)]
    phases = [find_phases(curve) for curve in left]
    for name in STRUCTURES:
        ours, theirs = found == FEWBEATS_VALUES[name], truth == FEWBEATS_VALUES[name]
        overlaps = [dice(a, b) for a, b in zip(ours, theirs)]
        yield name, "dice", float(np.mean(overlaps))
        yield name, "dice_worst_frame", float(np.min(overlaps))
        curves = [masks.sum((1, 2, 3)) * voxel_ml for masks in (ours, theirs)]
        if name not in ("LV", "RV") or not curves[0].any():
            continue
        told, true = (beating(curve, circular=True).roughness_ml for curve in curves)
        yield name, "roughness_error_ml", abs(told - true)
        yield name, "roughness_ml", told
        yield name, "true_roughness_ml", true
        ends = [(float(curve[ed]), float(curve[es])) for curve, (ed, es) in zip(curves, phases)]
        ours_ef, true_ef = (ejection_fraction_percent(full, empty) or 0.0 for full, empty in ends)
        yield name, "ef_error", ours_ef - true_ef
        yield name, "stroke_error_ml", (ends[0][0] - ends[0][1]) - (ends[1][0] - ends[1][1])
        yield name, "true_stroke_ml", ends[1][0] - ends[1][1]
        if name == "LV":
            for phase, at, wanted in zip(("ed", "es"), *phases):
                away = abs(int(at) - int(wanted))
                yield name, f"{phase}_frames_off", float(min(away, len(found) - away))


if __name__ == "__main__":
    main()
