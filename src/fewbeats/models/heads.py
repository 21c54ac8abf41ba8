"""What stands on an encoder: its pooled features, and the projectors of self-supervised methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from fewbeats.models.vit import VitEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def encoder_of(network: nn.Module) -> nn.Module:
    """The part of a U-Net that its runs and this package call encoder."""
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    return encoder


def pool_features(network: nn.Module, image: Tensor) -> Tensor:
    """One vector an image, (B, C, Y, X) -> (B, D): a transformer's [CLS], else the coarsest map's average."""
    encoder = encoder_of(network)
    if isinstance(encoder, VitEncoder):
        return encoder.summarize(image)
    maps = encoder(image)
    coarsest = maps[-1] if isinstance(maps, (list, tuple)) else maps
    return coarsest.flatten(2).mean(2)


def pool_stages(network: nn.Module, image: Tensor) -> Tensor:
    """All maps of an encoder, averaged and of unit length, as one vector an image: (B, C, Y, X) -> (B, D)."""
    maps = encoder_of(network)(image)
    pooled = [F.normalize(m.flatten(2).mean(2), dim=1) for m in maps if m.shape[1] and m is not image]
    return torch.cat(pooled, 1)


def feature_width(network: nn.Module) -> int:
    """D of `pool_features`."""
    encoder: Any = encoder_of(network)
    widths = getattr(encoder, "out_channels", None) or encoder.output_channels  # of smp, of nnU-Net's
    return int(widths[-1])


def sum_of_stages(network: nn.Module) -> int:
    """D of `pool_stages`."""
    with torch.no_grad():
        channels = next(p for p in encoder_of(network).parameters() if p.ndim == 4).shape[1]
        network.eval()
        width = pool_stages(network, torch.zeros(1, channels, 256, 256)).shape[1]
        network.train()
    return int(width)


class SteadyNorm(nn.BatchNorm1d):
    """Features (N, D) to mean 0 and variance 1 by running statistics, in training as in prediction.

    Those of one batch hold its classes: of a few studies, they take away what tells them apart.
    """

    def __init__(self, features: int):
        super().__init__(features, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            if self.momentum is not None:  # a mean of the first batches, then a moving one
                assert self.num_batches_tracked is not None
                self.momentum = max(0.1, 1 / (1 + int(self.num_batches_tracked)))
            super().forward(features.detach())
        return F.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)

    def restart(self) -> None:
        """Take statistics anew, all features alike, from now on until `eval`."""
        self.reset_running_stats()
        self.momentum = None
        self.train()


class Projector(nn.Sequential):
    """Multi-layer perceptron without activation after its last layer: (B, D) -> (B, widths[-1]).

    Args:
        inputs: D.
        widths: of its layers.
        activation: between them.
        norm: BatchNorm behind each layer, the last one included.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        norm: bool = False,
    ):
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((inputs, *widths), widths)):
            layers += [nn.Linear(before, after)] + [nn.BatchNorm1d(after)] * norm
            layers += [activation()] * (i < len(widths) - 1)
        super().__init__(*layers)


class PrototypeHead(nn.Module):
    """DINO's head: perceptron to a bottleneck on the unit sphere, then weight-normed prototypes.

    Args:
        inputs: D of the features.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        prototypes: number of outputs K; their weights have unit length, so only directions are learned.
        norm: BatchNorm in the hidden layers.
    """

    def __init__(self, inputs: int, *, hidden: int, bottleneck: int, prototypes: int, norm: bool = False):
        super().__init__()

        def activation() -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(hidden), nn.GELU()) if norm else nn.GELU()

        self.projector = Projector(inputs, (hidden, hidden, bottleneck), activation)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        for module in self.projector:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        directions = F.normalize(self.prototypes.weight, dim=1)
        return F.linear(F.normalize(self.projector(features), dim=1), directions)


@torch.no_grad()
def spread(embeddings: Tensor) -> float:
    """How far a batch's embeddings (B, D) point apart: about 1 for random directions, 0 for a collapse."""
    unit = F.normalize(embeddings.float(), dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)


def sum_ranks(tensor: Tensor) -> Tensor:
    """The sum over all processes, with gradient; the tensor itself where there is one process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor.contiguous())


def gather_ranks(tensor: Tensor) -> Tensor:
    """Rows of all processes in order of rank, with gradient; the tensor itself where there is one process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor.contiguous()))
