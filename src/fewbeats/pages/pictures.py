"""Pictures as WebP data, with outlines that lie over them as SVG paths: sharp at any size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with the outlines that lie over it, in its own pixels."""

    src: str
    """Data URI."""
    width: int
    height: int
    alt: str
    predicted: dict[str, str] = field(default_factory=dict)
    """Structure -> SVG path."""
    manual: dict[str, str] = field(default_factory=dict)
    """Structure -> SVG path."""


def encode_webp(gray: np.ndarray) -> str:
    """(Y, X) uint8 as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(gray).save(file, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a (Y, X) mask: arrays (N, 2) of x, y in voxels, halfway between in and out."""
    from contourpy import contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    return [_without_straight_points(np.asarray(line)) - 1 for line in lines]


def _without_straight_points(line: np.ndarray) -> np.ndarray:
    """The same closed line without the points that lie on a straight piece of it."""
    points = line[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return points[turns]


def svg_path(points: np.ndarray) -> str:
    """A closed path through points (N, 2) of x, y."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
