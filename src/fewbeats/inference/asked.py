"""A torch network that takes and gives arrays, loaded once a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

CHUNK = 64  # images that are asked about together


@dataclass(frozen=True)
class Asked:
    """A network in evaluation mode, on the GPU where there is one."""

    network: Any

    def __call__(self, batch: np.ndarray, *, call: Callable[..., Any] | None = None) -> np.ndarray:
        """What the network, or a part of it, says of images (N, C, Y, X), in chunks: (N, ...)."""
        parts = range(0, len(batch), CHUNK)
        return np.concatenate([self.whole(batch[at : at + CHUNK], call=call) for at in parts])

    def whole(self, given: np.ndarray, *, call: Callable[..., Any] | None = None) -> Any:
        """What it says of all that is given at once: an array, or arrays by name."""
        import torch

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            told = (call or self.network)(
                torch.from_numpy(np.ascontiguousarray(given, np.float32)).to(device)
            )
        if isinstance(told, dict):
            return {name: value.float().cpu().numpy() for name, value in told.items()}
        return told.float().cpu().numpy()


_OPEN: dict[str, Asked] = {}
"""The network that was asked last: executors hand the same run to a process again and again."""


def open_once(key: str, build: Callable[[], nn.Module]) -> Asked:
    """The network of a key; built where another one was asked last.

    Raises:
        InputError: what `build` meets.
    """
    import torch

    if key not in _OPEN:
        network = build().to("cuda" if torch.cuda.is_available() else "cpu").eval()
        _OPEN.clear()
        _OPEN[key] = Asked(network)
    return _OPEN[key]
