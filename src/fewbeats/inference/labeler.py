"""What puts masks on a scan: a run of ours, or a model from outside; votes and filters see no difference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from fewbeats.data.provenance import Provenance
    from fewbeats.inference.localize import Region
    from fewbeats.inference.segment import Model
    from fewbeats.scan import Scan
    from fewbeats.transforms.preprocess import PreprocessSettings


@dataclass(frozen=True)
class Labeled:
    """One frame with its labels."""

    mask: np.ndarray
    """(Z, Y, X) uint8 in the `fewbeats` convention, on the scan's canonical grid."""
    confidence: np.ndarray | None = None
    """(Z, Y, X) in [0, 1], None where the labeler tells none."""
    region: Region | None = None
    """Where the labeler looked, None where it saw all of the image."""


@dataclass(frozen=True)
class Known:
    """What a labeler was trained on, as far as it tells: scans unlike it get a warning."""

    modalities: tuple[str, ...]
    """MR, CT or both."""
    fingerprint: dict[str, Any]
    """See `take_fingerprint`; empty where there is none."""
    grid: PreprocessSettings
    """On which the fingerprint was taken."""


class Labeler(Protocol):
    """Labels every frame of a scan."""

    @property
    def structures(self) -> tuple[str, ...]:
        """What it looks for."""

    @property
    def provenance(self) -> Provenance:
        """What it has seen."""

    @property
    def key(self) -> str:
        """Digest of all that decides its masks; equal keys label equally."""

    @property
    def known(self) -> Known | None:
        """What it was trained on, None where it does not tell."""

    def label(self, scan: Scan) -> Iterator[Labeled]:
        """The frames of a scan in order, one at a time.

        Raises:
            InputError: a frame cannot be read, or the scan is none for this labeler.
        """

    def describe(self) -> dict[str, Any]:
        """What a folder of its masks says of it in `run.json`."""


def open_run(
    run: Path, *, network: str = "network", runtime: str | None = None, confident: bool = False
) -> RunLabeler:
    """A run folder as a `Labeler`.

    Args:
        run: its folder, or the name of one that comes with the package.
        network: the run's own, the name of another one that it exported, or `mean` of all.
        runtime: torch, onnxruntime or openvino; by default the fastest, as measured.
        confident: tell how sure each voxel is.

    Raises:
        InputError: not a finished run of segmentation.
    """
    from fewbeats.data.provenance import load_provenance
    from fewbeats.inference.segment import load_model
    from fewbeats.training.rundir import find_run

    run = find_run(run)
    model = load_model(run, network=network, runtime=runtime)
    return RunLabeler(model, load_provenance(run), network, confident)


def _open_again(run: Path, network: str, runtime: str, confident: bool) -> RunLabeler:
    return open_run(run, network=network, runtime=runtime, confident=confident)


@dataclass(frozen=True)
class RunLabeler:
    """A run's network, behind its localizer."""

    model: Model
    provenance: Provenance
    network: str = "network"
    """Which of the run's it is."""
    confident: bool = False
    """Tell how sure each voxel is."""

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process the run is opened anew, in the same runtime."""
        engine = self.model.segmenter
        run = engine.run if self.network in ("network", "mean") else engine.run.parent
        return _open_again, (run, self.network, engine.runtime, self.confident)

    @property
    def structures(self) -> tuple[str, ...]:
        return self.model.structures

    @property
    def key(self) -> str:
        from fewbeats.inference.engine import ONNX, digest_of
        from fewbeats.training.rundir import RunDir

        told = []
        for engine in (self.model.segmenter, *self.model.others, self.model.localizer):
            if engine is not None:
                file = RunDir(engine.run).weights() if engine.runtime == "torch" else engine.run / ONNX
                told.append((digest_of(file), engine.runtime, engine.settings))
        return hashlib.sha256(repr((told, self.structures)).encode()).hexdigest()[:12]

    @property
    def known(self) -> Known:
        config = self.model.segmenter.config
        grid = self.model.segmenter.settings.preprocess
        return Known(self.model.modalities, dict(config.fingerprint), grid)

    def label(self, scan: Scan) -> Iterator[Labeled]:
        from fewbeats.inference.segment import find_region, segment_frames

        region = find_region(scan, self.model)
        for mask, sure in segment_frames(scan, self.model, region, confident=self.confident):
            yield Labeled(mask, sure, region=region)

    def describe(self) -> dict[str, Any]:
        config = self.model.segmenter.config
        aside = ("versions", "machine", "fingerprint")
        return {
            **config.origin,
            "structures": config.record.get("structures"),
            "model": self.model.segmenter.run,
            "training": {name: value for name, value in config.record.items() if name not in aside},
            "labeled_subjects": config.labeled_subjects,
            "runtime": self.model.segmenter.runtime,
        }
