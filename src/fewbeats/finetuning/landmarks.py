"""Points of slices: a heat-map for each kind of point, and its peaks.

A Gaussian of 3 pixels stands where a point is (Jacob et al., JCMR 2025, https://arxiv.org/abs/2410.01665);
points of one kind that nobody can tell apart share a map. A peak is read as the mean place around the
highest pixel, weighted by the map, which is finer than a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from fewbeats.models.answering import finest
from fewbeats.transforms.spatial import apply_spatial, move_points
from fewbeats.transforms.views import change_gray, draw_geometry

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.finetuning.segmentation import SegmentationSettings
    from fewbeats.sample import Batch

SIGMA_PX = 3.0
"""Of the Gaussian at a point."""
APART_PX = 4 * SIGMA_PX
"""Least distance of two points of one kind; what a network draws is wider than the Gaussian."""
RARE = 4.0
"""Taken from every logit: before it has learned anything, a network says that no pixel is a point."""


def views(batch: Batch, generator: Generator, settings: SegmentationSettings) -> Batch:
    """A random view of wide slices; their points, target (B, K, 2), move along and may leave it (NaN)."""
    image, points = batch.views["image"], batch.target
    assert points is not None
    draw = draw_geometry(image, settings.views, generator)
    view = change_gray(apply_spatial(image, draw), settings.views, generator)
    shown = {"image": view.contiguous(memory_format=torch.channels_last)}
    return replace(batch, views=shown, target=move_points(points.float(), draw, source_px=image.shape[-1]))


def draw_maps(points: Tensor, counts: Sequence[int], size: int) -> Tensor:
    """Heat-maps (B, kinds, size, size) of points (B, K, 2), (y, x) in pixels, NaN for none.

    >>> maps = draw_maps(torch.tensor([[[4.0, 6.0], [float("nan")] * 2]]), counts=[1, 1], size=12)
    >>> maps.shape, divmod(int(maps[0, 0].argmax()), 12), float(maps[0, 1].max())
    (torch.Size([1, 2, 12, 12]), (4, 6), 0.0)
    """
    axis = torch.arange(size, device=points.device, dtype=torch.float32)
    near = [
        torch.exp(-((axis - points[..., i, None]) ** 2) / (2 * SIGMA_PX**2)).nan_to_num(0.0) for i in (0, 1)
    ]
    each = near[0][..., :, None] * near[1][..., None, :]
    return torch.stack([part.amax(1) for part in each.split(list(counts), 1)], 1)


def heatmap_loss(logits: Tensor | list[Tensor], batch: Batch, *, counts: Sequence[int]) -> Tensor:
    """Cross-entropy of each pixel with the heat-maps of `batch.target`, in areas of a point."""
    assert batch.target is not None
    found = finest(logits).float() - RARE
    maps = draw_maps(batch.target, counts, found.shape[-1])
    each = F.binary_cross_entropy_with_logits(found, maps, reduction="none")
    return each.sum((2, 3)).mean() / (2 * math.pi * SIGMA_PX**2)


def find_peaks(heat: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest peaks of a map.

    Args:
        heat: (Y, X) in [0, 1].
        count: how many.

    Returns:
        places (count, 2), (y, x) in pixels, highest first, and their heights (count,).
    """
    left, radius = heat.copy(), int(2 * SIGMA_PX)
    y, x = np.ogrid[: heat.shape[0], : heat.shape[1]]
    places, heights = np.empty((count, 2)), np.empty(count)
    for number in range(count):
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        heights[number] = left[row, column]
        rows = slice(max(0, row - radius), row + radius + 1)
        columns = slice(max(0, column - radius), column + radius + 1)
        window = left[rows, columns] + 1e-12
        places[number] = [(window * at).sum() / window.sum() for at in (y[rows], x[:, columns])]
        left = np.where((y - row) ** 2 + (x - column) ** 2 <= APART_PX**2, 0.0, left)
    return places, heights
