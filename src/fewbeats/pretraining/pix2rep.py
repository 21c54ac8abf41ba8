"""Pix2Rep: pixels of two views attract where they show the same place, with a whole U-Net.

Seince et al., Dense Self-Supervised Learning for Medical Image Segmentation, MIDL 2024,
https://arxiv.org/abs/2407.20395; with the loss of its successor, https://arxiv.org/abs/2609.01427, that of
Barlow Twins (Zbontar et al., ICML 2021, https://arxiv.org/abs/2103.03230):

    for a batch of slices x, cut out at the field of view:
        x_a = g(x), x_b = S g'(x)                       gray values g; one known change of geometry S
        z_a = S h(U(x_a)), z_b = h(U(x_b))              the whole U-Net to D features a pixel, then a head
        C = correlation of z_a and z_b over all pixels that both views show
        loss = sum_i (C_ii - 1)^2 + lambda sum_(i != j) C_ij^2
    keep U but for its last layer, throw h away

What their public code crops by the labels, and what pixels outside the image count, is left out here: no
label is opened, and such pixels have no part in C.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewbeats.errors import InputError
from fewbeats.models.answering import finest
from fewbeats.models.heads import spread, sum_ranks
from fewbeats.pretraining.methods import Recipe
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.transforms.spatial import SpatialDraw, apply_spatial
from fewbeats.transforms.views import ViewSettings, change_gray, cut_middle, draw_geometry

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.models.network import NetworkSettings
    from fewbeats.pretraining.settings import Pix2repSettings
    from fewbeats.sample import Batch


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: Pix2repSettings) -> Batch:
    """The field of view twice, in other gray values, once under a random geometry; `place` leads from b to a.

    a: as it is stored; b: turned, bent and cut.
    """
    image = batch.views["image"]
    middle = cut_middle(image, settings)
    draw = draw_geometry(middle, settings, generator)
    shown = {
        "a": change_gray(middle, settings, generator),
        "b": change_gray(apply_spatial(middle, draw), settings, generator),
    }
    shown = {name: view.contiguous(memory_format=torch.channels_last) for name, view in shown.items()}
    return replace(batch, views=shown, place=torch.cat([draw.grid, draw.keep[:, 0, ..., None]], -1))


class Pix2rep(Method):
    """Correlation of pixels.

    Args:
        network: (B, C, Y, X) -> (B, features, Y, X), a U-Net built with as many classes as features.
        settings: features, head and the weight of what is off the diagonal.
        optim: rates.
    """

    def __init__(self, network: nn.Module, *, settings: Pix2repSettings, optim: OptimSettings):
        super().__init__()
        self.network, self.settings, self.optim = network, settings, optim
        width = settings.features
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, batch: Batch, clock: Clock) -> Step:
        assert batch.place is not None
        a, b = (self.head(finest(self.network(batch.views[name]))).float() for name in ("a", "b"))
        draw = SpatialDraw(batch.place[..., :2].float(), batch.place[..., 2:].permute(0, 3, 1, 2) > 0)
        both = draw.keep[:, 0] & (draw.grid.abs() <= 1).all(-1)
        pixels = [z.permute(0, 2, 3, 1)[both] for z in (apply_spatial(a, draw), b)]
        return Step(self.correlate(*pixels), {"spread": spread(pixels[0][:: max(1, len(pixels[0]) // 256)])})

    def correlate(self, a: Tensor, b: Tensor) -> Tensor:
        """Barlow Twins' loss of the features (N, D) of N pixels, a mean over their D features."""
        count = sum_ranks(a.new_tensor(float(len(a))))
        a, b = (_standardize(z, count) for z in (a, b))
        correlation = sum_ranks(a.T @ b) / count
        on = torch.diagonal(correlation)
        off = correlation.square().sum() - on.square().sum()
        return ((on - 1).square().sum() + self.settings.off_diagonal * off) / len(on)

    def parameter_groups(self) -> list[ParameterGroup]:
        return one_group(self, self.optim)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}


def _standardize(z: Tensor, count: Tensor) -> Tensor:
    """Features (N, D) with mean 0 and variance 1 over the pixels of all processes."""
    z = z - sum_ranks(z.sum(0)) / count
    return z / (sum_ranks(z.square().sum(0)) / count + 1e-5).sqrt()


def _check(own: Pix2repSettings, network: NetworkSettings, batch_size: int, size: int) -> None:
    if network.kind == "vit":
        raise InputError("pix2rep: for U-Nets; a vision transformer learns by dino or mim")


RECIPE = Recipe(
    name="pix2rep",
    build=lambda network, own, optim, size: Pix2rep(network, settings=own, optim=optim),
    views=views,
    check=_check,
    outputs=lambda own, network: own.features,
)
