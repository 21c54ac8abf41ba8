"""Supervised segmentation as a training method: Dice + cross-entropy, and a moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fewbeats.losses import dice_ce_loss
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, encoder_groups, scheduled_group

if TYPE_CHECKING:
    from torch import Tensor

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
        logits = self.network(batch.views["image"])
        scales = logits if isinstance(logits, (list, tuple)) else [logits]
        weights = [0.5**i for i in range(len(scales))]
        loss = sum(
            weight * dice_ce_loss(scale, _shrink(batch.target, scale), batch.annotated)
            for weight, scale in zip(weights, scales)
        )
        active = ("decoder",) if clock.progress < self.freeze else None
        return Step(loss / sum(weights), active=active)  # type: ignore[arg-type]

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


def _shrink(target: Tensor, logits: Tensor) -> Tensor:
    """Class indices at the resolution of coarser logits, nearest neighbor."""
    if target.shape[1:] == logits.shape[2:]:
        return target
    small = F.interpolate(target[:, None].float(), size=logits.shape[2:], mode="nearest")
    return small[:, 0].long()
