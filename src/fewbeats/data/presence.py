"""Whether a structure is in a slice, as its manual mask tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.anatomy import relabel
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import open_labels

if TYPE_CHECKING:
    from fewbeats.scan import Scan

LEAST_VOXELS = 5  # of a structure in a slice; below, it is a rest


def open_presence(
    row: Mapping[str, Any], scan: Scan, structures: Sequence[str]
) -> dict[int, Callable[[], np.ndarray]]:
    """For each labeled frame of a cohort's row what gives its slices, (Z,) 1 where any structure is in it.

    Nothing where its labels are silent about all of them.

    Raises:
        InputError: the mask cannot be read or is not on the image's grid.
    """
    if row["label"] is None:
        return {}
    convention, labels = find_convention(row["convention"]), open_labels(row, scan)
    if not convention.speaks_of & set(structures):
        return {}

    def look(t: int) -> np.ndarray:
        found = relabel(labels[t], convention, tuple(structures), file=row["label"])
        return ((found > 0).sum((1, 2)) >= LEAST_VOXELS).astype(np.int64)

    return {t: partial(look, t) for t in labels}
