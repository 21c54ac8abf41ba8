"""A model from outside as a `Labeler`: its values become structures, its failures one line."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fewbeats.anatomy import FEWBEATS_VALUES, relabel
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.inference.labeler import Known, Labeled
from fewbeats.models.export import open_session
from fewbeats.training.rundir import identity
from fewbeats.transforms.preprocess import PreprocessSettings

if TYPE_CHECKING:
    from fewbeats.scan import Scan
    from fewbeats.teachers.card import Card


class Segment(Protocol):
    """Labels frames of a scan, in whatever way."""

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """For each frame its label values (Z, Y, X) on the scan's canonical grid, and in [0, 1] how sure."""
        ...


@dataclass(frozen=True)
class Outside:
    """Somebody's model, through its card."""

    spec: str
    """As it was asked for, KIND:WHERE."""
    card: Card
    segment: Segment
    key: str
    """Digest of all that decides its masks."""
    seen: Provenance | None = None
    """What it has seen, where there is a list of it."""

    @property
    def provenance(self) -> Provenance:
        return self.seen or Provenance(run=self.card.name)

    @property
    def structures(self) -> tuple[str, ...]:
        return self.card.structures

    @property
    def known(self) -> Known | None:
        return Known((self.card.modality,), {}, PreprocessSettings()) if self.card.modality else None

    def label(self, scan: Scan) -> Iterator[Labeled]:
        name = scan.source.path or "scan"
        values = np.array([0, *(FEWBEATS_VALUES[s] for s in self.structures)], np.uint8)
        frames, t = iter(self.segment(scan)), 0
        while t < scan.shape[0]:
            try:
                raw, confidence = next(frames)
            except InputError:
                raise
            except StopIteration as error:
                raise InputError(
                    f"{name}: '{self.spec}' labeled {t} of its {scan.shape[0]} frames"
                ) from error
            except Exception as error:  # whatever somebody's program raises
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{name}: '{self.spec}' failed on frame {t} ({type(error).__name__}: {reason})"
                ) from error
            if raw.shape != scan.shape[1:]:
                raise InputError(
                    f"{name}: '{self.spec}' gave a mask of {raw.shape} for {scan.shape[1:]} voxels (z, y, x)"
                )
            where = f"{name}: '{self.spec}', frame {t}"
            yield Labeled(values[relabel(raw, self.card.labels, self.structures, file=where)], confidence)
            t += 1

    def describe(self) -> dict[str, Any]:
        return {
            **identity(),
            "structures": self.structures,
            "model": self.spec,
            "teacher": self.card.describe(),
        }


def load_session(file: Path) -> Any:
    """Somebody's ONNX file, opened on the CPU.

    Raises:
        InputError: onnxruntime is not installed, or cannot run it.
    """
    try:
        return open_session(file)
    except ImportError as error:
        raise InputError(f"{file}: needs onnxruntime; pip install 'fewbeats[onnx]'") from error
    except Exception as error:  # onnxruntime has its own kinds
        raise InputError(f"{file}: no ONNX network that onnxruntime can run") from error


def digest_files(*files: Path) -> str:
    """Of files' bytes and those of what lies beside them as FILE.data, where ONNX keeps large weights."""
    whole = hashlib.sha256()
    for file in files:
        for part in (file, *sorted(file.parent.glob(f"{glob.escape(file.name)}[._]data"))):
            with part.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:12]
