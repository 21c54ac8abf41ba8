"""SimCLR: two views of a slice attract, all other slices of the batch repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
https://arxiv.org/abs/2002.05709; for cine MR de Mooij et al., https://arxiv.org/abs/2409.18100.

    for a batch of N slices x:
        x_a, x_b = t(x), t'(x)                          two random views
        h = f(x_a, x_b); z = g(h)                       encoder, pooled; projector
        l_ij = -log exp(s_ij / tau) / sum_(k != i) exp(s_ik / tau)
        loss = mean of l over the 2N pairs (i, j) of views of one slice
    keep f, throw g away
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewbeats.losses import contrastive_loss
from fewbeats.models.heads import (
    Projector,
    encoder_of,
    feature_width,
    gather_ranks,
    pool_features,
    pool_stages,
    spread,
    sum_of_stages,
)
from fewbeats.pretraining.methods import Recipe
from fewbeats.pretraining.settings import check_contrast
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.transforms.views import ViewSettings, draw_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.pretraining.settings import SimclrSettings
    from fewbeats.sample import Batch


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: SimclrSettings) -> Batch:
    """Two random views of the same field of view."""
    image = batch.views["image"]
    return replace(batch, views={name: draw_view(image, settings, generator) for name in ("a", "b")})


class Simclr(Method):
    """Contrast of views.

    Args:
        network: has an `encoder`.
        settings: temperature and projector.
        optim: rates.
    """

    def __init__(self, network: nn.Module, *, settings: SimclrSettings, optim: OptimSettings):
        super().__init__()
        self.settings, self.optim = settings, optim
        self.encoder = encoder_of(network)
        self.every = settings.stages == "all"
        width = sum_of_stages(network) if self.every else feature_width(network)
        self.projector = Projector(width, settings.projector, norm=self.every)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        pool = pool_stages if self.every else pool_features
        a, b = (gather_ranks(self.projector(pool(self, batch.views[name]))) for name in ("a", "b"))
        z, positives = torch.cat([a, b]), same_slice(len(a), a.device)
        loss = contrastive_loss(z, positives, temperature=self.settings.temperature)
        return Step(loss, {"spread": spread(a)})

    def parameter_groups(self) -> list[ParameterGroup]:
        return one_group(self, self.optim)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": nn.ModuleDict({"encoder": self.encoder})}


def same_slice(slices: int, device: torch.device) -> Tensor:
    """(2N, 2N) bool: rows i and j are the two views of one slice."""
    index = torch.arange(slices, device=device).repeat(2)
    return index[:, None] == index[None]


RECIPE = Recipe(
    name="simclr",
    build=lambda network, own, optim, size: Simclr(network, settings=own, optim=optim),
    views=views,
    check=lambda own, network, batch_size, size: check_contrast("simclr", network, batch_size),
)
