"""Arms of a table of `rows/` against one of them, paired by subject after averaging over seeds.

    python benchmarks/compare.py --split dev --baseline scratch-7 --arms natural-7 natural-45

The mean and its interval are over subjects; `spread` is the range of the seeds' own means. P-values are
adjusted for the number of arms (Holm).
"""

from __future__ import annotations

import argparse

import polars as pl

from acdc import TABLE
from fewbeats.evaluation.statistics import adjust_holm, bootstrap_interval, compare_paired
from record import ROWS


def main() -> None:
    """Print a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--split", choices=("tune", "dev"), required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, help="only these; every arm has to have them")
    given = parser.parse_args()
    rows = pl.read_csv(ROWS / TABLE).filter(pl.col("split") == given.split)
    if given.seeds:
        rows = rows.filter(pl.col("seed").is_in(given.seeds))
    base = by_subject(rows, given.baseline)
    print(describe(rows, given.baseline))
    found = {arm: compare_paired(by_subject(rows, arm), base) for arm in given.arms}
    for (arm, difference), p in zip(found.items(), adjust_holm([d.p_value for d in found.values()])):
        low, high = difference.ci95 or (float("nan"), float("nan"))
        print(
            f"{describe(rows, arm)}; {100 * difference.mean:+.1f} points against {given.baseline} "
            f"({100 * low:+.1f} to {100 * high:+.1f}), p = {p:.3f}"
        )


def by_subject(rows: pl.DataFrame, arm: str) -> dict[str, float]:
    """Subject -> Dice over structures and seeds, in order: a seeded bootstrap depends on it."""
    own = rows.filter(pl.col("arm") == arm)
    return dict(own.group_by("subject").agg(pl.col("dice").mean()).sort("subject").iter_rows())


def describe(rows: pl.DataFrame, arm: str) -> str:
    """Mean, interval over subjects and range over seeds of one arm."""
    values = list(by_subject(rows, arm).values())
    low, high = bootstrap_interval(values) or (float("nan"), float("nan"))
    seeds = rows.filter(pl.col("arm") == arm).group_by("seed").agg(pl.col("dice").mean())["dice"]
    return (
        f"{arm}: Dice {sum(values) / len(values):.3f} ({low:.3f} to {high:.3f}), {len(values)} subjects, "
        f"{len(seeds)} seeds, spread {seeds.min():.3f} to {seeds.max():.3f}"
    )


if __name__ == "__main__":
    main()
