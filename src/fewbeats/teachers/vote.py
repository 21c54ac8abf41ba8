"""Several labelers as one: what most of them say, and how many of them say it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.data.provenance import Provenance
from fewbeats.inference.labeler import Known, Labeled, Labeler
from fewbeats.metrics import bounding_box

if TYPE_CHECKING:
    from fewbeats.scan import Scan

Rule = Literal["majority", "staple"]
Share = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Vote:
    """Labelers that vote, voxel by voxel.

    A labeler has no say on structures that it does not look for: where it sees background, it may be one of
    those. The confidence is the share of those asked that agree with the outcome.
    """

    labelers: Sequence[Labeler]
    rule: Rule = "majority"

    @property
    def structures(self) -> tuple[str, ...]:
        looked_for = {s for labeler in self.labelers for s in labeler.structures}
        return tuple(s for s in FEWBEATS_VALUES if s in looked_for)

    @property
    def provenance(self) -> Provenance:
        parts = [labeler.provenance for labeler in self.labelers]
        return Provenance(run=" and ".join(part.run for part in parts), ancestors=tuple(parts))

    @property
    def key(self) -> str:
        keys = [labeler.key for labeler in self.labelers]
        return hashlib.sha256(repr((self.rule, keys)).encode()).hexdigest()[:12]

    @property
    def known(self) -> Known | None:
        return None

    def label(self, scan: Scan) -> Iterator[Labeled]:
        speaks = np.array([[s in one.structures for s in self.structures] for one in self.labelers])
        for frames in zip(*(labeler.label(scan) for labeler in self.labelers), strict=True):
            votes = np.stack([labeled.mask for labeled in frames])
            yield Labeled(*decide(votes, speaks, self.structures, share=SHARES[self.rule]))

    def describe(self) -> dict[str, Any]:
        told = [labeler.describe() for labeler in self.labelers]
        return {
            **told[0],
            "structures": self.structures,
            "rule": self.rule,
            "model": "vote",
            "teachers": told,
        }


def decide(
    votes: np.ndarray, speaks: np.ndarray, structures: Sequence[str], *, share: Share
) -> tuple[np.ndarray, np.ndarray]:
    """The structure with the largest share of those who look for it, where that is above one half.

    Args:
        votes: (N, Z, Y, X) masks in `FEWBEATS_VALUES`.
        speaks: (N, C) bool, whether a voter looks for a structure.
        structures: C names.
        share: (n, Z, Y, X) bool of the voters who look for a structure -> (Z, Y, X) in [0, 1].

    Returns:
        mask (Z, Y, X) uint8, background where no structure has more than half, and in [0, 1] how sure it is.
        Of equal shares, as where voters look for different structures, the first structure wins.
    """
    mask = np.zeros(votes.shape[1:], np.uint8)
    best, most = np.full(mask.shape, 0.5, np.float32), np.zeros(mask.shape, np.float32)
    for column, structure in enumerate(structures):
        value = FEWBEATS_VALUES[structure]
        found = share(votes[speaks[:, column]] == value).astype(np.float32)
        most = np.maximum(most, found)
        won = found > best
        mask[won], best[won] = value, found[won]
    return mask, np.where(mask > 0, best, 1 - most)


def count(said: np.ndarray) -> np.ndarray:
    """Share of the voters (n, Z, Y, X) that say it."""
    return said.mean(0)


def staple(said: np.ndarray) -> np.ndarray:
    """Probability by STAPLE (Warfield et al., IEEE TMI 23:903, 2004), as SimpleITK has it.

    Voters count by how well they agree with the outcome. In the box that any of them labels, as else their
    agreement on background decides; where all agree there is nothing to estimate.
    """
    import SimpleITK as sitk

    out = said.mean(0, dtype=np.float64)
    if len(said) < 2 or not ((out > 0) & (out < 1)).any():
        return out
    box = bounding_box(np.asarray(said.any(0)))
    voters = [sitk.GetImageFromArray(one[box].astype(np.uint8)) for one in said]
    out[box] = sitk.GetArrayFromImage(sitk.STAPLE(voters, 1.0))
    return out


SHARES: dict[Rule, Share] = {"majority": count, "staple": staple}
