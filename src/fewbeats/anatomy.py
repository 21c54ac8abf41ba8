"""Structures of the heart, and what the integers of a label file mean.

Masks written by fewbeats always use `FEWBEATS_VALUES`. Masks read from elsewhere are mapped to named
structures by a `Convention`; a convention also says which structures it speaks of, because where
a label file is silent about a structure its background must not be trained as "not that structure".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FEWBEATS_VALUES: dict[str, int] = {
    "LV": 1, "MYO": 2, "RV": 3, "LA": 4, "RA": 5, "AO": 6, "PA": 7, "INFARCT": 8, "NO_REFLOW": 9,
}  # fmt: skip
"""Label value of each structure in every mask fewbeats writes (1 to 3 as in M&Ms)."""

FULL_NAMES = {
    "LV": "left ventricular cavity", "MYO": "left ventricular myocardium", "RV": "right ventricular cavity",
    "LA": "left atrial cavity", "RA": "right atrial cavity", "AO": "aorta", "PA": "pulmonary artery",
    "INFARCT": "infarcted myocardium", "NO_REFLOW": "no-reflow myocardium",
}  # fmt: skip

PART_OF = {"INFARCT": "MYO", "NO_REFLOW": "MYO"}
"""A structure that is part of another: it counts as its whole unless it is itself asked for."""

VESSELS = ("AO", "PA")
"""What leaves the image: a field of view cuts these, and may part them, as the two limbs of the aorta."""

OTHER = "OTHER"
"""In a convention: tissue that is none of the structures, so it counts as background."""

OTHER_NAMES = {
    "LV": "lvc lvcavity lvbp lvbloodpool leftventricle leftventriclecavity leftventriclebloodcavity "
    "heartventricleleft",
    "MYO": "lvm mlv myolv lvmyo myocardium lvmyocardium leftventriclemyocardium heartmyocardium",
    "RV": "rvc rvcavity rvbp rvbloodpool rightventricle rightventriclecavity rightventriclebloodcavity "
    "heartventricleright",
    "LA": "leftatrium leftatriumbloodcavity heartatriumleft",
    "RA": "rightatrium rightatriumbloodcavity heartatriumright",
    "AO": "aorta ascendingaorta",
    "PA": "pulmonaryartery",
    "INFARCT": "infarction scar",
    "NO_REFLOW": "mvo microvascularobstruction",
}
"""How other people write a structure, in small letters without spaces or signs."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What the values of a label file mean."""

    name: str
    values: Mapping[int, str]
    """Label value -> structure; 0 is background and need not be named."""
    silent_about: frozenset[str] = frozenset()
    """Structures named in `values` that this file nevertheless does not label."""

    @property
    def speaks_of(self) -> frozenset[str]:
        """Structures that the labels delineate."""
        named = set(self.values.values())
        return frozenset(named | {PART_OF[s] for s in named if s in PART_OF}) - self.silent_about - {OTHER}


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(name="fewbeats", values={v: s for s, v in FEWBEATS_VALUES.items()}),
        Convention(name="acdc", values={1: "RV", 2: "MYO", 3: "LV"}),
        Convention(name="mnms", values={1: "LV", 2: "MYO", 3: "RV"}),
        Convention(
            name="mmwhs",
            values={500: "LV", 600: "RV", 420: "LA", 550: "RA", 205: "MYO", 820: "AO", 850: "PA"},
        ),
        Convention(
            name="totalsegmentator",
            values={1: "MYO", 2: "LA", 3: "LV", 4: "RA", 5: "RV", 6: "AO", 7: "PA"},
        ),
        Convention(name="emidec", values={1: "LV", 2: "MYO", 3: "INFARCT", 4: "NO_REFLOW"}),
        Convention(name="la2018", values={1: "LA"}),
    )
}


ROUNDED = 2e-6  # of a value, by which 32 bits and a slope move it


def whole_labels(values: np.ndarray, *, file: Path | str, step: float = 0.0) -> np.ndarray:
    """Label values as integers.

    Args:
        values: as read.
        file: named in the error.
        step: between values that the file can hold, as where it stores integers and a slope; values within
            half of it, and within the rounding of 32 bits, of a whole number are that number.

    Raises:
        InputError: they are no whole numbers, or stored too coarsely to tell.
    """
    if np.issubdtype(values.dtype, np.integer):
        return values
    if step >= 1.0:
        raise InputError(
            f"{file}: label values are stored {step:.3g} apart, too coarsely for whole numbers; save the "
            "mask as integers without a slope"
        )
    with np.errstate(invalid="ignore"):
        whole = np.rint(values).astype(np.int32)
        sound = np.abs(whole - values) <= 0.505 * step + ROUNDED * np.maximum(1.0, np.abs(values))
    if not sound.all():
        raise InputError(
            f"{file}: label values are not whole numbers; save the mask with nearest-neighbor values"
        )
    return whole


def relabel(
    labels: np.ndarray, convention: Convention, targets: Sequence[str], *, file: Path | str = "labels"
) -> np.ndarray:
    """Map label values to class indices: 0 background, i + 1 for `targets[i]`.

    A part (INFARCT) counts as its whole (MYO) unless it is a target itself; structures that are not
    targets become background.

    Args:
        labels: integer array of any shape, values of `convention`.
        convention: meaning of the values.
        targets: structures wanted, in class order.
        file: named in the error.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: labels hold a value the convention does not know, or no integers.
    """
    labels = whole_labels(labels, file=file)
    found = np.unique(labels)
    unknown = [int(v) for v in found if v != 0 and int(v) not in convention.values]
    if unknown:
        raise InputError(
            f"{file}: label values {unknown} are unknown to the convention '{convention.name}' "
            f"(it knows {sorted(convention.values)}); name the right convention in the cohort's column"
        )
    out = np.zeros(labels.shape, np.uint8)
    for value in found:
        structure = convention.values.get(int(value))
        if structure is None:
            continue
        if structure not in targets:
            structure = PART_OF.get(structure, structure)
        if structure in targets:
            out[labels == value] = list(targets).index(structure) + 1
    return out


def annotated(convention: Convention, targets: Iterable[str]) -> tuple[bool, ...]:
    """For each target whether labels of this convention speak of it."""
    return tuple(t in convention.speaks_of for t in targets)


def name_structure(name: str, *, file: Path | str) -> str:
    """The structure that a name means: "left ventricle" -> "LV".

    Raises:
        InputError: naming `file`, when the name means no structure.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower()).replace("ventricular", "ventricle")
    for structure in (*FEWBEATS_VALUES, OTHER):
        own = structure.lower().replace("_", "")
        if plain == own or plain in OTHER_NAMES.get(structure, "").split():
            return structure
    raise InputError(
        f"{file}: '{name}' is no structure known here; write one of {', '.join(FEWBEATS_VALUES)} or {OTHER}"
    )
