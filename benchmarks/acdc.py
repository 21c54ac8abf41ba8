"""ACDC with few labels: train, predict, evaluate; one row per subject and structure, resumable.

    python benchmarks/acdc.py --data DATA --split tune --arms natural-7 scratch-7
    python benchmarks/acdc.py --data DATA --split dev --arms natural-7 --seeds 0 1 2

A row that is in `rows/acdc.csv` is not computed again. Choices are made on `tune`; a published row is
evaluated once on `dev`. Budgets are steps, so that a busy machine changes the minutes and not the result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from record import call, is_recorded, record

TABLE = "acdc.csv"


@dataclass(frozen=True)
class Arm:
    """One row of the table: how a network is trained."""

    labeled: int
    steps: int | None
    flags: tuple[str, ...] = ()
    splits: str = "acdc_study.csv"
    subjects: str | None = None
    """Column of acdc_print.csv that names the labeled subjects instead of the seed; the first ones count."""
    command: str = "finetune"
    localizer: str | None = None
    """Arm whose run of the same seed finds the heart: starts are compared behind one localizer."""


SCRATCH = ("--init", "scratch")
PLAIN = (*SCRATCH, "--network.kind", "unet2d")
FAST = ("--optim.learning-rate", "3e-3")
FASTER = ("--optim.learning-rate", "1e-2")
SLOW = ("--optim.learning-rate", "3e-4")
ANY_SIDE = ("--spatial.turned", "1")
FIELD = ("--intensity.probability", "0.5", "--intensity.bias-field", "1.0")
SHARED = "localizer-7"
FIXMATCH = ("--method", "unimatch", "--unimatch.pretraining", "0.3", "--unimatch.strong-views", "1",
            "--unimatch.features", "0")  # fmt: skip
ARMS = {
    "natural-7": Arm(7, 1400),
    "natural-7-fast": Arm(7, 1400, FAST, localizer=SHARED),
    "natural-7-350": Arm(7, 350, localizer=SHARED),
    "natural-7-700": Arm(7, 700, localizer=SHARED),
    "natural-7-2800": Arm(7, 2800, localizer=SHARED),
    SHARED: Arm(
        7, None, ("--task", "localization")
    ),  # natural-7's localizer, bit for bit: seed, labels and start are the same
    "scratch-7": Arm(7, 1400, SCRATCH, localizer=SHARED),
    "scratch-7-fast": Arm(7, 1400, (*SCRATCH, *FAST), localizer=SHARED),
    "scratch-7-faster": Arm(7, 1400, (*SCRATCH, *FASTER), localizer=SHARED),
    "scratch-7-2800": Arm(7, 2800, (*SCRATCH, *FASTER), localizer=SHARED),
    "plain-7": Arm(7, 700, PLAIN, localizer=SHARED),
    "plain-7-fast": Arm(7, 700, (*PLAIN, *FAST), localizer=SHARED),
    "plain-7-slow": Arm(7, 700, (*PLAIN, *SLOW), localizer=SHARED),
    "plain-7-1400": Arm(7, 1400, PLAIN, localizer=SHARED),
    "plain-7-2800": Arm(7, 2800, PLAIN, localizer=SHARED),
    "natural-45": Arm(45, 5600),
    "print-3": Arm(3, 1400, splits="acdc.csv", subjects="labeled_3"),
    "print-7": Arm(7, 1400, splits="acdc.csv", subjects="labeled_7"),
    "print-1": Arm(1, 1400, splits="acdc.csv", subjects="labeled_3"),
    "print-fixmatch-1": Arm(1, 1200, FIXMATCH, "acdc.csv", "labeled_3", command="cotrain"),
    "print-fixmatch-3": Arm(3, 1200, FIXMATCH, "acdc.csv", "labeled_3", command="cotrain"),
    "print-fixmatch-7": Arm(7, 1200, FIXMATCH, "acdc.csv", "labeled_7", command="cotrain"),
    # Looked at on `tune` alone, before the bias field acted on gray values above the darkest:
    "recipe-alone": Arm(7, 900, ANY_SIDE),
    "recipe-alone-strong": Arm(7, 900, (*ANY_SIDE, *FIELD)),
    "recipe-neighbors": Arm(7, 900, (*ANY_SIDE, "--network.context", "1")),
    # ... and since then, the first of them seen from eight sides in prediction, which made no difference:
    "recipe-any-side": Arm(7, 1800, ANY_SIDE),
    "recipe-upright": Arm(7, 900, ("--spatial.turned", "0")),
}


def main() -> None:
    """Compute the missing rows of the chosen arms and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with acdc/ and splits/")
    parser.add_argument("--split", choices=("tune", "dev"), required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="folder for runs")
    given = parser.parse_args()
    for seed in given.seeds:
        for name in given.arms:
            if not is_recorded(TABLE, arm=name, seed=seed, split=given.split):
                compute(name, ARMS[name], seed, given)


def compute(name: str, arm: Arm, seed: int, given: argparse.Namespace) -> None:
    """Train (unless trained), predict, evaluate and record."""
    runs: Path = given.runs
    run = train(name, arm, seed, given)
    cohort, found = runs / f"cohort_{arm.splits}", runs / f"{name}_seed{seed}_{given.split}"
    call("predict", run, cohort, "--split", given.split, "--out", found)
    call("evaluate", found, cohort, "--out", found / "report")
    key = {"arm": name, "seed": seed, "split": given.split, "labeled": arm.labeled}
    record(TABLE, run=run, report=found / "report", **key)


def train(name: str, arm: Arm, seed: int, given: argparse.Namespace) -> Path:
    """The arm's run folder, and before it that of its localizer."""
    runs: Path = given.runs
    cohort, run = runs / f"cohort_{arm.splits}", runs / f"{name}_seed{seed}"
    if not cohort.is_file():
        split = given.data / "splits" / arm.splits
        call("index", given.data / "acdc", "--layout", "acdc", "--split", split, "--out", cohort)
    which = ["--labeled", arm.labeled]
    if arm.subjects:
        table = pl.read_csv(given.data / "splits" / "acdc_print.csv").filter(pl.col(arm.subjects) == 1)
        chosen = runs / f"labeled_{arm.labeled}.txt"
        chosen.write_text("\n".join(table["subject"].sort()[: arm.labeled]))
        which = ["--labeled-subjects", chosen]
    flags = list(arm.flags)
    if arm.localizer:
        flags += ["--localizer", train(arm.localizer, ARMS[arm.localizer], seed, given)]
    if arm.steps:
        flags += ["--steps", arm.steps]
    call(arm.command, cohort, *which, "--seed", seed, "--cache", runs / "cache", *flags, "--out", run)
    return run


if __name__ == "__main__":
    main()
