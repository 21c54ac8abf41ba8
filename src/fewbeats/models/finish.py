"""From a network that was trained to one that predicts."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import update_bn

from fewbeats.clock import Clock
from fewbeats.models.heads import SteadyNorm
from fewbeats.models.network import set_deep_supervision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from fewbeats.sample import Batches

RECALIBRATION = 25  # batches from which BatchNorm's statistics are taken


def finish_network(network: nn.Module, batches: Batches, *, view: str = "image") -> nn.Module:
    """A copy of a network that is ready to predict; the one that is trained is left as it is.

    BatchNorm's statistics are taken anew, as averaged weights never ran in training mode; then those of
    features, as they are in prediction. The same features under the statistics of a batch lie elsewhere, and
    what is read from them would be off.

    Args:
        network: gives logits for a view.
        batches: what it was trained on.
        view: the one it was trained on.
    """
    network = deepcopy(network).eval()
    set_deep_supervision(network, False)
    device = next(network.parameters()).device

    def images() -> Iterator[Tensor]:
        for step in range(RECALIBRATION):
            yield batches(Clock(step, RECALIBRATION)).views[view].to(device)

    update_bn(images(), network)
    if steady := [module for module in network.modules() if isinstance(module, SteadyNorm)]:
        for module in steady:
            module.restart()
        with torch.no_grad():
            for image in images():
                network(image)
    return network.eval()
