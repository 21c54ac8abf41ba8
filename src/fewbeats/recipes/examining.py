"""Ask a task's network about many scans or studies, into a folder of tables."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.data.cohort import FILE_NAME
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.finetuning.task import TABLES
from fewbeats.recipes.executors import Executor, serial
from fewbeats.recipes.jobs import Job
from fewbeats.recipes.labeled_folder import TABLE
from fewbeats.recipes.labeling import Made, Task, Written, fill_folder, make_whole

if TYPE_CHECKING:
    from fewbeats.inference.examine import Examiner, Row


def examine_scans(
    jobs: Sequence[Job],
    examiner: Examiner,
    out: Path,
    *,
    about: Mapping[str, Any],
    executor: Executor = serial,
    tell: Callable[[str], None] = print,
) -> Path:
    """What a task's network says of scans: a table of each, all of them in one, and `run.json`.

    Scan by scan, each whole or absent, as `label_scans` does it.

    Args:
        jobs: scans, or of a task of studies what `group_studies` makes of them.
        examiner: who is asked.
        out: the folder.
        about: what `run.json` is to say besides.
        executor: who does it.
        tell: is given one line a scan.

    Returns:
        the table of all.

    Raises:
        InputError: scans that cannot be read, or a folder that holds something else.
    """
    whole = out / TABLES[examiner.task.kind]
    _refuse_mended(whole)
    fill_folder(jobs, examiner, ExamineWork(examiner), out, about=about, executor=executor, tell=tell)
    if not whole.is_file():  # any new scan took it away
        with atomic_path(whole) as file:
            file.write_text(_join(out / job.table for job in jobs), encoding="utf-8")
    return whole


def _refuse_mended(whole: Path) -> None:
    """A table that is not what the tables of its folder's scans make is somebody's work.

    Raises:
        InputError: it would be overwritten.
    """
    out, made = whole.parent, None
    if not whole.is_file():
        return
    with suppress(OSError, ValueError, KeyError, csv.Error):
        made = _join(out / row["mask"] for row in _read(out / TABLE))
    if made is None or made.encode() != whole.read_bytes():
        raise InputError(
            f"{whole}: was changed by hand and would be overwritten; choose another --out, or move it away"
        )


def group_studies(jobs: Sequence[Job], study_of: Mapping[str, str]) -> list[Job]:
    """One job a study, which opens all its scans.

    Args:
        jobs: scans.
        study_of: scan -> its study; one study where it is missing.

    Raises:
        InputError: a study's name that no file can have.
    """
    grouped: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        grouped.setdefault((job.subject, study_of.get(job.scan, job.subject)), []).append(job)
    names = Counter(study for _, study in grouped)
    if bad := [name for name in names if not re.fullmatch(FILE_NAME, name)]:
        raise InputError(f"study '{bad[0]}' cannot be part of a file's name; rename it in the cohort")
    return [
        replace(first, scan=study if names[study] == 1 else f"{subject}_{study}", others=(first, *others))
        for (subject, study), (first, *others) in grouped.items()
    ]


@dataclass(frozen=True)
class ExamineWork:
    """Examines a scan or a study, wherever it is done."""

    examiner: Examiner

    def __call__(self, task: Task) -> Written:
        return make_whole(task, self._examine)

    def _examine(self, job: Job, folder: Path) -> Made:
        scans = [(part.scan, part.open()) for part in job.others or (job,)]
        beside = {"subject": job.subject, "study": job.scan if job.others else ""}
        rows = [{**beside, **row} for row in self.examiner.examine(scans)]
        _write(folder / job.table, rows)
        if any(scan.source.instances for _, scan in scans):
            from fewbeats.io.dicom_sr import write_sr

            write_sr(folder / job.report, scans, rows, title=self.examiner.task.title)
        return Made(job.table, f"{job.scan}: {summarize(rows)}")


def summarize(rows: Sequence[Row]) -> str:
    """One line for the terminal."""
    whole = next((row for row in rows if row.get("level") in ("scan", "study")), None)
    if whole is not None:
        return f"{whole['class']} ({100 * whole['confidence']:.0f} %)"
    return f"{len(rows)} points"


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text(_as_table(rows), encoding="utf-8")


def _join(files: Iterable[Path]) -> str:
    """The tables of scans as one."""
    return _as_table([row for file in files for row in _read(file)])


def _as_table(rows: Sequence[Row]) -> str:
    """Rows as CSV, each column that any of them has."""
    text, names = io.StringIO(), list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    )
    return text.getvalue()


def _read(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))
