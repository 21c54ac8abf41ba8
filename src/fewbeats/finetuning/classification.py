"""Classes of slices: an encoder, its pooled features, one linear layer.

A frozen encoder under it is the linear probe (`--freeze-encoder 1`); features of any encoder are brought to
one scale by a normalization without weights, as in He et al., CVPR 2022, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from fewbeats.models.heads import SteadyNorm, encoder_of, feature_width, pool_features
from fewbeats.sample import UNKNOWN
from fewbeats.transforms.views import draw_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.finetuning.segmentation import SegmentationSettings
    from fewbeats.sample import Batch


class ImageClassifier(nn.Module):
    """(B, C, Y, X) -> logits (B, classes).

    Args:
        network: whose encoder is taken.
        classes: how many.
    """

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder_of(network)
        width = feature_width(network)
        self.norm, self.head = SteadyNorm(width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(pool_features(self, image)))


def class_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with `batch.target` (B,); a slice of unknown class has no part in it."""
    assert batch.target is not None
    return F.cross_entropy(logits.float(), batch.target.long(), ignore_index=UNKNOWN)


def views(batch: Batch, generator: Generator, settings: SegmentationSettings) -> Batch:
    """A random view of wide slices; their classes stay."""
    from dataclasses import replace

    return replace(batch, views={"image": draw_view(batch.views["image"], settings.views, generator)})
