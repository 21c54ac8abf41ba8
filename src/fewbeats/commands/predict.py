"""Label every frame of a scan, a DICOM folder or a cohort with a run's network."""

from __future__ import annotations

import csv
import io
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from fewbeats.commands.files import bare_name, read_scans
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti, write_like
from fewbeats.scan import Prediction, is_spacing_nominal
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from fewbeats.inference.segment import Model
    from fewbeats.scan import Scan

TABLE = ("scan", "subject", "image", "mask", "ed_frame", "es_frame", "warnings", "seconds")


@dataclass(frozen=True)
class Target:
    """One scan to predict."""

    scan: str
    subject: str
    image: str
    open: Any
    """() -> Scan."""
    view: str = ""
    """As in the cohort; empty where nobody says it."""
    spacing_trusted: bool | None = None
    """Whether the voxel size is real, as the cohort says; by the file's header where nobody does."""

    @property
    def mask(self) -> str:
        """Name of its mask's file."""
        return f"{self.scan}.nii.gz"

    @property
    def seg(self) -> str:
        """Name of its folder of DICOM SEG files."""
        return f"{self.scan}_seg"


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Label every frame with a run's network; masks come back on the source's own grid."""

    model: tyro.conf.Positional[Path]
    """Run folder of `fewbeats finetune`."""
    input: tyro.conf.Positional[Path]
    """NIfTI file (3D or 4D), DICOM folder, or cohort table."""
    out: Path
    """Folder for masks, predictions.csv, run.json and, for scans without labels, report.html."""
    split: str | None = None
    """Of a cohort, only this split."""
    ed_frame: int | None = None
    """End-diastolic frame, where the volume curve should not decide."""
    es_frame: int | None = None
    """End-systolic frame, where the volume curve should not decide."""
    frame_time_ms: float | None = None
    """Time between frames, where a NIfTI header does not know it."""
    runtime: Literal["torch", "onnxruntime", "openvino"] | None = None
    """By default the fastest, as measured when the run was trained."""

    def run(self) -> Path:
        """Predict; returns the folder.

        Raises:
            InputError: the run or the input cannot be used.
        """
        from fewbeats.data.provenance import load_provenance
        from fewbeats.inference.segment import load_model

        started = time.perf_counter()
        targets = list(find_targets(self))
        model, provenance = load_model(self.model, runtime=self.runtime), load_provenance(self.model)
        rows = []
        self._check_given(targets)
        refuse_others(self.out, {target.scan for target in targets})
        names = [*(n for target in targets for n in (target.mask, target.seg)), "report.html"]
        with whole_folder(self.out, names=names, mark="predictions.csv") as folder:
            for target in targets:
                begun, scan = time.perf_counter(), target.open()
                prediction = predict_scan(target, scan, model, folder / target.mask, command=self)
                rows.append(_row(target, prediction, time.perf_counter() - begun))
                print(_summary(target, prediction, slices=scan.shape[1]))
            self._write(folder, rows, model, started)
            provenance.save(folder)
        if self.input.suffix.lower() not in COHORT_SUFFIXES:
            from fewbeats.evaluation.evaluate import write_prediction_report

            print(f"report: {write_prediction_report(self.out, self.out)}")
        return self.out

    def _check_given(self, targets: Sequence[Target]) -> None:
        """Raises:
        InputError: settings of one scan were given for several, or for such as know better.
        """
        from fewbeats.data.files import is_nifti

        if len(targets) > 1 and (self.ed_frame is not None or self.es_frame is not None):
            raise InputError(f"--ed-frame, --es-frame: go with one scan; {self.input} holds {len(targets)}")
        if self.frame_time_ms is not None and not is_nifti(self.input):
            raise InputError(f"--frame-time-ms: goes with a NIfTI file, not with {self.input}")

    def _write(self, folder: Path, rows: list[dict[str, Any]], model: Model, started: float) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, TABLE)
        writer.writeheader()
        writer.writerows(rows)
        (folder / "predictions.csv").write_text(text.getvalue())
        config = model.segmenter.config
        RunDir(folder).write_json(
            "run.json",
            {
                **{k: config.get(k) for k in ("format", "versions", "git_commit", "machine", "structures")},
                "model": self.model,
                "training": {
                    k: v for k, v in config.items() if k not in ("versions", "machine", "fingerprint")
                },
                "labeled_subjects": config.get("labeled_subjects", []),
                "runtime": model.segmenter.runtime,
                "split": self.split,
                "seconds": time.perf_counter() - started,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            },
        )


def refuse_others(out: Path, scans: set[str]) -> None:
    """Raises:
    InputError: `out` holds masks of other scans, which a new `predictions.csv` would no longer name.
    """
    from fewbeats.data.split import name_some

    try:
        with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
            others = sorted({row.get("scan") or "" for row in csv.DictReader(file)} - scans)
    except (OSError, ValueError, csv.Error):
        return
    if others:
        raise InputError(
            f"{out}: holds predictions of other scans ({name_some(others)}); choose another --out"
        )


@contextmanager
def whole_folder(out: Path, *, names: Sequence[str], mark: str) -> Iterator[Path]:
    """A hidden folder in `out` whose content moves into `out` when the block ends well; else it is removed.

    Args:
        out: made where it is missing.
        names: files that are part of such a result; what an earlier one has and this one lacks goes away.
        mark: file that an earlier result holds, without which nothing in `out` is overwritten.

    Raises:
        InputError: `out` is no folder, or holds files of these names that are not an earlier result.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for --out")
    if (out / "request.json").exists():
        raise InputError(f"{out}: is a training run, which would be overwritten; choose another --out")
    taken = [name for name in names if (out / name).exists()]
    if taken and not (out / mark).is_file():
        raise InputError(f"{out / taken[0]}: would be overwritten; choose another --out")
    fresh, staging = not out.exists(), out / f".{os.getpid()}.partial"
    try:
        staging.mkdir(parents=True)
        yield staging
        written = {whole.name for whole in staging.iterdir()}
        for whole in sorted(staging.iterdir()):
            if (out / whole.name).is_dir():
                shutil.rmtree(out / whole.name)
            whole.replace(out / whole.name)
        for name in taken:
            if name not in written:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh:
            with suppress(OSError):  # it holds what was written
                out.rmdir()


