"""What is to be labeled: scans by name, opened when their turn comes, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fewbeats.data.files import split_fragment
from fewbeats.disk import files_below
from fewbeats.errors import InputError
from fewbeats.heartbeat import find_phases
from fewbeats.scan import Scan

if TYPE_CHECKING:
    import polars as pl

COHORT_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Phases:
    """Frames of end-diastole and end-systole, where somebody knows better than the volume curve."""

    ed: int | None = None
    es: int | None = None

    def choose(self, lv_ml: np.ndarray | None) -> Phases:
        """As given, else the largest and smallest LV; none without an LV that beats."""
        if lv_ml is None or len(lv_ml) < 2:
            return Phases()
        ed, es = find_phases(lv_ml)
        return Phases(ed if self.ed is None else self.ed, es if self.es is None else self.es)

    def check(self, scan: Scan) -> None:
        """Refuse frames that the scan does not have.

        Raises:
            InputError: naming the option.
        """
        last = scan.shape[0] - 1
        for option, frame in (("--ed-frame", self.ed), ("--es-frame", self.es)):
            if frame is not None and not 0 <= frame <= last:
                raise InputError(f"{scan.source.path}: {option} {frame}: it has frames 0 to {last}")


@dataclass(frozen=True)
class Job:
    """One scan to label."""

    scan: str
    """Unique name; its files are called so."""
    subject: str
    image: str
    open: Callable[[], Scan]
    plane: str = ""
    """As in the cohort's column view; empty where nobody says it."""
    spacing_trusted: bool | None = None
    """Whether the voxel size is real, as the cohort says; by the file's header where nobody does."""
    frame_time_ms: float | None = None
    """As it was given."""
    phases: Phases = field(default_factory=Phases)
    others: tuple[Job, ...] = ()
    """Of a study that is looked at as a whole: its other scans."""

    @property
    def table(self) -> str:
        """Name of the file with its rows, where it is not masks that are made."""
        return f"{self.scan}.csv"

    @property
    def features(self) -> str:
        """Name of the file with its embeddings."""
        return f"{self.scan}.parquet"

    @property
    def report(self) -> str:
        """Name of its DICOM structured report."""
        return f"{self.scan}_sr.dcm"

    @property
    def mask(self) -> str:
        """Name of its mask's file."""
        return f"{self.scan}.nii.gz"

    @property
    def seg(self) -> str:
        """Name of its folder of DICOM SEG files."""
        return f"{self.scan}_seg"

    @property
    def confidence(self) -> str:
        """Name of the file that says how sure each voxel is, where that is kept."""
        return f"{self.scan}_confidence.nii.gz"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all that may be written for it."""
        return self.mask, self.seg, self.confidence, self.table, self.report, self.features

    def source_key(self) -> str:
        """Digest of what its mask is made from: the files as they lie there, and how they are read.

        Nothing is opened for it: of a biobank's scans those that are labeled are passed over in seconds.

        Raises:
            InputError: there is no such file.
        """
        path, number = split_fragment(self.image)
        if not path.exists():
            raise InputError(f"{path}: no such file; mend the cohort's paths")
        states = [(f.name, f.stat()) for f in (files_below(path) if path.is_dir() else [path])]
        seen = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
        given: tuple[Any, ...] = (
            number, self.frame_time_ms, self.phases, self.spacing_trusted, self.plane
        )  # fmt: skip
        if self.others:
            given = (*given, *(other.source_key() for other in self.others))
        return hashlib.sha256(repr((seen, given)).encode()).hexdigest()[:12]


class CohortJobs(Sequence[Job]):
    """The scans of a cohort's rows; a `Job` is made when it is asked for, as a biobank has 300,000."""

    def __init__(self, rows: pl.DataFrame, phases: Phases = Phases()):
        self.rows, self.phases = rows, phases

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Job: ...
    @overload
    def __getitem__(self, at: slice) -> CohortJobs: ...
    def __getitem__(self, at: int | slice) -> Job | CohortJobs:
        if isinstance(at, slice):
            return CohortJobs(self.rows[at], self.phases)
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._job(self.rows.row(at, named=True))

    def __iter__(self) -> Iterator[Job]:
        return map(self._job, self.rows.iter_rows(named=True))

    def about(self, where: Mapping[str, Sequence[str]]) -> CohortJobs:
        """The scans that a task is about; says how many studies have none.

        Raises:
            InputError: as `rows_where`.
        """
        from fewbeats.recipes.pools import rows_where

        found = CohortJobs(rows_where(self.rows, where), self.phases)
        every, left = (len(jobs.rows.unique(["subject", "study"])) for jobs in (self, found))
        if left < every:
            print(f"{every - left} of {every} studies have no scan that the task is about and are left out")
        return found

    def _job(self, row: Mapping[str, Any]) -> Job:
        from fewbeats.data.files import open_scan

        return Job(
            row["scan"], row["subject"], row["image"], partial(open_scan, row), plane=row["view"] or "",
            spacing_trusted=row["spacing_trusted"], frame_time_ms=row["frame_time_ms"], phases=self.phases,
        )  # fmt: skip


def jobs_of_cohort(file: Path, split: str | None) -> CohortJobs:
    """The scans of a cohort table.

    Args:
        file: the table.
        split: only this one's scans.

    Raises:
        InputError: no such scan, or a missing file.
    """
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.files import check_files

    cohort = read_cohort(file)
    rows = cohort if split is None else cohort.filter(pl.col("split") == split)
    if rows.is_empty():
        raise InputError(
            f"{file}: no scan of split '{split}'; it has {sorted(cohort['split'].drop_nulls().unique())}"
        )
    check_files(rows, labels=False)
    return CohortJobs(rows)


def jobs_of_path(path: Path, *, frame_time_ms: float | None = None) -> list[Job]:
    """The scans in a NIfTI file or a DICOM file or folder.

    Args:
        path: file or folder.
        frame_time_ms: between frames, where a NIfTI header does not know it.

    Raises:
        InputError: nothing readable is there.
    """
    from fewbeats.data.files import bare_name, read_scans

    scans, stem, jobs = read_scans(path, frame_time_ms=frame_time_ms), bare_name(path), []
    for number, scan in enumerate(scans, 1):
        name = stem if len(scans) == 1 else f"{stem}_{number}"
        fragment = "" if number == 1 else f"#{number}"
        image = f"{path.resolve()}{fragment}"
        jobs.append(Job(name, stem, image, partial(_same, scan), frame_time_ms=frame_time_ms))
    return jobs


def _same(scan: Scan) -> Scan:
    return scan


def with_phases(jobs: Sequence[Job], phases: Phases) -> Sequence[Job]:
    """The same jobs, with end-diastole and end-systole as somebody knows them."""
    if isinstance(jobs, CohortJobs):
        return CohortJobs(jobs.rows, phases)
    return [replace(job, phases=phases) for job in jobs]
