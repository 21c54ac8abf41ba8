"""The phantom's heart: a parametric beating anatomy that answers "which tissue is at this point".

Heart coordinates are millimeters (u, v, w): u from septum to lateral wall, v from anterior to inferior
wall, w from base to apex, origin in the middle of the end-diastolic left ventricle. The LV is a prolate
ellipsoid cut at the mitral plane inside a thicker one. Every departure from that (non-round outline,
bent axis, twist, eccentric cavity) moves area around within a cross-section and never adds any, so the
volumes of LV and MYO stay exact closed forms; that of the RV is a quadratic in its reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np

from fewbeats.phantom.scar import Scar, is_scar

TRUNCATION = 0.5
"""The mitral plane cuts the LV at this fraction of the long half-axis above the middle."""
RV_LENGTH = 0.86
"""Length of the RV cavity as a fraction of the LV cavity's."""
RV_WALL_MM = 3.0


class Tissue(IntEnum):
    """What can be at a point. Where two overlap the higher one wins, so the order is the anatomy's."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    LUNG_VESSEL = 4
    RIB = 5
    ABDOMEN = 6
    DIAPHRAGM = 7
    LIVER = 8
    LIVER_VESSEL = 9
    SPLEEN = 10
    STOMACH_WALL = 11
    STOMACH = 12
    GAS = 13
    BOWEL = 14
    SPINE = 15
    DISC = 16
    SPINAL_CANAL = 17
    HEART_FAT = 18
    VESSEL_WALL = 19
    VEIN = 20
    ATRIAL_WALL = 21
    RA = 22
    LA = 23
    PA = 24
    AO = 25
    RV_WALL = 26
    RV = 27
    RV_TRABECULA = 28
    MYO = 29
    LV = 30
    LV_TRABECULA = 31
    SCAR = 32


STRUCTURE_OF = {
    Tissue.LV: "LV", Tissue.LV_TRABECULA: "LV", Tissue.MYO: "MYO", Tissue.SCAR: "MYO", Tissue.RV: "RV",
    Tissue.RV_TRABECULA: "RV", Tissue.LA: "LA", Tissue.RA: "RA", Tissue.AO: "AO", Tissue.PA: "PA",
}  # fmt: skip
"""Tissue -> structure. Papillary muscles and trabeculae count as blood pool, as in ACDC."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One subject: sizes at end-diastole (phase 0) and how they change over the beat."""

    seed: int
    """Also seeds everything random about this subject's scans."""
    group: str
    height_cm: float
    weight_kg: float
    cycle_ms: float
    """Length of a heartbeat."""

    lv_edv_ml: float
    lv_ef_percent: float
    wall_mm: float
    """LV wall in the middle of the ventricle at end-diastole."""
    elongation: float
    """Long over short half-axis of the LV cavity at end-diastole."""
    shortening: float
    """Fraction of the long axis lost at end-systole."""
    twist_deg: float
    """Rotation of the apex against the base at end-systole."""
    eccentricity: float
    """Shift of the cavity towards the lateral wall in wall thicknesses (a thick septum)."""
    bend_mm: float
    """How far the long axis is bent at the apex."""
    outline: tuple[float, float, float, float]
    """Departure of the epicardium from a circle: amplitude and angle (rad) of harmonics 2 and 3."""
    endo_outline: tuple[float, float, float, float]
    """The same for the cavity, on top."""
    papillary_deg: tuple[float, float]
    """Angles of the two papillary muscles from lateral towards inferior."""

    rv_edv_ml: float
    rv_ef_percent: float
    rv_angle_deg: float
    """Direction of the RV from the LV axis, from lateral towards inferior."""
    rv_half_width_deg: float
    """Half the angle the RV takes around the LV at the base."""
    atria_scale: float
    es_phase: float
    """Phase of end-systole, as a fraction of the cycle."""

    azimuth_deg: float
    """Long axis from patient left towards anterior."""
    elevation_deg: float
    """Long axis below the axial plane."""
    center_mm: tuple[float, float, float]
    """Origin of the heart coordinates, RAS mm from the middle of the thorax."""
    heart_fat_mm: float
    subcutaneous_mm: float

    trabeculation: float = 1.0
    """How thick trabeculae and papillary muscles are, 1 as in life."""
    scar: Scar | None = None
    chest_width: float = 1.0
    """Of the chest cavity, 1 as in people of this size."""
    chest_depth: float = 1.0
    """From spine to sternum."""
    roll_deg: float = 0.0
    """How far the body lies turned about its long axis on the table."""
    contrast_timing: float = 0.0
    """Of CT: 0 the left heart alone is filled with contrast medium, 1 both."""

    @cached_property
    def axes(self) -> np.ndarray:
        """(3, 3); columns are the unit vectors u, v, w of the heart in RAS."""
        azimuth, elevation = np.deg2rad([self.azimuth_deg, self.elevation_deg])
        ca, sa, ce, se = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
        return np.array([[-sa, se * ca, -ce * ca], [-ca, -se * sa, ce * sa], [0.0, -ce, -se]])

    def to_heart(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) RAS mm -> (3, N) float32 heart coordinates (u, v, w) in mm."""
        return np.ascontiguousarray(((points - np.array(self.center_mm)) @ self.axes).T.astype(np.float32))

    def to_world(self, u: float, v: float, w: float) -> np.ndarray:
        """Heart coordinates -> (3,) RAS mm."""
        return self.axes @ np.array([u, v, w]) + np.array(self.center_mm)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The ventricles at one phase: what `Anatomy` and the phase determine, in heart coordinates."""

    contraction: float
    """0 at end-diastole, 1 at end-systole."""
    endo_mm: tuple[float, float]
    """Short and long half-axis of the LV cavity."""
    epi_mm: tuple[float, float]
    """Short and long half-axis of the epicardium."""
    middle_mm: float
    """w of the ellipsoids' middle."""
    base_mm: float
    """w of the mitral (and tricuspid) plane; ventricles are at and above it."""
    rv_reach_mm: float
    """Largest thickness of the RV cavity, septum to free wall."""
    volumes_ml: tuple[float, float, float]
    """Exact LV, MYO and RV volume."""


