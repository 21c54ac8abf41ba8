"""Pigs: how their hearts and chests differ from people's, so that a network trained on people meets them.

What is known: Crick et al., J Anat 193:105, 1998 (heart of a valentine's shape, its apex of the LV alone; RV
with coarse trabeculae near the apex; small left atrium, two pulmonary veins; it stands in the chest of an
animal on four legs). Lelovas et al., J Am Assoc Lab Anim Sci 53:432, 2014 (heart rate 70 to 110 a minute
under anesthesia, walls thick for the cavity, chest narrow and deep, apex near the midline on the sternum).
Animals of 40 to 80 kg, healthy or some weeks after an infarct, which dilates and weakens the LV. The bolus
reaches the RV and the LV of so small a circulation almost together, and is denser.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fewbeats.phantom.anatomy import Anatomy
from fewbeats.phantom.subject import make_subject

GROUPS = ("healthy", "infarct")
Ranges = dict[str, tuple[float, float]]
# LV and RV volumes in mL, wall in mm, for 60 kg
_HEARTS: dict[str, Ranges] = {
    "healthy": {"lv_edv_ml": (75, 120), "lv_ef_percent": (48, 62), "wall_mm": (8.5, 11.0)},
    "infarct": {"lv_edv_ml": (95, 160), "lv_ef_percent": (24, 42), "wall_mm": (7.5, 10.0)},
}
_ALL: Ranges = {
    "height_cm": (125, 150),  # snout to tail; the size of chest and vessels goes by it
    "weight_kg": (40, 80),
    "cycle_ms": (545, 860),
    "elongation": (1.5, 1.75),
    "rv_edv_ml": (70, 125),
    "rv_ef_percent": (40, 58),
    "rv_angle_deg": (158, 182),
    "rv_half_width_deg": (64, 78),
    "atria_scale": (0.62, 0.8),
    "azimuth_deg": (62, 84),  # towards the sternum rather than to the left
    "elevation_deg": (34, 52),
    "heart_fat_mm": (0.5, 2.0),
    "subcutaneous_mm": (8, 22),
    "trabeculation": (1.2, 2.0),
    "chest_width": (0.66, 0.8),
    "chest_depth": (1.15, 1.4),
    "roll_deg": (-14, 14),  # on a round back, on the table
    "contrast_timing": (0.8, 1.2),
}
_CENTER_MM = ((-16.0, -4.0), (-8.0, 8.0), (-8.0, 8.0))


def make_pig(seed: int, *, group: str | None = None, gap: float = 1.0) -> Anatomy:
    """Draw a pig, or somebody on the way from a person to one.

    Args:
        seed: the same seed gives the same subject.
        group: one of `GROUPS`; drawn when None.
        gap: 1 is a pig, 0 a person; in between, and beyond, each measure is as far from the one towards the
            other, but no ventricle beyond a pig is less than half as large as that pig's.
    """
    rng = np.random.default_rng([seed, 6])
    group = group or GROUPS[int(rng.integers(len(GROUPS)))]
    person = make_subject(seed, group="normal")
    pig: dict[str, Any] = {
        name: float(rng.uniform(*limits)) for name, limits in (_ALL | _HEARTS[group]).items()
    }
    pig["lv_edv_ml"] *= (pig["weight_kg"] / 60.0) ** 0.6
    pig["rv_edv_ml"] *= (pig["weight_kg"] / 60.0) ** 0.6
    center = tuple(float(rng.uniform(low, high)) for low, high in _CENTER_MM)
    moved: dict[str, Any] = {name: _towards(getattr(person, name), value, gap) for name, value in pig.items()}
    for name in ("lv_edv_ml", "rv_edv_ml"):  # a large heart and a small pig's would lead to none
        moved[name] = max(moved[name], 0.5 * pig[name])
    x, y, z = (_towards(own, other, gap) for own, other in zip(person.center_mm, center))
    return replace(
        person,
        group=group,
        center_mm=(x, y, z),
        shortening=0.04 + 0.0018 * moved["lv_ef_percent"],
        **moved,
    )


def _towards(person: float, pig: float, gap: float) -> float:
    return person + gap * (pig - person)
