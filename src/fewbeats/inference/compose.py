"""Labelers made of labelers: masks cleaned, or routed to whom a scan belongs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.inference.labeler import Known, Labeled, Labeler
from fewbeats.inference.segment import keep_largest

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance
    from fewbeats.scan import Scan


@dataclass(frozen=True)
class Changed(ABC):
    """A labeler whose masks are changed afterwards; all else of it stays."""

    labeler: Labeler

    @property
    def structures(self) -> tuple[str, ...]:
        return self.labeler.structures

    @property
    def provenance(self) -> Provenance:
        return self.labeler.provenance

    @property
    def known(self) -> Known | None:
        return self.labeler.known

    @property
    @abstractmethod
    def key(self) -> str:
        """That of the labeler, and what is changed."""

    @abstractmethod
    def label(self, scan: Scan) -> Iterator[Labeled]:
        """The changed frames of a scan."""


@dataclass(frozen=True)
class Cleaned(Changed):
    """A labeler whose masks have one part a structure and no holes."""

    @property
    def key(self) -> str:
        return f"{self.labeler.key}-cleaned"

    def label(self, scan: Scan) -> Iterator[Labeled]:
        for labeled in self.labeler.label(scan):
            yield replace(labeled, mask=clean(labeled.mask, self.structures))

    def describe(self) -> dict[str, Any]:
        return {**self.labeler.describe(), "cleaned": True}


def clean(mask: np.ndarray, structures: tuple[str, ...]) -> np.ndarray:
    """The largest part of each structure, without holes in its slices.

    Args:
        mask: (Z, Y, X) in `FEWBEATS_VALUES`.
        structures: those it may hold.

    Returns:
        another mask of the same shape; holes are background enclosed by one structure in-plane.
    """
    out = keep_largest(mask.copy(), structures)
    in_plane = ndimage.generate_binary_structure(2, 1)[None]
    for structure in structures:
        own = out == FEWBEATS_VALUES[structure]
        extent = ndimage.find_objects(own.astype(np.uint8))
        if extent:
            part, filled = out[extent[0]], ndimage.binary_fill_holes(own[extent[0]], in_plane)
            part[filled & (part == 0)] = FEWBEATS_VALUES[structure]
    return out


@dataclass(frozen=True)
class Routed:
    """For each scan the labeler that has not learned from it."""

    labelers: Sequence[Labeler]
    of: Mapping[str, int]
    """Image -> number of its labeler; the first one labels all others."""

    @property
    def structures(self) -> tuple[str, ...]:
        return self.labelers[0].structures

    @property
    def provenance(self) -> Provenance:
        return self.labelers[0].provenance

    @property
    def key(self) -> str:
        told = [[labeler.key for labeler in self.labelers], sorted(self.of.items())]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    @property
    def known(self) -> Known | None:
        return self.labelers[0].known

    def label(self, scan: Scan) -> Iterator[Labeled]:
        yield from self.labelers[self.of.get(str(scan.source.path), 0)].label(scan)

    def describe(self) -> dict[str, Any]:
        return {**self.labelers[0].describe(), "models": len(self.labelers)}
