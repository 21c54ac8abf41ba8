"""Scars of the phantom's heart: parts of the myocardium of another gray value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fewbeats.phantom.anatomy import Beat


@dataclass(frozen=True, kw_only=True)
class Scar:
    """A part of the myocardium of another gray value, from the cavity outwards."""

    angle_deg: float
    """Its middle around the long axis, from lateral towards inferior."""
    half_width_deg: float
    depth: float
    """Share of the wall."""
    middle: float
    """Its height, from 0 at the base to 1 at the apex."""
    half_height: float


def is_scar(scar: Scar, beat: Beat, points: tuple, outside: np.ndarray) -> np.ndarray:
    """Whether points of the wall lie in a scar; `outside` is their distance from the cavity in mm."""
    u, v, w = points
    wall = beat.epi_mm[0] - beat.endo_mm[0]
    height = (w - beat.base_mm) / (beat.middle_mm + beat.epi_mm[1] - beat.base_mm)
    turned = np.arctan2(v, u) - np.deg2rad(scar.angle_deg)
    beside = np.abs(np.arctan2(np.sin(turned), np.cos(turned))) < np.deg2rad(scar.half_width_deg)
    return beside & (np.abs(height - scar.middle) < scar.half_height) & (outside < scar.depth * wall)
