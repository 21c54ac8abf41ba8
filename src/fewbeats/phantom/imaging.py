"""What a scanner makes of the phantom's tissues: signal tables, texture, flow, field, noise.

Anatomy knows nothing of intensity. A table gives each tissue a mean and a texture; a contrast is one
column of it, so a new sequence is a new column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewbeats.phantom.anatomy import Tissue
from fewbeats.phantom.randomized import random_signal
from fewbeats.phantom.sequences import Sequence, sequence_values

Contrast = Literal["bright", "dark", "any"]

# Tissue: (cine bright, cine dark, texture in %, CT arterial HU, CT venous HU)
_TABLE: dict[Tissue, tuple[float, float, float, float, float]] = {
    Tissue.AIR: (3, 3, 0, -1000, -1000),
    Tissue.FAT: (225, 210, 12, -100, -100),
    Tissue.MUSCLE: (62, 95, 18, 60, 65),
    Tissue.LUNG: (14, 14, 40, -860, -850),
    Tissue.LUNG_VESSEL: (120, 90, 20, 120, 60),
    Tissue.RIB: (95, 75, 30, 520, 520),
    Tissue.ABDOMEN: (165, 150, 25, -95, -95),
    Tissue.DIAPHRAGM: (60, 90, 10, 55, 60),
    Tissue.LIVER: (84, 150, 9, 75, 115),
    Tissue.LIVER_VESSEL: (150, 120, 10, 95, 165),
    Tissue.SPLEEN: (120, 85, 9, 135, 120),
    Tissue.STOMACH_WALL: (85, 110, 15, 60, 75),
    Tissue.STOMACH: (175, 60, 30, 15, 15),
    Tissue.GAS: (4, 4, 0, -950, -950),
    Tissue.BOWEL: (130, 120, 35, 40, 45),
    Tissue.SPINE: (105, 120, 20, 260, 260),
    Tissue.DISC: (70, 60, 15, 110, 110),
    Tissue.SPINAL_CANAL: (190, 50, 10, 25, 25),
    Tissue.HEART_FAT: (190, 200, 15, -90, -90),
    Tissue.VESSEL_WALL: (85, 100, 10, 50, 60),
    Tissue.VEIN: (185, 128, 8, 165, 150),
    Tissue.ATRIAL_WALL: (80, 105, 10, 70, 75),
    Tissue.RA: (180, 132, 8, 190, 155),
    Tissue.LA: (195, 150, 7, 375, 165),
    Tissue.PA: (190, 145, 10, 240, 155),
    Tissue.AO: (200, 160, 10, 370, 170),
    Tissue.RV_WALL: (82, 98, 12, 90, 100),
    Tissue.RV: (188, 138, 9, 220, 155),
    Tissue.RV_TRABECULA: (115, 110, 15, 140, 125),
    Tissue.MYO: (80, 98, 11, 100, 110),
    Tissue.LV: (208, 148, 8, 380, 165),
    Tissue.LV_TRABECULA: (100, 106, 12, 130, 120),
    Tissue.SCAR: (95, 102, 12, 90, 90),
}
# HU that are added where the bolus fills both sides of the heart
_BOTH_FILLED: dict[Tissue, float] = {
    Tissue.RV: 170.0, Tissue.RA: 190.0, Tissue.PA: 150.0, Tissue.VEIN: 160.0, Tissue.RV_TRABECULA: 60.0,
    Tissue.LV: 40.0, Tissue.LA: 40.0, Tissue.AO: 40.0, Tissue.LV_TRABECULA: 20.0, Tissue.MYO: 30.0,
    Tissue.RV_WALL: 30.0, Tissue.LUNG_VESSEL: 120.0, Tissue.LIVER_VESSEL: 20.0,
}  # fmt: skip
_COLUMNS = {("cine", "bright"): 0, ("cine", "dark"): 1, ("ct", "bright"): 3, ("ct", "dark"): 4}
_DRAWN = int(Tissue.SCAR)  # tissues before it: what came later must not change the draws of those
_MOVING_BLOOD = (Tissue.LV, Tissue.RV, Tissue.LA, Tissue.RA, Tissue.AO, Tissue.PA, Tissue.VEIN)
_CARDIAC_MUSCLE = (Tissue.MYO, Tissue.RV_WALL, Tissue.ATRIAL_WALL, Tissue.LV_TRABECULA)


@dataclass(frozen=True)
class Signal:
    """Look-up tables of one subject under one contrast, each (tissues,) float32."""

    mean: np.ndarray
    """Signal (arbitrary units) or HU."""
    texture: np.ndarray
    """Standard deviation of the texture in the same units."""
    blood: np.ndarray
    """1 where the tissue is moving blood."""

    def of(self, tissue: np.ndarray) -> np.ndarray:
        """(K, ...) tissues sampled in each voxel -> (3, ...) its mean, texture and blood fraction."""
        return np.stack([table[tissue].mean(0) for table in (self.mean, self.texture, self.blood)])


def signal_of(
    modality: str,
    contrast: Contrast,
    rng: np.random.Generator,
    *,
    timing: float = 0.0,
    sequence: Sequence = "cine",
) -> Signal:
    """Draw a subject's tables: every tissue varies, and so does the contrast of blood to muscle.

    Args:
        modality: cine or ct.
        contrast: of the scanner.
        rng: source of the draws.
        timing: of CT, how much of the bolus is in the right heart, too; see `Anatomy.contrast_timing`.
        sequence: of MR; others than cine know no `contrast`.
    """
    rows = np.array([_TABLE[t] for t in Tissue], np.float64)
    is_blood = np.isin(np.arange(len(Tissue)), _MOVING_BLOOD)
    if sequence != "cine":
        mean = sequence_values(sequence) * np.exp(0.06 * rng.normal(size=len(Tissue)))
        return Signal(*(a.astype(np.float32) for a in (mean, 0.06 * mean, 0.0 * is_blood)))
    if contrast == "any":
        mean, texture = random_signal(rows[:, rng.integers(2)], rows[:, 2] / 100.0, rng)
        return Signal(*(a.astype(np.float32) for a in (mean, texture, is_blood)))
    mean = rows[:, _COLUMNS[modality, contrast]]
    if timing:
        mean = mean + timing * np.array([_BOTH_FILLED.get(tissue, 0.0) for tissue in Tissue])
    single = np.append(rng.normal(size=_DRAWN), np.zeros(len(Tissue) - _DRAWN))
    blood, muscle = rng.normal(), rng.normal()
    is_muscle = np.isin(np.arange(len(Tissue)), _CARDIAC_MUSCLE)
    if modality == "ct":
        mean = mean + 8.0 * single + is_blood * (40.0 * blood + 10.0 * single)
        # table entries of blood already spread over the chambers; the bolus moves them together
        mean = np.where(is_blood, np.maximum(mean, 110.0), mean)
        texture = np.where(mean < -500, 25.0, 4.0)
    else:
        mean = mean * np.exp(0.10 * single + 0.14 * blood * is_blood + 0.18 * muscle * is_muscle)
        texture = mean * rows[:, 2] / 100.0
    return Signal(*(a.astype(np.float32) for a in (mean, texture, is_blood)))


def smooth_noise(shape: tuple[int, ...], sigma: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Unit-variance float32 noise, smoothed by `sigma` voxels (circular on every axis)."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap", truncate=2.5)
    return noise / max(float(noise.std()), 1e-6)


def texture_field(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) unit-variance texture of two grain sizes."""
    fine, coarse = smooth_noise(shape, (0, 1.0, 1.0), rng), smooth_noise(shape, (0.5, 4.0, 4.0), rng)
    return (0.75 * fine + 0.66 * coarse).astype(np.float32)


