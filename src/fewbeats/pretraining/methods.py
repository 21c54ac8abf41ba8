"""What a pretraining method says of itself, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.models.network import NetworkSettings
    from fewbeats.sample import Batch
    from fewbeats.training.method import Method
    from fewbeats.training.optim import OptimSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method as a training takes it; `own` are its settings (`settings.py`)."""

    name: str
    build: Callable[[nn.Module, Any, OptimSettings, int], Method]
    """(network, own, optim, side of a view in pixels) -> the method."""
    views: Callable[..., Batch]
    """(batch, generator, *, settings, own) -> the batch with the views it wants."""
    check: Callable[[Any, NetworkSettings, int, int], None] = lambda own, network, batch_size, size: None
    """(own, network, batch size, side of a view) -> raises InputError where they do not fit."""
    small_px: Callable[[Any, int], Mapping[str, int]] = lambda own, size: {}
    """(own, side of a view) -> the setting that makes smaller views, and their side."""
    outputs: Callable[[Any, NetworkSettings], int] = lambda own, network: network.in_channels
    """(own, network) -> channels of the whole network's output, where the method looks at it."""
    positioned: bool = False
    """It looks at the heights of slices in their stack."""


FILES = ("simclr", "pcl", "dino", "mim", "simmim", "pix2rep")
"""A file of `pretraining/` each, which ends with its `RECIPE`; `mim` on a transformer is `simmim`."""


def file_of(method: str, network: NetworkSettings) -> str:
    """The file of a method: masked images are another matter for a transformer."""
    return "simmim" if (method, network.kind) == ("mim", "vit") else method


def find_recipe(file: str) -> Recipe:
    """The recipe of a file in `FILES`."""
    return import_module(f"fewbeats.pretraining.{file}").RECIPE


def refuse_twin(settings: Any, file: str, *, kind: str) -> None:
    """Refuse settings of the mim that the network does not learn by.

    Args:
        settings: has the settings of each file under its name.
        file: the one that is taken.
        kind: of the network.

    Raises:
        InputError: naming both.
    """
    twin = {"mim": "simmim", "simmim": "mim"}.get(file)
    if twin and getattr(settings, twin) != type(getattr(settings, twin))():
        raise InputError(f"--{twin}: with --network.kind {kind} mim looks at --{file} instead")
