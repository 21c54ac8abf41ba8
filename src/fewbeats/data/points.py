"""Points of the heart in a scan: found in masks by a geometric rule, or read from a table.

A point is (y, x) in voxels of a slice, as its image is read. Some come in pairs that nobody can tell apart:
where an image's orientation is unknown, nobody knows which of two insertion points is the anterior one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES, PART_OF, relabel
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import open_labels
from fewbeats.data.presence import LEAST_VOXELS
from fewbeats.data.split import read_columns
from fewbeats.errors import InputError

if TYPE_CHECKING:
    from fewbeats.scan import Scan

LEAST_CONTACT_DEG = 25.0
"""Angle, seen from the middle of the LV, over which RV and wall must touch for the ends to be points."""
WHOLES = tuple(name for name in FEWBEATS_VALUES if name not in PART_OF)  # infarcted wall is wall, too


@dataclass(frozen=True)
class Landmark:
    """A kind of point that a rule finds in the masks of a slice."""

    count: int
    """Points of this kind in a slice, in no order."""
    structures: tuple[str, ...]
    """What the rule looks at."""
    find: Callable[[np.ndarray], np.ndarray]
    """(Y, X) mask in `FEWBEATS_VALUES` -> (count, 2) points (y, x), NaN where there are none."""


def find_center(mask: np.ndarray) -> np.ndarray:
    """Middle of the LV's cavity, (1, 2).

    >>> mask = np.zeros((9, 9), int)
    >>> mask[2:7, 3:8] = FEWBEATS_VALUES["LV"]
    >>> find_center(mask).tolist()
    [[4.0, 5.0]]
    """
    at = np.argwhere(mask == FEWBEATS_VALUES["LV"])
    return at.mean(0)[None] if len(at) >= LEAST_VOXELS else np.full((1, 2), np.nan)


def find_insertions(mask: np.ndarray) -> np.ndarray:
    """Where the wall of the RV meets that of the LV: the two ends of the line along which they touch, (2, 2).

    Seen from the middle of the LV with its wall, the touching voxels fill an angle; the widest gap between
    them is the free side, and its ends are the insertion points, each halfway between the two structures.
    """
    none = np.full((2, 2), np.nan)
    right, wall = mask == FEWBEATS_VALUES["RV"], mask == FEWBEATS_VALUES["MYO"]
    inner = np.argwhere(wall | (mask == FEWBEATS_VALUES["LV"]))
    if right.sum() < LEAST_VOXELS or wall.sum() < LEAST_VOXELS:
        return none
    touching = np.argwhere(wall & ndimage.binary_dilation(right))
    if len(touching) < 3:
        return none
    middle = inner.mean(0)
    angle = np.arctan2(*(touching - middle).T)
    order = np.argsort(angle)
    gaps = np.diff(np.append(angle[order], angle[order[0]] + 2 * np.pi))
    widest = int(np.argmax(gaps))
    if np.rad2deg(2 * np.pi - gaps[widest]) < LEAST_CONTACT_DEG:
        return none
    ends = touching[[order[(widest + 1) % len(order)], order[widest]]]
    return np.stack([_halfway(end, right) for end in ends])


def _halfway(end: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Between a voxel of the wall and the voxels of the RV that touch it."""
    y, x = end
    around = [(y + dy, x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    inside = [p for p in around if 0 <= p[0] < right.shape[0] and 0 <= p[1] < right.shape[1] and right[p]]
    return (end + np.mean(inside, 0)) / 2


LANDMARKS = {
    "rv_insertions": Landmark(2, ("LV", "MYO", "RV"), find_insertions),
    "lv_center": Landmark(1, ("LV",), find_center),
}
"""By name; any other name is a point of a table (`read_points`)."""


def count_points(names: Sequence[str]) -> list[int]:
    """How many points of a slice bear each name; those of tables are one."""
    return [LANDMARKS[name].count if name in LANDMARKS else 1 for name in names]


def structures_behind(names: Sequence[str]) -> tuple[str, ...]:
    """What masks must speak of for the rules of these points."""
    return tuple(dict.fromkeys(s for name in names if name in LANDMARKS for s in LANDMARKS[name].structures))


def tells_points(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a cohort's row can tell all of these points: by a table, or by a mask that a person drew and
    that speaks of every structure which their rules look at."""
    if row.get("points"):
        return True
    if row["label"] is None or row["label_source"] not in (None, "manual") or set(names) - set(LANDMARKS):
        return False
    return set(structures_behind(names)) <= set(find_convention(row["convention"]).speaks_of)


def open_points(
    row: Mapping[str, Any], scan: Scan, names: Sequence[str]
) -> dict[int, Callable[[], np.ndarray]]:
    """The points of a cohort's row, by frame.

    Args:
        row: of the cohort. Where it has a column `points`, that table is taken, else rules look at its mask.
        scan: its image.
        names: of `LANDMARKS`, or of the table.

    Returns:
        frame -> what gives its points (Z, K, 2), K of them over all names, NaN where a slice has none; no
        frame where the row cannot tell all of them (`tells_points`).

    Raises:
        InputError: a table or mask that cannot be used, or a point outside the image.
    """
    if row.get("points"):
        told = read_points(Path(row["points"]), scan, names, scan_name=row["scan"])
        return {t: partial(np.copy, found) for t, found in told.items()}
    if not tells_points(row, names):
        return {}
    convention, labels = find_convention(row["convention"]), open_labels(row, scan)

    def look(t: int) -> np.ndarray:
        return apply_rules(relabel(labels[t], convention, WHOLES, file=row["label"]), names)

    return {t: partial(look, t) for t in labels}


def apply_rules(mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Points (Z, K, 2) of a mask (Z, Y, X) in `FEWBEATS_VALUES`, by the rules of `LANDMARKS`."""
    return np.stack([np.concatenate([LANDMARKS[name].find(plane) for name in names]) for plane in mask])


def read_points(
    file: Path, scan: Scan, names: Sequence[str], *, scan_name: str | None = None
) -> dict[int, np.ndarray]:
    """Points of a table, as `fewbeats predict` writes them, mended by hand perhaps.

    Args:
        file: CSV with the columns point, x_mm, y_mm, z_mm (RAS) and, of a scan of several frames, frame; what
            is of another scan, in a column scan, is passed over.
        scan: whose points they are.
        names: which are wanted.
        scan_name: its name in the table's column scan, where that holds points of several.

    Returns:
        frame -> (Z, K, 2).

    Raises:
        InputError: a table that cannot be read, a number that is none, or a point outside the image.
    """
    table = read_columns(file, "point", "x_mm", "y_mm", "z_mm", maybe=("frame", "scan"))
    table = table.with_row_index("_row", offset=2)
    counts, shape = count_points(names), scan.shape
    if scan_name is not None:
        table = table.filter(pl.col("scan").is_null() | (pl.col("scan") == scan_name))
    first = dict(zip(names, np.cumsum([0, *counts[:-1]])))
    found: dict[int, np.ndarray] = {}
    for row in table.filter(pl.col("point").is_in(list(names))).iter_rows(named=True):
        number = row["_row"]
        try:
            t = int(row.get("frame") or 0)
            place = np.array([float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")])
        except (TypeError, ValueError) as error:
            raise InputError(f"{file}: row {number}: not a frame and a place in mm; mend it") from error
        x, y, z = np.linalg.solve(scan.affine[:3, :3], place - scan.affine[:3, 3])
        if not all(-0.5 <= at <= size - 0.5 for at, size in zip((t, z, y, x), shape)):
            raise InputError(f"{file}: row {number}: '{row['point']}' lies outside the image; mend it")
        points = found.setdefault(t, np.full((shape[1], sum(counts), 2), np.nan))
        begin, count = first[row["point"]], counts[list(names).index(row["point"])]
        own = points[round(float(z)), begin : begin + count]
        free = np.flatnonzero(np.isnan(own[:, 0]))
        if not len(free):
            raise InputError(f"{file}: row {number}: '{row['point']}' stands twice in a slice; take one out")
        own[free[0]] = y, x
    return found
