"""Embeddings of a cohort by the encoder of any run, for an analysis of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fewbeats.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode every slice of a cohort; a page beside the table shows them as a map, and their neighbors."""

    model: tyro.conf.Positional[Path]
    """Run folder of `fewbeats pretrain` or `finetune`."""
    cohort: tyro.conf.Positional[Path]
    """Cohort table."""
    out: Path
    """Parquet file: subject, study, scan, frame, slice and features."""
    level: Literal["slice", "scan", "study"] = "slice"
    """What an embedding is of; of scans and studies it is the mean of their slices."""
    split: str | None = None
    """Only this split."""
    jobs: int = 1
    """Processes of this machine that encode scans side by side."""
    on: str = "local"
    """Where: local, or dask: with the address or the scheduler file of a cluster that runs already."""

    def run(self) -> Path:
        """Encode; returns the table's path.

        Raises:
            InputError: the run or the cohort cannot be used.
        """
        from fewbeats.disk import atomic_path
        from fewbeats.evaluation.embedding_report import count_embeddings, render_embeddings
        from fewbeats.inference.encode import open_encoder
        from fewbeats.recipes.encoding import encode_scans
        from fewbeats.recipes.executors import open_executor
        from fewbeats.recipes.jobs import jobs_of_cohort

        if self.out.suffix.lower() != ".parquet":
            raise InputError(f"--out {self.out}: embeddings are written as .parquet; name such a file")
        jobs, encoder = jobs_of_cohort(self.cohort, self.split), open_encoder(self.model)
        study_of = dict(jobs.rows.select("scan", "study").iter_rows())
        encode_scans(
            jobs, encoder, self.out, level=self.level, study_of=study_of,
            executor=open_executor(self.on, self.jobs),
        )  # fmt: skip
        page = self.out.with_suffix(".html")
        text = render_embeddings(self.out, jobs.rows, run=encoder.describe(), provenance=encoder.provenance)
        with atomic_path(page) as file:
            file.write_text(text, encoding="utf-8")
        print(f"{self.out}: {count_embeddings(self.out)} embeddings")
        print(f"report: {page}")
        return self.out