def contraction(phase: np.ndarray | float, es_phase: float) -> np.ndarray:
    """Share of the stroke volume ejected, (0 end-diastole, 1 end-systole), periodic in `phase`.

    Ejection up to `es_phase`, an isovolumic pause, fast filling (three quarters), diastasis, and the
    atrial kick. Smooth, also across the end of the cycle.
    """
    p = np.mod(np.asarray(phase, float), 1.0)

    def rise(start: float, end: float) -> np.ndarray:
        x = np.clip((p - start) / (end - start), 0.0, 1.0)
        return x * x * (3.0 - 2.0 * x)

    filled_late = 0.25
    early = rise(es_phase + 0.04, es_phase + 0.26)
    return rise(0.02, es_phase) - (1.0 - filled_late) * early - filled_late * rise(0.84, 0.98)


def _cut_ellipsoid_ml(short: float, long: float, plane: float) -> float:
    """Volume in mL of an ellipsoid of revolution from `plane` below its middle to its apex."""
    return np.pi * short**2 * (2.0 / 3.0 * long + plane - plane**3 / (3.0 * long**2)) / 1000.0


@lru_cache(maxsize=4096)
def beat_at(anatomy: Anatomy, phase: float) -> Beat:
    """State of the ventricles at `phase` (fraction of the cycle, end-diastole at 0).

    The apex stays, the base descends, the LV volume follows `contraction`, and the myocardial volume is
    constant, which makes the wall thicken.
    """
    s = float(contraction(phase, anatomy.es_phase))
    k = TRUNCATION
    per_mm3 = _cut_ellipsoid_ml(1.0, 1.0, k)
    short0 = (anatomy.lv_edv_ml / (per_mm3 * anatomy.elongation)) ** (1.0 / 3.0)
    long0 = short0 * anatomy.elongation
    tip0 = 0.7 * anatomy.wall_mm  # the apex is thinner than the middle
    myo_ml = _cut_ellipsoid_ml(short0 + anatomy.wall_mm, long0 + tip0, k * long0) - anatomy.lv_edv_ml

    lv_ml = anatomy.lv_edv_ml * (1.0 - s * anatomy.lv_ef_percent / 100.0)
    length = (k * long0 + long0 + tip0) * (1.0 - anatomy.shortening * s)
    tip = tip0 * (1.0 + 0.2 * s)
    long = (length - tip) / (1.0 + k)
    short = np.sqrt(lv_ml / (per_mm3 * long))
    epi_long = long + tip
    epi_short = np.sqrt((lv_ml + myo_ml) / _cut_ellipsoid_ml(1.0, epi_long, k * long))
    middle = long0 + tip0 - epi_long
    rv_ml = anatomy.rv_edv_ml * (1.0 - s * anatomy.rv_ef_percent / 100.0)
    beat = Beat(
        contraction=s, endo_mm=(float(short), long), epi_mm=(float(epi_short), epi_long), middle_mm=middle,
        base_mm=middle - k * long, rv_reach_mm=0.0, volumes_ml=(lv_ml, myo_ml, rv_ml),
    )  # fmt: skip
    return replace(beat, rv_reach_mm=_solve_rv_reach(anatomy, beat))


