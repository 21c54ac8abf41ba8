"""Supervised segmentation as a training method: Dice + cross-entropy, and a moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fewbeats.losses import dice_ce_loss
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, encoder_groups, scheduled_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch


class Supervised(Method):
    """Minimizes `dice_ce_loss` on the view "image"; exports the exponential moving average of the weights.

    Args:
        network: (B, C, [Z,] Y, X) -> logits, or a list of them, finest first (deep supervision).
        optim: rates.
        ema_decay: of the moving average, per step.
        freeze: share of the steps in which the encoder stays as it started.
    """

    def __init__(self, network: nn.Module, *, optim: OptimSettings, ema_decay: float, freeze: float = 0.0):
        super().__init__()
        self.freeze = freeze
        self.network = network
        self.optim = optim
        self.average = AveragedModel(network, multi_avg_fn=moving_average(ema_decay), use_buffers=True)
        self.average.requires_grad_(False)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        assert batch.target is not None
        loss = supervised_loss(self.network(batch.views["image"]), batch)
        return Step(loss, active=("decoder",) if clock.progress < self.freeze else None)

    def parameter_groups(self) -> list[ParameterGroup]:
        decoder = tuple(p for n, p in self.network.named_parameters() if not n.startswith("encoder."))
        return [*encoder_groups(self.network, self.optim), scheduled_group("decoder", decoder, self.optim)]

    def after_update(self, clock: Clock) -> None:
        self.average.update_parameters(self.network)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.average.module}


def moving_average(decay: float):
    """Exponential moving average that reaches back over a tenth of the steps so far at most.

    Otherwise the export of a run of fewer than some 3 / (1 - decay) steps would still hold its random start.
    """

    def update(averages, values, count) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        get_ema_multi_avg_fn(now)(averages, values, count)

    return update


def supervised_loss(logits: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
    """`dice_ce_loss` of a batch's labeled samples, over all scales (deep supervision).

    Args:
        logits: (B, 1 + C, [Z,] Y, X), or several of them, finest first; their weights halve.
        batch: with its target; coarser scales see it by nearest neighbor.

    Returns:
        scalar.
    """
    assert batch.target is not None
    scales: list[Tensor] = [logits] if isinstance(logits, Tensor) else list(logits)
    shares, loss, weight = [0.5**i for i in range(len(scales))], scales[0].new_zeros(()), batch.label_weight
    for share, scale in zip(shares, scales):
        target, own = _shrink(batch.target, scale), None if weight is None else _shrink(weight, scale)
        loss = loss + share * dice_ce_loss(scale, target, batch.annotated, weight=own)
    return loss / sum(shares)


def _shrink(values: Tensor, logits: Tensor) -> Tensor:
    """Class indices, soft masks or weights at the resolution of coarser logits; weights of samples as are."""
    size = logits.shape[2:]
    if values.ndim == 1 or values.shape[-len(size) :] == size:
        return values
    channels = values if values.ndim == logits.ndim else values[:, None]
    small = F.interpolate(channels.float(), size=size, mode="nearest").to(values.dtype)
    return small if values.ndim == logits.ndim else small[:, 0]