COHORT_SUFFIXES = (".csv", ".parquet")


def find_targets(command: Predict) -> Iterator[Target]:
    """The scans an input stands for.

    Raises:
        InputError: nothing readable is there.
    """
    path = command.input
    if path.suffix.lower() in COHORT_SUFFIXES:
        yield from _cohort_targets(path, command.split)
    elif command.split is not None:
        raise InputError(f"--split {command.split}: goes with a cohort table, not with {path}")
    else:
        scans = read_scans(path, frame_time_ms=command.frame_time_ms)
        stem = bare_name(path)
        for number, scan in enumerate(scans, 1):
            name = stem if len(scans) == 1 else f"{stem}_{number}"
            fragment = "" if number == 1 else f"#{number}"
            yield Target(name, stem, f"{path.resolve()}{fragment}", lambda scan=scan: scan)


def _cohort_targets(path: Path, split: str | None) -> Iterator[Target]:
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.files import check_files, open_scan

    cohort = read_cohort(path)
    rows = cohort if split is None else cohort.filter(pl.col("split") == split)
    if rows.is_empty():
        raise InputError(
            f"{path}: no scan of split '{split}'; it has {sorted(cohort['split'].drop_nulls().unique())}"
        )
    check_files(rows, labels=False)
    for row in rows.iter_rows(named=True):
        yield Target(
            row["scan"], row["subject"], row["image"], lambda row=row: open_scan(row), row["view"] or "",
            row["spacing_trusted"],
        )  # fmt: skip


