"""What surrounds the phantom's heart: chest wall, lungs, great vessels, diaphragm and abdomen.

World coordinates are RAS mm. Nothing here moves; the beating heart is painted over it, and great vessels
and heart are made to meet by `Tissue` order.
"""

from __future__ import annotations

import numpy as np

from fewbeats.phantom.anatomy import Anatomy, Tissue, atria_mm, beat_at

CHEST_MUSCLE_MM = 17.0
Tube = tuple[Tissue, list[np.ndarray], list[float]]


def thorax_tissue(anatomy: Anatomy, points: np.ndarray) -> np.ndarray:
    """Tissue of everything but the heart itself.

    Args:
        anatomy: the subject.
        points: (N, 3) RAS mm.

    Returns:
        (N,) uint8 `Tissue`.
    """
    world = np.ascontiguousarray(points.T.astype(np.float32))
    out = _paint_chest(anatomy, world)
    _paint_lungs(out, world)
    _paint_abdomen(anatomy, out, world)
    _paint_spine(anatomy, out, world)
    for tissue, path, radii in great_vessels(anatomy):
        for start, end, radius in zip(path[:-1], path[1:], radii):
            _paint_segment(out, world, ends=(start, end), radius=radius, tissue=tissue)
    return out


def reach_mm(anatomy: Anatomy, direction: np.ndarray) -> float:
    """How far the end-diastolic heart reaches along a unit vector, from the middle of the thorax."""
    beat = beat_at(anatomy, 0.0)
    along = anatomy.axes.T @ direction
    half = np.array([beat.epi_mm[0], beat.epi_mm[0], beat.epi_mm[1]])
    angle = np.deg2rad(anatomy.rv_angle_deg)
    rv = (beat.epi_mm[0] + 0.8 * beat.rv_reach_mm) * (np.cos(angle) * along[0] + np.sin(angle) * along[1])
    reaches = [float(np.linalg.norm(half * along)), float(rv - 0.5 * abs(beat.base_mm) * along[2])]
    reaches += [float(m @ along + np.linalg.norm(a * along)) for m, a in atria_mm(anatomy, beat).values()]
    return max(reaches) + float(np.dot(anatomy.center_mm, direction)) + anatomy.heart_fat_mm


def _cavity(anatomy: Anatomy) -> tuple[float, float, float]:
    """Half-width, half-depth and middle (y) of the chest cavity in mm; the heart always fits."""
    size = (anatomy.height_cm / 172.0) * (anatomy.weight_kg / 74.0) ** 0.2
    front = max(reach_mm(anatomy, np.array([0.0, 1.0, 0.0])) + 2.0, 62.0 * size * anatomy.chest_depth)
    back = spine_front_mm(anatomy) - 42.0
    side = max(reach_mm(anatomy, np.array([-1.0, 0.0, 0.0])) + 12.0, 125.0 * size * anatomy.chest_width)
    return side, (front - back) / 2.0, (front + back) / 2.0


def spine_front_mm(anatomy: Anatomy) -> float:
    """y of the front of the vertebral bodies, just behind the left atrium."""
    return -reach_mm(anatomy, np.array([0.0, -1.0, 0.0])) - 4.0


def _paint_chest(anatomy: Anatomy, world: np.ndarray) -> np.ndarray:
    """Skin to pleura: fat, muscle with ribs and sternum, and lung inside."""
    x, y, z = world
    side, depth, middle = _cavity(anatomy)
    dy = y - np.float32(middle)
    waist = 1.0 - 0.1 * np.clip((z - 40.0) / 120.0, 0.0, 1.0)  # narrower towards the neck

    def inside(grow: float) -> np.ndarray:
        a, b = np.float32(side + grow), np.float32(depth + grow)
        return (x / (a * waist)) ** 2 + np.abs(dy / b) ** 2.6 < 1.0

    wavy = anatomy.subcutaneous_mm * (1.0 + 0.25 * np.sin(x / 45.0) + 0.2 * np.sin(z / 60.0 + x / 80.0))
    shell = 0.5 * (side + depth)
    outer = (x / ((side + CHEST_MUSCLE_MM) * waist)) ** 2 + np.abs(dy / (depth + CHEST_MUSCLE_MM)) ** 2.6
    out = np.zeros(len(x), np.uint8)
    out[outer < (1.0 + wavy / shell) ** 2] = Tissue.FAT
    out[outer < 1.0] = Tissue.MUSCLE
    # fat planes between the chest's muscles
    planes = np.abs(np.sin(0.16 * (np.sqrt(outer) * shell) + 0.03 * z + 0.02 * x)) < 0.16
    out[(outer < 0.97) & planes] = Tissue.FAT
    ribs = np.sin((z + 0.45 * np.abs(x) - 0.3 * y) * np.float32(2 * np.pi / 29.0)) > 0.45
    sternum = (np.abs(x) < 15.0) & (dy > 0) & (z > -60.0)
    out[inside(9.0) & (ribs | sternum)] = Tissue.RIB
    out[inside(1.5)] = Tissue.MUSCLE
    out[inside(0.0)] = Tissue.LUNG
    return out


