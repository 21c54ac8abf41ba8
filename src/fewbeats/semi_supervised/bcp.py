"""BCP: labeled and unlabeled images are pasted into each other, both ways, and so are their labels.

Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023,
https://arxiv.org/abs/2305.00673.

    M is 1 but for a box of side beta, at a random place
    first:   x = M x_a + (1 - M) x_b of two labeled images, labels alike; loss = supervised
    then:    y_u = largest parts of argmax g(t(u)), x_u = g(u)              teacher, without gradient
             in:  M x_u + (1 - M) x_l,  out: M x_l + (1 - M) x_u, labels alike
             loss = supervised, voxels that lie on a pseudo-label weighing alpha
             t = l t + (1 - l) s
    keep t

The teacher is asked about an image u as it is stored, and its answer follows the random geometry g; what it
did not see weighs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewbeats.losses import supervised_loss
from fewbeats.models.answering import answering
from fewbeats.semi_supervised.averaged import Averaged
from fewbeats.semi_supervised.methods import SEEN, Recipe, labels_first, tell_pseudo
from fewbeats.training.method import Step
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.views import ViewSettings, change_labeled, cut_labeled, cut_middle, follow

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch
    from fewbeats.semi_supervised.settings import BcpSettings


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: BcpSettings) -> Batch:
    """One view, of image and mask, and the image as it is stored."""
    cut = cut_labeled(batch, settings, generator)
    stored = cut_middle(batch.views["image"], settings)
    return replace(cut, views={"image": change_labeled(cut, settings, generator), "stored": stored})


class Bcp(Averaged):
    """Bidirectional copy-paste.

    Args:
        network: (B, C, [Z,] Y, X) -> logits, or a list of them, finest first.
        settings: box and weights.
        optim: rates.
        ema_decay: l.
    """

    def __init__(self, network: nn.Module, *, settings: BcpSettings, optim: OptimSettings, ema_decay: float):
        super().__init__(network, optim=optim, ema_decay=ema_decay)
        self.settings = settings

    def forward(self, batch: Batch, clock: Clock) -> Step:
        assert batch.target is not None
        image, target = batch.views["image"], batch.target
        labeled = (
            torch.ones_like(target[:, 0, 0], dtype=torch.bool) if batch.labeled is None else batch.labeled
        )
        other, logs = self._partners(labeled, clock), dict[str, float]()
        weight = torch.ones_like(target, dtype=torch.float32)
        if clock.progress >= self.settings.pretraining and not bool(labeled.all()):
            assert batch.place is not None
            with answering(self.teacher) as ask:
                told = ask(batch.views["stored"][~labeled]).float().softmax(1)
            followed = follow(told, batch.place[~labeled])
            answer = followed.argmax(1)
            target = target.clone()
            target[~labeled] = keep_largest_parts(answer)
            weight[~labeled] = self.settings.unlabeled * (followed.sum(1) > SEEN).float()
            logs = tell_pseudo(answer)
        else:
            image, target, weight = image[labeled], target[labeled], weight[labeled]
        outside = draw_mask(image, side=self.settings.side)
        mixed = replace(
            batch,
            views={"image": torch.where(outside[:, None], image, image[other])},
            target=torch.where(outside, target, target[other]),
            weight=torch.where(outside, weight, weight[other]),
            annotated=None,
            labeled=None,
        )
        return Step(supervised_loss(self.student(mixed.views["image"]), mixed), logs)

    def _partners(self, labeled: Tensor, clock: Clock) -> Tensor:
        """For each image the one that is pasted into it: of the other kind, at first a labeled one."""
        if clock.progress < self.settings.pretraining or bool(labeled.all()):
            return torch.arange(int(labeled.sum()), device=labeled.device).roll(1)
        own, others = labeled.nonzero()[:, 0], (~labeled).nonzero()[:, 0]
        partners = torch.empty_like(labeled, dtype=torch.long)
        partners[own] = others.repeat(len(own))[: len(own)]
        partners[others] = own.repeat(len(others))[: len(others)]
        return partners


def draw_mask(image: Tensor, *, side: float) -> Tensor:
    """(B, [Z,] Y, X) bool M: False in one box for the whole batch, as in the paper's code."""
    sizes = image.shape[2:]
    mask = torch.ones(image.shape[0], *sizes, dtype=torch.bool, device=image.device)
    box = [slice(None)]
    for size in sizes:
        length = round(size * side)
        start = int(torch.randint(0, size - length + 1, ()))
        box.append(slice(start, start + length))
    mask[tuple(box)] = False
    return mask


def keep_largest_parts(labels: Tensor) -> Tensor:
    """Of each class of each image (B, [Z,] Y, X) the largest connected part."""
    import numpy as np
    from scipy import ndimage

    out = labels.cpu().numpy().copy()
    for image in out:
        for value in np.unique(image)[1:] if (image == 0).any() else np.unique(image):
            parts, count = ndimage.label(image == value)
            if count > 1:
                sizes = np.bincount(parts.ravel())[1:]
                image[(parts > 0) & (parts != 1 + int(sizes.argmax()))] = 0
    return torch.from_numpy(out).to(labels.device)


RECIPE = Recipe(
    name="bcp",
    longer="--bcp.pretraining",
    judges_all=True,
    views=views,
    labels=labels_first,
    build=lambda network, own, optim, decay: Bcp(network, settings=own, optim=optim, ema_decay=decay),
)
