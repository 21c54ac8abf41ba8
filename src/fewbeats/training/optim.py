"""Optimizer and schedules: rates are functions of the clock, set before each step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewbeats.errors import InputError
from fewbeats.ranges import check_ranges, later
from fewbeats.training.precision import Precision

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fewbeats.clock import Clock
    from fewbeats.training.method import Method, ParameterGroup

PRETRAINED_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW or SGD, with linear warm-up and decay."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """sgd: with Nesterov momentum."""
    momentum: float = later(0.99)
    """Of sgd; 0.99 as in nnU-Net."""
    learning_rate: float | None = None
    """Peak learning rate; by default 1e-3, or what the start of a fine-tuning wants."""
    encoder_rate_factor: float = 1.0
    """The encoder's learning rate as a share of the peak (below 1 spares pretrained weights)."""
    layer_decay: float = 1.0
    """Rate of an encoder's stage as a share of the next one's (below 1, first stages change least)."""
    decay: Literal["cosine", "poly"] = "cosine"
    """How the rate falls: by a cosine, or as (1 - progress)^0.9."""
    weight_decay: float = 0.01
    """Weight decay: decoupled with adamw, part of the gradient with sgd."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    final_rate: float = 0.01
    """Rate at the end as a share of the peak."""
    clip_norm: float = later(5.0)
    """Largest norm of a network's gradient; 0 for none."""
    precision: Precision = "auto"
    """auto: bf16 where the GPU or CPU computes it natively, else full."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "optim.",
            positive=("layer_decay", *(() if self.learning_rate is None else ("learning_rate",))),
            not_negative=("encoder_rate_factor", "weight_decay", "clip_norm"),
            shares=("momentum", "warmup", "final_rate"),
        )

    @property
    def peak(self) -> float:
        """`learning_rate`, or where none was given that of pretrained weights."""
        return PRETRAINED_RATE if self.learning_rate is None else self.learning_rate


def warmup_decay(
    peak: float, *, warmup: float, final: float, decay: str = "cosine"
) -> Callable[[Clock], float]:
    """Learning rate over the run: linear from `final` to 1 times `peak`, then down to `final`."""

    def rate(clock: Clock) -> float:
        progress = clock.progress
        if progress < warmup:
            return peak * (final + (1 - final) * progress / warmup)
        done = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
        left = 0.5 * (1 + math.cos(math.pi * done)) if decay == "cosine" else (1 - done) ** 0.9
        return peak * (final + (1 - final) * left)

    return rate


def scheduled_group(
    name: str, parameters: Iterable[nn.Parameter], optim: OptimSettings, *, factor: float = 1.0
) -> ParameterGroup:
    """Parameters that follow the schedule, their peak rate multiplied by `factor`."""
    from fewbeats.training.method import ParameterGroup

    peak = optim.peak * factor
    rate = warmup_decay(peak, warmup=optim.warmup, final=optim.final_rate, decay=optim.decay)
    return ParameterGroup(name, tuple(parameters), rate, lambda _: optim.weight_decay)


def one_group(module: nn.Module, optim: OptimSettings) -> list[ParameterGroup]:
    """All trainable parameters of a module under the name "network"."""
    return [scheduled_group("network", (p for p in module.parameters() if p.requires_grad), optim)]


def encoder_groups(network: nn.Module, optim: OptimSettings) -> list[ParameterGroup]:
    """The encoder's parameters, in one group or, with layer decay, in one a stage from the input on.

    Raises:
        InputError: layer decay for an encoder whose stages have no numbers in their names.
    """
    stages: dict[int, list[nn.Parameter]] = {}
    named = [(n, p) for n, p in network.named_parameters() if n.startswith("encoder.")]
    numbers = [_stage(name) if optim.layer_decay != 1 else 0 for name, _ in named]
    if optim.layer_decay != 1 and named and len(set(numbers)) < 3:
        raise InputError("--optim.layer-decay: the order of this encoder's layers is not known; take it out")
    top = max(numbers, default=0)
    for number, (_, parameter) in zip(numbers, named):
        stages.setdefault(top if number < 0 else number, []).append(parameter)
    return [
        scheduled_group(
            f"encoder{number}" if len(stages) > 1 else "encoder",
            stages[number],
            optim,
            factor=optim.encoder_rate_factor * optim.layer_decay ** (top - number),
        )
        for number in sorted(stages)
    ]


def _stage(name: str) -> int:
    """A parameter's stage from its name: 0 for what stands before the first, -1 for what follows the last."""
    found = re.search(r"[._](?:(?:dense)?blocks?|stages?|layers?|s)[._]?(\d+)", name)
    if found:
        return int(found[1]) + 1
    return -1 if ".norm." in name else 0


def build_optimizer(groups: list[ParameterGroup], optim: OptimSettings) -> torch.optim.Optimizer:
    """An optimizer over named groups; rates and decays are set by `set_rates`."""
    import torch

    named = [{"params": list(g.parameters), "name": g.name, "lr": 0.0, "weight_decay": 0.0} for g in groups]
    if optim.kind == "sgd":
        return torch.optim.SGD(named, momentum=optim.momentum, nesterov=optim.momentum > 0)
    return torch.optim.AdamW(named)


def gather_networks(method: Method) -> dict[str, list[nn.Parameter]]:
    """Network -> all its parameters that are optimized, whose gradient has one norm."""
    network = {id(p): group.network for group in method.parameter_groups() for p in group.parameters}
    found: dict[str, list[nn.Parameter]] = {}
    for parameter in method.parameters():
        if id(parameter) in network:
            found.setdefault(network[id(parameter)], []).append(parameter)
    return found


def set_rates(optimizer: torch.optim.Optimizer, groups: list[ParameterGroup], clock: Clock) -> None:
    """Set each group's rate and decay for this step."""
    for state, group in zip(optimizer.param_groups, groups, strict=True):
        state["lr"] = group.rate(clock)
        state["weight_decay"] = group.decay(clock)
