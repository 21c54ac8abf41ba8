"""Scores by subject, from the tables that `evaluate` writes of masks, classes and points."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fewbeats.evaluation.answers import LEVELS
from fewbeats.evaluation.scores import EXCHANGED, OF_MASKS

OF_FILE = (*OF_MASKS, EXCHANGED)
"""Columns of `subjects.csv` that become rows."""
PLACE = ("subject", "group", "phase", "structure")


def read_scores(report: Path) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """What an evaluation says of each subject.

    Args:
        report: folder of `fewbeats evaluate`.

    Returns:
        subject, group, phase, structure, misses, and a column for each score; and the names of the scores.
        Of classes the score is `accuracy`, the share of a subject's studies (else scans, else slices) whose
        class was told, and structure says which of the three; of points it is `error_mm`, and structure the
        point.
    """
    if not (report / "judged.csv").is_file():
        rows = pl.read_csv(
            report / "subjects.csv", schema_overrides={"subject": pl.String, "group": pl.String}
        )
        means = pl.col(OF_FILE).cast(pl.Float64).mean().round(5)
        by_subject = rows.group_by(PLACE, maintain_order=True).agg(means, misses=pl.col("miss").sum())
        return by_subject, OF_FILE
    texts = dict.fromkeys(("subject", "level", "class", "truth", "point"), pl.String)
    rows = pl.read_csv(report / "judged.csv", schema_overrides=texts, infer_schema_length=None)
    if "error_mm" in rows.columns:
        return _of(rows.rename({"point": "structure"}), "error_mm")
    widest = next(level for level in LEVELS if level in rows["level"])
    right = rows.filter(pl.col("level") == widest).with_columns(
        structure=pl.col("level"), accuracy=(pl.col("class") == pl.col("truth")).cast(pl.Float64)
    )
    return _of(right, "accuracy")


def _of(rows: pl.DataFrame, score: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    nothing = pl.lit(None, pl.String)
    means = rows.group_by("subject", "structure", maintain_order=True).agg(pl.col(score).mean().round(5))
    return means.with_columns(group=nothing, phase=nothing, misses=pl.lit(0, pl.Int64)), (score,)
