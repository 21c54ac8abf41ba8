"""Gray values of labeled structures, each shifted by a draw of its own: what is a ventricle says its shape.

With few labels a network takes blood for what is as bright as the blood it was shown. As in the synthetic
images of Billot et al., SynthSeg, MedIA 2023, https://arxiv.org/abs/2107.09559, a structure's brightness is
drawn anew, here on top of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

EDGE_PX = 1.0  # standard deviation of the soft edge of a shift
CHANCE = 0.5  # that a sample's structures are shifted


def recolor(image: Tensor, target: Tensor, *, strength: float, generator: Generator | None = None) -> Tensor:
    """Shift the gray values of each structure of half of the samples.

    Args:
        image: (B, C, Y, X), z-scored.
        target: (B, 1 or C, Y, X) class indices, 0 what is left alone.
        strength: standard deviation of a shift; 0 for none.
        generator: of the draws; the global one by default.

    Returns:
        (B, C, Y, X); points that are exactly 0 stay 0.
    """
    import torch

    classes = int(target.max()) if strength > 0 else 0
    if classes == 0:
        return image
    shifts = torch.randn(len(image), classes + 1, generator=generator) * strength
    shifts[torch.rand(len(image), generator=generator) >= CHANCE] = 0.0
    shifts[:, 0] = 0.0
    field = shifts.to(image.device).gather(1, target.flatten(1)).view(target.shape)
    return (image + _soften(field)).masked_fill(image == 0, 0.0)


def _soften(field: Tensor) -> Tensor:
    """(B, C, Y, X) under a Gaussian in plane."""
    import torch
    from torch.nn import functional as F

    taps = torch.exp(-0.5 * (torch.arange(-3, 4, device=field.device) / EDGE_PX) ** 2)
    taps = taps / taps.sum()
    flat = field.reshape(-1, 1, *field.shape[-2:])
    flat = F.conv2d(F.pad(flat, (3, 3, 3, 3), mode="replicate"), taps.view(1, 1, 1, -1))
    return F.conv2d(flat, taps.view(1, 1, -1, 1)).view(field.shape)
