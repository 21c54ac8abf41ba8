"""Weights on disk (safetensors, never pickle) and from one network into another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.disk import write_tensors
from fewbeats.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

BLOCK = "encoder.model.blocks."  # before the number of a transformer's block
MAKER = "fewbeats"  # key in the metadata of weights that a run has exported


def save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors; the caller makes the write atomic."""
    write_tensors(state, path, {MAKER: "weights of a run; keep its provenance.json beside them"})


def is_of_run(path: Path) -> bool:
    """Whether a safetensors file was written by `save_weights`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return MAKER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # `read_weights` says what is wrong with it


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: missing, damaged, or another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weights file; give a run folder or a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file; export the weights again") from error


@dataclass(frozen=True)
class Transfer:
    """What moved from one network into another."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Weights of the new network that kept their start."""
    unused: tuple[str, ...]
    """Weights of the old one that fit nowhere."""

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} left at their start"
            f"{_first(self.missing)}, {len(self.unused)} unused{_first(self.unused)}"
        )


def _first(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def transfer_weights(
    network: nn.Module, state: dict[str, torch.Tensor], *, source: Path | str, encoder_only: bool = False
) -> Transfer:
    """Load every tensor whose name and shape fit.

    Kernels over colors are fitted to a gray image; what belongs to an encoder goes behind a learned stem.

    Args:
        network: the new network, changed in place.
        state: weights of the old one.
        source: named in the error.
        encoder_only: leave the decoder at its start.

    Raises:
        InputError: nothing of the encoder fits, or it is a transformer of another size.
    """
    own = network.state_dict()
    state = _as_named(state, own)
    _check_transformer(state, own, source=source)
    fits = {
        name: value
        for name, value in state.items()
        if name in own
        and own[name].shape == value.shape
        and (not encoder_only or name.startswith("encoder."))
    }
    # Vectors and counters may fit by chance; kernels do not. Some networks have no part of that name.
    part = "encoder." if any(name.startswith("encoder.") for name in own) else ""
    if not any(name.startswith(part) and value.ndim > 1 for name, value in fits.items()):
        raise InputError(
            f"{source}: weights of another architecture: none fits; choose the same --network.kind, and of "
            "it the same size"
        )
    network.load_state_dict(fits, strict=False)
    named: dict[int, str] = {}  # a plain U-Net's decoder names the encoder's tensors once more
    for name, value in own.items():
        named.setdefault(value.data_ptr(), name)
    return Transfer(
        loaded=tuple(name for name in named.values() if name in fits),
        missing=tuple(name for name in named.values() if name not in fits),
        unused=tuple(n for n in state if n not in fits and (n not in own or n in named.values())),
    )


def _check_transformer(
    state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], *, source: Path | str
) -> None:
    """Refuse a transformer of another size: some of its layers would fit, and the others stay random."""
    name = "encoder.model.patch_embed.proj.weight"
    if name not in state or name not in own:
        return
    for what, flag, told in (
        ("patches of {} pixels", "patch-px", lambda of: of[name].shape[-1]),
        ("tokens of {} numbers", "width", lambda of: of[name].shape[0]),
        ("{} blocks", "depth", lambda of: len({n.split(".")[3] for n in of if BLOCK in n})),
    ):
        if (there := told(state)) != (here := told(own)):
            raise InputError(
                f"{source}: made of {what.format(there)}, the network has {here}; give "
                f"--network.vit-{flag} {there}"
            )


def _as_named(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names, and for the input channels, of a network whose state is `own`."""
    behind_stem = "encoder.stem.weight" in own and "encoder.stem.weight" not in state
    renamed = {
        name.replace("encoder.", "encoder.body.", 1) if behind_stem else name: value
        for name, value in state.items()
    }
    return {
        name: fit_channels(value, own[name].shape[1]) if _is_of_colors(value, own.get(name)) else value
        for name, value in renamed.items()
    }


def _is_of_colors(value: torch.Tensor, own: torch.Tensor | None) -> bool:
    """Whether a 2D kernel is of three colors, where the network has another number of channels."""
    if own is None or value.ndim != 4 or own.ndim != 4:
        return False
    others = (value.shape[0], *value.shape[2:]) == (own.shape[0], *own.shape[2:])
    return others and value.shape[1] == 3 and own.shape[1] != 3


def fit_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """First convolution for another number of input channels; the response to a gray image is kept."""
    if weight.shape[1] == channels:
        return weight
    return weight.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
