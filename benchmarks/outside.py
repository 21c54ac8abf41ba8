"""Runs trained on ACDC, on data they never saw: EMIDEC (late enhancement; LV, MYO) and cine4d (frame 0).

python benchmarks/outside.py --data DATA --runs runs/benchmark/natural-7_seed{0,1,2}
"""

from __future__ import annotations

import argparse
from pathlib import Path

from record import call, is_recorded, record

TABLE = "outside.csv"
CINE4D = Path(__file__).parent / "cine4d_convention.csv"


def main() -> None:
    """Compute the missing rows of the given runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with emidec/, cine4d/ and splits/")
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    given = parser.parse_args()
    for run in given.runs:
        emidec, cine = run.parent / "cohort_emidec.csv", run.parent / "cohort_cine4d.csv"
        if not emidec.is_file():
            split = given.data / "splits" / "emidec.csv"
            words = ["--layout", "folder", "--convention", "emidec", "--split", split]
            call("index", given.data / "emidec", *words, "--out", emidec)
        if not cine.is_file():
            call("index", given.data / "cine4d", "--layout", "folder", "--convention", CINE4D, "--out", cine)
        for cohort, split in ((emidec, ["--split", "dev"]), (cine, [])):
            judge(run, cohort, split)


def judge(run: Path, cohort: Path, split: list[str]) -> None:
    """Predict, evaluate and record, unless that is done."""
    name = cohort.stem.removeprefix("cohort_")
    if is_recorded(TABLE, run=run.name, data=name):
        return
    found = run.with_name(f"{run.name}_{name}")
    call("predict", run, cohort, *split, "--out", found)
    call("evaluate", found, cohort, "--out", found / "report")
    record(TABLE, run=run, report=found / "report", data=name)


if __name__ == "__main__":
    main()
