"""PCL: slices from near the same height of the heart attract, whoever's they are; all others repel.

Zeng et al., Positional Contrastive Learning for Volumetric Medical Image Segmentation, MICCAI 2021,
https://arxiv.org/abs/2106.09157; for cine MR de Mooij et al., https://arxiv.org/abs/2409.18100.

    for a batch of N slices x at heights p (slices below the base / slices):
        x_a, x_b = t(x), t'(x)                          two random views
        h = f(x_a, x_b); z = g(h)                       encoder, pooled; projector
        P(i) = all j != i with |p_i - p_j| < d          any subject, any frame
        l_i = -1/|P(i)| sum_(j in P(i)) log exp(s_ij / tau) / sum_(k != i) exp(s_ik / tau)
        loss = mean of l_i
    keep f, throw g away
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewbeats.losses import contrastive_loss
from fewbeats.models.heads import Projector, encoder_of, feature_width, gather_ranks, pool_features, spread
from fewbeats.pretraining.methods import Recipe
from fewbeats.pretraining.settings import check_contrast
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.transforms.views import ViewSettings, draw_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.pretraining.settings import PclSettings
    from fewbeats.sample import Batch

ROUNDING = 1e-6  # two slices exactly `distance` apart are not near, whatever float32 makes of them


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: PclSettings) -> Batch:
    """Two random views of the same field of view."""
    image = batch.views["image"]
    return replace(batch, views={name: draw_view(image, settings, generator) for name in ("a", "b")})


class Pcl(Method):
    """Contrast of heights.

    Args:
        network: has an `encoder`.
        settings: temperature, projector and distance.
        optim: rates.
    """

    def __init__(self, network: nn.Module, *, settings: PclSettings, optim: OptimSettings):
        super().__init__()
        self.settings, self.optim = settings, optim
        self.encoder = encoder_of(network)
        self.projector = Projector(feature_width(network), settings.projector)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        assert batch.position is not None
        assert batch.directed is not None
        assert batch.scan is not None
        a, b = (gather_ranks(self.projector(pool_features(self, batch.views[name]))) for name in ("a", "b"))
        place = [gather_ranks(v).repeat(2) for v in (batch.position, batch.directed, batch.scan)]
        z, positives = torch.cat([a, b]), same_height(*place, distance=self.settings.distance)
        loss = contrastive_loss(z, positives, temperature=self.settings.temperature)
        return Step(loss, {"spread": spread(a)})

    def parameter_groups(self) -> list[ParameterGroup]:
        return one_group(self, self.optim)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": nn.ModuleDict({"encoder": self.encoder})}


def same_height(position: Tensor, directed: Tensor, scan: Tensor, *, distance: float) -> Tensor:
    """(N, N) bool: rows are near in height, and their heights can be compared.

    Heights of a scan of unknown direction mean something within that scan alone.

    Args:
        position: (N,) share of the stack's height, from the base where the direction is known.
        directed: (N,) bool.
        scan: (N,) number of the scan.
        distance: below this share two heights are near.
    """
    near = (position[:, None] - position[None]).abs() < distance - ROUNDING
    comparable = (directed[:, None] & directed[None]) | (scan[:, None] == scan[None])
    return near & comparable


RECIPE = Recipe(
    name="pcl",
    build=lambda network, own, optim, size: Pcl(network, settings=own, optim=optim),
    views=views,
    check=lambda own, network, batch_size, size: check_contrast("pcl", network, batch_size),
    positioned=True,
)
