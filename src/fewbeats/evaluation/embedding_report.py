"""The page of embeddings: a map of them in two dimensions, and the nearest neighbors of some slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fewbeats.evaluation.task_report import open_shown, picture_slice
from fewbeats.pages.charts import Chart
from fewbeats.pages.page import as_markup, flatten, render_page

TEMPLATE = Path(__file__).with_name("embeddings.html.j2")
MOST = 1500  # dots of a map
ASKED, NEIGHBORS = 5, 5
COLORED = {"sequence": "Sequence", "view": "View", "group": "Disease"}
COLORS = 8


def count_embeddings(table: Path) -> int:
    """Rows of a table of `encode_scans`; its embeddings are not read."""
    return int(pl.scan_parquet(table).select(pl.len()).collect().item())


def draw_embeddings(table: Path) -> pl.DataFrame:
    """At most `MOST` rows of a table, in its order, drawn by chance; no others are kept in memory."""
    total = count_embeddings(table)
    chosen = pl.Series(np.sort(np.random.default_rng(0).permutation(total)[:MOST]), dtype=pl.UInt32)
    rows = pl.scan_parquet(table).with_row_index("_at").filter(pl.col("_at").is_in(chosen.implode()))
    return rows.drop("_at").collect(engine="streaming")


def render_embeddings(table: Path, cohort: pl.DataFrame, *, run: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        table: Parquet file of `encode_scans`.
        cohort: rows that tell sequence, view and disease.
        run: what made them.
    """
    drawn = draw_embeddings(table)
    key = ["scan"] if "scan" in drawn.columns else ["subject", "study"]
    known = cohort.unique(key, maintain_order=True).select(*key, *COLORED)
    shown = drawn.join(known, on=key, how="left", maintain_order="left")
    features = np.asarray(shown["features"].to_numpy())
    places, explained = project(features)
    maps = [
        {"title": title, "chart": as_markup(draw_map(places, names := _names(shown[column]), shown)),
         "legend": [(name, kind % COLORS) for kind, name in enumerate(_order(names))]}
        for column, title in COLORED.items()
        if shown[column].n_unique() > 1
    ]  # fmt: skip
    return render_page(
        TEMPLATE,
        {
            "today": date.today().isoformat(),
            "count": count_embeddings(table),
            "width": features.shape[1],
            "subjects": cohort["subject"].n_unique(),
            "maps": maps,
            "shown": len(shown),
            "explained": explained,
            "asked": neighbors(shown, features, cohort) if "slice" in drawn.columns else [],
            "settings": list(flatten({n: v for n, v in run.items() if n not in ("versions", "machine")})),
        },
    )


def project(features: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components (N, 2), and the share of the variance that they explain."""
    centered = features - features.mean(0) if len(features) else features
    _, strength, axes = np.linalg.svd(centered, full_matrices=False)
    total = float((strength**2).sum())
    axes = np.vstack([axes, np.zeros((2, features.shape[1]))])[:2]
    return centered @ axes.T, float((strength[:2] ** 2).sum() / total) if total else 0.0


def nearest(
    features: np.ndarray, subjects: np.ndarray, item: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar items of other subjects, by cosine around the mean: their numbers, and the cosines."""
    unit = features - features.mean(0)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    alike = np.where(subjects == subjects[item], -np.inf, unit @ unit[item])
    best = np.argsort(-alike, kind="stable")[:count]
    return best[np.isfinite(alike[best])], alike[best][np.isfinite(alike[best])]


def neighbors(shown: pl.DataFrame, features: np.ndarray, cohort: pl.DataFrame) -> list[list[dict[str, str]]]:
    """Some slices, each of another subject, and those of other subjects that are most like them."""
    images = dict(cohort.select("scan", "image").iter_rows())
    subjects = np.array(shown["subject"].to_list())
    _, firsts = np.unique(subjects, return_index=True)
    draw, found = np.random.default_rng(1), []
    for subject in draw.permutation(subjects[firsts])[:ASKED]:
        item = int(draw.choice(np.flatnonzero(subjects == subject)))
        others, alike = nearest(features, subjects, item, NEIGHBORS)
        rows = [shown.row(int(i), named=True) for i in (item, *others)]
        cosines = ["", *(f", {value:.2f}" for value in alike)]
        found.append([
            {"src": picture_slice(open_shown(images[row["scan"]]), row["frame"], row["slice"]),
             "alt": f"{row['scan']}, slice {row['slice']}{cosine}"}
            for row, cosine in zip(rows, cosines)
        ])  # fmt: skip
    return found


def draw_map(places: np.ndarray, names: Sequence[str], shown: pl.DataFrame) -> str:
    """A dot for each embedding, colored by a name."""
    low, high = places.min(0), places.max(0)
    room = np.maximum(0.05 * (high - low), 1e-6)
    chart = Chart((low[0] - room[0], high[0] + room[0]), (low[1] - room[1], high[1] + room[1]), height=300)
    order = _order(names)
    for place, name, row in zip(places, names, shown.iter_rows(named=True)):
        of = ", ".join(str(row[c]) for c in ("scan", "study", "slice") if c in row)
        chart.dot(*place, kind=f"dot arm{order.index(name) % COLORS}", says=f"{name}: {of}")
    return chart.svg("map of embeddings")


def _names(column: pl.Series) -> list[str]:
    return [str(value) if value is not None else "unknown" for value in column]


def _order(names: Sequence[str]) -> list[str]:
    return sorted(set(names))
