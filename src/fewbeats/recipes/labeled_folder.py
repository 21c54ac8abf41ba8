"""A folder of masks that fills scan by scan: each is whole or absent, and all are one labeler's."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.disk import atomic_path, hold_folder, remove, staging_folder
from fewbeats.errors import InputError, name_some
from fewbeats.evaluation.predictions import COLUMNS
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance
    from fewbeats.scan import Scan

TABLE = "predictions.csv"
Row = Mapping[str, Any]


class LabeledFolder:
    """Masks, their table, and `run.json`, which says whether all of them are there.

    Nothing of an earlier result is touched before the first new scan is whole. A labeling that was stopped
    goes on where the same labeler is asked for the same scans.

    Args:
        out: the folder, held by this process.
        labeler: its key, a digest of all that decides its masks.
        about: what `run.json` says of it.
        provenance: what it has seen.
        scans: scan -> names of its files, of all that will be there.
    """

    def __init__(
        self,
        out: Path,
        *,
        labeler: str,
        about: Mapping[str, Any],
        provenance: Provenance,
        scans: Mapping[str, Sequence[str]],
    ):
        self.out, self.labeler, self.scans, self.provenance = out, labeler, scans, provenance
        self.about, self.begun = {**about, "labeler": labeler}, False
        rows = _read_rows(out)
        if others := sorted({row.get("scan") or "" for row in rows or []} - scans.keys()):
            raise InputError(
                f"{out}: holds predictions of other scans ({name_some(others)}); choose another --out"
            )
        names = [*(name for files in scans.values() for name in files), "report.html"]
        taken = [name for name in names if (out / name).exists()]
        if taken and rows is None:
            raise InputError(f"{out / taken[0]}: would be overwritten; choose another --out")
        self.rows: dict[str, Row] = {r["scan"]: r for r in rows or [] if r.get("labeler") == labeler}

    def has(self, scan: str, *, source: str) -> bool:
        """Whether a scan is there already, labeled from this source (`source_key`)."""
        row = self.rows.get(scan)
        return row is not None and row["source"] == source and (self.out / row["mask"]).is_file()

    def add(self, scan: str, write: Callable[[Path], Row]) -> None:
        """Put a scan in.

        Args:
            scan: its name.
            write: writes its mask, and what goes with it, into the folder it is given; returns its row.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        with staging_folder(self.out / self.scans[scan][0]) as staging:
            row = {**write(staging), "labeler": self.labeler}
            self._begin()
            if self.rows.pop(scan, None):
                self._write_table()
            for name in self.scans[scan]:
                remove(self.out / name)
            for whole in staging.iterdir():
                whole.replace(self.out / whole.name)
            self.rows[scan] = row
            self._write_table()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say that all scans are there."""
        run = RunDir(self.out)
        if self.begun or not run.read_json("run.json").get("finished"):
            run.write_json("run.json", {**self.about, **facts, "finished": True})

    def _begin(self) -> None:
        """Say whose masks these will be, and take away all others; in an order that may stop anywhere."""
        if self.begun:
            return
        RunDir(self.out).write_json("run.json", {**self.about, "finished": False})
        self.provenance.save(self.out)
        self._write_table()
        for scan, names in self.scans.items():
            for name in names if scan not in self.rows else ():
                remove(self.out / name)
        remove(self.out / "report.html")
        self.begun = True

    def _write_table(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows[scan] for scan in self.scans if scan in self.rows)
        with atomic_path(self.out / TABLE) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")


@contextmanager
def open_labeled(out: Path, **given: Any) -> Iterator[LabeledFolder]:
    """Hold a folder, and go on with what is in it.

    Raises:
        InputError: it holds something else, or another process holds it.
    """
    if (out / "request.json").exists():
        raise InputError(f"{out}: is a training run, which would be overwritten; choose another --out")
    with hold_folder(out):
        yield LabeledFolder(out, **given)


def source_key(scan: Scan, *given: Any) -> str:
    """Digest of what a mask is made from: the files as they lie there, how they were read, and `given`."""
    files = {file for stack in scan.source.instances for file, _ in stack}
    if not files and scan.source.path is not None:
        files = set(scan.source.parts) or {scan.source.path}
    states = [(file.name, file.stat()) for file in sorted(files)]
    seen = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    times = None if scan.frame_times_ms is None else scan.frame_times_ms.tolist()
    read = (scan.shape, scan.affine.tolist(), times, *given)
    return hashlib.sha256(repr((seen, read)).encode()).hexdigest()[:12]


def _read_rows(out: Path) -> list[dict[str, str]] | None:
    """Of an earlier table; None where there is none that can be read."""
    try:
        with (out / TABLE).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return None
