"""Supervised segmentation as a training method: Dice + cross-entropy, and a moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fewbeats.losses import supervised_loss
from fewbeats.training.average import average_of
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, encoder_groups, scheduled_group

if TYPE_CHECKING:
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
        self.average = average_of(network, ema_decay)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        loss = supervised_loss(self.network(batch.views["image"]), batch)
        return Step(loss, active=("decoder",) if clock.progress < self.freeze else None)

    def parameter_groups(self) -> list[ParameterGroup]:
        decoder = tuple(p for n, p in self.network.named_parameters() if not n.startswith("encoder."))
        return [*encoder_groups(self.network, self.optim), scheduled_group("decoder", decoder, self.optim)]

    def after_update(self, clock: Clock) -> None:
        self.average.update_parameters(self.network)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.average.module}
