"""The page of embeddings: a map of them in two dimensions, and the nearest neighbors of some slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fewbeats.evaluation.task_report import open_shown, picture_slice
from fewbeats.pages.charts import Chart
from fewbeats.pages.page import as_markup, flatten, render_page

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance

TEMPLATE = Path(__file__).with_name("embeddings.html.j2")
MOST = 1500  # dots of a map
ASKED, NEIGHBORS = 5, 5
ROWS = 16384  # of a table, in memory at a time
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


def render_embeddings(
    table: Path, cohort: pl.DataFrame, *, run: Mapping[str, Any], provenance: Provenance
) -> str:
    """The page as HTML.

    Args:
        table: Parquet file of `encode_scans`.
        cohort: rows that tell sequence, view and disease.
        run: what made them.
        provenance: what its encoder has seen.
    """
    drawn = draw_embeddings(table)
    key = ["scan"] if "scan" in drawn.columns else ["subject", "study"]
    shown = drawn.join(_told(cohort, key), on=key, how="left", maintain_order="left")
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
            "taught": len({subject for own in provenance.lineage() for subject in own.labeled}),
            "maps": maps,
            "shown": len(shown),
            "explained": explained,
            "asked": show_neighbors(table, shown, cohort) if "slice" in drawn.columns else [],
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
    table: Path, asked: pl.DataFrame, *, center: np.ndarray, count: int
) -> list[tuple[pl.DataFrame, np.ndarray]]:
    """For each of some embeddings the most similar ones of other subjects, most similar first.

    The whole table is searched, a piece of it in memory at a time.

    Args:
        table: Parquet file of `encode_scans`.
        asked: some of its rows.
        center: (D,); cosines are of what is left without it.
        count: how many of each.

    Returns:
        Rows of the table without features, and their cosines.
    """
    ours = _directions(asked, center)
    whose = asked["subject"].to_numpy()
    found = [(pl.DataFrame(), np.zeros(0)) for _ in whose]
    for at in range(0, count_embeddings(table), ROWS):
        piece = pl.scan_parquet(table).slice(at, ROWS).collect()
        alike = ours @ _directions(piece, center).T
        alike[whose[:, None] == piece["subject"].to_numpy()[None]] = -np.inf
        for item, (rows, cosines) in enumerate(found):
            best = np.argsort(-alike[item], kind="stable")[:count]
            best = best[np.isfinite(alike[item, best])]
            cosines = np.concatenate([cosines, alike[item, best]])
            rows = pl.concat([rows, piece.drop("features")[best]], how="diagonal")
            order = np.argsort(-cosines, kind="stable")[:count]
            found[item] = rows[order], cosines[order]
    return found


def _directions(rows: pl.DataFrame, center: np.ndarray) -> np.ndarray:
    """Embeddings (N, D) around a center, of length 1."""
    apart = np.asarray(rows["features"].to_numpy()) - center
    return apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12)


def show_neighbors(table: Path, shown: pl.DataFrame, cohort: pl.DataFrame) -> list[list[dict[str, str]]]:
    """Pictures of some slices, each of another subject, and of those of other subjects most like them."""
    images = dict(cohort.select("scan", "image").iter_rows())
    subjects = shown["subject"].to_numpy()
    draw = np.random.default_rng(1)
    chosen = draw.permutation(np.unique(subjects))[:ASKED]
    asked = shown[[int(draw.choice(np.flatnonzero(subjects == subject))) for subject in chosen]]
    center = np.asarray(shown["features"].to_numpy()).mean(0)
    found = []
    for one, (rows, alike) in enumerate(nearest(table, asked, center=center, count=NEIGHBORS)):
        cosines = ["", *(f", {value:.2f}" for value in alike)]
        places = [asked.row(one, named=True), *rows.iter_rows(named=True)]
        found.append([
            {"src": picture_slice(open_shown(images[row["scan"]]), row["frame"], row["slice"]),
             "alt": f"{row['scan']}, slice {row['slice']}{cosine}"}
            for row, cosine in zip(places, cosines)
        ])  # fmt: skip
    return found


def _told(cohort: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """What the cohort says of each scan or study; a study of several sequences or views is of `several`."""
    known = [pl.col(name).drop_nulls() for name in COLORED]
    several = pl.lit("several")
    each = [pl.when(one.n_unique() > 1).then(several).otherwise(one.first()) for one in known]
    return cohort.group_by(key, maintain_order=True).agg(**dict(zip(COLORED, each)))


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
