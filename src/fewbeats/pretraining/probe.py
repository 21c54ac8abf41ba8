"""What an encoder has learned, told without labels: does it know how high in the heart a slice lies?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fewbeats.models.answering import answering
from fewbeats.models.heads import pool_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewbeats.training.method import Method

NEIGHBORS = 10
MOST = 256  # slices looked at
FIGURE = "probe_height_r2"


def height_probe(image: Tensor, height: np.ndarray, scan: np.ndarray) -> Callable[[Method], dict[str, float]]:
    """A function that measures a method's encoder: leave-one-scan-out nearest neighbors predict a height.

    Args:
        image: (N, C, Y, X) slices as the network sees them, from stacks of known direction.
        height: (N,) share of the stack, from the base.
        scan: (N,) group of each slice; neighbors come from other groups, or frames of one heart would do.

    Returns:
        method -> {"probe_height_r2": share of the variance of heights that is explained}; 0 for a guess at
        the mean, below 0 for worse.
    """

    def measure(method: Method) -> dict[str, float]:
        network: Any = method.networks()["network"]
        device = next(network.parameters()).device
        with answering(network, pool_features) as ask:
            features = torch.cat([ask(part.to(device)).cpu() for part in image.split(64)])
        return {FIGURE: explained(features.numpy(), height, scan)}

    return measure


def explained(features: np.ndarray, height: np.ndarray, scan: np.ndarray) -> float:
    """R squared of heights predicted by the mean of the nearest slices of other scans, by cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    likeness = np.where(scan[:, None] == scan[None], -np.inf, unit @ unit.T)
    nearest = np.argsort(-likeness, axis=1)[:, : min(NEIGHBORS, int(np.isfinite(likeness).sum(1).min()))]
    predicted = height[nearest].mean(1)
    return float(1 - ((height - predicted) ** 2).mean() / max(height.var(), 1e-12))
