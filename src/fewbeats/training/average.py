"""Moving averages of weights: what is exported, and what teaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a network's weights and statistics, at first a copy of it.

    Args:
        network: `average.update_parameters(network)` after each step lets it follow.
        decay: per step; see `moving_average`.
    """
    average = AveragedModel(network, multi_avg_fn=moving_average(decay), use_buffers=True)
    average.requires_grad_(False)
    return average


def moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average that reaches back over a tenth of the steps so far at most.

    Otherwise the export of a run of fewer than some 3 / (1 - decay) steps would still hold its random start.
    """

    def update(averages, values, count) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        get_ema_multi_avg_fn(now)(averages, values, count)

    return update
