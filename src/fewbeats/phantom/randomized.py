"""Hearts, scanners and slices far wider than life, so that a network that saw these alone reads real ones.

Domain randomization: Tobin et al., IROS 2017, https://arxiv.org/abs/1703.06907; for medical images Billot et
al., SynthSeg, MedIA 2023, https://arxiv.org/abs/2107.09559. Contrast, anatomy and slices are drawn here; bias
field, noise, blur, resolution, rotation and bending are a training's own augmentation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewbeats.phantom.anatomy import Anatomy, Tissue
from fewbeats.phantom.scar import Scar
from fewbeats.phantom.subject import make_subject

AS_IN_LIFE = 0.5
"""Share of images whose contrast is that of a scanner, widened; the others have one that never was."""
BLOOD = (Tissue.LV, Tissue.RV, Tissue.LA, Tissue.RA, Tissue.AO, Tissue.PA, Tissue.VEIN)
MUSCLE = (Tissue.MYO, Tissue.RV_WALL, Tissue.ATRIAL_WALL, Tissue.VESSEL_WALL)
EMPTY = (Tissue.AIR, Tissue.LUNG, Tissue.GAS)
INVERTED = 0.15
"""Of contrasts that never were, how many of those with muscle brighter than blood are kept."""
THICK = 0.25
"""Share of hearts with a small cavity in a thick wall, which empties almost wholly."""
LEAST_CONTRAST = 25.0  # between blood and muscle, of 250; below, nobody could tell them apart


def random_subject(seed: int) -> Anatomy:
    """A heart whose size, function, walls, trabeculae, scar and place are drawn far wider than life.

    Args:
        seed: the same seed gives the same subject.
    """
    rng = np.random.default_rng([seed, 5])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    subject, thick = make_subject(seed), rng.random() < THICK
    ef = between(65.0, 92.0) if thick else between(10.0, 75.0)
    return replace(
        subject,
        group="any",
        lv_edv_ml=between(40.0, 100.0) if thick else between(45.0, 300.0),
        lv_ef_percent=ef,
        wall_mm=between(11.0, 22.0) if thick else between(4.5, 14.0),
        elongation=between(1.45, 2.4),
        shortening=0.04 + 0.0018 * ef,
        twist_deg=between(0.0, 15.0),
        eccentricity=between(-0.15, 0.35),
        bend_mm=between(-9.0, 9.0),
        outline=(between(0.0, 0.2), between(0.0, np.pi), between(0.0, 0.08), between(0.0, 2 * np.pi)),
        endo_outline=(between(0.0, 0.12), between(0.0, np.pi), between(0.0, 0.08), between(0.0, 2 * np.pi)),
        papillary_deg=(between(-60.0, 10.0), between(70.0, 140.0)),
        trabeculation=between(0.0, 3.0),
        scar=_random_scar(rng),
        rv_edv_ml=between(60.0, 320.0),
        rv_ef_percent=between(12.0, 70.0),
        rv_angle_deg=between(155.0, 205.0),
        rv_half_width_deg=between(48.0, 82.0),
        atria_scale=between(0.7, 1.5),
        heart_fat_mm=between(0.3, 9.0),
        subcutaneous_mm=between(2.0, 45.0),
    )


def _random_scar(rng: np.random.Generator) -> Scar | None:
    """In every third heart, of any place and depth of the wall."""
    if rng.random() > 1 / 3:
        return None
    return Scar(
        angle_deg=float(rng.uniform(0, 360)),
        half_width_deg=float(rng.uniform(10, 90)),
        depth=float(rng.uniform(0.2, 1.0)),
        middle=float(rng.uniform(0.0, 1.0)),
        half_height=float(rng.uniform(0.1, 0.6)),
    )


def random_signal(table: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Gray values and textures of all tissues in one image.

    Args:
        table: (tissues,) gray values of a scanner that exists.
        texture: (tissues,) standard deviation of its textures as a share of the gray values.
        rng: source of the draws.

    Returns:
        gray values and the standard deviations of textures, both (tissues,).
    """
    if rng.random() < AS_IN_LIFE:
        mean = table * np.exp(0.25 * rng.normal(size=len(table)))
        low = rng.uniform(0.0, 60.0)  # a fixed share of the contrast is lost to it
        mean = low + mean * (1 - low / 250.0)
    else:
        mean = _any_contrast(len(table), rng)
    return mean, mean * texture * rng.uniform(0.2, 2.0)


def _any_contrast(tissues: int, rng: np.random.Generator) -> np.ndarray:
    """Blood, muscle and every other tissue at any gray value; one blood differs little from the other."""
    mean = rng.uniform(5.0, 250.0, tissues)
    while True:
        blood, muscle = rng.uniform(15.0, 250.0, 2)
        if abs(blood - muscle) > LEAST_CONTRAST and (blood > muscle or rng.random() < INVERTED):
            break
    for tissue in BLOOD:
        mean[tissue] = blood * np.exp(0.14 * rng.normal())
    for tissue in MUSCLE:
        mean[tissue] = muscle * np.exp(0.1 * rng.normal())
    for tissue in (Tissue.LV_TRABECULA, Tissue.RV_TRABECULA):  # from all muscle to hardly to be seen
        share = rng.uniform(0.0, 0.9)
        mean[tissue] = share * mean[Tissue.LV] + (1 - share) * muscle
    for tissue in EMPTY:
        mean[tissue] = rng.uniform(2.0, 45.0)
    return mean
