"""Who can be a phantom: subjects drawn from groups of hearts and ranges of bodies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewbeats.errors import InputError
from fewbeats.heartbeat import body_surface_m2
from fewbeats.phantom.anatomy import Anatomy

GROUPS = ("normal", "dilated", "hypertrophic", "rv_abnormal")


@dataclass(frozen=True, kw_only=True)
class Proportions:
    """Body and heart axis of a species, as (low, high) ranges."""

    height_cm: tuple[float, float] = (152.0, 192.0)
    bmi: tuple[float, float] = (19.0, 34.0)
    azimuth_deg: tuple[float, float] = (28.0, 42.0)
    """Long axis of the heart from patient left towards anterior."""
    elevation_deg: tuple[float, float] = (16.0, 34.0)
    """Long axis of the heart below the axial plane."""


HUMAN = Proportions()

# Group -> ranges of LV EDV (mL/m2), LV EF (%), wall (mm), elongation, RV EDV (mL/m2), RV EF (%)
_RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    "normal": ((62, 88), (55, 68), (6.8, 9.2), (1.9, 2.2), (65, 92), (52, 64)),
    "dilated": ((105, 135), (20, 38), (6.5, 8.8), (1.55, 1.8), (70, 100), (32, 52)),
    "hypertrophic": ((56, 76), (60, 70), (11.5, 16.0), (1.9, 2.2), (58, 80), (55, 65)),
    "rv_abnormal": ((58, 82), (48, 62), (6.5, 9.0), (1.85, 2.15), (110, 145), (20, 40)),
}


def make_subject(seed: int, *, group: str | None = None, proportions: Proportions = HUMAN) -> Anatomy:
    """Draw a subject.

    Args:
        seed: the same seed gives the same subject.
        group: one of `GROUPS`; drawn when None.
        proportions: body and heart axis.

    Raises:
        InputError: when there is no such group.
    """
    if group is not None and group not in GROUPS:
        raise InputError(f"phantom: no group '{group}'; choose one of {', '.join(GROUPS)}")
    rng = np.random.default_rng([seed, 0])
    group = group or GROUPS[int(rng.integers(len(GROUPS)))]
    edv, ef, wall, elongation, rv_edv, rv_ef = (float(rng.uniform(*r)) for r in _RANGES[group])
    height = float(rng.uniform(*proportions.height_cm))
    bmi = float(rng.uniform(*proportions.bmi))
    weight = bmi * (height / 100.0) ** 2
    surface_m2 = body_surface_m2(height, weight)
    thick_septum = rng.uniform(0.1, 0.3) if group == "hypertrophic" else rng.uniform(-0.1, 0.12)
    flat_septum = 0.16 if group == "rv_abnormal" else 0.10
    edv_ml = float(np.clip(edv * surface_m2, 90.0, 250.0))
    return Anatomy(
        seed=seed, group=group, height_cm=round(height, 1), weight_kg=round(float(weight), 1),
        cycle_ms=float(rng.uniform(650, 1150)), lv_edv_ml=edv_ml, lv_ef_percent=ef, wall_mm=wall,
        elongation=elongation, shortening=0.04 + 0.0018 * ef, twist_deg=float(rng.uniform(0.1, 0.2) * ef),
        eccentricity=float(thick_septum), bend_mm=float(rng.normal() * 4.0),
        outline=(float(rng.uniform(0.2, 1.0) * flat_septum), float(np.pi / 2 + rng.normal() * 0.3),
                 float(rng.uniform(0, 0.07)), float(rng.uniform(0, 2 * np.pi))),
        endo_outline=(float(rng.uniform(0, 0.07)), float(rng.uniform(0, np.pi)),
                      float(rng.uniform(0, 0.05)), float(rng.uniform(0, 2 * np.pi))),
        papillary_deg=(float(-25 + rng.normal() * 12), float(105 + rng.normal() * 12)),
        rv_edv_ml=float(np.clip(rv_edv * surface_m2, 80.0, 280.0)), rv_ef_percent=rv_ef,
        rv_angle_deg=float(180 + rng.normal() * 8), rv_half_width_deg=float(rng.uniform(62, 74)),
        atria_scale=float(rng.uniform(0.85, 1.2)), es_phase=float(rng.uniform(0.32, 0.40)),
        azimuth_deg=float(rng.uniform(*proportions.azimuth_deg)),
        elevation_deg=float(rng.uniform(*proportions.elevation_deg)),
        center_mm=(float(-42 + rng.normal() * 5), float(rng.normal() * 5), float(rng.normal() * 6)),
        heart_fat_mm=float(np.clip(1.0 + 0.3 * (bmi - 19) + rng.normal(), 0.5, 7.0)),
        subcutaneous_mm=float(np.clip(5.0 + 1.7 * (bmi - 19) + rng.normal() * 2, 4.0, 38.0)),
    )  # fmt: skip
