"""Gray values of other sequences than cine: late enhancement, T1 and T2 maps.

Times in ms at 1.5 T, before contrast medium: myocardium, blood and skeletal muscle as in Kawel-Boehm et al.,
JCMR 22:87, 2020, other tissues as in Bojorquez et al., Magn Reson Imaging 35:69, 2017, both rounded. Late
enhancement is of no unit: healthy myocardium is nulled, a scar as bright as fat.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fewbeats.phantom.anatomy import Tissue

Sequence = Literal["cine", "lge", "t1map", "t2map"]
MAPS = ("t1map", "t2map")

_BLOOD = (Tissue.LV, Tissue.RV, Tissue.LA, Tissue.RA, Tissue.AO, Tissue.PA, Tissue.VEIN)
_MIXED = (Tissue.LV_TRABECULA, Tissue.RV_TRABECULA)
_FAT = (Tissue.FAT, Tissue.HEART_FAT, Tissue.ABDOMEN)
_MUSCLE = (Tissue.MUSCLE, Tissue.DIAPHRAGM, Tissue.STOMACH_WALL, Tissue.VESSEL_WALL)
_EMPTY = (Tissue.AIR, Tissue.LUNG, Tissue.GAS)
# (late enhancement, T1, T2)
_OTHERS: dict[Tissue, tuple[float, float, float]] = {
    Tissue.MYO: (25, 980, 50), Tissue.RV_WALL: (40, 980, 52), Tissue.ATRIAL_WALL: (60, 1000, 55),
    Tissue.SCAR: (215, 1180, 63), Tissue.LIVER: (105, 590, 46), Tissue.LIVER_VESSEL: (140, 1550, 150),
    Tissue.SPLEEN: (150, 1060, 79), Tissue.STOMACH: (60, 2200, 300), Tissue.BOWEL: (100, 900, 90),
    Tissue.RIB: (90, 550, 60), Tissue.SPINE: (110, 550, 60), Tissue.DISC: (60, 1100, 100),
    Tissue.SPINAL_CANAL: (50, 2200, 300), Tissue.LUNG_VESSEL: (120, 1400, 120),
}  # fmt: skip
_GROUPS: tuple[tuple[tuple[Tissue, ...], tuple[float, float, float]], ...] = (
    (_BLOOD, (140, 1580, 200)), (_MIXED, (80, 1250, 110)), (_FAT, (220, 290, 90)), (_MUSCLE, (55, 900, 38)),
    (_EMPTY, (6, 0, 0)),
)  # fmt: skip


def sequence_values(sequence: Sequence) -> np.ndarray:
    """(tissues,) gray values or times of a sequence other than cine."""
    column = ("lge", *MAPS).index(sequence)
    values = np.zeros(len(Tissue))
    for tissues, told in _GROUPS:
        values[list(tissues)] = told[column]
    for tissue, told in _OTHERS.items():
        values[tissue] = told[column]
    return values


def expose_map(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A T1 or T2 map from noiseless times: blurred by the readout, with the scatter of a fit.

    Args:
        parts: (3, T, Z, Y, X) float32 (`Signal.of`).
        rng: source of the scatter.

    Returns:
        (T, Z, Y, X) int16, ms; where there is no signal a fit gives any time.
    """
    from scipy.ndimage import gaussian_filter

    times = gaussian_filter(parts[0] + parts[1] * rng.standard_normal(parts[1].shape), (0, 0, 0.6, 0.6))
    nothing = parts[0] < 0.05 * parts[0].max()
    scattered = times * (1 + 0.04 * rng.standard_normal(times.shape))
    return np.rint(np.where(nothing, rng.uniform(0, times.max(), times.shape), scattered)).astype(np.int16)
