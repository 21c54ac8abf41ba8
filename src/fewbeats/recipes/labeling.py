"""Label scans into a folder of predictions."""

from __future__ import annotations

import csv
import io
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.disk import whole_folder
from fewbeats.errors import InputError, name_some
from fewbeats.evaluation.predictions import COLUMNS
from fewbeats.heartbeat import ejection_fraction_percent, find_phases, has_volume
from fewbeats.inference.plausibility import Inspector
from fewbeats.io.nifti import write_like
from fewbeats.scan import Prediction, Scan, is_spacing_nominal
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from fewbeats.inference.labeler import Labeler

COHORT_SUFFIXES = (".csv", ".parquet")
TABLE = "predictions.csv"


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
    phases: Phases = field(default_factory=Phases)

    @property
    def mask(self) -> str:
        """Name of its mask's file."""
        return f"{self.scan}.nii.gz"

    @property
    def seg(self) -> str:
        """Name of its folder of DICOM SEG files."""
        return f"{self.scan}_seg"


def jobs_of_cohort(file: Path, split: str | None) -> list[Job]:
    """The scans of a cohort table.

    Args:
        file: the table.
        split: only this one's scans.

    Raises:
        InputError: no such scan, or a missing file.
    """
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.files import check_files, open_scan

    cohort = read_cohort(file)
    rows = cohort if split is None else cohort.filter(pl.col("split") == split)
    if rows.is_empty():
        raise InputError(
            f"{file}: no scan of split '{split}'; it has {sorted(cohort['split'].drop_nulls().unique())}"
        )
    check_files(rows, labels=False)
    return [
        Job(row["scan"], row["subject"], row["image"], partial(open_scan, row), row["view"] or "",
            row["spacing_trusted"])
        for row in rows.iter_rows(named=True)
    ]  # fmt: skip


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
        jobs.append(Job(name, stem, f"{path.resolve()}{fragment}", partial(_same, scan)))
    return jobs


def _same(scan: Scan) -> Scan:
    return scan


def label_scans(
    jobs: Sequence[Job],
    labeler: Labeler,
    out: Path,
    *,
    about: Mapping[str, Any],
    tell: Callable[[str], None] = print,
) -> list[Prediction]:
    """Label every frame of scans into a folder: masks, `predictions.csv`, `run.json`, provenance.

    Args:
        jobs: the scans.
        labeler: what labels them.
        out: made where it is missing; an earlier result for the same scans is replaced when all is done.
        about: what `run.json` is to say besides.
        tell: is given one line a scan.

    Returns:
        what was found, in order.

    Raises:
        InputError: a scan cannot be read, or `out` holds something else.
    """
    started, predictions, rows = time.perf_counter(), [], []
    refuse_others(out, {job.scan for job in jobs})
    names = [*(name for job in jobs for name in (job.mask, job.seg)), "report.html"]
    with whole_folder(out, names=names, mark=TABLE) as folder:
        for job in jobs:
            begun, scan = time.perf_counter(), job.open()
            prediction = label_scan(job, scan, labeler, folder)
            predictions.append(replace(prediction, mask=out / job.mask))
            rows.append(_row(job, prediction, seconds=time.perf_counter() - begun))
            tell(summarize(job, prediction, slices=scan.shape[1]))
        (folder / TABLE).write_text(_table(rows))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        facts = {"seconds": time.perf_counter() - started, "peak_memory_mb": memory}
        RunDir(folder).write_json("run.json", {**labeler.describe(), **about, **facts})
        labeler.provenance.save(folder)
    return predictions


def label_scan(job: Job, scan: Scan, labeler: Labeler, folder: Path) -> Prediction:
    """Label a scan into a folder, frame by frame; DICOM also gets a folder of SEG files beside its mask."""
    job.phases.check(scan)
    known = labeler.known
    if not scan.modality and known and len(known.modalities) == 1:  # NIfTI does not tell
        scan = replace(scan, modality=known.modalities[0])
    trusted = not is_spacing_nominal(scan) if job.spacing_trusted is None else job.spacing_trusted
    inspector = Inspector(scan, labeler.structures, known, spacing_trusted=trusted)
    masks = (inspector.see(t, labeled) for t, labeled in enumerate(labeler.label(scan)))
    write_like(folder / job.mask, masks, scan=scan)
    if scan.source.instances:
        _write_seg(folder / job.seg, folder / job.mask, scan, labeler.structures)
    phases = job.phases.choose(inspector.volumes_ml.get("LV"))
    return Prediction(
        mask=folder / job.mask,
        structures=labeler.structures,
        volumes_ml=inspector.volumes_ml,
        ed_frame=phases.ed,
        es_frame=phases.es,
        warnings=inspector.warnings(),
    )


def _write_seg(out: Path, mask: Path, scan: Scan, structures: tuple[str, ...]) -> None:
    """Masks as DICOM SEG, read back frame by frame: several codings of all frames do not fit into memory."""
    from fewbeats.io.dicom_seg import write_seg
    from fewbeats.io.nifti import read_nifti

    written = read_nifti(mask)
    frames: Iterator[np.ndarray] = (written.frame(t).astype(np.uint8) for t in range(written.shape[0]))
    write_seg(frames, scan, out, structures=structures)


def refuse_others(out: Path, scans: set[str]) -> None:
    """Refuse a folder with masks of other scans, which a new table would no longer name.

    Raises:
        InputError: naming them.
    """
    try:
        with (out / TABLE).open(newline="", encoding="utf-8") as file:
            others = sorted({row.get("scan") or "" for row in csv.DictReader(file)} - scans)
    except (OSError, ValueError, csv.Error):
        return
    if others:
        raise InputError(
            f"{out}: holds predictions of other scans ({name_some(others)}); choose another --out"
        )


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(job: Job, prediction: Prediction, *, seconds: float) -> dict[str, Any]:
    return {
        "scan": job.scan,
        "subject": job.subject,
        "image": job.image,
        "mask": job.mask,
        "ed_frame": prediction.ed_frame,
        "es_frame": prediction.es_frame,
        "warnings": ";".join(prediction.warnings),
        "seconds": round(seconds, 3),
    }


def summarize(job: Job, prediction: Prediction, *, slices: int) -> str:
    """One line for the terminal."""
    if prediction.warnings:
        return f"{job.scan}: warning: {'; '.join(prediction.warnings)}"
    if not has_volume(slices, job.plane):
        return f"{job.scan}: labeled; a single plane or a long-axis view has no volume"
    lv = prediction.volumes_ml.get("LV")
    if lv is None or prediction.ed_frame is None or prediction.es_frame is None:
        volumes = ", ".join(f"{s} {v[0]:.0f} mL" for s, v in prediction.volumes_ml.items())
        return f"{job.scan}: {volumes}"
    edv, esv = float(lv[prediction.ed_frame]), float(lv[prediction.es_frame])
    ef = ejection_fraction_percent(edv, esv)
    return (
        f"{job.scan}: LV EDV {edv:.0f} mL (frame {prediction.ed_frame}), ESV {esv:.0f} mL "
        f"(frame {prediction.es_frame}), EF {float('nan') if ef is None else ef:.0f} %"
    )
