"""DINO: a student learns from views what its own moving average sees in others, without negatives.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
https://arxiv.org/abs/2104.14294; for cine MR de Mooij et al., https://arxiv.org/abs/2409.18100; its patches:
Zhou et al., iBOT, ICLR 2022, https://arxiv.org/abs/2111.07832.

    teacher t starts as a copy of student s (encoder and head)
    for a batch of slices x:
        G = two large views, L = several small views
        q_g = softmax((t(g) - c) / tau_t) for g in G;  p_v = softmax(s(v) / tau_s) for v in G and L
        loss = mean over g, v != g of -sum q_g log p_v
        of a transformer, with w > 0, s sees G with patches hidden:
               + w mean over hidden patches i of g of -sum q_gi log p_gi (iBOT)
        c = m c + (1 - m) mean t(G);  t = l t + (1 - l) s, l from 0.996 to 1 by a cosine
    keep the teacher's encoder where its start is gone, else the student's
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from fewbeats.errors import InputError
from fewbeats.models.heads import (
    PrototypeHead,
    encoder_of,
    feature_width,
    gather_ranks,
    pool_features,
    sum_ranks,
)
from fewbeats.models.vit import VitEncoder
from fewbeats.pretraining.methods import Recipe
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, scheduled_group
from fewbeats.transforms.views import ViewSettings, draw_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbeats.clock import Clock
    from fewbeats.models.network import NetworkSettings
    from fewbeats.pretraining.settings import DinoSettings
    from fewbeats.sample import Batch

LARGE = ("large0", "large1")
START_GONE = 0.01  # share of its start below which the teacher is an average of students


def views(batch: Batch, generator: Generator, *, settings: ViewSettings, own: DinoSettings) -> Batch:
    """Two large views and several small ones, of the same magnification, from anywhere in the large field."""
    small = replace(
        settings,
        size=own.small_px(settings.size),
        # as far as views have grown
        spatial=replace(
            settings.spatial, shift_px=settings.strength * settings.size * (1 - own.small_size) / 2
        ),
    )
    image = batch.views["image"]
    found = {name: draw_view(image, settings, generator) for name in LARGE}
    found |= {f"small{i}": draw_view(image, small, generator) for i in range(own.small_views)}
    return replace(batch, views=found)


class Dino(Method):
    """Self-distillation without labels.

    Args:
        network: has an `encoder`.
        settings: head, temperatures, momenta.
        optim: rates.
    """

    center: Tensor
    patch_center: Tensor
    start_left: Tensor
    """Share of the teacher that is still its start: the product of all momenta so far."""

    def __init__(self, network: nn.Module, *, settings: DinoSettings, optim: OptimSettings):
        super().__init__()
        self.settings, self.optim = settings, optim
        encoder = encoder_of(network)
        head = PrototypeHead(
            feature_width(network),
            # Pooled maps of an untrained CNN are nearly one vector for all slices; without BatchNorm the
            # teacher then has nothing to tell, and the student learns to say nothing.
            norm=settings.head_norm or any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules()),
            hidden=settings.hidden,
            bottleneck=settings.bottleneck,
            prototypes=settings.prototypes,
        )
        self.student = nn.ModuleDict({"encoder": encoder, "head": head})
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(settings.prototypes))
        self.token: nn.Parameter | None = None
        if settings.patches:
            self.token = nn.Parameter(torch.zeros(feature_width(network)))
            nn.init.trunc_normal_(self.token, std=0.02)
            self.register_buffer("patch_center", torch.zeros(settings.prototypes))
        self.register_buffer("start_left", torch.ones((), dtype=torch.float64))

    def forward(self, batch: Batch, clock: Clock) -> Step:
        large = torch.cat([batch.views[name] for name in LARGE])
        small = [view for name, view in batch.views.items() if name not in LARGE]
        hidden = self._draw_hidden(large)
        with torch.no_grad():
            seen, seen_patches = _judge_patches(self.teacher, large, hidden)
            target = ((seen - self.center) / self.teacher_temperature(clock)).softmax(1).chunk(2)
            matched = views_matched(*(seen - self.center).chunk(2))
            self._move(self.center, gather_ranks(seen).mean(0))
        judged, told_patches = _judge_patches(self.student, large, hidden, self.token)
        answers = [*judged.chunk(2)]
        answers += _judge(self.student, torch.cat(small)).chunk(len(small)) if small else []
        told = [F.log_softmax(answer / self.settings.student_temperature, 1) for answer in answers]
        losses = [-(q * p).sum(1).mean() for i, q in enumerate(target) for j, p in enumerate(told) if i != j]
        frozen = clock.progress < self.settings.freeze
        logs = {"spread": answers_apart(torch.cat(target)), "matched": matched}
        loss = torch.stack(losses).mean()
        if seen_patches is not None and told_patches is not None:
            patches = self._patch_loss(seen_patches, told_patches, clock)
            loss, logs["patches"] = loss + self.settings.patches * patches, patches.item()
        return Step(loss, logs, ("network",) if frozen else None)

    def _draw_hidden(self, large: Tensor) -> Tensor | None:
        """Which patches the student does not see, as `draw_hidden`; None where it sees all."""
        if self.token is None:
            return None
        encoder = self.student["encoder"]
        assert isinstance(encoder, VitEncoder)
        return draw_hidden(large, encoder.patch_px, self.settings.hidden_share)

    def _patch_loss(self, seen: Tensor, told: Tensor, clock: Clock) -> Tensor:
        """What the student tells of patches (N, K) that it does not see, against the teacher, who does."""
        target = ((seen - self.patch_center) / self.teacher_temperature(clock)).softmax(1)
        count, total = sum_ranks(seen.new_tensor(float(len(seen)))), sum_ranks(seen.sum(0))
        if count:  # of a small batch no patch may be hidden
            self._move(self.patch_center, total / count)
        told = F.log_softmax(told / self.settings.student_temperature, 1)
        return -(target * told).sum() / max(1, len(told))

    def _move(self, center: Tensor, mean: Tensor) -> None:
        """The next c."""
        center.mul_(self.settings.center_momentum).add_(mean, alpha=1 - self.settings.center_momentum)

    def parameter_groups(self) -> list[ParameterGroup]:
        last = tuple(self.student["head"].prototypes.parameters())  # type: ignore[union-attr]
        rest = tuple(p for p in self.student.parameters() if all(p is not q for q in last))
        rest += (self.token,) if self.token is not None else ()
        return [scheduled_group("network", rest, self.optim), scheduled_group("prototypes", last, self.optim)]

    def networks(self) -> dict[str, nn.Module]:
        return {"network": nn.ModuleDict({"encoder": self.best["encoder"]})}

    @property
    def best(self) -> nn.ModuleDict:
        """Whose encoder is handed on: after a short run the teacher is an average with its random start."""
        return self.teacher if float(self.start_left) < START_GONE else self.student

    def describe(self) -> dict[str, Any]:
        side = "teacher" if self.best is self.teacher else "student"
        return {"handed_on": side, "teacher_start_left": float(self.start_left)}

    def after_update(self, clock: Clock) -> None:
        momentum = self.momentum(clock)
        self.start_left.mul_(momentum)
        with torch.no_grad():
            for mine, students in zip(self.teacher.parameters(), self.student.parameters()):
                mine.mul_(momentum).add_(students, alpha=1 - momentum)

    def momentum(self, clock: Clock) -> float:
        """l."""
        return 1 - (1 - self.settings.teacher_momentum) * (math.cos(math.pi * clock.progress) + 1) / 2

    def teacher_temperature(self, clock: Clock) -> float:
        """tau_t."""
        low, high = self.settings.teacher_temperature
        return low + (high - low) * min(1.0, clock.progress / max(self.settings.temperature_warmup, 1e-9))


def draw_hidden(image: Tensor, patch_px: int, share: tuple[float, float]) -> Tensor:
    """(B, 1, Y / P, X / P) bool: True where a patch is hidden; in half of the images none is."""
    rows, columns = (side // patch_px for side in image.shape[-2:])
    low, high = share
    count = (low + (high - low) * torch.rand(len(image), device=image.device)) * rows * columns
    count = count * (torch.rand(len(image), device=image.device) < 0.5)
    order = torch.rand(len(image), rows * columns, device=image.device).argsort(1).argsort(1)
    return (order < count.round()[:, None]).view(-1, 1, rows, columns)


def answers_apart(answers: Tensor) -> float:
    """How far a batch's answers (B, K), each a distribution, tell its slices apart: 0 not at all, 1 wholly.

    The mean divergence from their mean over its largest possible value. It is 0 where all are uniform and
    where all are the same one, the two ways in which DINO collapses.
    """
    mean = answers.mean(0)
    apart = torch.special.entr(mean).sum() - torch.special.entr(answers).sum(1).mean()
    return float(apart) / math.log(min(answers.shape))


def views_matched(one: Tensor, other: Tensor) -> float:
    """Share of a batch's slices of which the answer to one view (B, K) is likest to that to the other.

    By chance 1 / B. What stays there says that slices are told apart by nothing their views share.
    """
    likeness = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return float((likeness.argmax(1) == torch.arange(len(one), device=one.device)).float().mean())


def _judge(side: nn.ModuleDict, image: Tensor) -> Tensor:
    """Scores (B, K) of a student or teacher."""
    return side["head"](pool_features(side, image)).float()


def _judge_patches(
    side: nn.ModuleDict, image: Tensor, hidden: Tensor | None, token: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scores (B, K) of images and (N, K) of their hidden patches, which a side without a token sees."""
    if hidden is None:
        return _judge(side, image), None
    encoder = side["encoder"]
    assert isinstance(encoder, VitEncoder)
    summary, patches = encoder.tokens(image, hidden, token)
    chosen, scores = patches[hidden.flatten(1)], side["head"](summary).float()
    if len(chosen) < 2:  # of which BatchNorm has no statistics
        return scores, scores[:0]
    return scores, side["head"](chosen).float()


def _small_px(own: DinoSettings, size: int) -> dict[str, int]:
    return {f"--dino.small-size {own.small_size}": own.small_px(size)} if own.small_views else {}


def _check(own: DinoSettings, network: NetworkSettings, batch_size: int, size: int) -> None:
    if own.patches and network.kind != "vit":
        raise InputError("--dino.patches: only a vision transformer has patches; take it out")


RECIPE = Recipe(
    name="dino",
    check=_check,
    build=lambda network, own, optim, size: Dino(network, settings=own, optim=optim),
    views=views,
    small_px=_small_px,
)
