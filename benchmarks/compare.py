"""Arms of `rows/acdc.csv` against one of them, as the report of a study compares its own.

    python benchmarks/compare.py --split dev --baseline scratch-7 --arms natural-7 natural-45

The mean and its interval are over subjects; `spread` is the range of the seeds' own means. Differences are
over the seeds that both have; p-values are adjusted for the number of arms (Holm).
"""

from __future__ import annotations

import argparse

import polars as pl

from acdc import TABLE
from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES
from fewbeats.evaluation.statistics import bootstrap_interval
from fewbeats.study.contrast import Contrast, adjust, by_subject, compare_arms
from fewbeats.study.sentences import describe, tell_doubt, tell_hinge
from record import ROWS

DICE = SCORES["dice"]
ANY = 0
"""Budget of all rows here: arms with other labels may be compared."""


def main() -> None:
    """Print a line for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--split", choices=("tune", "dev"), required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    given = parser.parse_args()
    rows = to_study(pl.read_csv(ROWS / TABLE).filter(pl.col("split") == given.split))
    if given.seeds:
        rows = rows.filter(pl.col("seed").is_in(given.seeds))
    try:
        contrasts = compare(rows, given.baseline, given.arms)
    except InputError as error:
        parser.error(str(error))
    print(tell_arm(rows, given.baseline))
    for contrast in contrasts:
        print(f"{tell_arm(rows, contrast.arm)}; {tell(contrast)}")


def to_study(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as a study compares them; phases are averaged in them."""
    phase = pl.lit(None, pl.String)
    return rows.select("arm", "seed", "subject", "structure", labeled=pl.lit(ANY), phase=phase, value="dice")


def compare(rows: pl.DataFrame, baseline: str, arms: list[str]) -> list[Contrast]:
    """Each arm against the baseline, after Holm.

    Raises:
        InputError: arms that share no seed with the baseline, or were judged on other subjects.
    """
    found = {arm: compare_arms(rows, arm, ANY, baseline=baseline) for arm in arms}
    if alone := [arm for arm, contrast in found.items() if contrast is None]:
        raise InputError(f"{alone[0]} shares no seed with {baseline}")
    return adjust([contrast for contrast in found.values() if contrast is not None])


def tell(contrast: Contrast) -> str:
    """A difference and its verdict, in the words of the report."""
    scope = "" if contrast.crossed else " in these draws alone"
    verdict = tell_doubt(contrast, DICE) or f"Told apart{scope}."
    hinge = f" {tell_hinge(contrast, DICE)}" if contrast.hinges else ""
    return f"{describe(contrast, DICE)}. {verdict}{hinge}"


def tell_arm(rows: pl.DataFrame, arm: str) -> str:
    """Mean, interval over subjects and range over seeds of one arm."""
    own = rows.filter(pl.col("arm") == arm)
    values = list(by_subject(own).values())
    low, high = bootstrap_interval(values) or (float("nan"), float("nan"))
    seeds = own.group_by("seed").agg(pl.col("value").mean())["value"]
    return (
        f"{arm}: Dice {sum(values) / len(values):.3f} ({low:.3f} to {high:.3f}), {len(values)} subjects, "
        f"{len(seeds)} seeds, spread {seeds.min():.3f} to {seeds.max():.3f}"
    )


if __name__ == "__main__":
    main()
