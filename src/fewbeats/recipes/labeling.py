"""Label scans into a folder of predictions."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.errors import InputError, PlaceError
from fewbeats.heartbeat import ejection_fraction_percent, find_phases, has_volume
from fewbeats.inference.plausibility import Inspector, unlike
from fewbeats.io.nifti import write_like
from fewbeats.recipes.labeled_folder import open_labeled, source_key
from fewbeats.scan import Prediction, Scan, is_spacing_nominal, plane_by_direction

if TYPE_CHECKING:
    from fewbeats.inference.labeler import Known, Labeler

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


def choose_fitting(jobs: Sequence[Job], known: Known | None, *, tell: Callable[[str], None]) -> list[Job]:
    """Of the scans of one exam those that a labeler was trained for; the others are told in one line.

    All of them where there is one alone, or where none fits: it is labeled with its warnings then.
    """
    fits, others = [], []
    for job in jobs:
        scan = job.open()
        if known and unlike(scan, known):
            numbers = ", ".join(map(str, scan.source.series))
            plane = scan.source.plane or plane_by_direction(scan)
            what = ", ".join(filter(None, [f"series {numbers}" if numbers else "", plane, scan.modality]))
            others.append(f"{job.scan} ({what})" if what else job.scan)
        else:
            fits.append(job)
    if not fits or not others:
        return list(jobs)
    tell(f"not labeled, as the network was trained on other planes or images: {'; '.join(others)}")
    return fits


def label_scans(
    jobs: Sequence[Job],
    labeler: Labeler,
    out: Path,
    *,
    about: Mapping[str, Any],
    most_failed: float = 0.0,
    tell: Callable[[str], None] = print,
) -> dict[str, str]:
    """Label every frame of scans into a folder: masks, `predictions.csv`, `run.json`, provenance.

    Scan by scan, each whole or absent: a labeling that was stopped goes on, and scans that this labeler has
    labeled before, from the same files, are left as they are.

    Args:
        jobs: the scans.
        labeler: what labels them.
        out: made where it is missing; masks of another labeler give way when the first new one is whole.
        about: what `run.json` is to say besides.
        most_failed: share of the scans that may fail, and are left out then.
        tell: is given one line a scan.

    Returns:
        scan -> why it failed, of those that were left out.

    Raises:
        InputError: more scans cannot be labeled, which is told when all others are done; or `out` holds
            something else, or another process writes there.
    """
    started, kept, refused = time.perf_counter(), 0, dict[str, InputError]()
    scans = {job.scan: (job.mask, job.seg) for job in jobs}
    told = {**labeler.describe(), **about}
    with open_labeled(
        out, labeler=labeler.key, about=told, provenance=labeler.provenance, scans=scans
    ) as folder:
        for job in jobs:
            try:
                scan = job.open()
                source = source_key(scan, job.phases, job.spacing_trusted)
                if folder.has(job.scan, source=source):
                    kept += 1
                else:
                    folder.add(job.scan, partial(_label, job, scan, labeler, source=source, tell=tell))
            except PlaceError:
                raise
            except InputError as error:
                refused[job.scan] = error
        if len(refused) > most_failed * len(jobs):
            raise _join_refused(list(refused.values()), len(jobs))
        failed = {scan: str(error) for scan, error in refused.items()}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        facts = {"seconds": time.perf_counter() - started, "peak_memory_mb": memory}
        folder.finish(facts | ({"failed": failed} if failed else {}))
    if kept:
        tell(f"{out}: {kept} of {len(jobs)} labeled before, by the same network from the same files")
    return failed


def _join_refused(errors: Sequence[InputError], scans: int) -> InputError:
    if scans == 1:
        return errors[0]
    told = "; ".join(map(str, errors[:5])) + (f"; and {len(errors) - 5} more" if len(errors) > 5 else "")
    return InputError(f"{len(errors)} of {scans} scans cannot be labeled: {told}")


def _label(
    job: Job, scan: Scan, labeler: Labeler, folder: Path, *, source: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Label a scan into a folder; its row of the table."""
    begun = time.perf_counter()
    prediction = label_scan(job, scan, labeler, folder)
    tell(summarize(job, prediction, slices=scan.shape[1]))
    return {
        "scan": job.scan,
        "subject": job.subject,
        "image": job.image,
        "mask": job.mask,
        "ed_frame": prediction.ed_frame,
        "es_frame": prediction.es_frame,
        "warnings": ";".join(prediction.warnings),
        "seconds": round(time.perf_counter() - begun, 3),
        "source": source,
    }


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
