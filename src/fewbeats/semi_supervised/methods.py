"""What a semi-supervised method says of itself, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbeats.clock import Clock
    from fewbeats.models.network import NetworkSettings
    from fewbeats.sample import Batch
    from fewbeats.training.method import Method
    from fewbeats.training.optim import OptimSettings


SEEN = 0.99  # sum of a teacher's probabilities that followed a view: below, the pixel lies partly outside


def half_of_them(clock: Clock, own: Any, size: int) -> int:
    """As many labeled items as unlabeled ones."""
    return size - size // 2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method as a training takes it; `own` are its settings (`settings.py`)."""

    name: str
    views: Callable[..., Batch]
    """(batch, generator, *, settings, own) -> the batch with the views it wants, cut to size."""
    build: Callable[[nn.Module, Any, OptimSettings, float], Method] | None = None
    """(network, own, optim, decay of its moving average) -> the method; None where it takes two networks."""
    labels: Callable[[Clock, Any, int], int] = half_of_them
    """(clock, own, items) -> how many items of a step's batch are labeled."""
    longer: str
    """Flag that lets it learn from labels alone for longer."""
    judges_all: bool = False
    """Its losses judge every class in every voxel, so all labels must speak of all structures."""
    check: Callable[[Any, NetworkSettings], None] = lambda own, network: None
    """(own, network) -> raises InputError where they do not fit."""


def labels_first(clock: Clock, own: Any, size: int) -> int:
    """All items of a batch in the first share `own.pretraining` of the run, then half of them."""
    return size if clock.progress < own.pretraining else size - size // 2


def tell_pseudo(labels: Tensor, *, of: str = "") -> dict[str, float]:
    """Figures of a step's pseudo-labels, class indices: share of foreground, and of the class with most.

    Args:
        labels: class indices.
        of: ending of the figures' names, where several networks label.
    """
    shares = labels.flatten().bincount().float() / labels.numel()
    return {f"pseudo_foreground{of}": float(1 - shares[0]), f"pseudo_largest{of}": float(shares.max())}


METHODS = {"mn": "co_training", "mean-teacher": "mean_teacher", "bcp": "bcp", "unimatch": "unimatch"}
"""Name -> its file, which ends with its `RECIPE`; `mn` has two networks and a recipe of its own."""


def part_of(method: str) -> str:
    """Name of a method's settings among a command's fields."""
    return method.replace("-", "_")


def find_recipe(method: str) -> Recipe:
    """The recipe of a method in `METHODS`."""
    return import_module(f"fewbeats.semi_supervised.{METHODS[method]}").RECIPE
