"""Slow, obvious twins of fast code: written from the definition, with loops."""

from __future__ import annotations

from itertools import product
from math import dist

import numpy as np


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two boolean masks, voxel by voxel; both empty 1."""
    in_a = {tuple(v) for v in np.argwhere(a)}
    in_b = {tuple(v) for v in np.argwhere(b)}
    return 2 * len(in_a & in_b) / (len(in_a) + len(in_b)) if in_a or in_b else 1.0


def surface_points_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[tuple[float, ...]]:
    """Positions of the voxels that have a face neighbor outside; an axis of length 1 has no neighbors."""
    points = []
    for voxel in product(*(range(size) for size in mask.shape)):
        if mask[voxel] and any(not _inside(mask, n) for n in _face_neighbors(voxel, mask.shape)):
            points.append(tuple(i * s for i, s in zip(voxel, spacing_mm)))
    return points


def _face_neighbors(voxel, shape):
    for axis, step in product(range(3), (-1, 1)):
        if shape[axis] > 1:
            yield tuple(v + step * (a == axis) for a, v in enumerate(voxel))


def _inside(mask, voxel) -> bool:
    return all(0 <= v < size for v, size in zip(voxel, mask.shape)) and bool(mask[voxel])


def directed_distances_mm(a: np.ndarray, b: np.ndarray, spacing_mm) -> list[float]:
    """For each surface voxel of a the distance to the nearest of b."""
    targets = surface_points_mm(b, spacing_mm)
    return [min(dist(p, q) for q in targets) for p in surface_points_mm(a, spacing_mm)]


def percentile(values: list[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    place = q / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def hd95_mm(a: np.ndarray, b: np.ndarray, spacing_mm) -> float:
    """The larger of the two directed 95th percentiles; masks not empty."""
    there, back = directed_distances_mm(a, b, spacing_mm), directed_distances_mm(b, a, spacing_mm)
    return max(percentile(there, 95), percentile(back, 95))


def assd_mm(a: np.ndarray, b: np.ndarray, spacing_mm) -> float:
    """Mean over the surface voxels of both masks; masks not empty."""
    both = directed_distances_mm(a, b, spacing_mm) + directed_distances_mm(b, a, spacing_mm)
    return sum(both) / len(both)


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p of each: the largest (m - k) p over those not larger, k of them strictly before it."""
    m = len(p_values)
    ranked = sorted(range(m), key=lambda i: p_values[i])
    adjusted = [0.0] * m
    for place, i in enumerate(ranked):
        adjusted[i] = max(min(1.0, (m - k) * p_values[j]) for k, j in enumerate(ranked[: place + 1]))
    return adjusted


def crossed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Ends of the 95% interval of a mean over random rows crossed with random columns, and its degrees.

    For rows and columns that both vary more than the rest does.
    """
    from math import sqrt

    from scipy.stats import t

    n, m = values.shape
    mean = sum(values[i, j] for i in range(n) for j in range(m)) / (n * m)
    rows = [sum(values[i, j] for j in range(m)) / m for i in range(n)]
    columns = [sum(values[i, j] for i in range(n)) / n for j in range(m)]
    of_rows = m * sum((row - mean) ** 2 for row in rows) / (n - 1)
    of_columns = n * sum((column - mean) ** 2 for column in columns) / (m - 1)
    rest = sum((values[i, j] - rows[i] - columns[j] + mean) ** 2 for i in range(n) for j in range(m))
    rest /= (n - 1) * (m - 1)
    assert rest < min(of_rows, of_columns)
    total = of_rows + of_columns - rest
    parts = ((of_rows, n - 1), (of_columns, m - 1), (rest, (n - 1) * (m - 1)))
    degrees = total**2 / sum(part**2 / free for part, free in parts)
    half = t.ppf(0.975, degrees) * sqrt(total / (n * m))
    return mean - half, mean + half, degrees


def info_nce(embeddings: list[list[float]], positives: dict[int, list[int]], temperature: float) -> float:
    """Contrast of anchors with their positives, pair by pair; anchors without one are left out."""
    from math import exp, log, sqrt

    def similarity(a, b):
        length = sqrt(sum(x * x for x in a)) * sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b)) / length / temperature

    anchors = []
    for i, others in positives.items():
        everyone = sum(exp(similarity(embeddings[i], z)) for a, z in enumerate(embeddings) if a != i)
        terms = [-log(exp(similarity(embeddings[i], embeddings[p])) / everyone) for p in others]
        if terms:
            anchors.append(sum(terms) / len(terms))
    return sum(anchors) / len(anchors)


def distillation(
    seen: dict[str, list[list[float]]],
    told: dict[str, list[list[float]]],
    *,
    teacher_temperature: float,
    student_temperature: float,
) -> float:
    """DINO's cross-entropy over pairs of different views, image by image."""
    from math import exp, log

    def shares(scores, temperature):
        powers = [exp(s / temperature) for s in scores]
        return [p / sum(powers) for p in powers]

    losses = []
    for g, v in product(seen, told):
        if g != v:
            for teacher, student in zip(seen[g], told[v]):
                q, p = shares(teacher, teacher_temperature), shares(student, student_temperature)
                losses.append(-sum(a * log(b) for a, b in zip(q, p)))
    return sum(losses) / len(losses)
