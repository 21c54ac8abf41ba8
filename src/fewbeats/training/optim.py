"""Optimizer and schedules: rates are functions of progress, set before each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fewbeats.training.method import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    encoder_rate_factor: float = 1.0
    """The encoder's learning rate as a share of the peak (below 1 spares pretrained weights)."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    final_rate: float = 0.01
    """Rate at the end as a share of the peak."""


def warmup_cosine(peak: float, *, warmup: float, final: float) -> Callable[[float], float]:
    """Learning rate as a function of progress: linear from `final` to 1, then cosine down to `final`."""

    def rate(progress: float) -> float:
        if progress < warmup:
            return peak * (final + (1 - final) * progress / warmup)
        done = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

    return rate


def scheduled_group(
    name: str, parameters: Iterable[nn.Parameter], optim: OptimSettings, *, factor: float = 1.0
) -> ParameterGroup:
    """Parameters that follow the schedule, their peak rate multiplied by `factor`."""
    from fewbeats.training.method import ParameterGroup

    rate = warmup_cosine(optim.learning_rate * factor, warmup=optim.warmup, final=optim.final_rate)
    return ParameterGroup(name, tuple(parameters), rate, lambda _: optim.weight_decay)


def one_group(module: nn.Module, optim: OptimSettings) -> list[ParameterGroup]:
    """All trainable parameters of a module under the name "network"."""
    return [scheduled_group("network", (p for p in module.parameters() if p.requires_grad), optim)]


def build_optimizer(groups: list[ParameterGroup]) -> torch.optim.AdamW:
    """AdamW over named groups; rates and decays are set by `set_rates`."""
    import torch

    return torch.optim.AdamW(
        [{"params": list(g.parameters), "name": g.name, "lr": 0.0, "weight_decay": 0.0} for g in groups]
    )


def set_rates(optimizer: torch.optim.Optimizer, groups: list[ParameterGroup], progress: float) -> None:
    """Set each group's rate and decay for this progress."""
    for state, group in zip(optimizer.param_groups, groups, strict=True):
        state["lr"] = group.rate(progress)
        state["weight_decay"] = group.decay(progress)
