"""Pictures of a report: slices round the heart as WebP data, outlines of the masks as SVG paths.

Outlines are vectors over the picture, not painted into it: sharp at any size, and they can be switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np

from fewbeats.data.files import open_image
from fewbeats.errors import InputError
from fewbeats.evaluation.measure import Masks, MeasuredScan, ScanMasks
from fewbeats.pages.pictures import Picture, encode_webp, outline, svg_path
from fewbeats.scan import Scan

MARGIN_MM = 14.0
"""Shown round the heart."""
TILE_PIXELS = 220
"""Side of a slice in the overlays."""
CINE_TILE_PIXELS = 140
"""Side of a slice in a cine."""
CINE_SLICES = 10
CINE_FRAMES = 40
"""A longer cine is thinned to this many frames, so that the page stays light."""

Box = tuple[float, float, float]  # center y, center x, half side, in mm


class Pictured:
    """Image and masks of one measured scan, turned the way a radiologist looks at them."""

    def __init__(self, measured: MeasuredScan):
        self.masks = ScanMasks(measured.source)
        self.image = _read_image(measured.source.image, self.masks.scan)
        _, self.row_mm, self.column_mm = self.image.spacing_mm
        self.pixel_mm = self.row_mm, self.column_mm

    def image_frame(self, t: int) -> np.ndarray:
        """(Z, Y, X) gray values of frame t."""
        return self._turn(self.image.frame(t))

    def predicted_masks(self, t: int) -> Masks:
        """Structure -> (Z, Y, X) mask of frame t."""
        return {s: self._turn(mask) for s, mask in self.masks.predicted(t).items()}

    def manual_masks(self, t: int) -> Masks:
        """The same by hand; empty where frame t was not drawn."""
        return {s: self._turn(mask) for s, mask in self.masks.manual(t).items()}

    def _turn(self, volume: np.ndarray) -> np.ndarray:
        # A stack already runs to the patient's left and back; a volume is RAS+, so both axes are turned.
        return volume if self.image.is_stack else volume[:, ::-1, ::-1]


def _read_image(image: str, mask: Scan) -> Scan:
    """The image under a mask.

    Raises:
        InputError: it is not there any more, or not on the mask's grid.
    """
    scan = open_image(image)
    if scan.shape == mask.shape and np.allclose(scan.affine, mask.affine, atol=0.1):
        return scan
    raise InputError(f"{image}: not on the grid of its prediction; predict it again")


def overlay_frame(pictured: Pictured, t: int, *, slices: int = 5) -> list[Picture]:
    """Slices of one frame, evenly through the heart, with predicted and manual outlines."""
    predicted, manual = pictured.predicted_masks(t), pictured.manual_masks(t)
    union = _union([predicted, manual])
    box, chosen = _heart_box(pictured, union), _spread(union, slices)
    image = pictured.image_frame(t)
    window = gray_window(image, union)
    pictures = []
    for z in chosen:
        gray = draw_tile(image[z], pictured.pixel_mm, box=box, window=window, side=TILE_PIXELS)
        pictures.append(
            Picture(
                src=encode_webp(gray), width=TILE_PIXELS, height=TILE_PIXELS, alt=f"slice {z}",
                predicted=_outlines(predicted, z, pictured=pictured, box=box, side=TILE_PIXELS),
                manual=_outlines(manual, z, pictured=pictured, box=box, side=TILE_PIXELS),
            )
        )  # fmt: skip
    return pictures


def cine_frames(pictured: Pictured, *, against: Pictured | None = None) -> dict[str, Any]:
    """All frames of a cine as montages of slices.

    Args:
        pictured: image and masks.
        against: other masks of the same image, outlined as manual ones are.

    Returns:
        `frames`, their numbers in the scan; `pictures`, a `Picture` for each.
    """
    total = pictured.masks.frames
    frames = list(range(0, total, ceil(total / CINE_FRAMES)))
    masks = [pictured.predicted_masks(t) for t in frames]
    others = [against.predicted_masks(t) if against else {} for t in frames]
    union = _union([*masks, *others])
    box, chosen = _heart_box(pictured, union), _spread(union, CINE_SLICES)
    window = gray_window(pictured.image_frame(frames[0]), union)
    return {
        "frames": frames,
        "pictures": [
            _montage(pictured, t, masks=m, others=other, chosen=chosen, box=box, window=window)
            for t, m, other in zip(frames, masks, others)
        ],
    }


def _montage(
    pictured: Pictured,
    t: int,
    *,
    masks: Masks,
    others: Masks,
    chosen: Sequence[int],
    box: Box,
    window: tuple[float, float],
) -> Picture:
    side = CINE_TILE_PIXELS
    columns = min(len(chosen), 5)
    canvas = np.zeros((ceil(len(chosen) / columns) * side, columns * side), np.uint8)
    paths, other_paths = dict.fromkeys(masks, ""), dict.fromkeys(others, "")
    image = pictured.image_frame(t)
    for i, z in enumerate(chosen):
        top, left = i // columns * side, i % columns * side
        tile = draw_tile(image[z], pictured.pixel_mm, box=box, window=window, side=side)
        canvas[top : top + side, left : left + side] = tile
        for own, drawn in ((masks, paths), (others, other_paths)):
            found = _outlines(own, z, pictured=pictured, box=box, side=side, offset=(left, top))
            for s, path in found.items():
                drawn[s] += path
    height, width = canvas.shape
    return Picture(
        src=encode_webp(canvas), width=width, height=height, alt=f"frame {t}",
        predicted={s: path for s, path in paths.items() if path},
        manual={s: path for s, path in other_paths.items() if path},
    )  # fmt: skip


def _union(masks: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray | None:
    """(Z, Y, X) mask of everything found anywhere, None where nothing is."""
    found = [mask for by_structure in masks for mask in by_structure.values()]
    union = np.logical_or.reduce(found) if found else np.zeros(1, bool)
    return union if union.any() else None


def _heart_box(pictured: Pictured, union: np.ndarray | None) -> Box:
    """A square round the heart, moved into the image as far as it fits; all of it where nothing was found."""
    image_mm = np.array(pictured.image.shape[2:]) * (pictured.row_mm, pictured.column_mm)
    if union is None:
        return image_mm[0] / 2, image_mm[1] / 2, image_mm.max() / 2
    inside = [np.flatnonzero(union.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    low, high = np.array([[i[0], i[-1] + 1] for i in inside]).T * (pictured.row_mm, pictured.column_mm)
    half = min((high - low).max() / 2 + MARGIN_MM, image_mm.max() / 2)
    room = np.maximum(image_mm - 2 * half, 0)
    corner = np.clip((low + high) / 2 - half, 0, room) - np.maximum(half - image_mm / 2, 0)
    return corner[0] + half, corner[1] + half, half


def _spread(union: np.ndarray | None, count: int) -> list[int]:
    """At most `count` slices, evenly from the first to the last that shows something."""
    if union is None or union.ndim < 3:
        return [0]
    inside = np.flatnonzero(union.any(axis=(1, 2)))
    places = np.linspace(inside[0], inside[-1], min(count, inside[-1] - inside[0] + 1))
    return [int(z) for z in np.unique(np.rint(places).astype(int))]


def gray_window(image: np.ndarray, union: np.ndarray | None = None) -> tuple[float, float]:
    """Gray values shown as black and as white: of the whole image, or of the rows and columns of a mask."""
    if union is not None:
        rows, columns = (np.flatnonzero(union.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        image = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low, high = np.percentile(image, [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def draw_tile(
    gray: np.ndarray, pixel_mm: tuple[float, float], *, box: Box, window: tuple[float, float], side: int
) -> np.ndarray:
    """(side, side) uint8 picture of the box, square pixels, black beyond the image.

    Args:
        gray: (Y, X) of a slice.
        pixel_mm: between its rows and between its columns.
        box: what is shown.
        window: gray values shown as black and as white.
        side: of the picture, pixels.
    """
    from PIL import Image

    low, high = window
    shown = (np.clip((gray - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    y, x, half = box
    row_mm, column_mm = pixel_mm
    left, top = (x - half) / column_mm, (y - half) / row_mm
    width, height = 2 * half / column_mm, 2 * half / row_mm
    pad = ceil(max(0.0, -left, -top, left + width - gray.shape[1], top + height - gray.shape[0]))
    padded = Image.fromarray(np.pad(shown, pad))
    corners = (left + pad, top + pad, left + pad + width, top + pad + height)
    return np.asarray(padded.resize((side, side), Image.Resampling.BICUBIC, box=corners))


def _outlines(
    masks: Masks, z: int, *, pictured: Pictured, box: Box, side: int, offset: tuple[int, int] = (0, 0)
) -> dict[str, str]:
    """Structure -> SVG path of its outline in slice z, in pixels of the tile."""
    y, x, half = box
    per_mm = side / (2 * half)

    def to_tile(points: np.ndarray) -> np.ndarray:
        mm = (points + 0.5) * (pictured.column_mm, pictured.row_mm)  # voxel i covers i to i + 1
        return (mm - (x - half, y - half)) * per_mm + offset

    paths = {s: "".join(svg_path(to_tile(line)) for line in outline(mask[z])) for s, mask in masks.items()}
    return {s: path for s, path in paths.items() if path}
