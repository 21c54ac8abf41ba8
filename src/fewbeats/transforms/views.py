"""Random views of a batch: the same augmentation for every method, drawn and applied in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fewbeats.transforms.intensity import IntensitySettings, apply_intensity, draw_intensity
from fewbeats.transforms.preprocess import middle
from fewbeats.transforms.recolor import recolor
from fewbeats.transforms.spatial import SpatialDraw, SpatialSettings, apply_spatial, draw_spatial

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch, Batches

Views = Callable[["Batch", "Generator"], "Batch"]
"""A batch of wide, raw slices as its view "image" -> the same with the views a method wants, by name."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What a random view is."""

    size: int = 128
    """Its side, pixels."""
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    strength: float = 1.0
    """Share of it all that is left; see `weaken`."""


WEAKEST = 0.25
"""Share of the full strength that views have where they grow from."""


def weaken(settings: ViewSettings, share: float) -> ViewSettings:
    """Views between the weakest, at share 0, and those of the settings, at 1."""
    if share >= 1:
        return settings
    f, spatial, intensity = WEAKEST + (1 - WEAKEST) * share, settings.spatial, settings.intensity
    low, high = spatial.scale
    return replace(
        settings,
        spatial=replace(
            spatial,
            rotation_degrees=f * spatial.rotation_degrees,
            turned=share * spatial.turned,
            scale=(low**f, high**f),
            anisotropy=f * spatial.anisotropy,
            shift_px=f * spatial.shift_px,
            elastic_px=f * spatial.elastic_px,
            crop_probability=share * spatial.crop_probability,
        ),
        intensity=replace(intensity, probability=f * intensity.probability),
        strength=f,
    )


def draw_geometry(image: Tensor, settings: ViewSettings, generator: Generator) -> SpatialDraw:
    """How each of wide slices (B, C, Y, X) is turned, bent and cut; for all tensors that belong together."""
    return draw_spatial(
        settings.spatial,
        batch=len(image),
        source_px=image.shape[-1],
        out_px=settings.size,
        generator=generator,
    )


def change_gray(image: Tensor, settings: ViewSettings, generator: Generator) -> Tensor:
    """Gray values of (B, C, Y, X) changed at random."""
    return apply_intensity(image, draw_intensity(settings.intensity, image.shape, generator))


def change_labeled(cut: Batch, settings: ViewSettings, generator: Generator) -> Tensor:
    """Gray values of a cut batch changed at random, those of its structures each by a draw of its own."""
    image = cut.views["image"]
    if cut.target is not None:
        image = recolor(image, cut.target, strength=settings.intensity.structures, generator=generator)
    return change_gray(image, settings, generator)


def draw_view(image: Tensor, settings: ViewSettings, generator: Generator) -> Tensor:
    """One random view (B, C, size, size) of wide slices (B, C, Y, X)."""
    import torch

    draw = draw_geometry(image, settings, generator)
    view = change_gray(apply_spatial(image, draw), settings, generator)
    return view.contiguous(memory_format=torch.channels_last)


def cut_labeled(batch: Batch, settings: ViewSettings, generator: Generator) -> Batch:
    """Image, target and voxel weights cut by one random geometry; gray values as they were.

    Args:
        batch: view "image" (B, C, Y, X), wide; target (B, D, Y, X) class indices, where any is labeled.
        settings: what a view is.
        generator: of the draws.

    Returns:
        the batch with both at `settings.size`, and its `place`.
    """
    import torch

    image, target, weight = batch.views["image"], batch.target, batch.weight
    draw = draw_geometry(image, settings, generator)
    if target is not None:
        target = apply_spatial(target.float(), draw, labels=True).long()
    if weight is not None and weight.ndim > 1:
        weight = apply_spatial(weight, draw)
    place = torch.cat([_in_middle(draw.grid, image.shape[-1], settings.size), draw.keep[:, 0, ..., None]], -1)
    shown = {"image": apply_spatial(image, draw)}
    return replace(batch, views=shown, target=target, weight=weight, place=place)


def cut_middle(image: Tensor, settings: ViewSettings) -> Tensor:
    """The middle (B, C, size, size) of wide slices (B, C, Y, X), as they are stored."""
    side = middle(image.shape[-1], settings.size)
    return image[..., side, side]


def _in_middle(grid: Tensor, source_px: int, out_px: int) -> Tensor:
    """Normalized positions in a wide square -> the same in its middle, as `cut_middle` cuts it."""
    side = middle(source_px, out_px)
    return ((grid + 1) * source_px / 2 - side.start) * (2 / (side.stop - side.start)) - 1


def follow(values: Tensor, place: Tensor) -> Tensor:
    """What is known of the middle of stored slices, seen as the batch's views show them.

    Args:
        values: (B, C, [Z,] Y, X) of the view that `cut_middle` gives, such as a network's probabilities.
        place: of the batch.

    Returns:
        the same shape, linear in-plane; 0 where a view shows what lies outside the middle, or nothing.
    """
    from torch.nn import functional as F

    flat = values.reshape(len(values), -1, *values.shape[-2:])
    moved = F.grid_sample(flat, place[..., :2], mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved * place[:, None, ..., 2]).view(values.shape)


def as_input(batch: Batch, *, dims: int) -> Batch:
    """Views and target with the axes of the network's dimensions.

    Args:
        batch: views (B, depth, Y, X), target (B, 1 or depth, Y, X).
        dims: 2 or 3, of the network.

    Returns:
        in 2D, views in channels-last memory and the target (B, Y, X); in 3D, views (B, 1, depth, Y, X).
    """
    import torch

    if dims == 3:
        return replace(batch, views={name: view[:, None] for name, view in batch.views.items()})
    shown = {n: v.contiguous(memory_format=torch.channels_last) for n, v in batch.views.items()}
    target, weight = batch.target, batch.weight
    return replace(
        batch,
        views=shown,
        target=None if target is None else target[:, 0],
        weight=weight[:, 0] if weight is not None and weight.ndim > 1 else weight,
    )


@dataclass(frozen=True)
class Viewed:
    """Batches seen through random views; what is drawn depends on (seed, step, rank) alone."""

    batches: Batches
    views: Views
    seed: int

    def __call__(self, clock: Clock) -> Batch:
        """The views of a step."""
        import torch

        drawn = hash((self.seed, clock.step, clock.rank)) % 2**31
        return self.views(self.batches(clock), torch.Generator().manual_seed(drawn))