def flow_field(shape: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(T, Z, Y, X) relative change of moving blood, smooth in time and circular; drawn at a quarter size."""
    from scipy.ndimage import uniform_filter

    t, z, y, x = shape
    small = smooth_noise((t, z, -(-y // 4), -(-x // 4)), (min(1.0, t / 4), 0, 1.3, 1.3), rng)
    blocks = small.repeat(4, axis=2).repeat(4, axis=3)[:, :, :y, :x]
    return uniform_filter(blocks, (1, 1, 4, 4))


def coil_field(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) multiplicative receive field: a surface-coil slope and a slow bow, mean about 1."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    a, b, c = rng.normal(size=3) * np.array([0.2, 0.2, 0.15])
    slope = rng.uniform(0.2, 0.6)
    angle = rng.uniform(-2.6, -0.9)  # signal comes from the chest wall, in front
    plane = slope * (np.cos(angle) * x[None, None, :] + np.sin(angle) * y[None, :, None])
    bow = a * x[None, None, :] ** 2 + b * y[None, :, None] ** 2 + c * x[None, None, :] * y[None, :, None]
    return np.exp(plane + bow + 0.05 * rng.normal() * z[:, None, None])


def banding_field(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) off-resonance bands of balanced steady-state imaging: dark curved lines near the edge."""
    n, h, w = shape
    z, y, x = np.meshgrid(np.arange(n) / n, np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    angle, bow = rng.uniform(0, 2 * np.pi), rng.normal() * 0.3
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    phase = (along + bow * across**2 + 0.15 * z + rng.normal() * 0.05) - rng.uniform(0.45, 0.95)
    return (1.0 - rng.uniform(0.2, 0.7) * np.exp(-((phase / rng.uniform(0.03, 0.07)) ** 2))).astype(
        np.float32
    )


def expose_cine(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Magnitude images of a cine from noiseless signal.

    Args:
        parts: (3, T, Z, Y, X) float32 mean, texture and blood fraction (`Signal.of`).
        rng: source of the subject's artifacts and noise.

    Returns:
        (T, Z, Y, X) int16, arbitrary units.
    """
    from scipy.ndimage import gaussian_filter

    mean, texture, blood = parts
    shape = mean.shape
    image = mean + texture * texture_field(shape[1:], rng)
    image *= 1.0 + blood * (0.10 * flow_field(shape, rng) - 0.03)
    image += _pulsation_ghost(mean * blood, rng)
    image *= coil_field(shape[1:], rng) * banding_field(shape[1:], rng)
    image *= rng.uniform(0.92, 1.08, (1, shape[1], 1, 1))  # slices are separate breath-holds
    image = gaussian_filter(image, (0, 0, 0.55, 0.55), truncate=3.0)
    sigma = np.float32(rng.uniform(4.0, 8.0))
    real = image + sigma * rng.standard_normal(shape, np.float32)
    imaginary = sigma * rng.standard_normal(shape, np.float32)
    gain = rng.uniform(0.8, 4.0)
    return np.rint(gain * np.sqrt(real * real + imaginary * imaginary)).astype(np.int16)


def _pulsation_ghost(blood: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Faint copies of the pulsating blood, shifted along the phase-encoding axis."""
    axis = int(rng.integers(2, 4))
    shift = int(blood.shape[axis] * rng.uniform(0.25, 0.4))
    pulse = blood - blood.mean(0)
    both = np.roll(pulse, shift, axis) + np.roll(pulse, -shift, axis)
    return np.float32(rng.uniform(0.03, 0.09)) * both


def expose_ct(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """CT volumes from noiseless HU: mixing of contrast medium, grain and quantum noise.

    Args:
        parts: (3, T, Z, Y, X) float32 (`Signal.of`).
        rng: source of the subject's noise.

    Returns:
        (T, Z, Y, X) int16 HU.
    """
    from scipy.ndimage import gaussian_filter

    mean, texture, blood = parts
    t, shape = len(mean), mean.shape[1:]
    image = mean + texture * texture_field(shape, rng)
    image += blood * 14.0 * smooth_noise(shape, (6.0, 6.0, 6.0), rng)
    noise = rng.standard_normal((t, *shape), np.float32)
    noise = gaussian_filter(noise, (0, 0.5, 0.6, 0.6), truncate=2.0)
    noise *= np.float32(rng.uniform(16.0, 30.0)) / noise.std()
    image = gaussian_filter(image, (0, 0.4, 0.4, 0.4), truncate=2.0) + noise
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
