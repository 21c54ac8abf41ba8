"""Run fewbeats commands and keep their figures: a row per subject and structure, with machine and commit."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.training.rundir import machine

ROWS = Path(__file__).parent / "rows"


def call(*words: object) -> None:
    """Run one fewbeats command."""
    subprocess.run([sys.executable, "-m", "fewbeats.cli", *map(str, words)], check=True)


def is_recorded(table: str, **key: Any) -> bool:
    """Whether a table of `rows/` holds rows of this key."""
    file = ROWS / table
    if not file.is_file():
        return False
    rows = pl.read_csv(file)
    for name, value in key.items():
        rows = rows.filter(pl.col(name) == value)
    return not rows.is_empty()


def record(table: str, *, run: Path, report: Path, **key: Any) -> None:
    """Append the subject rows of an evaluated run to a table of `rows/`.

    Args:
        table: file name.
        run: run folder, for its length and commit.
        report: folder of `fewbeats evaluate`.
        key: columns that tell these rows from others.
    """
    config = json.loads((run / "run.json").read_text())
    about = {
        "run": run.name,
        **key,
        "steps": config["steps"],
        "minutes": round(config["seconds"] / 60, 1),
        "commit": config["git_commit"],
        "machine": machine(),
        "date": date.today().isoformat(),
    }
    rows = (
        pl.read_csv(report / "subjects.csv", schema_overrides={"subject": pl.String})
        .group_by("subject", "group", "structure", maintain_order=True)
        .agg(
            pl.col("dice", "hd95_mm", "assd_mm").cast(pl.Float64).mean().round(5), misses=pl.col("miss").sum()
        )
        .with_columns(pl.lit(value).alias(name) for name, value in about.items())
    )
    append(table, rows)
    append(table.replace(".csv", "_summary.csv"), pl.DataFrame([{**about, **_headline(report)}]))


def append(table: str, rows: pl.DataFrame) -> None:
    """Add rows to a table of `rows/`; made where it is missing. Two benchmarks may run side by side."""
    ROWS.mkdir(exist_ok=True)
    file = ROWS / table
    folder = os.open(ROWS, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        if file.is_file():
            rows = pl.concat([pl.read_csv(file), rows], how="diagonal_relaxed")
        rows.write_csv(file)
    finally:
        os.close(folder)


def _headline(report: Path) -> dict[str, Any]:
    """Dice with its interval and the error of the LV ejection fraction, warned scans included."""
    summary = json.loads((report / "summary.json").read_text())
    low, high = summary["dice"]["ci95"] or (None, None)
    ef = summary["ef_percent"].get("LV", {})
    return {
        "subjects": summary["subjects"],
        "dice": summary["dice"]["mean"],
        "dice_low": low,
        "dice_high": high,
        "hd95_mm": summary["hd95_mm"]["mean"],
        "lvef_mae": ef.get("mae"),
        "lvef_bias": ef.get("bias"),
        "lvef_mae_quoted": (ef.get("quoted") or {}).get("mae"),
        "withheld": summary.get("withheld_heartbeats"),
    }
