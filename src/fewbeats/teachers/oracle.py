"""`oracle[:KIND]`: a cohort's own manual labels, spoiled, so that what a method mends is known beforehand.

random: each frame on its own is shifted, grown or shrunk, or loses slices, its chamber or its names.
systematic: the same side of the heart is missing in every frame of every scan. clean: as drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES, Convention, relabel
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import content_digest, open_labels
from fewbeats.data.split import is_manual
from fewbeats.errors import InputError
from fewbeats.teachers.card import Card
from fewbeats.teachers.outside import Outside

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.scan import Scan

Kind = Literal["random", "systematic", "clean"]
SHIFT_MM = 6.0
"""Standard deviation of a frame's shift in plane, along each axis."""
GROWN_MM = 3.0
"""By which a frame's structures are grown or shrunk at most."""
LOST = 0.25
"""Share of the frames that lose slices; as many exchange two names, and half as many lose a structure."""
MISSED_SHARE = 0.3
"""Of the heart's width that a systematic teacher never sees."""


def open_oracle(where: str, *, cohort: pl.DataFrame | None) -> Outside:
    """A cohort's manual labels, spoiled, as a labeler.

    Args:
        where: kind, and after a comma the seed, as `random,3`.
        cohort: with the labels.

    Raises:
        InputError: no such kind, or a cohort without manual labels.
    """
    kind, _, seed = (where or "random").partition(",")
    if kind not in get_args(Kind) or not (seed or "0").isdigit():
        raise InputError(
            f"--teacher oracle:{where}: write one of {', '.join(get_args(Kind))}, and ,SEED behind it"
        )
    manual = [] if cohort is None else cohort.filter(is_manual()).rows(named=True)
    rows = {row["image"]: row for row in manual}
    if not rows:
        raise InputError(
            f"--teacher oracle:{where}: the cohort has no manual labels to spoil; take another teacher"
        )
    structures = tuple(
        s
        for s in FEWBEATS_VALUES
        if any(s in find_convention(r["convention"]).speaks_of for r in rows.values())
    )
    digests = sorted(content_digest(row["label"]) for row in rows.values())
    return Outside(
        spec=f"oracle:{kind},{seed or 0}",
        card=Card(name=f"oracle {kind}", labels=as_written(structures), license="that of the labels"),
        segment=_Spoiled(rows, structures, kind, int(seed or 0)),
        key=hashlib.sha256(repr((kind, seed, digests)).encode()).hexdigest()[:12],
    )


def as_written(structures: tuple[str, ...]) -> Convention:
    """The convention of masks in `FEWBEATS_VALUES` that hold these structures."""
    return find_convention(f"fewbeats:{'+'.join(structures)}")


@dataclass(frozen=True)
class _Spoiled:
    rows: Mapping[str, Mapping[str, Any]]
    """Image -> its row of the cohort."""
    structures: tuple[str, ...]
    kind: str
    seed: int

    def __call__(self, scan: Scan) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        row = self.rows.get(str(scan.source.path))
        if row is None:
            raise InputError(f"{scan.source.path}: has no manual label to spoil")
        convention, values = find_convention(row["convention"]), _values(self.structures)
        labels = open_labels(row, scan)
        for t in range(scan.shape[0]):
            if t not in labels:
                raise InputError(f"{row['label']}: frame {t} has no manual label to spoil")
            mask = values[relabel(labels[t], convention, self.structures, file=row["label"])]
            name = f"{self.seed} {row['scan']} {t}".encode()
            random = np.random.default_rng(list(hashlib.sha256(name).digest()[:8]))
            yield self._spoil(mask, scan.spacing_mm, random), None

    def _spoil(
        self, mask: np.ndarray, spacing_mm: tuple[float, float, float], random: np.random.Generator
    ) -> np.ndarray:
        if self.kind == "random":
            return spoil_at_random(mask, spacing_mm, random)
        return miss_a_side(mask) if self.kind == "systematic" else mask


def _values(structures: tuple[str, ...]) -> np.ndarray:
    return np.array([0, *(FEWBEATS_VALUES[s] for s in structures)], np.uint8)


def spoil_at_random(
    mask: np.ndarray, spacing_mm: tuple[float, float, float], random: np.random.Generator
) -> np.ndarray:
    """A mask with a frame's own mistakes.

    Args:
        mask: (Z, Y, X) in `FEWBEATS_VALUES`.
        spacing_mm: (z, y, x).
        random: source of the draws.

    Returns:
        another mask of the same shape.
    """
    in_plane = np.array(spacing_mm[1:])
    shift = np.rint(random.normal(size=2) * SHIFT_MM / in_plane).astype(int)
    out = ndimage.shift(mask, (0, *shift), order=0)
    out = _grow(out, random.uniform(-GROWN_MM, GROWN_MM), spacing_mm)
    lost, exchanged, gone, where, which = random.random(5)
    drawn = np.unique(out)[1:]
    if lost < LOST:
        first = int(where * len(out))
        out[first : first + max(1, len(out) // 5)] = 0
    if exchanged < LOST and len(drawn) > 1:
        a, b = random.choice(drawn, 2, replace=False)
        out = np.where(out == a, b, np.where(out == b, a, out)).astype(np.uint8)
    if gone < LOST / 2 and len(drawn):
        out[out == drawn[int(which * len(drawn))]] = 0
    return out


def _grow(mask: np.ndarray, by_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The heart's outline moved outward by some mm, or inward where negative; its inner borders stay."""
    heart = mask > 0
    if not heart.any():
        return mask
    wide = (1e3, *spacing_mm[1:])  # in plane
    if by_mm < 0:
        return np.where(ndimage.distance_transform_edt(heart, wide) > -by_mm, mask, 0).astype(np.uint8)
    away, nearest = ndimage.distance_transform_edt(~heart, wide, return_indices=True)
    return np.where(away <= by_mm, mask[tuple(nearest)], 0).astype(np.uint8)


def miss_a_side(mask: np.ndarray) -> np.ndarray:
    """A mask (Z, Y, X) without what lies on the right of the heart's box, the same share in every frame."""
    columns = np.flatnonzero(mask.any((0, 1)))
    if len(columns) == 0:
        return mask
    out = mask.copy()
    out[..., int(columns[-1] - MISSED_SHARE * (columns[-1] - columns[0])) :] = 0
    return out
