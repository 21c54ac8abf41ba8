"""`onnx:FILE` and `torchscript:FILE`: anybody's segmentation network, with a card that says how to feed it.

The card MODEL.yaml lies beside the file MODEL.onnx or MODEL.pt:

    name: U-Net of our lab
    license: MIT
    trained_on: [ACDC]
    modality: MR
    labels: {1: RV, 2: MYO, 3: LV}    # channel of the output, or value in it -> structure
    network:
      size: [128, 128]                # of the input; slices, rows, columns for a 3D network
      spacing_mm: [1.25, 1.25]        # see `Feeding`
      scale: zscore
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import special

from fewbeats.errors import InputError
from fewbeats.metrics import bounding_box
from fewbeats.models.export import call_session, open_torch
from fewbeats.teachers.card import read_card
from fewbeats.teachers.outside import Outside, digest_files, load_session
from fewbeats.teachers.promptable import open_promptable
from fewbeats.training.runconfig import restore_settings
from fewbeats.transforms.preprocess import Grid

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan

BATCH = 8
Call = Callable[[np.ndarray], np.ndarray]
"""(B, 1, [Z,] Y, X) float32 -> (B, classes, [Z,] Y, X) scores, or (B, [1,] [Z,] Y, X) labels."""


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How a network wants its input, and what it gives; the card's part `network`."""

    size: tuple[int, ...]
    """Of the input: rows, columns, or slices, rows, columns for a 3D network."""
    spacing_mm: tuple[float, ...] = ()
    """Of the input, as many numbers; the middle of the scan is cut out. Without it, which is for 2D, the
    largest square in the middle of what is not zero is scaled to `size`."""
    axes: Literal["forward", "reversed"] = "forward"
    """reversed: as nibabel gives arrays, columns before rows before slices."""
    clip_percent: tuple[float, float] | None = None
    """Percentiles of a frame to which gray values are clipped."""
    window: tuple[float, float] | None = None
    """Gray values or Hounsfield units to which they are clipped instead."""
    nonzero: bool = False
    """Take percentiles, mean and deviation of the voxels above zero."""
    scale: Literal["unit", "zscore", "raw"] = "zscore"
    """unit: the clipped range becomes 0 to 1."""
    output: Literal["logits", "probabilities", "labels"] = "logits"
    decoder: str = ""
    """Of a promptable network, its second part; see `teachers.promptable`."""
    prompt: Literal["box", "point"] = "box"
    """What it is asked with, for each structure in each slice."""
    prompter: str = "synthetic"
    """Run whose masks say where."""

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise InputError(f"size {list(self.size)}: give rows and columns, or slices, rows and columns")
        if self.spacing_mm and (len(self.spacing_mm) != len(self.size) or min(self.spacing_mm) <= 0):
            raise InputError(f"spacing_mm {list(self.spacing_mm)}: give a positive number for each of size")
        if len(self.size) == 3 and not self.spacing_mm:
            raise InputError("spacing_mm: a 3D network needs it")
        if self.scale == "unit" and self.clip_percent == self.window:
            raise InputError("scale unit: give clip_percent or window, the range that becomes 0 to 1")
        if self.decoder and (len(self.size) == 3 or self.axes == "reversed"):
            raise InputError(
                f"decoder '{self.decoder}': is asked about slices; give rows and columns, forward"
            )
        if self.decoder and self.output != "logits":
            raise InputError(f"output {self.output}: a promptable network gives logits; leave it out")

    def lay(self, frame: np.ndarray, spacing_mm: tuple[float, float, float]) -> Grid:
        """The network's grid over a frame (Z, Y, X) of this spacing."""
        shape: tuple[int, int, int] = frame.shape
        rows, columns = self.size[-2:]
        if not self.spacing_mm:
            _, y, x = bounding_box(frame != 0)
            side = max(1, min(y.stop - y.start, x.stop - x.start))
            step = side / rows, side / columns
            corner = [(s.start + s.stop - side) // 2 for s in (y, x)]
            start = [c + d / 2 - 0.5 for c, d in zip(corner, step)]
            return Grid((0.0, *start), (1.0, *step), (shape[0], rows, columns), shape)
        flat = len(self.size) == 2
        size = (shape[0], *self.size) if flat else self.size
        wanted = (spacing_mm[0], *self.spacing_mm) if flat else self.spacing_mm
        steps = tuple(w / own for w, own in zip(wanted, spacing_mm))
        starts = tuple((n - 1) / 2 - (count - 1) / 2 * d for n, count, d in zip(shape, size, steps))
        return Grid(starts, steps, size, shape)  # type: ignore[arg-type]

    def lay_back(
        self, grid: Grid, probabilities: np.ndarray, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (classes, Z', Y', X') on a grid -> a frame's labels (Z, Y, X), and how sure each is.

        Where the network does not look is background, and sure.
        """
        found = grid.restore(probabilities)
        mask, sure = np.zeros(shape, np.int32), np.ones(shape, np.float32)
        mask[grid.box], sure[grid.box] = found.argmax(0), found.max(0)
        return mask, sure

    def scaled(self, frame: np.ndarray) -> np.ndarray:
        """Gray values as the network wants them."""
        seen = frame[frame > 0] if self.nonzero and (frame > 0).any() else frame
        limits = np.percentile(seen, self.clip_percent) if self.clip_percent else self.window
        if limits is not None:
            frame, seen = np.clip(frame, *limits), np.clip(seen, *limits)
        if self.scale == "unit":
            assert limits is not None
            return (frame - limits[0]) / max(float(limits[1] - limits[0]), 1e-12)
        if self.scale == "zscore":
            return (frame - seen.mean()) / max(float(seen.std()), 1e-12)
        return frame


def open_onnx(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """An ONNX file with its card as a labeler.

    Raises:
        InputError: no such file or card, a damaged one, or onnxruntime is not installed.
    """
    return _open(where, kind="onnx", load=_load_onnx)


def open_torchscript(where: str, *, cohort: pl.DataFrame | None = None) -> Outside:
    """A TorchScript file with its card as a labeler.

    Raises:
        InputError: no such file or card, or a damaged one.
    """
    return _open(where, kind="torchscript", load=_load_torchscript)


def _open(where: str, *, kind: str, load: Callable[[Path], Call]) -> Outside:
    file, spec = Path(where), f"{kind}:{where}"
    if not file.is_file():
        raise InputError(f"--teacher {spec}: no such file")
    card_file = file.with_suffix(".yaml")
    card = read_card(card_file)
    try:
        feeding = restore_settings(Feeding, dict(card.network))
    except (InputError, TypeError) as error:
        known = ", ".join(one.name for one in fields(Feeding))
        raise InputError(f"{card_file}: network: {error}; its fields are {known}") from error
    if feeding.decoder:
        return open_promptable(spec, file, card, feeding)
    return Outside(
        spec=spec,
        card=card,
        segment=_LateFeeder(load, file, feeding, 1 + max(card.labels.values)),
        key=digest_files(file, card_file),
    )


def _load_onnx(file: Path) -> Call:
    return call_session(load_session(file))


def _load_torchscript(file: Path) -> Call:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would have it exported anew
            return open_torch(torch.jit.load(str(file), map_location="cpu"))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file}: no TorchScript network; save one with torch.jit.save") from error


@dataclass(frozen=True)
class _LateFeeder:
    """A `Feeder` whose network is opened in the process that uses it."""

    load: Callable[[Path], Call]
    file: Path
    feeding: Feeding
    classes: int

    @cached_property
    def feeder(self) -> Feeder:
        return Feeder(self.load(self.file), self.feeding, self.classes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "feeder"}

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        yield from self.feeder(scan)


@dataclass(frozen=True)
class Feeder:
    """Feeds a network with the frames of a scan, and lays what it gives back on the scan's grid."""

    call: Call
    feeding: Feeding
    classes: int
    """Background included."""

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for t in range(scan.shape[0]):
            yield self.segment(scan.frame(t), scan.spacing_mm)

    def segment(
        self, frame: np.ndarray, spacing_mm: tuple[float, float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label values of a frame (Z, Y, X), and the largest probability; 1 where it does not look."""
        grid = self.feeding.lay(frame, spacing_mm)
        probabilities = self._ask(grid.sample(self.feeding.scaled(frame)).astype(np.float32))
        return self.feeding.lay_back(grid, probabilities, frame.shape)

    def _ask(self, image: np.ndarray) -> np.ndarray:
        """(Z, Y, X) on the network's grid -> probabilities (classes, Z, Y, X)."""
        flat = len(self.feeding.size) == 2
        batch = image[:, None] if flat else image[None, None]
        batch = self._turn(batch)
        given = [self.call(np.ascontiguousarray(batch[i : i + BATCH])) for i in range(0, len(batch), BATCH)]
        scores = self._probabilities(np.concatenate(given), batch)
        scores = self._turn(scores)
        return scores.swapaxes(0, 1) if flat else scores[0]

    def _turn(self, values: np.ndarray) -> np.ndarray:
        """Spatial axes, behind the first two, in the network's order, or back: it is its own inverse."""
        if self.feeding.axes == "forward":
            return values
        return values.transpose(0, 1, *range(values.ndim - 1, 1, -1))

    def _probabilities(self, given: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """What the network gave as (B, classes, ...) that sum to 1.

        Raises:
            InputError: it is of another shape, or of more classes than the card names.
        """
        if self.feeding.output == "labels":
            labels = given.reshape(len(batch), *batch.shape[2:]).astype(int)
            classes = max(self.classes, int(labels.max()) + 1)
            return np.moveaxis(np.eye(classes, dtype=np.float32)[labels], -1, 1)
        if given.ndim != batch.ndim or given.shape[2:] != batch.shape[2:] or len(given) != len(batch):
            raise InputError(
                f"the network gave {given.shape} for {batch.shape}; mend size, axes or output in its card"
            )
        if given.shape[1] < self.classes:
            raise InputError(
                f"the network gives {given.shape[1]} channels, its card names label {self.classes - 1}"
            )
        return special.softmax(given, axis=1) if self.feeding.output == "logits" else given
