"""What methods with a teacher share: a student, and the moving average of its weights."""

from __future__ import annotations

from torch import nn

from fewbeats.training.average import average_of
from fewbeats.training.method import Method, ParameterGroup
from fewbeats.training.optim import OptimSettings, encoder_groups, scheduled_group


class Averaged(Method):
    """A student that learns and a teacher that is its exponential moving average; the teacher is exported.

    Args:
        network: (B, C, [Z,] Y, X) -> logits, or a list of them, finest first.
        optim: rates.
        ema_decay: of the moving average, per step.
    """

    def __init__(self, network: nn.Module, *, optim: OptimSettings, ema_decay: float):
        super().__init__()
        self.student, self.optim = network, optim
        self.average = average_of(network, ema_decay)

    @property
    def teacher(self) -> nn.Module:
        """The network of averaged weights."""
        return self.average.module

    def parameter_groups(self) -> list[ParameterGroup]:
        decoder = (p for n, p in self.student.named_parameters() if not n.startswith("encoder."))
        groups = [*encoder_groups(self.student, self.optim), scheduled_group("decoder", decoder, self.optim)]
        return [group for group in groups if group.parameters]

    def after_update(self, clock) -> None:
        self.average.update_parameters(self.student)

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.teacher}
