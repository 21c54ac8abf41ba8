"""Embeddings of many scans as one table, each scan whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from fewbeats.disk import atomic_path
from fewbeats.recipes.executors import Executor, serial
from fewbeats.recipes.jobs import Job
from fewbeats.recipes.labeling import Made, Task, Written, fill_folder, make_whole

if TYPE_CHECKING:
    from fewbeats.inference.encode import Encoder

Level = Literal["slice", "scan", "study"]
PLACE = {"slice": ("subject", "study", "scan", "frame", "slice"), "scan": ("subject", "study", "scan"),
         "study": ("subject", "study")}  # fmt: skip
"""Level -> columns that say what an embedding is of."""
ROWS = 4096
"""Embeddings that are in memory at a time while the slices of many scans are put together."""


def encode_scans(
    jobs: Sequence[Job],
    encoder: Encoder,
    out: Path,
    *,
    level: Level,
    study_of: Mapping[str, str],
    executor: Executor = serial,
    tell: Callable[[str], None] = print,
) -> None:
    """Encode scans; what was encoded before, from the same files, is not encoded again.

    Slices are put together piece by piece, as a biobank's do not fit into memory.

    Args:
        jobs: the scans.
        encoder: of a run.
        out: Parquet file; the scans' own tables lie in a folder beside it, `NAME_parts`, whatever the level.
        level: what an embedding is of; of scans and studies it is the mean of their slices.
        study_of: scan -> its study.
        executor: who does it.
        tell: is given one line a scan.

    Writes:
        subject, study, and by level scan, frame and slice; `features`, (D,) float32.

    Raises:
        InputError: scans that cannot be read, or a folder that holds something else.
    """
    parts = out.with_name(f"{out.stem}_parts")
    fill_folder(jobs, encoder, EncodeWork(encoder), parts, about={}, executor=executor, tell=tell)
    files = [parts / job.features for job in jobs]
    told = [(job.scan, study_of.get(job.scan, job.subject)) for job in jobs]
    visits = pl.DataFrame(told, {"scan": pl.String, "study": pl.String}, orient="row")
    with atomic_path(out) as file:
        if level == "slice":
            slices = pl.scan_parquet(files).join(visits.lazy(), on="scan", how="left", maintain_order="left")
            slices.select(*PLACE[level], "features").sink_parquet(file, row_group_size=ROWS)
            return
        read = (pl.read_parquet(one).with_columns(weight=pl.lit(1.0)) for one in files)
        tables = [
            _at(table.with_columns(study=pl.lit(visit)), level) for table, visit in zip(read, visits["study"])
        ]
        whole = pl.concat(tables)
        if level == "study":  # of which a study has several scans
            whole = _at(whole, level)
        whole.drop("weight").write_parquet(file)


def _at(table: pl.DataFrame, level: Level) -> pl.DataFrame:
    """Embeddings of a level: the mean of those that are of one and the same thing, by the slices in each."""
    place, width = PLACE[level], table["features"].dtype.shape[0]  # type: ignore[attr-defined]
    rows = []
    for named, own in table.group_by(place, maintain_order=True):
        weight = own["weight"].to_numpy()
        mean = np.average(own["features"].to_numpy(), axis=0, weights=weight)
        rows.append({**dict(zip(place, named)), "features": mean, "weight": float(weight.sum())})
    kinds: dict[str, Any] = dict.fromkeys(place, pl.String)
    kinds |= {"features": pl.Array(pl.Float32, width), "weight": pl.Float64}
    return pl.DataFrame(rows, kinds)


@dataclass(frozen=True)
class EncodeWork:
    """Encodes a scan, wherever it is done."""

    encoder: Encoder

    def __call__(self, task: Task) -> Written:
        return make_whole(task, self._encode)

    def _encode(self, job: Job, folder: Path) -> Made:
        frames = list(self.encoder.encode(job.open()))
        features = np.concatenate([found for _, found in frames])
        pl.DataFrame({
            "subject": [job.subject] * len(features),
            "scan": [job.scan] * len(features),
            "frame": np.repeat([t for t, _ in frames], [len(found) for _, found in frames]),
            "slice": np.concatenate([np.arange(len(found)) for _, found in frames]),
            "features": pl.Series(features, dtype=pl.Array(pl.Float32, features.shape[1])),
        }).write_parquet(folder / job.features)  # fmt: skip
        return Made(job.features, f"{job.scan}: {len(features)} slices")
