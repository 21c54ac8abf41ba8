"""One offline page that shows what was measured; the words and the layout are in `report.html.j2`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fewbeats.anatomy import FULL_NAMES
from fewbeats.errors import InputError
from fewbeats.evaluation import charts
from fewbeats.evaluation.measure import Heartbeat, MeasuredScan
from fewbeats.evaluation.statistics import BlandAltman, average_subjects
from fewbeats.evaluation.summary import average_over_structures
from fewbeats.heartbeat import QUANTITIES
from fewbeats.pages.page import as_markup, flatten, inline_json, render_page

if TYPE_CHECKING:
    from markupsafe import Markup

CINES = 3
"""Cines shown; each is about half a megabyte."""
EXAMPLES_WITHOUT_LABELS = 6
CHARTED = ("lv_ef_percent", "lv_edv_ml", "lv_esv_ml", "lv_mass_g", "rv_ef_percent", "rv_edv_ml")
"""Quantities with a Bland-Altman plot; all others are in the table beside them."""
SHOWN_APART = {
    "config",
    "versions",
    "structures",
    "labeled_subjects",
    "seconds",
    "peak_memory_mb",
    "warnings",
}


def render_report(
    measured: Sequence[MeasuredScan],
    beats: Sequence[Heartbeat],
    *,
    run: Mapping[str, Any],
    rows: pl.DataFrame | None = None,
    summary: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML.

    Args:
        measured: every predicted scan.
        beats: their heartbeats.
        run: what `run.json` of the predictions holds.
        rows: one row a scan, frame and structure, where there are manual labels.
        summary: the figures of those rows.
    """
    notes: list[str] = []
    told = {k: v for k, v in run.items() if k not in SHOWN_APART}
    context = {
        "today": date.today().isoformat(),
        "structures": run["structures"],
        "names": FULL_NAMES,
        "quantities": QUANTITIES,
        "scans": len(measured),
        "beats": beats,
        "summary": summary,
        "strips": _strips(rows, summary),
        "examples": list(_examples(measured, rows, notes)),
        "cines": list(_cines(measured, beats, rows, notes)),
        "bland_altman": _bland_altman(beats, summary),
        "subjects": [] if rows is None else _subjects(rows, beats),
        "warned": [(m.source.scan, m.source.warnings) for m in measured if m.source.warnings],
        "notes": notes,
        "run": run,
        "settings": list(flatten({k: v for k, v in told.items() if isinstance(v, Mapping)})),
        "versions": list(flatten(run.get("versions") or {})),
        "provenance": list(flatten({k: v for k, v in told.items() if not isinstance(v, Mapping)})),
        "untrusted": any(not m.source.spacing_trusted for m in measured),
    }
    return render_page(Path(__file__).parent / "report.html.j2", context)


def _strips(rows: pl.DataFrame | None, summary: Mapping[str, Any] | None) -> list[list[tuple[str, Markup]]]:
    """Rows of charts: for Dice and HD95 one chart a structure, on one scale."""
    if rows is None or summary is None:
        return []
    groups = dict(rows.select("subject", "group").unique().sort("group", "subject").rows())
    found = []
    for score, title in (("dice", "Dice"), ("hd95_mm", "HD95 (mm)")):
        averaged = average_subjects(rows, score)
        if averaged.is_empty():
            continue
        y = (
            _dice_range(averaged[score].to_numpy())
            if score == "dice"
            else _mm_range(averaged[score].to_numpy())
        )
        panels = []
        for s in summary["structures"]:
            by_group: dict[str, dict[str, float]] = {}
            for subject, value in averaged.filter(structure=s).select("subject", score).rows():
                by_group.setdefault(groups[subject] or "all", {})[subject] = value
            ordered = dict(sorted(by_group.items()))
            panels.append((s, as_markup(charts.draw_strips(ordered, title, structure=s, y=y))))
        found.append(panels)
    return found if len(summary["structures"]) > 1 else [[panel for panels in found for panel in panels]]


def _dice_range(values: np.ndarray) -> charts.Range:
    return min(0.8, float(np.floor(values.min() * 10) / 10)), 1.0


def _mm_range(values: np.ndarray) -> charts.Range:
    """Up to the largest value, unless a few (misses) would press all others to the ground."""
    largest, most = float(values.max()), 2 * float(np.percentile(values, 90))
    return 0.0, max(1.0, largest if largest < 2 * most else most) * 1.05


def _subject_dice(rows: pl.DataFrame) -> list[tuple[str, float]]:
    """Subjects with their mean Dice, best first."""
    return (
        average_over_structures(average_subjects(rows, "dice"), "dice").sort("dice", descending=True).rows()
    )


