"""Ask a network that is being trained, and leave no trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fewbeats.models.network import has_deep_supervision, set_deep_supervision

if TYPE_CHECKING:
    from torch import Tensor, nn

Ask = Callable[["Tensor"], "Tensor"]
"""Images (B, C, [Z,] Y, X) -> what the network says of them, without gradient."""


@contextmanager
def answering(network: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Iterator[Ask]:
    """A network in evaluation mode, to be asked without gradient; then all is as it was before.

    Its statistics do not move, and of several scales it computes the finest alone. Teachers, partners, probes
    and validation ask through this.

    Args:
        network: gives logits, in training perhaps at several scales.
        call: what to ask instead of logits: (network, images) -> answers.
    """
    modes = {module: module.training for module in network.modules()}
    deep = has_deep_supervision(network)

    @torch.no_grad()
    def ask(image: Tensor) -> Tensor:
        return finest(network(image)) if call is None else call(network, image)

    try:
        network.eval()
        set_deep_supervision(network, False)
        yield ask
    finally:
        set_deep_supervision(network, deep)
        for module, mode in modes.items():
            module.training = mode


def finest(logits: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The scale of the image's own size, of networks that answer at several."""
    return logits[0] if isinstance(logits, (list, tuple)) else logits
