"""How far points lie from where they should, in mm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fewbeats.evaluation.statistics import bootstrap_interval

NEAR_MM = 5.0
"""A point that is nearer than this counts as found."""


def match_points(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (K,) of points from those they stand for, and which those are: nobody can tell them apart.

    Points are paired so that the sum of distances is least (Kuhn, Naval Res. Logist. 2:83, 1955).

    Args:
        found: (K, 3) in mm.
        truth: (K, 3) in mm.

    >>> away, of = match_points(np.array([[0.0, 0, 0], [9, 0, 0]]), np.array([[9.0, 3, 0], [0, 1, 0]]))
    >>> away.tolist(), of.tolist()
    ([1.0, 3.0], [1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    away = np.linalg.norm(found[:, None] - truth[None], axis=-1)
    rows, columns = linear_sum_assignment(away)
    return away[rows, columns], columns


def summarize_errors(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Figures of each kind of point and of all.

    Args:
        errors: kind of point -> subject -> distances in mm.

    Returns:
        kind -> mean over subjects of their mean distance and its interval, median and 95th percentile over
        all points, and the share that is nearer than 5 mm. In `mean`, of all points, a subject's mean is over
        kinds, as that of Dice is over structures: two points of one kind count no more than one of another.
    """
    kinds: dict[str, list[float]] = {}
    told = {}
    for name, by_subject in errors.items():
        means = [float(np.mean(values)) for values in by_subject.values()]
        told[name] = _figures(means, by_subject.values())
        for subject, mean in zip(by_subject, means):
            kinds.setdefault(subject, []).append(mean)
    every = (values for by_subject in errors.values() for values in by_subject.values())
    return told | {"mean": _figures([float(np.mean(means)) for means in kinds.values()], every)}


def _figures(means: Sequence[float], parts: Iterable[Sequence[float]]) -> dict[str, Any]:
    every = np.concatenate([np.asarray(values, float) for values in parts])
    return {
        "subjects": len(means),
        "points": len(every),
        "mean_mm": float(np.mean(means)),
        "ci95": bootstrap_interval(means),
        "median_mm": float(np.median(every)),
        "p95_mm": float(np.percentile(every, 95)),
        "near": float((every < NEAR_MM).mean()),
    }
