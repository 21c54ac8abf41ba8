"""A folder of masks that fills scan by scan: each is whole or absent, and all are one labeler's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.data.provenance import FILE_NAME as PROVENANCE
from fewbeats.disk import atomic_path, hold_folder, name_disk_trouble, partial_of, remove
from fewbeats.errors import InputError, name_some
from fewbeats.evaluation.predictions import COLUMNS
from fewbeats.finetuning.task import TABLES
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance
    from fewbeats.recipes.jobs import Job

TABLE = "predictions.csv"
JOURNAL = ".predictions.jsonl"
OWN = {TABLE, JOURNAL, PROVENANCE, "run.json"}
"""Files of a folder that are of no scan."""
Row = Mapping[str, Any]


class LabeledFolder:
    """Masks, their table, and `run.json`, which says whether all of them are there.

    Nothing of an earlier result is touched before the first new scan is whole. A labeling that was stopped
    goes on where the same labeler is asked for the same scans. Until all are there, rows lie in a journal, to
    which each scan adds a line.

    Args:
        out: the folder, held by this process.
        labeler: its key, a digest of all that decides its masks.
        about: what `run.json` says of it.
        provenance: what it has seen.
        jobs: all scans that will be there.
    """

    def __init__(
        self,
        out: Path,
        *,
        labeler: str,
        about: Mapping[str, Any],
        provenance: Provenance,
        jobs: Sequence[Job],
    ):
        self.out, self.labeler, self.jobs, self.provenance = out, labeler, jobs, provenance
        self.about, self.begun = {**about, "labeler": labeler}, False
        rows = _read_rows(out)
        mine = {job.scan for job in jobs}
        if others := sorted({row.get("scan") or "" for row in rows or []} - mine):
            raise InputError(
                f"{out}: holds predictions of other scans ({name_some(others)}); choose another --out"
            )
        if rows is None and out.is_dir() and (taken := _first_taken(out, jobs)):
            raise InputError(f"{out / taken}: would be overwritten; choose another --out")
        self.rows: dict[str, Row] = {r["scan"]: r for r in rows or [] if r.get("labeler") == labeler}

    def has(self, job: Job) -> bool:
        """Whether a scan is there already, labeled from the same files.

        Raises:
            InputError: there is no such file any more.
        """
        row = self.rows.get(job.scan)
        return row is not None and (self.out / row["mask"]).is_file() and row["source"] == job.source_key()

    def stage(self, job: Job) -> Path:
        """Hidden folder for what is not whole yet, made where it is used."""
        return partial_of(self.out / job.mask)

    def drop(self, job: Job) -> None:
        """Remove what was begun of a scan that failed."""
        remove(self.stage(job))

    def take(self, job: Job, written: Path, row: Row) -> None:
        """Put a scan into its place.

        Args:
            job: whose.
            written: folder with its files, whole; it is removed.
            row: of the table.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        row = {**row, "labeler": self.labeler}
        try:
            self._begin()
        except BaseException:
            self.drop(job)
            raise
        with name_disk_trouble(self.out / job.mask):
            if self.rows.pop(job.scan, None):
                self._note({"scan": job.scan})
            for name in job.files:
                remove(self.out / name)
            for whole in written.iterdir():
                whole.replace(self.out / whole.name)
            self.rows[job.scan] = row
            self._note(row)
            self.drop(job)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say that all scans are there."""
        run = RunDir(self.out)
        if self.begun or not run.read_json("run.json").get("finished"):
            self._write_table()
            run.write_json("run.json", {**self.about, **facts, "finished": True})

    def close(self) -> None:
        """Put the journal's rows into the table, where it was not finished."""
        if (self.out / JOURNAL).is_file():
            self._write_table()

    def _begin(self) -> None:
        """Say whose masks these will be, and take away all others; in an order that may stop anywhere."""
        if self.begun:
            return
        fresh = not (self.out / TABLE).is_file()
        try:
            RunDir(self.out).write_json("run.json", {**self.about, "finished": False})
            self.provenance.save(self.out)
            self._write_table()
        except InputError:  # the disk is full
            for name in ("run.json", PROVENANCE, TABLE) if fresh else ():
                remove(self.out / name)
            raise
        there = {file.name for file in self.out.iterdir()}  # a biobank's names are asked for once
        for job in self.jobs if there - OWN else ():
            for name in job.files if job.scan not in self.rows else ():
                if name in there:
                    remove(self.out / name)
        for name in ("report.html", *TABLES.values()):  # made of all scans, which are others now
            remove(self.out / name)
        self.begun = True

    def _note(self, row: Row) -> None:
        """Add a line to the journal; of a scan whose line has no mask the earlier ones count no more."""
        with (self.out / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row, default=str) + "\n")

    def _write_table(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows[job.scan] for job in self.jobs if job.scan in self.rows)
        with atomic_path(self.out / TABLE) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")
        (self.out / JOURNAL).unlink(missing_ok=True)


def _first_taken(out: Path, jobs: Sequence[Job]) -> str | None:
    """Name of a file that is there and would be written over."""
    there = {file.name for file in out.iterdir()}
    names = [name for job in jobs for name in job.files if name in there]
    others = {"report.html"} if _is_ours(out) else {"report.html", PROVENANCE, "run.json"}
    return next(iter([*names, *sorted(others & there)]), None)


def _is_ours(out: Path) -> bool:
    """Whether the folder's `run.json` was written here, perhaps before all else, when it was stopped."""
    with suppress(InputError):
        return "labeler" in RunDir(out).read_json("run.json")
    return False


@contextmanager
def open_labeled(out: Path, **given: Any) -> Iterator[LabeledFolder]:
    """Hold a folder, and go on with what is in it.

    Raises:
        InputError: it holds something else, or another process holds it.
    """
    if (out / "request.json").exists():
        raise InputError(f"{out}: is a training run, which would be overwritten; choose another --out")
    with hold_folder(out):
        folder = LabeledFolder(out, **given)
        try:
            yield folder
        finally:
            with suppress(InputError):  # the disk is full: the journal holds the rows
                folder.close()


def _read_rows(out: Path) -> list[dict[str, Any]] | None:
    """Of an earlier table and the journal after it; None where there is no table that can be read."""
    try:
        with (out / TABLE).open(newline="", encoding="utf-8") as file:
            rows: dict[str, dict[str, Any]] = {row["scan"]: row for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return None
    for row in _read_journal(out):
        rows.pop(row["scan"], None)
        if row.get("mask"):
            rows[row["scan"]] = row
    return list(rows.values())


def _read_journal(out: Path) -> Iterator[dict[str, Any]]:
    """Its whole lines: the last one may have been cut off."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        for line in (out / JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                yield {name: "" if value is None else value for name, value in row.items()}
