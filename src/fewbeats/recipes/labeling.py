"""Label scans into a folder of predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fewbeats.disk import remove
from fewbeats.errors import InputError, PlaceError
from fewbeats.heartbeat import ejection_fraction_percent, has_volume
from fewbeats.inference.plausibility import Inspector, unlike
from fewbeats.io.nifti import write_like
from fewbeats.memory import peak_memory_mb
from fewbeats.recipes.executors import Executor, serial
from fewbeats.recipes.jobs import Job
from fewbeats.recipes.labeled_folder import LabeledFolder, open_labeled
from fewbeats.scan import Prediction, Scan, is_spacing_nominal, plane_by_direction
from fewbeats.training.progress import progress_bar

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance
    from fewbeats.inference.labeler import Known, Labeled, Labeler


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
    confidence: bool = False,
    executor: Executor = serial,
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
        confidence: keep how sure each voxel is, too, where the labeler tells it.
        executor: who does it; another process than this one gets a copy of the labeler.
        tell: is given one line a scan.

    Returns:
        scan -> why it failed, of those that were left out.

    Raises:
        InputError: more scans cannot be labeled, which is told when all others are done; or `out` holds
            something else, or another process writes there.
    """
    work = LabelWork(labeler, confidence)
    return fill_folder(
        jobs, labeler, work, out, about=about, most_failed=most_failed, executor=executor, tell=tell
    )


class Author(Protocol):
    """Whose a folder of predictions is."""

    @property
    def provenance(self) -> Provenance:
        """What it has seen."""

    @property
    def key(self) -> str:
        """Digest of all that decides what it says; equal keys say the same."""

    def describe(self) -> dict[str, Any]:
        """What `run.json` of the folder says of it."""


def fill_folder(
    jobs: Sequence[Job],
    author: Author,
    work: Callable[[Task], Written],
    out: Path,
    *,
    about: Mapping[str, Any],
    most_failed: float = 0.0,
    executor: Executor = serial,
    tell: Callable[[str], None] = print,
) -> dict[str, str]:
    """Do the same to many scans, each whole or absent; see `label_scans`.

    Args:
        jobs: the scans.
        author: whose the outcome is.
        work: what is done to a scan; its first file is the one that the row names as its mask.
        out: the folder.
        about: what `run.json` is to say besides.
        most_failed: share of the scans that may fail, and are left out then.
        executor: who does it.
        tell: is given one line a scan.

    Returns:
        scan -> why it failed, of those that were left out.

    Raises:
        InputError: as `label_scans`.
    """
    started, refused = time.perf_counter(), dict[str, InputError]()
    told = {**author.describe(), **about}
    with open_labeled(out, labeler=author.key, about=told, provenance=author.provenance, jobs=jobs) as folder:
        waiting = [at for at, job in enumerate(jobs) if not _is_there(folder, job, refused)]
        kept = len(jobs) - len(waiting) - len(refused)
        tasks = (Task(job, folder.stage(job)) for job in map(jobs.__getitem__, waiting))
        with progress_bar("labeling", len(jobs), kept, shown=len(jobs) > 1) as advance:
            for task, result in executor(work, tasks):
                _put(folder, task, result, refused=refused, tell=tell)
                advance()
        if len(refused) > most_failed * len(jobs):
            raise _join_refused(list(refused.values()), len(jobs))
        failed = {scan: str(error) for scan, error in refused.items()}
        facts = {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb()}
        folder.finish(facts | ({"failed": failed} if failed else {}))
    if kept:
        tell(f"{out}: {kept} of {len(jobs)} labeled before, by the same network from the same files")
    return failed


def _put(
    folder: LabeledFolder,
    task: Task,
    result: Written | InputError,
    *,
    refused: dict[str, InputError],
    tell: Callable[[str], None],
) -> None:
    """Put a labeled scan into its place, or note why it is none.

    Raises:
        InputError: the disk refuses more of them.
    """
    if isinstance(result, PlaceError):
        raise result
    if isinstance(result, InputError):
        refused[task.job.scan] = result
        folder.drop(task.job)
    else:
        folder.take(task.job, result.folder, result.row)
        tell(result.said)


