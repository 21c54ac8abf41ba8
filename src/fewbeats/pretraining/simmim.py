"""SimMIM: patches of a slice are hidden from a vision transformer, which tells their pixels.

Xie et al., SimMIM: a Simple Framework for Masked Image Modeling, CVPR 2022, https://arxiv.org/abs/2111.09886.

    for a batch of slices x:
        x = t(x)                                        one random view
        M = a random share r of its squares of P x P pixels
        z = f(x), a learned token in place of each patch within M
        y = linear(z), the pixels of each patch
        loss = mean over the pixels of M of |y - x|
    keep f, throw token and linear layer away
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fewbeats.errors import InputError
from fewbeats.models.vit import VitEncoder
from fewbeats.pretraining.methods import Recipe
from fewbeats.pretraining.mim import check_patches, draw_blanks, views
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, one_group

if TYPE_CHECKING:
    from torch import Tensor

    from fewbeats.clock import Clock
    from fewbeats.pretraining.settings import SimmimSettings
    from fewbeats.sample import Batch


class Simmim(Method):
    """Masked image modeling with a vision transformer.

    Args:
        network: has a `VitEncoder` as `encoder`.
        settings: square and share.
        optim: rates.
        size: side of the views, px.

    Raises:
        InputError: the squares do not tile the view or are not whole patches; none or all would be hidden.
    """

    def __init__(self, network: nn.Module, *, settings: SimmimSettings, optim: OptimSettings, size: int):
        super().__init__()
        check_patches(settings, size, name="simmim")
        encoder = network.encoder
        assert isinstance(encoder, VitEncoder)
        self.encoder, self.settings, self.optim, self.side = encoder, settings, optim, encoder.patch_px
        if settings.patch_px % self.side:
            raise InputError(
                f"--simmim.patch-px {settings.patch_px}: must be a multiple of the network's {self.side}"
            )
        width = encoder.out_channels[-1]
        self.token = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.pixels = nn.Conv2d(width, encoder.in_channels * self.side**2, 1)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        image = batch.views["image"]
        blank = draw_blanks(image, self.settings)
        told = self._restore(image, blank)
        return Step((told - image)[blank.expand_as(image)].abs().mean())

    def _restore(self, image: Tensor, blank: Tensor) -> Tensor:
        (tokens,) = self.encoder(image, blank[:, :, :: self.side, :: self.side], self.token)
        return F.pixel_shuffle(self.pixels(tokens), self.side)

    @torch.no_grad()
    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Slices as they are, masked, and restored."""
        image = batch.views["image"]
        blank = draw_blanks(image, self.settings)
        restored = torch.where(blank, self._restore(image, blank), image)
        return {"slice": image, "masked": image.masked_fill(blank, 0.0), "restored": restored}

    def parameter_groups(self) -> list[ParameterGroup]:
        return one_group(self, self.optim)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": nn.ModuleDict({"encoder": self.encoder})}


RECIPE = Recipe(
    name="mim",
    build=lambda network, own, optim, size: Simmim(network, settings=own, optim=optim, size=size),
    views=views,
)
