"""Settings of networks that are built in a moment."""

from __future__ import annotations

import torch

from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.pretrained2d import load_natural

SMALL2D = NetworkSettings(kind="unet2d", base_channels=4, levels=3, context=1)
SMALL3D = NetworkSettings(kind="unet3d", base_channels=4, levels=4)
LITE0 = NetworkSettings(context=1)  # three channels, as photographs have


def photograph_lite0() -> torch.nn.Module:
    """Lite0 with the weights of photographs."""
    network = build_network(LITE0, classes=4)
    load_natural(network, LITE0)
    return network.eval()
