"""`totalsegmentator[:TASK]` and `monai:DIR`: what reads and writes files is given a frame at a time as one.

Both see a frame as a NIfTI file with the scan's own affine. `totalsegmentator:TASK,axes=LPS` tells where the
axes of an animal's file really point: headers of animals often say that they lie like people.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from fewbeats.anatomy import CONVENTIONS, whole_labels
from fewbeats.disk import files_below
from fewbeats.errors import InputError
from fewbeats.teachers.card import FILE_NAME, Card, read_card
from fewbeats.teachers.outside import Outside, digest_files

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan

Run = Callable[[Path, Path], None]
"""Labels the image in a file into another file."""
PROGRAM = "TotalSegmentator"
HEART = "heartchambers_highres"
LICENSED = (HEART,)
"""Tasks for which the program wants a license key, which is free for research."""


def open_totalsegmentator(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """The installed program TotalSegmentator as a labeler of cardiac CT.

    Args:
        where: task, and after a comma axes= with the codes of where the file's RAS+ axes really point.
        cohort: not needed.

    Raises:
        InputError: the program or its license is not there, a task whose labels are not known, or no codes.
    """
    task, *options = where.split(",") if where else [HEART]
    spec, axes = f"totalsegmentator:{where or HEART}", "RAS"
    for option in options:
        name, _, axes = option.partition("=")
        if name != "axes" or sorted(axes.translate(PAIRS)) != sorted("RAS"):
            raise InputError(f"--teacher {spec}: '{option}'; write axes= and three codes, as axes=LPS")
    if task != HEART:
        raise InputError(f"--teacher {spec}: labels of the task '{task}' are not known here; take {HEART}")
    program = shutil.which(PROGRAM)
    if program is None:
        raise InputError(
            f"--teacher {spec}: {PROGRAM} is not installed; pip install TotalSegmentator, best into an "
            "environment of its own, and put the program on the PATH"
        )
    if task in LICENSED and not _has_license():
        raise InputError(
            f"--teacher {spec}: the task needs a license, free for research; get one from TotalSegmentator's "
            "page and run totalseg_set_license -l KEY"
        )
    card = Card(
        name=f"TotalSegmentator {task}", labels=CONVENTIONS["totalsegmentator"], modality="CT",
        license="Apache-2.0; weights of this task by license",
    )  # fmt: skip
    run = partial(_run_totalsegmentator, program, task)
    key = hashlib.sha256(repr((program, task, axes)).encode()).hexdigest()[:12]
    return Outside(spec=spec, card=card, segment=ByFile(run, axes=axes, modality="CT"), key=key)


PAIRS = str.maketrans("LPI", "RAS")


def _has_license() -> bool:
    """Whether TotalSegmentator's settings hold a license key."""
    home = os.environ.get("TOTALSEG_HOME_DIR") or Path.home() / ".totalsegmentator"
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((Path(home) / "config.json").read_text()).get("license_number"))
    return False


def _run_totalsegmentator(program: str, task: str, image: Path, out: Path) -> None:
    words = [program, "-i", str(image), "-o", str(out), "--ml", "-ta", task]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")


def open_monai(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """A MONAI bundle as a labeler: its own inference, from reading to writing.

    The bundle's `configs/inference.json` may run whatever it names: take only such as you trust. What its
    labels mean stands in a card.yaml, which you put into DIR.

    Raises:
        InputError: MONAI is not installed, or DIR is no bundle with a card.
    """
    folder, spec = Path(where), f"monai:{where}"
    if find_spec("monai") is None or find_spec("ignite") is None:
        raise InputError(f"--teacher {spec}: needs MONAI; pip install 'fewbeats[monai]' pytorch-ignite")
    config = next((c for c in (folder / "configs").glob("inference.*")), None)
    if config is None:
        raise InputError(f"--teacher {spec}: no MONAI bundle; it has no configs/inference.json")
    card = read_card(folder / FILE_NAME)
    run = partial(_run_bundle, folder, config)
    segment = ByFile(run, modality=card.modality)
    return Outside(spec=spec, card=card, segment=segment, key=digest_files(*files_below(folder)))


def _run_bundle(folder: Path, config: Path, image: Path, out: Path) -> None:
    from monai.bundle import ConfigWorkflow

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        workflow = ConfigWorkflow(
            workflow_type="infer",
            config_file=str(config),
            meta_file=str(folder / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(folder),
            output_dir=str(out.parent / "bundle"),
        )
        workflow.parser["dataset#data"] = [{"image": str(image)}]
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    written = sorted((out.parent / "bundle").rglob("*.nii*"))
    if len(written) != 1:
        raise RuntimeError(f"the bundle wrote {len(written)} masks into its output_dir for one image")
    nib.save(nib.load(written[0]), out)


@dataclass(frozen=True)
class ByFile:
    """Gives frames to a program as NIfTI files, and reads the masks that it writes."""

    run: Run
    axes: str = "RAS"
    """Where the axes of the frame, turned to RAS+, really point."""
    modality: str = ""

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        if self.modality and scan.modality != self.modality:
            raise InputError(
                f"{scan.source.path}: is {scan.modality or 'of no known modality'}, the teacher is for "
                f"{self.modality}; write it into the column modality where that is wrong"
            )
        for t in range(scan.shape[0]):
            yield self.segment(scan.frame(t), scan.affine), None

    def segment(self, frame: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Label values (Z, Y, X) of a frame with its affine, by way of two files."""
        told = _relabel_axes(affine, self.axes)
        with TemporaryDirectory() as folder:
            image, out = Path(folder) / "frame.nii.gz", Path(folder) / "labels.nii.gz"
            nib.save(nib.Nifti1Image(np.ascontiguousarray(frame.T), told), image)
            self.run(image, out)
            written: Any = nib.load(out)
            to = nib.orientations.io_orientation(told)
            turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(written.affine), to)
            values = nib.orientations.apply_orientation(np.asarray(written.dataobj), turn)
        return whole_labels(np.ascontiguousarray(values.T), file=out)


def _relabel_axes(affine: np.ndarray, axes: str) -> np.ndarray:
    """The affine of a file whose RAS+ axes really point where `axes` says."""
    turn = np.zeros((3, 3))
    for axis, code in enumerate(axes):
        row = "RAS".index(code.translate(PAIRS))
        turn[row, axis] = 1.0 if code in "RAS" else -1.0
    out = affine.copy()
    out[:3] = turn @ affine[:3]
    return out