def _examples(
    measured: Sequence[MeasuredScan], rows: pl.DataFrame | None, notes: list[str]
) -> Iterator[dict[str, Any]]:
    """Worst, median and best subject; without labels the first scans."""
    if rows is None:
        single = [m for m in measured if m.frames == 1]
        for m in single[:EXAMPLES_WITHOUT_LABELS]:
            yield from _example(m.source.scan, None, [(m, 0, m.source.phase)], notes)
        return
    ranked = _subject_dice(rows)
    places = {0: "Best", len(ranked) // 2: "Median", len(ranked) - 1: "Worst"}
    if len(ranked) == 1:
        places = {0: "Subject"}
    for rank, place in reversed(places.items()):
        subject, dice = ranked[rank]
        frames = _labeled_frames(measured, subject)
        yield from _example(f"{place}: {subject}", dice, frames, notes)


def _labeled_frames(
    measured: Sequence[MeasuredScan], subject: str
) -> list[tuple[MeasuredScan, int, str | None]]:
    """ED and ES of a subject where they are known, else its first labeled frame."""
    found: list[tuple[MeasuredScan, int, str | None]] = []
    for m in measured:
        if m.source.subject == subject and m.rows:
            frame_of = {row["phase"]: row["frame"] if m.frames > 1 else 0 for row in m.rows}
            phases = [p for p in ("ED", "ES") if p in frame_of]
            found += [(m, frame_of[p], p) for p in phases] or [(m, m.manual_frames[0], None)]
    return sorted(found, key=lambda f: f[2] or "")[:2]


def _example(
    title: str,
    dice: float | None,
    frames: Sequence[tuple[MeasuredScan, int, str | None]],
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    from fewbeats.evaluation.pictures import Pictured, overlay_frame

    shown = []
    for m, t, phase in frames:
        try:
            pictures = overlay_frame(Pictured(m), t)
        except InputError as error:
            notes.append(f"No picture of {m.source.scan}: {_reason(error)}")
            continue
        number = t if m.frames > 1 else m.source.frame
        scores = {row["structure"]: row["dice"] for row in m.rows if row["phase"] == phase}
        shown.append(
            {
                "phase": phase or ("" if number is None else f"frame {number}"),
                "scores": scores,
                "pictures": pictures,
            }
        )
    if shown:
        yield {"title": title, "dice": dice, "frames": shown}


def _reason(error: InputError) -> str:
    """The message without the path in front: a file's path may hold what a report should not."""
    return str(error).partition(": ")[2] or "the image cannot be read"


def _cines(
    measured: Sequence[MeasuredScan],
    beats: Sequence[Heartbeat],
    rows: pl.DataFrame | None,
    notes: list[str],
) -> Iterator[dict[str, Any]]:
    """Animations of 4D scans: worst, median and best subject where that is known, else the first."""
    from fewbeats.evaluation.pictures import Pictured, cine_frames

    cines = [m for m in measured if m.frames > 1]
    if rows is not None and len(cines) > CINES:
        rank = {subject: i for i, (subject, _) in enumerate(_subject_dice(rows))}
        cines.sort(key=lambda m: rank.get(m.source.subject, len(rank)))
        cines = [cines[-1], cines[len(cines) // 2], cines[0]]
    for m in cines[:CINES]:
        try:
            found = cine_frames(Pictured(m))
        except InputError as error:
            notes.append(f"No cine of {m.source.scan}: {_reason(error)}")
            continue
        beat = next((b for b in beats if m.source.scan in b.scans), None)
        yield _cine(m, beat, found["frames"], found["pictures"])


def _cine(m: MeasuredScan, beat: Heartbeat | None, frames: list[int], pictures: list[Any]) -> dict[str, Any]:
    times = m.frame_times_ms
    beat_ms = 1000.0 if times is None else float(times[-1]) * m.frames / (m.frames - 1)
    ends = {name: t for name, t in (("ED", m.source.ed_frame), ("ES", m.source.es_frame)) if t is not None}
    chart = None
    if m.volumes_ml:
        chart = charts.draw_volumes(
            m.volumes_ml, m.manual_ml, ends=ends,
            times=[float(t) for t in range(m.frames)] if times is None else list(times),
            time_title="Frame" if times is None else "Time (ms)",
        )  # fmt: skip
    paths = [p.predicted for p in pictures]
    data = {"frames": frames, "total": m.frames, "step_ms": beat_ms / len(frames), "paths": paths}
    return {
        "title": m.source.scan,
        "beat": beat,
        "warnings": m.source.warnings,
        "pictures": pictures,
        "chart": chart and as_markup(chart),
        "timed": times is not None,
        "data": inline_json(data),
    }


def _bland_altman(beats: Sequence[Heartbeat], summary: Mapping[str, Any] | None) -> list[Markup]:
    found = []
    for q in CHARTED:
        if summary is None or q not in summary["clinical"]:
            continue
        pairs: dict[str, list[tuple[float, float]]] = {}
        for b in beats:
            if q in b.predicted and q in b.manual:
                pairs.setdefault(b.subject, []).append((b.predicted[q], b.manual[q]))
        means = {s: tuple(map(float, np.mean(values, axis=0))) for s, values in pairs.items()}
        title = QUANTITIES[q][0].replace("end-diastolic volume", "EDV").replace("end-systolic volume", "ESV")
        title = title.replace("ejection fraction", "EF")
        agreement = BlandAltman(**summary["clinical"][q])
        chart = charts.draw_bland_altman(means, agreement, title=title, unit=QUANTITIES[q][1])  # type: ignore[arg-type]
        found.append(as_markup(chart))
    return found


def _subjects(rows: pl.DataFrame, beats: Sequence[Heartbeat]) -> list[dict[str, Any]]:
    """One line a subject for the table that sorts."""
    dice = {(s, k): v for s, k, v in average_subjects(rows, "dice").rows()}
    means = {
        score: dict(average_over_structures(average_subjects(rows, score), score).rows())
        for score in ("dice", "hd95_mm", "assd_mm")
    }
    judged_last = sorted(beats, key=lambda b: bool(b.manual))  # of several heartbeats the judged one is shown
    ef = {b.subject: [v.get("lv_ef_percent") for v in (b.quoted, b.manual)] for b in judged_last}
    found = []
    about = rows.group_by("subject").agg(pl.first("group"), pl.sum("miss"), pl.any("warned")).sort("subject")
    for subject, group, misses, warned in about.rows():
        predicted, manual = ef.get(subject, [None, None])
        by_structure = {k: v for (s, k), v in dice.items() if s == subject}
        found.append({
            "subject": subject, "group": group, "misses": misses, "warned": warned,
            "structures": by_structure, **{score: means[score].get(subject) for score in means},
            "ef": predicted, "manual_ef": manual,
        })  # fmt: skip
    return found
