"""Mean Teacher: a student agrees, under other noise, with the moving average of itself.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, https://arxiv.org/abs/1703.01780;
for segmentation Yu et al., MICCAI 2019, https://arxiv.org/abs/1907.07034 (here without its uncertainty).

    for a batch x of labeled and unlabeled images, a random geometry g and two draws of gray values A, B:
        p = softmax(s(A(g(x)))); q = g(softmax(t(B(x))))       student, teacher; q without gradient
        loss = supervised(p, labels) + w(k) mean (p - q)^2     mean over what both see
        w(k) = w exp(-5 (1 - min(k / r, 1))^2), k the share of the run
        t = l t + (1 - l) s
    keep t
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from fewbeats.losses import supervised_loss
from fewbeats.models.answering import answering, finest
from fewbeats.semi_supervised.averaged import Averaged
from fewbeats.semi_supervised.methods import SEEN, Recipe, tell_pseudo
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
    from torch import Generator

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch
    from fewbeats.semi_supervised.settings import MeanTeacherSettings


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: MeanTeacherSettings) -> Batch:
    """One geometry for image and mask, and the image as it is stored; two draws of gray values."""
    cut = cut_labeled(batch, settings, generator)
    stored = cut_middle(batch.views["image"], settings)
    shown = {
        "image": change_labeled(cut, settings, generator),
        "stored": change_gray(stored, settings, generator),
    }
    return replace(cut, views=shown)


class MeanTeacher(Averaged):
    """Consistency with a moving average.

    Args:
        network: (B, C, [Z,] Y, X) -> logits, or a list of them, finest first.
        settings: weight of the consistency.
        optim: rates.
        ema_decay: l.
    """

    def __init__(
        self, network: nn.Module, *, settings: MeanTeacherSettings, optim: OptimSettings, ema_decay: float
    ):
        super().__init__(network, optim=optim, ema_decay=ema_decay)
        self.settings = settings

    def forward(self, batch: Batch, clock: Clock) -> Step:
        assert batch.place is not None
        logits = self.student(batch.views["image"])
        with answering(self.teacher) as ask:
            told = ask(batch.views["stored"]).float().softmax(1)
        wanted = follow(told, batch.place)
        seen = (wanted.sum(1, keepdim=True) > SEEN).float()
        apart = ((finest(logits).float().softmax(1) - wanted).square().mean(1, keepdim=True) * seen).sum()
        apart = apart / seen.sum().clamp_min(1)
        loss = supervised_loss(logits, batch) + self.weight(clock) * apart
        logs = {"consistency": float(apart.detach())}
        if batch.labeled is not None and not bool(batch.labeled.all()):
            logs |= tell_pseudo(told[~batch.labeled].argmax(1))
        return Step(loss, logs)

    def weight(self, clock: Clock) -> float:
        """w(k)."""
        done = min(1.0, clock.progress / max(self.settings.ramp, 1e-9))
        return self.settings.consistency * math.exp(-5 * (1 - done) ** 2)


RECIPE = Recipe(
    name="mean-teacher",
    longer="--mean-teacher.ramp",
    views=views,
    build=lambda network, own, optim, decay: MeanTeacher(network, settings=own, optim=optim, ema_decay=decay),
)
