"""UniMatch: strong views of an image, and its perturbed features, are held to what a weak view surely shows.

Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation, CVPR 2023,
https://arxiv.org/abs/2208.09910; the teacher that labels is the moving average of UniMatch V2, TPAMI 2025,
https://arxiv.org/abs/2410.10777. With one strong view and no features it is FixMatch (Sohn et al., 2020).

    for unlabeled images u, as they are stored, and a random geometry g:
        q = softmax(t(u))                                                  teacher, without gradient
        c = max g(q), y = argmax g(q)                                      0 where g shows what u does not
        u_i = CutMix(A_i(g(u))), y_i, c_i mixed alike                      strong views i = 1, 2
        l_i = Dice + cross-entropy of s(u_i) with y_i, over where c_i > tau alone
        l_f = the same of s(u), its feature channels dropped, with argmax q where max q > tau
        loss = (1 - v) supervised + v (mean of l_i + l_f) / 2
        t = l t + (1 - l) s
    keep t

The teacher is asked about a heart as it is stored, since it knows hearts that are turned less well; the
paper's photographs, which are scaled and mirrored alone, need no such care.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewbeats.errors import InputError
from fewbeats.losses import dice_ce_loss, supervised_loss
from fewbeats.models.answering import answering, finest
from fewbeats.semi_supervised.averaged import Averaged
from fewbeats.semi_supervised.methods import Recipe, labels_first, tell_pseudo
from fewbeats.training.method import Step
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.views import (
    ViewSettings,
    change_gray,
    change_labeled,
    cut_labeled,
    cut_middle,
    follow,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.models.network import NetworkSettings
    from fewbeats.sample import Batch
    from fewbeats.semi_supervised.settings import UnimatchSettings

BOX = (0.02, 0.4)  # area of a CutMix box, share of the image's
ASPECT = (0.3, 1 / 0.3)


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: UnimatchSettings) -> Batch:
    """As stored, and in one geometry: gray values changed as ever for the labels, and changed strongly."""
    cut = cut_labeled(batch, settings, generator)
    image = cut.views["image"]
    strong = replace(settings.intensity, probability=max(0.5, settings.intensity.probability))
    shown = {
        "stored": cut_middle(batch.views["image"], settings),
        "image": change_labeled(cut, settings, generator),
    }
    for i in range(own.strong_views):
        shown[f"strong{i}"] = change_gray(image, replace(settings, intensity=strong), generator)
    return replace(cut, views=shown)


class Unimatch(Averaged):
    """Weak-to-strong consistency.

    Args:
        network: (B, C, [Z,] Y, X) -> logits, or a list of them, finest first.
        settings: threshold, streams and their weight.
        optim: rates.
        ema_decay: l.
    """

    def __init__(
        self, network: nn.Module, *, settings: UnimatchSettings, optim: OptimSettings, ema_decay: float
    ):
        super().__init__(network, optim=optim, ema_decay=ema_decay)
        self.settings = settings

    def forward(self, batch: Batch, clock: Clock) -> Step:
        if batch.labeled is None or bool(batch.labeled.all()):
            return Step(supervised_loss(self.student(batch.views["image"]), batch))
        assert batch.place is not None
        known = batch.select(batch.labeled.nonzero()[:, 0].tolist())
        labels = batch.views["image"].new_zeros(())
        if len(known.views["image"]):  # a micro-batch may have none
            labels = supervised_loss(self.student(known.views["image"]), known)
        unlabeled = {name: view[~batch.labeled] for name, view in batch.views.items()}
        with answering(self.teacher) as ask:
            told = ask(unlabeled["stored"]).float().softmax(1)
        target, sure = self._trust(follow(told, batch.place[~batch.labeled]))
        streams = [
            self._learn(unlabeled[f"strong{i}"], target, sure) for i in range(self.settings.strong_views)
        ]
        loss = torch.stack(streams).mean()
        if self.settings.features:
            with dropped_channels(self.student, self.settings.features):
                answer = finest(self.student(unlabeled["stored"]))
            here, trusted = self._trust(told)
            loss = 0.5 * (loss + dice_ce_loss(answer, here, weight=trusted))
        v = self.settings.weight
        logs = {"sure": float(sure.mean()), **tell_pseudo(target)}
        return Step((1 - v) * labels + v * loss, logs)

    def _trust(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Likeliest classes, and 1 where they are surer than the threshold, else 0."""
        confidence, target = probabilities.max(1)
        return target, (confidence > self.settings.threshold).float()

    def _learn(self, image: Tensor, target: Tensor, sure: Tensor) -> Tensor:
        """Loss of a strong view with boxes of the other images in it, labels mixed alike."""
        box = draw_boxes(image, chance=self.settings.cutmix)
        mixed = torch.where(box[:, None], image.roll(1, 0), image)
        labels = torch.where(box, target.roll(1, 0), target)
        weight = torch.where(box, sure.roll(1, 0), sure)
        return dice_ce_loss(finest(self.student(mixed)), labels, weight=weight)


def draw_boxes(image: Tensor, *, chance: float) -> Tensor:
    """(B, [Z,] Y, X) bool: a random in-plane box in some of the images (Yun et al., CutMix, ICCV 2019)."""
    rows, columns = image.shape[-2:]
    boxes = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.bool, device=image.device)
    for i in range(len(image)):
        if torch.rand(()) >= chance:
            continue
        area = float(torch.empty(()).uniform_(*BOX)) * rows * columns
        aspect = float(torch.empty(()).uniform_(*ASPECT))
        height, width = (min(side, round(v)) for side, v in
                         zip((rows, columns), ((area * aspect) ** 0.5, (area / aspect) ** 0.5)))  # fmt: skip
        top, left = (int(torch.randint(0, n + 1, ())) for n in (rows - height, columns - width))
        boxes[i, ..., top : top + height, left : left + width] = True
    return boxes


class dropped_channels:
    """While it lasts, an encoder's maps lose whole channels at random, as the decoder sees them.

    BatchNorm's running statistics stand still: the teacher takes them over, and never sees such maps.
    """

    def __init__(self, network: nn.Module, share: float):
        self.encoder: Any = network.encoder
        self.share = share
        self.norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self.handle = self.encoder.register_forward_hook(self._drop)
        self.momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
        for norm, momentum in zip(self.norms, self.momenta):
            norm.momentum = momentum

    def _drop(self, module: nn.Module, given: Any, maps: Any) -> Any:
        return [_drop_channels(one, self.share) if one.shape[1] > 1 else one for one in maps]


def _drop_channels(features: Tensor, share: float) -> Tensor:
    drop = nn.functional.dropout3d if features.ndim == 5 else nn.functional.dropout2d
    return drop(features, share, training=True)


def _check_features(own: UnimatchSettings, network: NetworkSettings) -> None:
    if own.features and network.kind == "swinunetr":
        raise InputError("--unimatch.features: swinunetr has no features to drop; give 0")


RECIPE = Recipe(
    name="unimatch",
    longer="--unimatch.pretraining",
    check=_check_features,
    views=views,
    labels=labels_first,
    build=lambda network, own, optim, decay: Unimatch(network, settings=own, optim=optim, ema_decay=decay),
)
