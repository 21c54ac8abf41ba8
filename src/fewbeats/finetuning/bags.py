"""Classes of studies: every slice is encoded, and gated attention says how much each counts.

Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018, https://arxiv.org/abs/1802.04712:

    h_i = f(x_i)                                        encoder, pooled, for each slice i of a study
    a = softmax_i w^T (tanh(V h_i) * sigmoid(U h_i))
    y = softmax(C sum_i a_i h_i)                        class of the study
    y_i = softmax(D h_i)                                of each slice, where slices have classes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fewbeats.models.heads import SteadyNorm, encoder_of, feature_width, pool_features
from fewbeats.sample import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

    from fewbeats.sample import Batch

ATTENTION = 128
"""Width of the attention's two layers."""


class StudyClassifier(nn.Module):
    """S slices of each study, (B, S, Y, X) -> logits of studies and of slices, and attention.

    Args:
        network: whose encoder is taken; of one input channel.
        classes: of a study.
        slice_classes: of a slice; 0 where slices have none.
    """

    def __init__(self, network: nn.Module, classes: int, slice_classes: int = 0):
        super().__init__()
        self.encoder = encoder_of(network)
        width = feature_width(network)
        self.norm = SteadyNorm(width)
        self.what, self.gate = nn.Linear(width, ATTENTION), nn.Linear(width, ATTENTION)
        self.weigh, self.head = nn.Linear(ATTENTION, 1), nn.Linear(width, classes)
        self.slices = nn.Linear(width, slice_classes) if slice_classes else None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """study (B, classes), slices (B, S, slice classes) where there are such, attention (B, S)."""
        return self.decide(self.encode(image.flatten(0, 1)[:, None]).unflatten(0, image.shape[:2]))

    def encode(self, image: Tensor) -> Tensor:
        """Slices (N, 1, Y, X) -> (N, D)."""
        return self.norm(pool_features(self, image))

    def decide(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, S, D) of studies -> what `forward` gives."""
        gated = torch.tanh(self.what(features)) * torch.sigmoid(self.gate(features))
        attention = self.weigh(gated)[..., 0].softmax(1)
        pooled = (attention[..., None] * features).sum(1)
        told = {"study": self.head(pooled), "attention": attention}
        return told if self.slices is None else {**told, "slices": self.slices(features)}


def study_loss(told: dict[str, Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of studies, and half as much again of slices whose class is known.

    `batch.target` (B, 1 + S): the class of the study, then of its slices.
    """
    assert batch.target is not None
    target = batch.target.long()
    loss = F.cross_entropy(told["study"].float(), target[:, 0])
    own = target[:, 1:]
    if "slices" not in told or not bool((own != UNKNOWN).any()):
        return loss
    slices = told["slices"].float().flatten(0, 1)
    return loss + 0.5 * F.cross_entropy(slices, own.flatten(), ignore_index=UNKNOWN)
