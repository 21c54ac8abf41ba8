"""Spatial augmentation: drawn once per sample, applied to image and mask in one resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbeats.ranges import check_ranges

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class SpatialSettings:
    """Ranges of the random in-plane transform; 0 switches a part off."""

    rotation_degrees: float = 45.0
    """Rotation about the through-plane axis, uniform in +- this."""
    turned: float = 0.2
    """Share of samples that are rotated by any angle instead, and mirrored where `flip` allows. Where a heart
    lies on its side of the body helps to tell its ventricles apart, and a few scans are stored otherwise."""
    scale: tuple[float, float] = (0.75, 1.35)
    """Magnification, log-uniform."""
    anisotropy: float = 0.1
    """Extra log-uniform stretch of one axis against the other."""
    shift_px: float = 12.0
    """Translation, uniform in +- this, pixels of the network's grid."""
    elastic_px: float = 4.0
    """Standard deviation of a smooth random displacement, pixels."""
    elastic_probability: float = 0.3
    """Share of samples that are bent."""
    flip: bool = True
    """Mirror half of the turned samples; for scans whose stored chirality is not known to be the same."""
    crop_probability: float = 0.15
    """Share of samples whose outer field of view is blanked, as in scans cropped close to the heart."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "spatial.",
            positive=("scale",),
            not_negative=("rotation_degrees", "anisotropy", "shift_px", "elastic_px"),
            shares=("turned", "elastic_probability", "crop_probability"),
        )


@dataclass(frozen=True)
class SpatialDraw:
    """What was drawn for a batch: apply it to as many tensors as belong together."""

    grid: Tensor
    """(B, Y', X', 2) sampling positions, normalized coordinates of the source."""
    keep: Tensor
    """(B, 1, Y', X') bool, False where the field of view was blanked."""


def draw_spatial(
    settings: SpatialSettings, *, batch: int, source_px: int, out_px: int, generator: Generator
) -> SpatialDraw:
    """Draw a transform per sample that cuts `out_px` squares out of `source_px` squares."""
    import torch

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    turned = uniform(0, 1) < settings.turned
    reach = torch.where(turned, 180.0, settings.rotation_degrees)
    angle = torch.deg2rad(uniform(-1, 1) * reach)
    low, high = (torch.log(torch.tensor(float(v))) for v in settings.scale)
    size = torch.exp(uniform(float(low), float(high)))
    stretch = torch.exp(uniform(-settings.anisotropy, settings.anisotropy))
    mirror = torch.where(turned & (uniform(0, 1) < 0.5) & settings.flip, -1.0, 1.0)
    scale_x, scale_y = mirror / (size * stretch), stretch / size
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Pixel offsets from the output's center are turned and scaled about the source's center, then shifted.
    matrix = torch.stack([torch.stack([cos * scale_x, -sin * scale_y], -1),
                          torch.stack([sin * scale_x, cos * scale_y], -1)], -2)  # fmt: skip
    shift = torch.stack([uniform(-settings.shift_px, settings.shift_px) for _ in range(2)], -1)
    offsets = torch.arange(out_px) - (out_px - 1) / 2
    points = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), -1)
    at = torch.einsum("bij,yxj->byxi", matrix, points) + shift[:, None, None, :]
    if settings.elastic_px > 0 and settings.elastic_probability > 0:
        bent = uniform(0, 1) < settings.elastic_probability
        knots = torch.randn(batch, 2, 6, 6, generator=generator) * settings.elastic_px
        at[bent] += _smooth_field(knots[bent], out_px)
    keep = _field_of_view(settings, at, source_px, uniform)
    return SpatialDraw(at * (2.0 / source_px), keep)


def _smooth_field(knots: Tensor, px: int) -> Tensor:
    """(B, Y, X, 2) displacement, cubic between its knots (B, 2, K, K)."""
    from torch.nn import functional as F

    field = F.interpolate(knots, size=(px, px), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def _field_of_view(settings: SpatialSettings, at: Tensor, source_px: int, uniform) -> Tensor:
    """Blank all but a random box, aligned with the source's axes as a real crop would be."""
    import torch

    half = source_px / 2
    inside = torch.ones(at.shape[:3], dtype=torch.bool)
    if settings.crop_probability > 0:
        cropped = uniform(0, 1) < settings.crop_probability
        for axis in (0, 1):
            for sign in (-1.0, 1.0):
                edge = torch.where(
                    cropped, uniform(0.22, 0.5) * source_px, torch.full_like(uniform(0, 1), half)
                )
                inside &= sign * at[..., axis] <= edge[:, None, None]
    return inside[:, None]


def apply_spatial(tensor: Tensor, draw: SpatialDraw, *, labels: bool = False) -> Tensor:
    """Resample (B, C, Y, X) by what was drawn; class indices with `labels`, else linear. 0 outside."""
    from torch.nn import functional as F

    mode = "nearest" if labels else "bilinear"
    moved = F.grid_sample(tensor, draw.grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved * draw.keep


def move_points(points: Tensor, draw: SpatialDraw, *, source_px: int) -> Tensor:
    """Where points of the source come to lie in what was cut out of it.

    The sampled position nearest to a point is looked for, and the rest of the way is linear.

    Args:
        points: (B, K, 2), (y, x) in pixels of squares of `source_px`; NaN for none.
        draw: what was drawn for them.
        source_px: side of the source.

    Returns:
        (B, K, 2), (y, x) in pixels of the cut-out; NaN where it does not show the point.
    """
    import torch

    wanted = ((2 * points.flip(-1) + 1) / source_px - 1).to(draw.grid)  # as the grid has it: (x, y)
    away = (draw.grid[:, None] - wanted[:, :, None, None]).square().sum(-1).flatten(2)
    rows, columns = draw.grid.shape[1:3]
    nearest = away.nan_to_num(float("inf")).argmin(2)
    row, column = nearest // columns, nearest % columns
    item = torch.arange(len(points), device=points.device)[:, None].expand_as(row)
    there = draw.grid[item, row, column]
    steps = []
    for size, at, other in ((columns, column, row), (rows, row, column)):
        low, high = (at - 1).clamp(min=0), (at + 1).clamp(max=size - 1)
        pair = ((other, low), (other, high)) if at is column else ((low, other), (high, other))
        ends = [draw.grid[item, r, c] for r, c in pair]
        steps.append((ends[1] - ends[0]) / (high - low)[..., None])
    rest = torch.linalg.solve(torch.stack(steps, -1), (wanted - there).nan_to_num(0.0))
    moved = torch.stack([row + rest[..., 1], column + rest[..., 0]], -1)
    inside = (moved >= -0.5).all(-1) & (moved[..., 0] <= rows - 0.5) & (moved[..., 1] <= columns - 0.5)
    shown = inside & (rest.abs() <= 1).all(-1) & draw.keep[item, 0, row, column] & ~points.isnan().any(-1)
    return torch.where(shown[..., None], moved, torch.nan)
