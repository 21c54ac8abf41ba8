"""The page of a task: figures, confusion, curves, and the cases that were told worst, with their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.data.files import open_image
from fewbeats.evaluation.classes import Told, reliability, roc_curve
from fewbeats.evaluation.pictures import Box, draw_tile, gray_window
from fewbeats.evaluation.tasks import within_present
from fewbeats.pages.charts import Chart
from fewbeats.pages.page import as_markup, flatten, render_page
from fewbeats.pages.pictures import encode_webp

if TYPE_CHECKING:
    from fewbeats.evaluation.tasks import Judged, Row
    from fewbeats.scan import Scan

TEMPLATE = Path(__file__).with_name("task.html.j2")
SHOWN = 8  # worst cases
SIDE = 220
STRIP = 6  # slices of a study, those that count most
NAMED = 5  # stacks of a study; of more, names would lie over each other
LEVELS = {"study": "Studies", "scan": "Scans", "slice": "Slices",
          "slice within": "Slices of studies that hold any"}  # fmt: skip
PARTS = {"slice within": "slice_within_studies_with_any"}
"""Level -> its name in the summary, where that is another."""
TITLES = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_auc": "Mean AUC",
          "calibration_error": "Calibration error", "brier": "Brier score"}  # fmt: skip


def render_task(judged: Judged, known: Mapping[str, Row]) -> str:
    """The page as HTML.

    Args:
        judged: of `judge_task`.
        known: scan -> its row of the cohort.
    """
    points = judged.task.kind == "landmarks"
    levels = [
        {
            "name": LEVELS[level],
            "figures": judged.summary[PARTS.get(level, level)],
            "confusion": [list(row) for row in judged.summary[PARTS.get(level, level)]["confusion"]],
            "roc": as_markup(draw_roc(told)),
            "calibration": as_markup(draw_reliability(told)),
        }
        for level, told in judged.told.items()
    ]
    return render_page(
        TEMPLATE,
        {
            "today": date.today().isoformat(),
            "task": judged.task,
            "summary": judged.summary,
            "levels": levels,
            "titles": TITLES,
            "worst": worst_points(judged, known) if points else worst_cases(judged, known),
            "charts": [as_markup(draw_errors(judged))] if points else [],
            "settings": list(flatten(judged.run.get("training") or {})),
        },
    )


def draw_roc(told: Told) -> str:
    """A curve for each class against all others; of two classes one tells all."""
    chart = Chart((0.0, 1.0), (0.0, 1.0), height=260)
    chart.y_axis("true positive rate")
    chart.x_axis("false positive rate")
    chart.line(0, 0, 1, 1, kind="zero")
    for c in range(len(told.classes)) if len(told.classes) > 2 else (1,):
        if (told.truth == c).any():
            false, true = roc_curve(told, c)
            chart.curve(false.tolist(), true.tolist(), kind=f"curve arm{c % 8}")
    return chart.svg("ROC curves")


def draw_reliability(told: Told) -> str:
    """Accuracy over confidence; a larger dot holds more items."""
    chart = Chart((0.0, 1.0), (0.0, 1.0), height=260)
    chart.y_axis("accuracy")
    chart.x_axis("confidence")
    chart.line(0, 0, 1, 1, kind="zero")
    bins = reliability(told)
    chart.curve([b[0] for b in bins], [b[1] for b in bins], kind="curve arm1")
    for sure, right, count in bins:
        chart.dot(
            sure, right, kind="dot arm1", says=f"{count} items, confidence {sure:.2f}, accuracy {right:.2f}"
        )
    return chart.svg("Calibration")


def draw_errors(judged: Judged) -> str:
    """Distance of every point, in columns by its kind."""
    names = list(judged.task.points)
    most = max(float(row["error_mm"]) for row in judged.rows)
    chart = Chart((-0.5, len(names) - 0.5), (0.0, max(10.0, min(most, 40.0))))
    chart.y_axis("distance (mm)")
    for column, name in enumerate(names):
        own = [row for row in judged.rows if row["point"] == name]
        for i, row in enumerate(own):
            aside = (i * 0.618034 % 1 - 0.5) * 0.6
            error = float(row["error_mm"])
            says = f"{row['scan']}, slice {row['slice']}: {error:.1f} mm"
            chart.dot(column + aside, min(error, chart.y_range[1]), kind=f"dot arm{column + 1}", says=says)
        chart.text(chart.x(column), chart.bottom + 16, name.replace("_", " "))
    return chart.svg("Distances of points")


def worst_cases(judged: Judged, known: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Of the widest level the items whose truth was held to be least likely, with slices of them.

    Of studies whose slices have classes, too, also the slices that were told worst.
    """
    level = next(iter(judged.told))
    rows = sorted((row for row in judged.rows if row["level"] == level), key=_likely)[:SHOWN]
    cases = [
        {
            "name": f"{row['subject']}" + (f", {row['scan']}" if row["scan"] else ""),
            "says": f"is {row['truth']}, told to be {row['class']} ({100 * float(row['confidence']):.0f} %)",
            "wrong": row["truth"] != row["class"],
            "pictures": _slices_of(row, judged.every, known),
            "chart": as_markup(draw_attention(own)) if (own := _attended(row, judged.every)) else "",
        }
        for row in rows
    ]
    if level == "study" and "slice within" in judged.told:
        slices = sorted(within_present(judged.rows), key=_likely)[:STRIP]
        says = "the truth, and how likely it was held to be"
        pictures = [
            _picture(
                row, f"{row['scan']}, slice {row['slice']}: {row['truth']}, {100 * _likely(row):.0f} %", known
            )
            for row in slices
        ]
        cases.append(
            {"name": LEVELS["slice within"], "says": says, "wrong": False, "pictures": pictures, "chart": ""}
        )
    return cases