def _solve_rv_reach(anatomy: Anatomy, beat: Beat) -> float:
    """Reach a at which the RV has its volume: between r and r + a b lies the area r a b + (a b)^2 / 2."""
    angles = (np.arange(360) + 0.5) * (2.0 * np.pi / 360)
    length = RV_LENGTH * (beat.middle_mm + beat.endo_mm[1] - beat.base_mm)
    depth = (np.arange(100)[:, None] + 0.5) / 100
    cos, sin = np.cos(angles), np.sin(angles)
    w = beat.base_mm + depth * length
    radius = np.sqrt(_epicardium_squared(anatomy, beat, w, cos, sin))
    bump = _rv_bump(anatomy, depth, cos, sin)
    cell = length / 100 * (2.0 * np.pi / 360) / 1000.0
    linear, square = (radius * bump).sum() * cell, 0.5 * (bump**2).sum() * cell
    rv_ml = beat.volumes_ml[2]
    return float((np.sqrt(linear**2 + 4.0 * square * rv_ml) - linear) / (2.0 * square))


def _harmonics(outline: tuple[float, float, float, float], cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """1 + a2 cos 2(t - t2) + a3 cos 3(t - t3): multiplies r^2, so the enclosed area stays."""
    a2, t2, a3, t3 = outline
    cos2, sin2 = cos * cos - sin * sin, 2.0 * cos * sin
    cos3, sin3 = cos2 * cos - sin2 * sin, sin2 * cos + cos2 * sin
    second = np.float32(a2 * np.cos(2 * t2)) * cos2 + np.float32(a2 * np.sin(2 * t2)) * sin2
    third = np.float32(a3 * np.cos(3 * t3)) * cos3 + np.float32(a3 * np.sin(3 * t3)) * sin3
    return 1.0 + second + third


def _epicardium_squared(anatomy: Anatomy, beat: Beat, w, cos, sin, *, grow: float = 0.0) -> np.ndarray:
    """Squared radius of the epicardium (`grow` mm outside it) at height w and direction (cos, sin)."""
    short, long = beat.epi_mm[0] + grow, beat.epi_mm[1] + grow
    round_squared = short**2 * np.maximum(1.0 - ((w - beat.middle_mm) / long) ** 2, 0.0)
    return round_squared * _harmonics(anatomy.outline, cos, sin)


def _rv_bump(anatomy: Anatomy, depth, cos, sin) -> np.ndarray:
    """Thickness of the RV in units of its reach; `depth` is 0 at the base and 1 at its apex."""
    angle = np.deg2rad(anatomy.rv_angle_deg)
    widths = np.deg2rad(anatomy.rv_half_width_deg) * np.array([1.0, 0.62])
    edge = 1.0 - np.cos(widths)
    along = cos * np.float32(np.cos(angle)) + sin * np.float32(np.sin(angle))
    across = sin * np.float32(np.cos(angle)) - cos * np.float32(np.sin(angle))
    depth = np.clip(depth, 0.0, 1.0)
    chord = (1.0 - along) / (edge[0] + (edge[1] - edge[0]) * depth)
    # the crescent is blunter on its inferior side, where it lies on the diaphragm
    shape = np.sqrt(np.maximum(1.0 - chord, 0.0)) * (1.0 - np.float32(0.25) * across)
    return (shape * np.sqrt(1.0 - depth * depth)).astype(np.float32)


def heart_tissue(anatomy: Anatomy, local: np.ndarray, beat: Beat) -> np.ndarray:
    """Tissue of the beating heart, AIR where there is none.

    Args:
        anatomy: the subject.
        local: (3, N) float32 heart coordinates in mm.
        beat: state from `beat_at`.

    Returns:
        (N,) uint8 `Tissue`.
    """
    out = np.zeros(local.shape[1], np.uint8)
    u, v, w = _straighten(anatomy, beat, local)
    squared = u * u + v * v
    r = np.sqrt(squared) + np.float32(1e-6)
    cos, sin = u / r, v / r
    ventricular = w >= beat.base_mm
    epi_squared = _epicardium_squared(anatomy, beat, w, cos, sin)

    rv_length = RV_LENGTH * (beat.middle_mm + beat.endo_mm[1] - beat.base_mm)
    bump = _rv_bump(anatomy, (w - beat.base_mm) / np.float32(rv_length), cos, sin)
    free_wall = np.sqrt(epi_squared) + bump * np.float32(beat.rv_reach_mm)
    _paint_fat(out, anatomy, beat, cylinder=(w, cos, sin, r), bump=bump)
    _paint_atria(out, anatomy, beat, (u, v, w))
    beside = ventricular & (bump > 0) & (squared > epi_squared)
    out[beside & (r < free_wall + RV_WALL_MM)] = Tissue.RV_WALL
    in_rv = np.flatnonzero(beside & (r < free_wall))
    depth = (free_wall - r)[in_rv] / np.float32(max(anatomy.trabeculation, 1e-3))
    out[in_rv] = _right_cavity(u[in_rv], v[in_rv], w[in_rv], depth)
    inside = np.flatnonzero(ventricular & (squared <= epi_squared))
    out[inside] = _left_ventricle(anatomy, beat, u[inside], v[inside], w[inside])
    return out


def _straighten(anatomy: Anatomy, beat: Beat, local: np.ndarray) -> tuple[np.ndarray, ...]:
    """Undo bend and twist: each cross-section is shifted and rotated, so its area stays."""
    u, v, w = local
    height = (w - np.float32(beat.middle_mm)) / np.float32(beat.epi_mm[1])
    lean = np.float32(anatomy.bend_mm) * np.clip(height, -1, 1) ** 2
    u, v = u - lean, v + np.float32(0.5) * lean
    angle = np.float32(np.deg2rad(anatomy.twist_deg) * beat.contraction) * np.clip(height, -1, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * u + sin * v, cos * v - sin * u, w


def _paint_fat(out: np.ndarray, anatomy: Anatomy, beat: Beat, *, cylinder: tuple, bump: np.ndarray) -> None:
    """Fat over the ventricles, thicker on the right and in the groove between ventricles and atria."""
    w, cos, sin, r = cylinder
    towards_rv = np.float32(np.deg2rad(anatomy.rv_angle_deg))
    right = 0.5 + 0.5 * (cos * np.cos(towards_rv) + sin * np.sin(towards_rv))
    above = np.clip((beat.base_mm - w) / 30.0, 0.0, 1.0)  # the cone of fat around the outflow tracts
    outer = np.sqrt(_epicardium_squared(anatomy, beat, np.maximum(w, beat.base_mm), cos, sin, grow=2.0))
    outer = outer + bump * np.float32(beat.rv_reach_mm) + RV_WALL_MM * (bump > 0)
    near_apex = np.sqrt(np.clip((beat.middle_mm + beat.epi_mm[1] + 3.0 - w) / 25.0, 0.0, 1.0))
    outer = outer + anatomy.heart_fat_mm * (0.3 + 1.2 * right**2) * near_apex
    out[(r < outer * np.sqrt(1.0 - above)) & (above < 1.0)] = Tissue.HEART_FAT


def atria_mm(anatomy: Anatomy, beat: Beat) -> dict[Tissue, tuple[np.ndarray, np.ndarray]]:
    """Middle and half-axes of the atria in heart coordinates; they fill while the ventricles empty."""
    scale = anatomy.atria_scale * (1.0 + 0.14 * beat.contraction)
    left, right = np.array([24.0, 19.0, 25.0]) * scale, np.array([23.0, 24.0, 27.0]) * scale
    offset = beat.epi_mm[0] + 10.0
    return {
        Tissue.LA: (np.array([5.0, 10.0, beat.base_mm - 0.72 * left[2]]), left),
        Tissue.RA: (np.array([-offset, 10.0, beat.base_mm - 0.72 * right[2]]), right),
    }


def _paint_atria(out: np.ndarray, anatomy: Anatomy, beat: Beat, points: tuple[np.ndarray, ...]) -> None:
    u, v, w = points
    above = np.flatnonzero(w < beat.base_mm)
    u, v, w, found = u[above], v[above], w[above], out[above]
    for tissue, (middle, axes) in atria_mm(anatomy, beat).items():
        for paint, half in ((Tissue.HEART_FAT, axes + 5.0), (Tissue.ATRIAL_WALL, axes + 2.0), (tissue, axes)):
            d = [(p - np.float32(m)) / np.float32(a) for p, m, a in zip((u, v, w), middle, half)]
            inside = d[0] ** 2 + d[1] ** 2 + d[2] ** 2 <= 1.0
            found[inside] = np.maximum(found[inside], paint)
    out[above] = found


def _right_cavity(u: np.ndarray, v: np.ndarray, w: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """RV blood with coarse trabeculae under the free wall.

    `depth` is the distance from it in mm, over how thick trabeculae are.
    """
    pattern = np.sin(u * 0.42 + 1.5 * np.sin(w * 0.2)) + np.sin(v * 0.5 + 1.2 * np.sin(w * 0.26 + 1.0))
    trabecula = pattern > 0.7 + depth * 0.16
    return np.where(trabecula, Tissue.RV_TRABECULA, Tissue.RV).astype(np.uint8)


def _left_ventricle(anatomy: Anatomy, beat: Beat, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """MYO, cavity and what grows in it, for points inside the epicardium."""
    short, long = beat.endo_mm
    height_squared = ((w - np.float32(beat.middle_mm)) / np.float32(long)) ** 2
    shift = anatomy.eccentricity * (beat.epi_mm[0] - short)
    u = u - np.float32(shift) * np.sqrt(np.maximum(1.0 - height_squared, 0.0))
    r = np.sqrt(u * u + v * v) + np.float32(1e-6)
    cos, sin = u / r, v / r
    wall = np.float32(short) * np.sqrt(
        np.maximum(1.0 - height_squared, 0.0)
        * (_harmonics(anatomy.outline, cos, sin) + _harmonics(anatomy.endo_outline, cos, sin) - 1.0)
    )
    out = np.full(len(u), Tissue.MYO, np.uint8)
    if anatomy.scar is not None:
        out[is_scar(anatomy.scar, beat, (u, v, w), r - wall)] = Tissue.SCAR
    cavity = np.flatnonzero(r <= wall)
    u, v, w, r, wall = u[cavity], v[cavity], w[cavity], r[cavity], wall[cavity]
    angle = np.arctan2(v, u)
    ripple = np.sin(9.0 * angle + 2.0 * np.sin(w / 7.0)) + np.sin(5.0 * angle - w / 5.0)
    rim = np.float32(1.0 - 0.12 * anatomy.trabeculation)
    muscle = (ripple > 0.6) & (r > wall * rim) & (w > beat.middle_mm)
    thick = 4.2 * (1.0 + 0.2 * beat.contraction) * (anatomy.wall_mm / 8.0) ** 0.3
    thick *= anatomy.trabeculation**0.5
    along = (w - beat.middle_mm) / long
    for degrees in anatomy.papillary_deg:
        direction = np.deg2rad(degrees)
        du, dv = u - 0.68 * wall * np.cos(direction), v - 0.68 * wall * np.sin(direction)
        tapered = thick**2 * np.clip(1.0 - ((along - 0.3) / 0.45) ** 2, 0.0, 1.0)
        muscle |= du * du + dv * dv < tapered
    out[cavity] = np.where(muscle, Tissue.LV_TRABECULA, Tissue.LV)
    return out