def predict_scan(target: Target, scan: Scan, model: Model, out: Path, *, command: Predict) -> Prediction:
    """Segment a scan into `out`, frame by frame; DICOM also gets a folder of SEG files beside it."""
    from fewbeats.inference.plausibility import Inspector
    from fewbeats.inference.segment import find_region, segment_frames

    _check_phases(command, scan)
    if not scan.modality and len(model.modalities) == 1:  # NIfTI does not tell
        scan = replace(scan, modality=model.modalities[0])
    region = find_region(scan, model)
    trusted = target.spacing_trusted
    trusted = not is_spacing_nominal(scan) if trusted is None else trusted
    inspector = Inspector(scan, model, region, spacing_trusted=trusted)
    masks = (inspector.see(t, mask) for t, mask in enumerate(segment_frames(scan, model, region)))
    write_like(out, masks, scan=scan)
    if scan.source.instances:
        _write_seg(target, out, scan, model.structures)
    ed, es = _phases(inspector.volumes_ml.get("LV"), command)
    return Prediction(
        mask=out,
        structures=model.structures,
        volumes_ml=inspector.volumes_ml,
        ed_frame=ed,
        es_frame=es,
        warnings=inspector.warnings(),
    )


def _write_seg(target: Target, out: Path, scan: Scan, structures: tuple[str, ...]) -> None:
    """The masks just written, as DICOM SEG in a folder beside them."""
    from fewbeats.io.dicom_seg import write_seg

    written = read_nifti(out)
    frames = (written.frame(t).astype(np.uint8) for t in range(written.shape[0]))
    write_seg(frames, scan, out.with_name(target.seg), structures=structures)


def _check_phases(command: Predict, scan: Scan) -> None:
    """Raises:
    InputError: a given ED or ES frame is not in the scan.
    """
    last = scan.shape[0] - 1
    for option, frame in (("--ed-frame", command.ed_frame), ("--es-frame", command.es_frame)):
        if frame is not None and not 0 <= frame <= last:
            raise InputError(f"{scan.source.path}: {option} {frame}: it has frames 0 to {last}")


def _phases(lv_ml: np.ndarray | None, command: Predict) -> tuple[int | None, int | None]:
    """ED and ES frame: as given, else the largest and smallest LV; none without an LV that beats."""
    from fewbeats.heartbeat import find_phases

    if lv_ml is None or len(lv_ml) < 2:
        return None, None
    ed, es = find_phases(lv_ml)
    return (
        ed if command.ed_frame is None else command.ed_frame,
        es if command.es_frame is None else command.es_frame,
    )


def _row(target: Target, prediction: Prediction, seconds: float) -> dict[str, Any]:
    return {
        "scan": target.scan,
        "subject": target.subject,
        "image": target.image,
        "mask": prediction.mask.name,
        "ed_frame": prediction.ed_frame,
        "es_frame": prediction.es_frame,
        "warnings": ";".join(prediction.warnings),
        "seconds": round(seconds, 3),
    }


def _summary(target: Target, prediction: Prediction, *, slices: int) -> str:
    """One line for the terminal."""
    from fewbeats.heartbeat import has_volume

    if prediction.warnings:
        return f"{target.scan}: warning: {'; '.join(prediction.warnings)}"
    if not has_volume(slices, target.view):
        return f"{target.scan}: labeled; a single plane or a long-axis view has no volume"
    lv = prediction.volumes_ml.get("LV")
    if lv is None or prediction.ed_frame is None or prediction.es_frame is None:
        volumes = ", ".join(f"{s} {v[0]:.0f} mL" for s, v in prediction.volumes_ml.items())
        return f"{target.scan}: {volumes}"
    edv, esv = lv[prediction.ed_frame], lv[prediction.es_frame]
    ef = 100 * (edv - esv) / edv if edv else float("nan")
    return (
        f"{target.scan}: LV EDV {edv:.0f} mL (frame {prediction.ed_frame}), ESV {esv:.0f} mL "
        f"(frame {prediction.es_frame}), EF {ef:.0f} %"
    )
