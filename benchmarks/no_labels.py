"""Real scans without a manual label: a teacher and the rounds of self-training after it, judged on `dev`.

    python benchmarks/no_labels.py --cohort acdc.csv --teacher synthetic --name acdc --work runs/no_labels
    python benchmarks/no_labels.py --cohort acdc.csv --teacher synthetic --name acdc --keep 1 ...
    python benchmarks/no_labels.py --cohort emidec.csv --teacher run:RUN --name emidec ...

Students learn from masks of split `train`, plausible frames alone, whose labels are closed; with --keep so
many subjects, drawn by the seed, keep theirs in every round. Teacher and each round's student are evaluated
on `dev` once, and a row that is in `rows/no_labels.csv` is not computed again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from record import call, is_recorded, record

TABLE = "no_labels.csv"


def main() -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--name", required=True, help="of the cohort in the rows")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of each student")
    parser.add_argument("--keep", type=int, default=0, help="subjects with manual labels in every round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", default="dev")
    parser.add_argument("--arm", default="", help="name of these flags in the rows")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=["--filters.qc"])
    given = parser.parse_args()
    for seed in given.seeds:
        name = f"{given.name}{'_' + given.arm if given.arm else ''}_keep{given.keep}_seed{seed}"
        out = given.work / name
        call(
            "selftrain", given.cohort, "--teacher", given.teacher, "--rounds", given.rounds, "--settled", 1,
            "--steps", given.steps, "--seed", seed, "--labeled", given.keep, "--out", out, *given.flags,
        )  # fmt: skip
        for number in range(given.rounds + 1):
            key = {"arm": f"{given.name}{'-' + given.arm if given.arm else ''}", "keep": given.keep,
                   "seed": seed, "split": given.split, "round": number}  # fmt: skip
            if not is_recorded(TABLE, **key) and (number == 0 or (out / f"round{number}" / "run").is_dir()):
                judge(given, out, number, key)


def judge(given: argparse.Namespace, out: Path, number: int, key: dict[str, Any]) -> None:
    """Predict and evaluate one round; round 0 is the teacher, which no run of ours need be."""
    run = out / f"round{number}" / "run"
    if not number:
        kind, _, where = given.teacher.partition(":")
        run = Path(where or kind)
    masks = out / f"{given.split}{number}"
    call("predict", run, given.cohort, "--split", given.split, "--out", masks)
    call("evaluate", masks, given.cohort, "--out", masks / "report")
    told = out / f"round{number}" / "round.json"
    about = json.loads(told.read_text())
    labeled = {"kept": about["kept"], "frames": about["frames"], "quality": about["quality"]}
    record(TABLE, run=run if number else out / "round1" / "run", report=masks / "report", **key, **labeled)


if __name__ == "__main__":
    main()
