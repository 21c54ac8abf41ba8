"""From volumes to what a cardiologist reads: EDV, ESV, stroke volume, ejection fraction, mass.

Conventions, also printed in every report. Papillary muscles and trabeculae count as blood pool, as in
the manual labels of ACDC. Slices are summed as labeled (voxels times voxel volume, no interpolation
between slices): a basal slice counts as far as its label goes, and no valve plane is fitted. The
right ventricle is measured in the frames that are end-diastole and end-systole of the left one.
Mass is the myocardium at end-diastole, infarcted parts included.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

MYOCARDIAL_DENSITY_G_PER_ML = 1.05
"""Density used in cardiac MR post-processing (Schulz-Menger et al., JCMR 22:19, 2020)."""

QUANTITIES: dict[str, tuple[str, str]] = {
    "lv_edv_ml": ("LV end-diastolic volume", "mL"),
    "lv_esv_ml": ("LV end-systolic volume", "mL"),
    "lv_sv_ml": ("LV stroke volume", "mL"),
    "lv_ef_percent": ("LV ejection fraction", "%"),
    "lv_mass_g": ("LV mass", "g"),
    "rv_edv_ml": ("RV end-diastolic volume", "mL"),
    "rv_esv_ml": ("RV end-systolic volume", "mL"),
    "rv_sv_ml": ("RV stroke volume", "mL"),
    "rv_ef_percent": ("RV ejection fraction", "%"),
    "lv_edv_index_ml_m2": ("LV end-diastolic volume index", "mL/m²"),
    "lv_esv_index_ml_m2": ("LV end-systolic volume index", "mL/m²"),
    "lv_mass_index_g_m2": ("LV mass index", "g/m²"),
    "rv_edv_index_ml_m2": ("RV end-diastolic volume index", "mL/m²"),
    "rv_esv_index_ml_m2": ("RV end-systolic volume index", "mL/m²"),
}
"""Every quantity of a heartbeat: its name and its unit, in the order of a report."""


FRAME_MS = (1.0, 2000.0)
"""Between frames of a heart."""
LONGEST_FRAME_MS = 250.0
"""Between many of them: fewer a second are no cine."""
SHORTEST_BEAT_MS = 75.0
"""Of a mouse under stress; what lasts less over `MANY_FRAMES` is another time, as a repetition time."""
MANY_FRAMES = 8

LONG_AXIS_PLANES = ("2CH", "3CH", "4CH")
"""Planes along the heart: their areas are no volumes."""


def has_volume(slices: int, plane: str) -> bool:
    """Whether the slices of a scan add up to volumes; a single slice does not, whatever its plane."""
    return slices > 1 and plane not in LONG_AXIS_PLANES


def is_heart_time(frames: int, last_ms: float) -> bool:
    """Whether frames may be of a beating heart, the last one so long after the first.

    >>> is_heart_time(25, 24 * 2.8), is_heart_time(25, 24 * 35.0), is_heart_time(2, 35.0)
    (False, True, True)
    >>> is_heart_time(25, 24 * 300.0), is_heart_time(6, 5 * 40_000.0)
    (False, False)
    """
    if frames < 2:
        return True
    step_ms = last_ms / (frames - 1)
    if frames >= MANY_FRAMES and not SHORTEST_BEAT_MS / frames <= step_ms <= LONGEST_FRAME_MS:
        return False
    return FRAME_MS[0] <= step_ms <= FRAME_MS[1]


def body_surface_m2(height_cm: float, weight_kg: float) -> float:
    """Body surface area in m², sqrt(height x weight / 3600) (Mosteller, N Engl J Med 317:1098, 1987)."""
    return sqrt(height_cm * weight_kg / 3600.0)


def ejection_fraction_percent(edv_ml: float, esv_ml: float) -> float | None:
    """100 (EDV - ESV) / EDV; None where nothing was found at end-diastole."""
    return 100.0 * (edv_ml - esv_ml) / edv_ml if edv_ml > 0 else None


def find_phases(lv_ml: np.ndarray) -> tuple[int, int]:
    """End-diastole and end-systole: the frames of the largest and the smallest LV volume, first of equals.

    Args:
        lv_ml: (T,) volume of the LV cavity.
    """
    return int(np.argmax(lv_ml)), int(np.argmin(lv_ml))


def heartbeat(
    volumes_ml: Mapping[str, np.ndarray], ed: int, es: int, *, body_surface: float | None = None
) -> dict[str, float]:
    """The clinical quantities of one heartbeat.

    Args:
        volumes_ml: structure -> (T,) volume.
        ed: index of end-diastole.
        es: index of end-systole.
        body_surface: m², where height and weight are known.

    Returns:
        Keys of `QUANTITIES` that the structures allow, in that order.

    >>> found = heartbeat({"LV": np.array([120.0, 48.0]), "MYO": np.array([100.0, 98.0])}, ed=0, es=1)
    >>> {name: round(value, 1) for name, value in found.items()}
    {'lv_edv_ml': 120.0, 'lv_esv_ml': 48.0, 'lv_sv_ml': 72.0, 'lv_ef_percent': 60.0, 'lv_mass_g': 105.0}
    """
    found: dict[str, float | None] = {}
    for structure in ("LV", "RV"):
        if structure not in volumes_ml:
            continue
        edv, esv = float(volumes_ml[structure][ed]), float(volumes_ml[structure][es])
        side = structure.lower()
        found |= {f"{side}_edv_ml": edv, f"{side}_esv_ml": esv, f"{side}_sv_ml": edv - esv}
        found[f"{side}_ef_percent"] = ejection_fraction_percent(edv, esv)
    if "MYO" in volumes_ml:
        found["lv_mass_g"] = MYOCARDIAL_DENSITY_G_PER_ML * float(volumes_ml["MYO"][ed])
    if body_surface:
        found |= _indexed(found, body_surface)
    return {q: value for q in QUANTITIES if (value := found.get(q)) is not None}


def _indexed(found: Mapping[str, float | None], body_surface: float) -> dict[str, float | None]:
    indexed: dict[str, float | None] = {}
    for key in ("lv_edv_ml", "lv_esv_ml", "lv_mass_g", "rv_edv_ml", "rv_esv_ml"):
        value = found.get(key)
        name, unit = key.rsplit("_", 1)
        indexed[f"{name}_index_{unit}_m2"] = None if value is None else value / body_surface
    return indexed
