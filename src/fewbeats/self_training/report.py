"""The page of a self-training: what each round changed, how curves became smoother, what was left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fewbeats.anatomy import FULL_NAMES
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.evaluation.measure import measure_scan
from fewbeats.evaluation.pictures import Pictured, cine_frames
from fewbeats.evaluation.predictions import read_predictions
from fewbeats.evaluation.statistics import compare_paired
from fewbeats.pages.charts import Chart
from fewbeats.pages.page import as_markup, flatten, inline_json, render_page
from fewbeats.self_training.filters import quality
from fewbeats.self_training.frames import curves_of, motion, structures_of
from fewbeats.self_training.rounds import FRAMES, JUDGED, LEFT_OUT, STATE

CINES = 3
"""Scans shown moving, those that changed most."""
REASONS = 12
"""Reasons listed a round, the most frequent ones."""
SCANS = 30
"""Lines of the table of scans, those that changed most."""


def write_selftrain_report(out: Path) -> Path:
    """Write `report.html` into the folder of a finished self-training; returns its path.

    Raises:
        InputError: it is not finished.
    """
    state = json.loads((out / STATE).read_text(encoding="utf-8"))
    if not state.get("finished"):
        raise InputError(f"{out}: not finished; run the same command again")
    tables = [pl.read_parquet(out / f"round{n}" / FRAMES) for n in range(len(state["rounds"]))]
    shown = state["best"] or len(tables) - 1  # the last student where none is better
    changed = _changes(tables[0], tables[shown])
    context = {
        "today": date.today().isoformat(),
        "state": state,
        "names": FULL_NAMES,
        "structures": structures_of(tables[0]),
        "rounds": [_round_row(out, n, one, tables, state) for n, one in enumerate(state["rounds"])],
        "judged": any(one["dice"] is not None for one in state["rounds"]),
        "moving": any(tables[0]["frame"] > 1),
        "scans": changed[:SCANS],
        "shown": shown,
        "cines": list(_cines(out, shown, tables, [row["scan"] for row in changed])),
        "left_out": [_reasons(out / f"round{n}" / LEFT_OUT) for n in range(len(tables))],
        "failed": {scan: why for one in state["rounds"] for scan, why in one["failed"].items()},
        "settings": list(flatten(state["request"])),
    }
    page = render_page(Path(__file__).parent / "selftrain.html.j2", context)
    with atomic_path(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return out / "report.html"


def _round_row(
    out: Path, number: int, one: Mapping[str, Any], tables: Sequence[pl.DataFrame], state: Mapping[str, Any]
) -> dict[str, Any]:
    """A line of the table of rounds: figures, and the paired difference with the round before."""
    row: dict[str, Any] = {**one, "seconds": sum(one["seconds"].values()), "best": number == state["best"]}
    moved = motion(tables[number])
    for name in ("roughness_ml", "neighbor", "flagged", "stroke_ml", "ejection_percent"):
        values = [scan[name] for scan in moved.values()]
        row[name] = float(np.nanmean(values)) if values else None
    row["change"] = None
    if number:
        a, b = (
            _scores(out / f"round{n}", tables[n], one["dice"] is not None, state)
            for n in (number, number - 1)
        )
        shared = a.keys() & b.keys()
        if shared:
            row["change"] = compare_paired({s: a[s] for s in shared}, {s: b[s] for s in shared})
    return row


def _scores(folder: Path, table: pl.DataFrame, judged: bool, state: Mapping[str, Any]) -> dict[str, float]:
    """What a round is compared by: Dice by subject, or plausibility by scan."""
    if judged:
        return dict(pl.read_parquet(folder / JUDGED).iter_rows())
    species = state["request"]["settings"]["filters"]["species"]
    return dict(quality(table, species).iter_rows())


def _changes(first: pl.DataFrame, last: pl.DataFrame) -> list[dict[str, Any]]:
    """One line a scan, what changed most first: motion by the teacher and by a student."""
    before, after = motion(first), motion(last)
    wide = first.join(last, on=["scan", "frame", "structure"], suffix="_last")
    moved = wide.group_by("scan", maintain_order=True).agg(
        (pl.col("ml") - pl.col("ml_last")).abs().sum() / pl.max_horizontal("ml", "ml_last").sum()
    )
    rows = [
        {"scan": scan, "moved": share or 0.0, "before": before.get(scan), "after": after.get(scan)}
        for scan, share in moved.iter_rows()
    ]
    return sorted(rows, key=lambda row: -row["moved"])


def _reasons(file: Path) -> list[tuple[str, int]]:
    """The most frequent reasons, with the number of frames."""
    table = pl.read_csv(file, schema_overrides={"scan": pl.String, "frame": pl.Int64, "reason": pl.String})
    counts = table.group_by("reason").len().sort("len", "reason", descending=[True, False])
    return list(counts.head(REASONS).iter_rows())


def _cines(
    out: Path, number: int, tables: Sequence[pl.DataFrame], order: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Scans whose masks changed most, moving: the teacher's outlines against a student's."""
    folders = [out / f"round{n}" / "predictions" for n in (0, number)]
    first, last = ({one.scan: one for one in read_predictions(folder)[0]} for folder in folders)
    shown = [scan for scan in order if scan in first and scan in last][:CINES]
    for scan in shown:
        teacher, student = measure_scan(first[scan]), measure_scan(last[scan])
        found = cine_frames(Pictured(student), against=Pictured(teacher))
        curves = [
            dict(curves_of(table.filter(pl.col("scan") == scan)))[scan]
            for table in (tables[0], tables[number])
        ]
        pictures = found["pictures"]
        paths = [{**p.predicted, **{f"teacher {s}": path for s, path in p.manual.items()}} for p in pictures]
        data = {
            "frames": found["frames"],
            "total": student.frames,
            "step_ms": 1000 / len(pictures),
            "paths": paths,
        }
        yield {
            "title": scan,
            "pictures": pictures,
            "chart": as_markup(draw_before_after(*curves)) if student.frames > 1 else None,
            "data": inline_json(data),
            "warnings": student.source.warnings,
        }


def draw_before_after(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> str:
    """Volume curves of the teacher, dashed, and of the student."""
    frames = list(range(len(next(iter(after.values())))))
    top = 1.12 * max(1.0, *(float(curve.max()) for curves in (before, after) for curve in curves.values()))
    chart = Chart((0.0, float(frames[-1])), (0.0, top), width=460, height=300)
    chart.y_axis("Volume (mL)")
    chart.x_axis("Frame")
    for structure, curve in after.items():
        chart.curve(frames, list(curve), kind=f"curve {structure}")
    for structure, curve in before.items():
        chart.curve(frames, list(curve), kind=f"curve before {structure}")
    chart.line(0, 0, 0, top, kind="cursor")
    return chart.svg("Volumes over the heartbeat, before and after")
