"""The page of a pretraining run: how the loss fell, what the encoder knows, what the method was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from fewbeats.pages.charts import Chart
from fewbeats.pages.page import HERE, as_markup, flatten, render_page
from fewbeats.pages.pictures import Picture, encode_webp

SHOWN = 8
"""Slices shown."""
WINDOW = (-2.0, 3.0)
"""z-scores shown as black and as white."""
CURVES = {
    "loss": "Loss",
    "spread": "Spread of embeddings",
    "matched": "Slices matched by their views",
    "probe_height_r2": "Height told from the encoder (R²)",
    "step_seconds": "Seconds a step",
}
"""Figure of the metrics -> title; those that a run lacks are left out."""


def render_training(
    run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray]
) -> str:
    """The page as HTML.

    Args:
        run: what `run.json` holds.
        metrics: lines of `metrics.jsonl`.
        pictures: name -> slices (N, Y, X) as z-scores; a column of the page shows one slice of each.
    """
    figures = {
        name: [(row["step"], row[name]) for row in metrics if row.get(name) is not None] for name in CURVES
    }
    context = {
        "today": date.today().isoformat(),
        "run": run,
        "last": {name: rows[-1][1] for name, rows in figures.items() if rows},
        "charts": [
            (title, as_markup(draw_curve(rows, title)))
            for name, title in CURVES.items()
            if (rows := figures[name])
        ],
        "strips": {name: [_picture(image, name) for image in images] for name, images in pictures.items()},
        "settings": list(flatten({k: v for k, v in run.items() if k != "versions"})),
    }
    return render_page(HERE / "training.html.j2", context)


def draw_curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """One figure over the steps."""
    steps, values = zip(*points)
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    chart = Chart((0.0, float(max(steps))), (low - room, high + room), width=400, height=240)
    chart.y_axis("")
    chart.x_axis("step")
    chart.curve(steps, values, kind="curve arm1")
    if len(points) <= 20:
        for step, value in points:
            chart.dot(step, value, kind="dot arm1", says=f"step {step:.0f}: {value:.3g}")
    return chart.svg(f"{title} over the steps")


def _picture(image: np.ndarray, name: str) -> Picture:
    low, high = WINDOW
    gray = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return Picture(src=encode_webp(gray), width=gray.shape[1], height=gray.shape[0], alt=name)
