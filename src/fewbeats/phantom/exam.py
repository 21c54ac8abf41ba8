"""All scans of an exam: cines of four views, late enhancement, T1 and T2 maps, of one and the same heart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fewbeats.phantom.anatomy import Anatomy, beat_at
from fewbeats.phantom.scar import Scar
from fewbeats.phantom.sequences import Sequence

if TYPE_CHECKING:
    from fewbeats.phantom.scan import PhantomSettings
    from fewbeats.scan import Scan

View = Literal["SAX", "2CH", "3CH", "4CH"]
EXAM: tuple[tuple[Sequence, View], ...] = (
    ("cine", "SAX"), ("cine", "2CH"), ("cine", "3CH"), ("cine", "4CH"),
    ("lge", "SAX"), ("t1map", "SAX"), ("t2map", "SAX"),
)  # fmt: skip
ACROSS_DEG: dict[str, float] = {"2CH": 90.0, "3CH": 135.0, "4CH": 12.0}
"""Angle of a long-axis plane around the heart's axis, from lateral towards inferior."""


def make_exam(
    subject: Anatomy, settings: PhantomSettings
) -> Iterator[tuple[Sequence, View, Scan, np.ndarray]]:
    """Sequence, view, scan and mask of each scan of an exam; see `make_scan`."""
    from fewbeats.phantom.scan import make_scan

    for sequence, view in EXAM:
        frames = settings.frames if sequence == "cine" else 1
        scan, mask = make_scan(subject, replace(settings, sequence=sequence, view=view, frames=frames))
        yield sequence, view, scan, mask


def with_scar(subject: Anatomy) -> Anatomy:
    """The same heart after an infarction."""
    rng = np.random.default_rng([subject.seed, 6])
    scar = Scar(
        angle_deg=float(rng.uniform(0, 360)),
        half_width_deg=float(rng.uniform(20, 60)),
        depth=float(rng.uniform(0.4, 1.0)),
        middle=float(rng.uniform(0.25, 0.8)),
        half_height=float(rng.uniform(0.15, 0.4)),
    )
    return replace(subject, scar=scar)


def long_axis_affine(
    subject: Anatomy, settings: PhantomSettings, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and (Z, Y, X) of one slice along the heart's axis, planned by a slightly careless hand."""
    around = np.deg2rad(ACROSS_DEG[settings.view] + rng.uniform(-8.0, 8.0))
    across = subject.axes @ [np.cos(around), np.sin(around), 0.0]
    along = subject.axes @ [0.0, 0.0, 1.0]
    tilt = np.deg2rad(rng.uniform(-5.0, 5.0))
    normal = np.cross(along, across)
    along = np.cos(tilt) * along + np.sin(tilt) * normal
    turn = np.deg2rad(rng.uniform(-40.0, 40.0))  # in the plane, as technicians turn the field of view
    row = np.cos(turn) * across + np.sin(turn) * along
    column = np.cos(turn) * along - np.sin(turn) * across
    pixel = float(rng.uniform(*settings.pixel_mm))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * pixel, column * pixel, np.cross(row, column) * 8.0], 1)
    beat = beat_at(subject, 0.0)
    u, v = rng.uniform(-12.0, 12.0, 2)
    base = subject.to_world(u, v, beat.base_mm + 0.2 * beat.endo_mm[1])
    affine[:3, 3] = base - affine[:3, :2].sum(1) * (settings.matrix - 1) / 2.0
    return affine, (1, settings.matrix, settings.matrix)
