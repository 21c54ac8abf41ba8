"""Supervised learning as a training method: a loss, Dice + cross-entropy of masks by default, and a moving
average of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from fewbeats.losses import supervised_loss
from fewbeats.training.average import average_of
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, encoder_groups, scheduled_group

if TYPE_CHECKING:
    from torch import Tensor

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch


class Supervised(Method):
    """Minimizes a loss on the view "image"; exports the exponential moving average of the weights.

    Args:
        network: (B, C, [Z,] Y, X) -> what the loss takes; of a segmentation logits, or a list of them, finest
            first (deep supervision).
        optim: rates.
        ema_decay: of the moving average, per step.
        freeze: share of the steps in which the encoder stays as it started.
        loss: (what the network told, batch) -> scalar.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optim: OptimSettings,
        ema_decay: float,
        freeze: float = 0.0,
        loss: Callable[[Any, Batch], Tensor] = supervised_loss,
    ):
        super().__init__()
        self.freeze, self.loss = freeze, loss
        self.network = network
        self.optim = optim
        self.average = average_of(network, ema_decay)

    def forward(self, batch: Batch, clock: Clock) -> Step:
        loss = self.loss(self.network(batch.views["image"]), batch)
        return Step(loss, active=("decoder",) if clock.progress < self.freeze else None)

    def parameter_groups(self) -> list[ParameterGroup]:
        decoder = tuple(p for n, p in self.network.named_parameters() if not n.startswith("encoder."))
        return [*encoder_groups(self.network, self.optim), scheduled_group("decoder", decoder, self.optim)]

    def after_update(self, clock: Clock) -> None:
        self.average.update_parameters(self.network)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.average.module}
