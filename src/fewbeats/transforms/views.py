"""Named views of a batch: the same augmentation for every method, drawn and applied in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from fewbeats.transforms.intensity import IntensitySettings, augment_intensity
from fewbeats.transforms.spatial import SpatialSettings, apply_spatial, draw_spatial

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch, Batches

Views = Callable[["Tensor", "Generator"], dict[str, "Tensor"]]
"""(B, C, Y, X) wide raw slices, generator -> the views a method wants, by name."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What a random view is."""

    size: int = 128
    """Its side, pixels."""
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)


def draw_view(image: Tensor, settings: ViewSettings, generator: Generator) -> Tensor:
    """One random view (B, C, size, size) of wide slices (B, C, Y, X)."""
    import torch

    draw = draw_spatial(
        settings.spatial,
        batch=len(image),
        source_px=image.shape[-1],
        out_px=settings.size,
        generator=generator,
    )
    view = augment_intensity(apply_spatial(image, draw), settings.intensity, generator)
    return view.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Randomized:
    """Batches changed at random; what is drawn depends on (seed, step, rank) alone."""

    batches: Batches
    change: Callable[[Batch, Generator], Batch]
    seed: int

    def __call__(self, clock: Clock) -> Batch:
        """The changed batch of a step."""
        import torch

        drawn = hash((self.seed, clock.step, clock.rank)) % 2**31
        return self.change(self.batches(clock), torch.Generator().manual_seed(drawn))


def with_views(batches: Batches, views: Views, *, seed: int) -> Batches:
    """Batches whose "image" is replaced by its views."""
    return Randomized(batches, partial(_show, views=views), seed)


def _show(batch: Batch, generator: Generator, *, views: Views) -> Batch:
    return replace(batch, views=views(batch.views["image"], generator))
