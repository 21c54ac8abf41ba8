"""What a task's network says of scans, in rows: classes of slices, scans and studies; points in mm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.finetuning.task import TABLES, Task, read_task
from fewbeats.inference.asked import Asked, open_once
from fewbeats.inference.engine import digest_of
from fewbeats.training.runconfig import RunConfig, restore_settings
from fewbeats.training.rundir import RunDir, damaged
from fewbeats.transforms.preprocess import Grid, prepare_frame

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.scan import Scan

Row = dict[str, Any]


def open_examiner(run: Path) -> Examiner:
    """A run of a task of classes or points.

    Raises:
        InputError: not such a run, or a damaged one.
    """
    from fewbeats.data.provenance import load_provenance

    folder = RunDir(run)
    config = folder.read_config()
    if config.task not in TABLES:
        raise InputError(f"{run}: a run of {config.task}, not one of {', '.join(TABLES)}")
    if not folder.weights().is_file():
        raise damaged(folder.weights())
    try:
        task = read_task(config.record["target"], file=run / "run.json")
        settings = restore_settings(SegmentationSettings, config.settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run}: damaged run.json; restore the run folder from a copy") from error
    return Examiner(run, task, settings, config, load_provenance(run))


@dataclass(frozen=True)
class Examiner:
    """A run's network; loaded where it is first asked, in whatever process that is."""

    run: Path
    task: Task
    settings: SegmentationSettings
    config: RunConfig
    provenance: Provenance

    @cached_property
    def key(self) -> str:
        """Digest of all that decides its rows."""
        weights = digest_of(RunDir(self.run).weights())
        return hashlib.sha256(repr((weights, self.task, self.settings)).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """What a folder of its rows says of it in `run.json`."""
        aside = ("versions", "machine", "fingerprint")
        record = self.config.record
        return {
            **self.config.origin,
            "task": self.task.kind,
            "target": self.task,
            "model": self.run,
            "training": {name: value for name, value in record.items() if name not in aside},
            "labeled_subjects": self.config.labeled_subjects,
        }

    def examine(self, scans: Sequence[tuple[str, Scan]]) -> Iterator[Row]:
        """What the network says.

        Args:
            scans: of one study, by name; tasks that are not of studies take one after the other.

        Raises:
            InputError: a frame that cannot be read or is empty, or no slice at all.
        """
        if not any(scan.shape[0] * scan.shape[1] for _, scan in scans):
            raise InputError("a study without slices; index it again")
        network = _open(self)
        if self.task.kind == "study":
            yield from self._study(network, scans)
        for name, scan in scans if self.task.kind != "study" else ():
            tell = self._classes if self.task.kind == "classification" else self._points
            yield from tell(network, name, scan)

    def _frames(self, scan: Scan) -> Iterator[tuple[int, np.ndarray, Grid]]:
        """Frame number, inputs (Z, C, Y, X) and the grid that leads back."""
        for t in range(scan.shape[0]):
            image, grid = prepare_frame(
                scan.shown(t), scan.spacing_mm, self.settings.preprocess, modality=scan.modality or "MR"
            )
            yield t, self.settings.cut(image), grid

    def _classes(self, network: Asked, name: str, scan: Scan) -> Iterator[Row]:
        """The scan's class, the mean of its slices; what one shows, the scan shows. Then each slice's."""
        rows, told = list[Row](), []
        for t, batch, _ in self._frames(scan):
            for z, share in enumerate(softmax(network(batch), axis=-1)):
                told.append(share)
                rows.append({"level": "slice", "scan": name, "frame": t, "slice": z,
                             **_shares(share, self.task.slice_classes)})  # fmt: skip
        whole = max(told, key=lambda share: share[1]) if self.task.present else np.mean(told, 0)
        yield {"level": "scan", "scan": name, **_shares(whole, self.task.slice_classes)}
        yield from rows

    def _points(self, network: Asked, name: str, scan: Scan) -> Iterator[Row]:
        from fewbeats.data.points import count_points
        from fewbeats.finetuning.landmarks import RARE, find_peaks

        counts = count_points(self.task.points)
        for t, batch, grid in self._frames(scan):
            heat = expit(network(batch) - RARE) * grid.inside()[:, None]
            for z, maps in enumerate(heat):
                for point, count, one in zip(self.task.points, counts, maps):
                    for place, sure in zip(*find_peaks(one, count)):
                        y, x = np.array(grid.start[1:]) + place * grid.step[1:]
                        x_mm, y_mm, z_mm = scan.affine[:3] @ [x, y, z, 1.0]
                        yield {"scan": name, "frame": t, "slice": z, "point": point, "x_mm": x_mm,
                               "y_mm": y_mm, "z_mm": z_mm, "confidence": float(sure)}  # fmt: skip

    def _study(self, network: Asked, scans: Sequence[tuple[str, Scan]]) -> Iterator[Row]:
        """The study's class, then each slice with its attention and, where slices have classes, its own."""
        places, features = list[Row](), []
        for name, scan in scans:
            for t, batch, _ in self._frames(scan):
                features.append(network(batch, call=network.network.encode))
                places += [
                    {"level": "slice", "scan": name, "frame": t, "slice": z} for z in range(len(batch))
                ]
        told = network.whole(np.concatenate(features)[None], call=network.network.decide)
        yield {"level": "study", **_shares(softmax(told["study"], axis=-1)[0], self.task.classes)}
        slices = softmax(told["slices"][0], axis=-1) if "slices" in told else [None] * len(places)
        for place, attention, share in zip(places, told["attention"][0], slices):
            own = {} if share is None else _shares(share, self.task.slice_classes)
            yield {**place, "attention": float(attention), **own}


def _shares(share: np.ndarray, classes: Sequence[str]) -> Row:
    """A row's class, how likely it is, and how likely each is."""
    best = int(np.argmax(share))
    each = {f"p_{name}": float(value) for name, value in zip(classes, share)}
    return {"class": classes[best], "confidence": float(share[best]), **each}


def _open(examiner: Examiner) -> Asked:
    def build() -> nn.Module:
        from fewbeats.finetuning.network import build_task_network
        from fewbeats.models.weights import read_weights

        network = build_task_network(examiner.task, examiner.settings.network)
        try:
            network.load_state_dict(read_weights(RunDir(examiner.run).weights()))
        except RuntimeError as error:
            raise InputError(
                f"{examiner.run}: its weights do not fit its settings; restore the run folder"
            ) from error
        return network

    return open_once(examiner.key, build)
