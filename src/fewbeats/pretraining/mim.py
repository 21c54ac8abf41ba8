"""MIM: patches of a slice are blanked, and the whole U-Net paints them in.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, https://arxiv.org/abs/2111.06377;
as a U-Net with its skips for cine MR de Mooij et al., https://arxiv.org/abs/2409.18100.

    for a batch of slices x:
        x = t(x)                                        one random view
        M = a random share r of its patches of P x P pixels
        y = U(x with M set to 0)                        the whole U-Net
        loss = mean over the pixels of M of (y - x)^2
    keep U but for its last layer
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewbeats.errors import InputError
from fewbeats.models.answering import finest
from fewbeats.pretraining.methods import Recipe
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.transforms.views import ViewSettings, draw_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.pretraining.settings import MimSettings, SimmimSettings
    from fewbeats.sample import Batch


def views(
    batch: Batch, generator: Generator, *, settings: ViewSettings, own: MimSettings | SimmimSettings
) -> Batch:
    """One random view; what of it is blanked is drawn as it is learned from."""
    return replace(batch, views={"image": draw_view(batch.views["image"], settings, generator)})


class Mim(Method):
    """Masked image modeling with a U-Net.

    Args:
        network: (B, C, Y, X) -> (B, C, Y, X), built with as many classes as it has channels.
        settings: patch and share.
        optim: rates.
        size: side of the views, px.

    Raises:
        InputError: the patches do not tile the view, or none or all would be blanked.
    """

    def __init__(self, network: nn.Module, *, settings: MimSettings, optim: OptimSettings, size: int):
        super().__init__()
        check_patches(settings, size, name="mim")
        self.network, self.settings, self.optim = network, settings, optim

    def forward(self, batch: Batch, clock: Clock) -> Step:
        image = batch.views["image"]
        blank = draw_blanks(image, self.settings)
        restored = self._restore(image.masked_fill(blank, 0.0))
        return Step((restored - image)[blank.expand_as(image)].square().mean())

    def _restore(self, masked: Tensor) -> Tensor:
        return finest(self.network(masked))

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Slices as they are, masked, and restored."""
        image = batch.views["image"]
        blank = draw_blanks(image, self.settings)
        masked = image.masked_fill(blank, 0.0)
        restored = torch.where(blank, self._restore(masked), image)
        return {"slice": image, "masked": masked, "restored": restored}

    def parameter_groups(self) -> list[ParameterGroup]:
        return one_group(self, self.optim)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}


def check_patches(settings: MimSettings | SimmimSettings, size: int, *, name: str) -> None:
    """Check that patches fit a view of `size` pixels.

    Args:
        settings: patches, and the share of them that is blanked.
        size: side of the view.
        name: of the method, as its flags begin.

    Raises:
        InputError: they do not tile it, or none or all would be blanked.
    """
    if size % settings.patch_px:
        raise InputError(f"--{name}.patch-px {settings.patch_px}: does not divide the view of {size} pixels")
    patches = (size // settings.patch_px) ** 2
    if not 0 < round(settings.ratio * patches) < patches:
        raise InputError(f"--{name}.ratio {settings.ratio}: blanks none or all of {patches} patches")


def draw_blanks(image: Tensor, settings: MimSettings | SimmimSettings) -> Tensor:
    """(B, 1, Y, X) bool: True where the pixel is blanked; the same number of patches in each image."""
    rows, columns = (side // settings.patch_px for side in image.shape[-2:])
    order = torch.rand(len(image), rows * columns, device=image.device).argsort(1).argsort(1)
    blank = (order < round(settings.ratio * rows * columns)).view(-1, 1, rows, columns)
    return blank.repeat_interleave(settings.patch_px, 2).repeat_interleave(settings.patch_px, 3)


RECIPE = Recipe(
    name="mim",
    build=lambda network, own, optim, size: Mim(network, settings=own, optim=optim, size=size),
    views=views,
)