def _paint_lungs(out: np.ndarray, world: np.ndarray) -> None:
    """Vessels in the lung, where two families of wavy sheets cross, and the fat between the lungs."""
    lung = np.flatnonzero(out == Tissue.LUNG)
    x, y, z = world[:, lung]
    warp, bend = 9.0 * np.sin(y / 23.0 + z / 31.0), 8.0 * np.sin(x / 19.0 - z / 27.0 + 1.0)
    one = np.sin((x + warp) / 6.6) + np.sin((y - z + bend) / 8.8)
    two = np.sin((y + x - warp) / 9.4 + 1.0) + np.sin((z + bend) / 7.1)
    caliber = np.float32(0.05) * np.maximum(
        np.sin((x + bend) / 13.0) + np.sin((y + warp) / 17.0 + z / 15.0), 0
    )
    out[lung[one * one + two * two < caliber]] = Tissue.LUNG_VESSEL
    edge = 16.0 + 6.0 * np.sin(z / 22.0 + y / 14.0) + 5.0 * np.sin(y / 9.0 - z / 17.0)
    between = (np.abs(x + 2.0 + z * 0.05) < edge) & (y < 62.0 + 8.0 * np.sin(x / 11.0 + z / 19.0))
    out[lung[between]] = Tissue.HEART_FAT


def _paint_abdomen(anatomy: Anatomy, out: np.ndarray, world: np.ndarray) -> None:
    """Diaphragm on which the heart lies, with liver, spleen, stomach and bowel under it."""
    floor = -reach_mm(anatomy, np.array([0.0, 0.0, -1.0]))
    below = np.flatnonzero((world[2] < floor + 52.0) & (out >= Tissue.LUNG) & (out != Tissue.RIB))
    x, y, z = world[:, below]
    right = 34.0 * np.exp(-(((x - 75.0) / 62.0) ** 2) - ((y + 5.0) / 75.0) ** 2)
    left = 26.0 * np.exp(-(((x + 92.0) / 38.0) ** 2) - ((y + 25.0) / 60.0) ** 2)
    folds = 3.0 * np.sin(x / 21.0 + y / 33.0) + 2.0 * np.sin(y / 13.0 - x / 29.0)
    depth = np.float32(floor + 4.0) + right + left + folds - z
    found = out[below]
    found[depth > 0] = Tissue.DIAPHRAGM
    found[depth > 3.0] = Tissue.ABDOMEN
    wobble = 8.0 * np.sin(y / 17.0 + anatomy.seed % 7) + 6.0 * np.sin(z / 13.0)
    bowel = np.sin((x + wobble) / 8.0) + np.sin((y + 0.6 * wobble) / 9.0) + np.sin(z / 8.5)
    found[(depth > 12.0) & (bowel > 0.9)] = Tissue.BOWEL
    found[(depth > 12.0) & (bowel < -1.7)] = Tissue.GAS
    left_lobe = -35.0 - 0.45 * depth + 0.2 * y + (anatomy.seed % 5) * 6.0
    liver = (depth > 5.0) & (x > left_lobe + 30.0 * np.clip(depth / 70.0, 0.0, 1.0)) & (depth < 110.0)
    found[liver] = Tissue.LIVER
    tree = np.sin(x / 11.0 + wobble / 8.0) + np.sin(y / 10.0) * np.cos(z / 12.0)
    found[liver & (np.abs(tree) < 0.13) & (np.sin((x + y - z) / 14.0) > 0.2)] = Tissue.LIVER_VESSEL
    _paint_left_organs(found, (x, y, z), depth, floor)
    out[below] = found


def _paint_left_organs(found: np.ndarray, world: tuple, depth: np.ndarray, floor: float) -> None:
    """Stomach (wall, contents, gas in front of them) and spleen."""
    x, y, z = world
    under = depth > 5.0
    stomach = ((x + 66.0) / 34.0) ** 2 + ((y - 12.0) / 42.0) ** 2 + ((z - floor + 30.0) / 30.0) ** 2
    found[under & (stomach < 1.0)] = Tissue.STOMACH_WALL
    found[under & (stomach < 0.76)] = Tissue.STOMACH
    found[under & (stomach < 0.76) & (y > 30.0)] = Tissue.GAS
    spleen = ((x + 98.0) / 27.0) ** 2 + ((y + 52.0) / 32.0) ** 2 + ((z - floor + 26.0) / 44.0) ** 2
    found[under & (spleen < 1.0)] = Tissue.SPLEEN