def _attended(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Of a study the slices, in order, where it is known how much each counts."""
    return [r for r in _same_study(row, rows) if r.get("attention")] if row["level"] == "study" else []


def _same_study(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The slices of an item's study."""
    whose = (row["subject"], row["study"])
    return [r for r in rows if r["level"] == "slice" and (r["subject"], r["study"]) == whose]


def draw_attention(slices: Sequence[Row]) -> str:
    """How much each slice of a study counts, a color a stack; the line is where all would count alike."""
    shares = [100 * float(row["attention"]) for row in slices]
    stacks: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(slices):
        stacks.setdefault((row["scan"], row["frame"]), []).append(place)
    chart = Chart((-0.5, len(slices) - 0.5), (0.0, max(1.0, 1.05 * max(shares))), width=1040, height=150)
    chart.y_axis("counts (%)")
    for stack, ((scan, frame), places) in enumerate(stacks.items()):
        for place in places:
            chart.box(place - 0.4, 0.0, place + 0.4, shares[place], kind=f"share arm{1 + stack % 7}")
        if len(stacks) <= NAMED:
            middle = chart.x((places[0] + places[-1]) / 2)
            chart.text(middle, chart.bottom + 16, f"{scan}, frame {frame}")
    chart.line(-0.5, 100 / len(slices), len(slices) - 0.5, 100 / len(slices), kind="zero")
    return chart.svg("How much each slice counts, from the first to the last of each stack")


def _picture(row: Row, says: str, known: Mapping[str, Row]) -> dict[str, Any]:
    t, z = row["frame"] or 0, row["slice"] or 0
    return {"src": picture_slice(open_shown(known[row["scan"]]["image"]), t, z), "alt": says, "points": []}


def _likely(row: Row) -> float:
    """How likely an item's truth was held to be."""
    return float(row[f"p_{row['truth']}"] or 0)


def _slices_of(row: Row, rows: Sequence[Row], known: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Slices of a case: the one, those of a scan, or those of a study that count most."""
    if row["level"] == "slice":
        own = [row]
    else:
        own = [r for r in _same_study(row, rows) if not row["scan"] or r["scan"] == row["scan"]] or [row]
        own = sorted(own, key=lambda r: _telling(r, row["truth"]))[:STRIP]
    found, several = [], len({(r["scan"], r["frame"]) for r in own}) > 1
    for one in own:
        if one["scan"] not in known:
            continue
        counts = f", counts {100 * float(one['attention']):.0f} %" if one.get("attention") else ""
        place = f"{one['scan']}, frame {one['frame'] or 0}, " if several else ""
        found.append(_picture(one, f"{place}slice {one['slice'] or 0}{counts}", known))
    return found


def _telling(row: Row, truth: str) -> float:
    """Least for slices that count most in a study; of a scan, for those that deny its truth most."""
    return -float(row["attention"]) if row.get("attention") else float(row.get(f"p_{truth}") or 0)


def worst_points(judged: Judged, known: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Slices whose points lie farthest off, with what was told and what is true."""
    by_slice: dict[tuple[str, int, int], list[Row]] = {}
    for row in judged.rows:
        by_slice.setdefault((row["scan"], row["frame"], row["slice"]), []).append(row)
    worst = sorted(by_slice.items(), key=lambda item: -max(float(r["error_mm"]) for r in item[1]))[:SHOWN]
    found = []
    for (scan, t, z), rows in worst:
        image = open_shown(known[scan]["image"])
        most = max(float(row["error_mm"]) for row in rows)
        told = [[float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for row in rows]
        true = [row["true_mm"] for row in rows]
        points = [*_on_picture(told, image, "told"), *_on_picture(true, image, "true")]
        says = f"{scan}, slice {z}: up to {most:.1f} mm"
        found.append({"src": picture_slice(image, t, z), "alt": says, "points": points})
    return [{"name": "", "says": "", "wrong": False, "pictures": found, "chart": ""}]


def _whole(image: Scan) -> Box:
    """The square round a slice."""
    tall, wide = image.shape[2] * image.spacing_mm[1], image.shape[3] * image.spacing_mm[2]
    return tall / 2, wide / 2, max(tall, wide) / 2


def _on_picture(places: Sequence[Sequence[float]], image: Scan, kind: str) -> list[dict[str, Any]]:
    """Places in mm as pixels of a slice's picture."""
    back, (middle_y, middle_x, half) = np.linalg.inv(image.affine), _whole(image)
    found = []
    for place in places:
        x, y, *_ = back @ [*place, 1.0]
        down = (y + 0.5) * image.spacing_mm[1] - (middle_y - half)
        across = (x + 0.5) * image.spacing_mm[2] - (middle_x - half)
        found.append({"x": across * SIDE / (2 * half), "y": down * SIDE / (2 * half), "kind": kind})
    return found


open_shown = lru_cache(maxsize=4)(open_image)
"""`open_image` for pictures of one scan after the other: a case shows several of its slices."""


def picture_slice(image: Scan, t: int, z: int) -> str:
    """A slice as a square picture, square pixels, black beside it."""
    gray, (_, *pixel_mm) = image.frame(t)[z], image.spacing_mm
    return encode_webp(
        draw_tile(gray, (pixel_mm[0], pixel_mm[1]), box=_whole(image), window=gray_window(gray), side=SIDE)
    )
