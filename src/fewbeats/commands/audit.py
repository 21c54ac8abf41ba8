"""Look whether a model of somebody else is good enough to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from fewbeats.self_training.filters import Species


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Label scans with each teacher and rank the teachers, without labels and with those that are there."""

    REPEATED: ClassVar = ("--teacher",)
    cohort: tyro.conf.Positional[Path]
    """Cohort table; scans of split train are labeled, all of them where no split is written."""
    teacher: tuple[str, ...]
    """KIND:WHERE of each: synthetic, the network that comes with the package; run:RUN of this program;
    folder:DIR of masks; onnx:FILE or torchscript:FILE of a network with a card FILE.yaml; nnunet:DIR,
    monai:DIR, totalsegmentator (docs/self_training.md); oracle, the manual labels spoiled, to try this."""
    out: Path
    """Folder for the masks of each teacher and audit.csv."""
    split: str = "train"
    """Scans of this split are labeled."""
    scans: int | None = None
    """Number of scans to label, drawn by the seed; all by default."""
    seed: int = 0
    """Draw of the scans."""
    species: Species = "any"
    """Whose volumes are plausible."""

    def run(self) -> Path:
        """Label and rank; returns the folder.

        Raises:
            InputError: the cohort or a teacher cannot be used.
        """
        import polars as pl

        from fewbeats.data.cohort import read_cohort
        from fewbeats.data.split import draw_order
        from fewbeats.errors import InputError
        from fewbeats.ranges import check_ranges
        from fewbeats.recipes.jobs import CohortJobs
        from fewbeats.self_training.audit import TABLE, audit_teachers
        from fewbeats.self_training.rounds import find_jobs, with_splits
        from fewbeats.teachers.specs import check_specs, open_teacher

        check_ranges(self, "", seeds=("seed",))
        check_specs(self.teacher)
        cohort = with_splits(read_cohort(self.cohort))
        jobs = find_jobs(cohort, self.split)
        if not jobs:
            raise InputError(f"{self.cohort}: has no scan of split '{self.split}' to label")
        if self.scans is not None:
            chosen = draw_order(jobs.rows["scan"], self.seed, purpose="audit ")[: self.scans]
            jobs = CohortJobs(jobs.rows.filter(pl.col("scan").is_in(chosen)))
        teachers = {spec: open_teacher(spec, cohort=cohort) for spec in self.teacher}
        audit_teachers(self.out, jobs, teachers, cohort, species=self.species)
        print(f"{self.out / TABLE}: {len(jobs)} scans by {len(teachers)} teachers")
        return self.out
