"""From a network that was trained to one that predicts."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from torch.optim.swa_utils import update_bn

from fewbeats.clock import Clock
from fewbeats.models.network import set_deep_supervision

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.sample import Batches

RECALIBRATION = 25  # batches from which BatchNorm's statistics are taken


def finish_network(network: nn.Module, batches: Batches, *, view: str = "image") -> nn.Module:
    """A copy of a network that is ready to predict; the one that is trained is left as it is.

    BatchNorm's statistics are taken anew, as averaged weights never ran in training mode.

    Args:
        network: gives logits for a view.
        batches: what it was trained on.
        view: the one it was trained on.
    """
    network = deepcopy(network).eval()
    set_deep_supervision(network, False)
    device = next(network.parameters()).device
    clocks = (Clock(step, RECALIBRATION) for step in range(RECALIBRATION))
    update_bn((batches(clock).views[view].to(device) for clock in clocks), network)
    return network.eval()