def _paint_spine(anatomy: Anatomy, out: np.ndarray, world: np.ndarray) -> None:
    x, y, z = world
    front = spine_front_mm(anatomy)
    back = y - np.float32(front - 17.0)
    column = (x / 20.0) ** 2 + (back / 17.0) ** 2 < 1.0
    out[(np.abs(x) < 38.0) & (back < -6.0) & (out == Tissue.LUNG)] = Tissue.MUSCLE
    arch = (np.abs(x) < 22.0 - 0.5 * np.abs(back + 28.0)) & (np.abs(back + 28.0) < 22.0)
    out[arch & (out > 0)] = Tissue.SPINE
    out[column] = np.where(np.sin(z[column] * np.float32(2 * np.pi / 30.0)) > 0.8, Tissue.DISC, Tissue.SPINE)
    canal = (x / 9.0) ** 2 + ((back + 25.0) / 8.0) ** 2 < 1.0
    out[canal] = Tissue.SPINAL_CANAL


def great_vessels(anatomy: Anatomy) -> list[Tube]:
    """Aorta, pulmonary artery and veins as tubes: tissue, path (RAS mm) and radius of each segment in mm."""
    beat = beat_at(anatomy, 0.0)
    base, spine = beat.base_mm, spine_front_mm(anatomy)
    atria = atria_mm(anatomy, beat)
    la, ra = (anatomy.to_world(*atria[t][0]) for t in (Tissue.LA, Tissue.RA))
    bore = (anatomy.height_cm / 172.0) * anatomy.atria_scale**0.5

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.array([x, y, z])

    root, sinus = anatomy.to_world(-9.0, -11.0, base + 2.0), anatomy.to_world(-14.0, -19.0, base - 24.0)
    top = sinus + at(6.0, -4.0, 52.0)
    beside_spine = at(-24.0, spine - 2.0, sinus[2])
    aorta = [root, sinus, sinus + at(9.0, 4.0, 28.0), top, at(-12.0, (top[1] + spine) / 2.0, top[2] + 6.0),
             at(-23.0, spine - 2.0, top[2] - 14.0), beside_spine, at(-14.0, spine + 6.0, -260.0)]  # fmt: skip
    outflow = anatomy.to_world(-26.0, -beat.epi_mm[0] - 3.0, base + 4.0)
    trunk = outflow + at(2.0, -12.0, 26.0)
    fork = trunk + at(6.0, -22.0, 12.0)
    arteries = [fork + at(42.0, -10.0, -4.0), fork + at(-40.0, -22.0, -4.0)]
    superior = [ra, ra + at(2.0, -4.0, 45.0), ra + at(2.0, -2.0, 130.0)]
    inferior = [ra, ra + at(2.0, -12.0, -40.0), at(18.0, spine + 12.0, ra[2] - 200.0)]
    tubes: list[Tube] = [
        (
            Tissue.AO,
            aorta,
            [14.5 * bore, 14.0 * bore, 14.0 * bore, 13.0 * bore, 12.0 * bore] + [11.0 * bore] * 2,
        ),
        (Tissue.PA, [outflow, trunk, fork], [13.0 * bore, 12.5 * bore]),
        *((Tissue.PA, [fork, end], [9.0 * bore]) for end in arteries),
        (Tissue.VEIN, superior, [9.5 * bore] * 2),
        (Tissue.VEIN, inferior, [11.0 * bore] * 2),
    ]
    for side in (-1.0, 1.0):
        for up in (-12.0, 14.0):
            tubes.append((Tissue.VEIN, [la, la + at(side * 58.0, -14.0, up)], [6.0 * bore]))
    return [(Tissue.VESSEL_WALL, path, [r + 2.0 for r in radii]) for _, path, radii in tubes] + tubes


def _paint_segment(out: np.ndarray, world: np.ndarray, *, ends: tuple, radius: float, tissue: Tissue) -> None:
    """Paint a rounded cylinder where it has the higher rank."""
    start, end = (p.astype(np.float32) for p in ends)
    low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
    near = np.abs(world[0] - (low[0] + high[0]) / 2.0) < (high[0] - low[0]) / 2.0
    for axis in (1, 2):
        near &= np.abs(world[axis] - (low[axis] + high[axis]) / 2.0) < (high[axis] - low[axis]) / 2.0
    index = np.flatnonzero(near)
    if not len(index):
        return
    x, y, z = (world[axis, index] - start[axis] for axis in range(3))
    dx, dy, dz = end - start
    t = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0.0, 1.0)
    inside = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2 < radius * radius
    out[index[inside]] = np.maximum(out[index[inside]], tissue)
