"""What the loop asks of a training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import torch

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch


@dataclass(frozen=True)
class Step:
    """What one forward pass gives the loop."""

    loss: torch.Tensor
    """Scalar to differentiate."""
    logs: dict[str, float] = field(default_factory=dict)
    """Figures for the metrics file."""
    active: tuple[str, ...] | None = None
    """Parameter groups this step updates, None for all; the others get neither gradient nor decay."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay, both functions of the clock."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    rate: Callable[[Clock], float]
    decay: Callable[[Clock], float]
    network: str = "network"
    """Groups of one network have their gradients clipped together, those of different ones apart."""


class Method(nn.Module, ABC):
    """A training method. Teachers, averaged copies and centers are its submodules and buffers.

    So they are part of its state, resume with it, and DistributedDataParallel wraps it once.
    """

    rate_flags = "--optim.learning-rate"
    """What a user lowers where the loss is no number."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> Step:
        """Loss of one batch."""

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """What is optimized, and how fast."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """What a run exports: name -> network; the first is what prediction takes unless told otherwise."""

    def after_update(self, clock: Clock) -> None:
        """Called after each optimizer step (moving averages)."""

    def survey(self, clock: Clock) -> None:
        """Called after each step of a run, but not while steps are timed: rare work that leaves files."""

    def describe(self) -> dict[str, Any]:
        """What a run is to say of what was learned, beside its settings."""
        return {}

    def show(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Pictures for the run's page: name -> (B, C, Y, X); by default the views it learns from."""
        return batch.views