def _is_there(folder: LabeledFolder, job: Job, refused: dict[str, InputError]) -> bool:
    """Whether a scan is labeled already, or is refused, as its file is gone."""
    try:
        return folder.has(job)
    except InputError as error:
        refused[job.scan] = error
        return True


def _join_refused(errors: Sequence[InputError], scans: int) -> InputError:
    if scans == 1:
        return errors[0]
    told = "; ".join(map(str, errors[:5])) + (f"; and {len(errors) - 5} more" if len(errors) > 5 else "")
    return InputError(f"{len(errors)} of {scans} scans cannot be labeled: {told}")


@dataclass(frozen=True)
class Task:
    """A scan and the hidden folder that its files may be put into."""

    job: Job
    folder: Path


@dataclass(frozen=True)
class Written:
    """Files of a scan that are whole, but not in their place yet."""

    folder: Path
    row: dict[str, Any]
    said: str


@dataclass(frozen=True)
class Made:
    """What was made of a scan."""

    file: str
    """Name of its main file; the table's column `mask` names it, whatever it holds."""
    said: str
    """For the terminal."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of its row."""


def make_whole(task: Task, make: Callable[[Job, Path], Made]) -> Written:
    """Make files of a scan in a hidden folder; where that fails nothing of it stays.

    Args:
        task: the scan.
        make: (job, folder) -> what it wrote there.
    """
    job, begun = task.job, time.perf_counter()
    source = job.source_key()
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=task.folder))  # of this attempt: a lost worker may have begun one
        made = make(job, folder)
    except BaseException:
        remove(task.folder)
        raise
    row = {
        "scan": job.scan,
        "subject": job.subject,
        "image": job.image,
        "mask": made.file,
        **made.facts,
        "seconds": round(time.perf_counter() - begun, 3),
        "source": source,
    }
    return Written(folder, row, made.said)


@dataclass(frozen=True)
class LabelWork:
    """Labels a scan, wherever it is done."""

    labeler: Labeler
    confidence: bool = False

    def __call__(self, task: Task) -> Written:
        return make_whole(task, self._label)

    def _label(self, job: Job, folder: Path) -> Made:
        scan = job.open()
        found = label_scan(job, scan, self.labeler, folder, confidence=self.confidence)
        facts = {
            "ed_frame": found.ed_frame,
            "es_frame": found.es_frame,
            "warnings": ";".join(found.warnings),
        }
        return Made(job.mask, summarize(job, found, slices=scan.shape[1]), facts)


def label_scan(
    job: Job, scan: Scan, labeler: Labeler, folder: Path, *, confidence: bool = False
) -> Prediction:
    """Label a scan into a folder, frame by frame; DICOM also gets a folder of SEG files beside its mask."""
    job.phases.check(scan)
    known = labeler.known
    if not scan.modality and known and len(known.modalities) == 1:  # NIfTI does not tell
        scan = replace(scan, modality=known.modalities[0])
    trusted = not is_spacing_nominal(scan) if job.spacing_trusted is None else job.spacing_trusted
    inspector = Inspector(scan, labeler.structures, known, spacing_trusted=trusted)
    kept = KeptConfidence(folder / job.confidence, scan) if confidence else None
    masks = (
        inspector.see(t, labeled if kept is None else kept.see(t, labeled))
        for t, labeled in enumerate(labeler.label(scan))
    )
    write_like(folder / job.mask, masks, scan=scan)
    if kept is not None:
        kept.write()
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


class KeptConfidence:
    """Keeps how sure each voxel is, beside the masks as they pass: 0 to 255, from disk to disk.

    Args:
        file: NIfTI file to write.
        scan: what is labeled.
    """

    def __init__(self, file: Path, scan: Scan):
        self.file, self.scan, self.told = file, scan, False
        self.store = file.with_name(".confidence.npy")
        self.frames = np.lib.format.open_memmap(self.store, "w+", np.uint8, scan.shape)

    def see(self, t: int, labeled: Labeled) -> Labeled:
        """Note frame t, where its labeler tells something; returns it."""
        if labeled.confidence is not None:
            self.told = True
            self.frames[t] = np.rint(255 * labeled.confidence)
        return labeled

    def write(self) -> None:
        """The file, where anything was told."""
        if self.told:
            write_like(self.file, iter(self.frames), scan=self.scan)
        self.store.unlink()


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
