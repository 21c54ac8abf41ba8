"""Checkpoints: one safetensors file with everything resuming needs, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.disk import atomic_path, write_tensors
from fewbeats.errors import InputError

if TYPE_CHECKING:
    import torch

    from fewbeats.training.method import Method

STATE, BEST = "state.safetensors", "best.safetensors"


def write_checkpoint(
    folder: Path, method: Method, optimizer: torch.optim.Optimizer, *, state: dict[str, Any]
) -> None:
    """Write method, optimizer and where the run stands; the old checkpoint stays until the new one is whole.

    Raises:
        InputError: the disk is full.
    """
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    for index, parameter_state in optimizer.state_dict()["state"].items():
        for name, value in parameter_state.items():
            tensors[f"optimizer.{index}.{name}"] = value
    _write(folder / STATE, tensors, state)


def read_checkpoint(folder: Path, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put a checkpoint back into method and optimizer; returns where the run stood, None without one.

    Raises:
        InputError: the checkpoint is of other settings.
    """
    file = folder / STATE
    if not file.is_file():
        return None
    tensors, state = _read(file)
    own = {n.removeprefix("method."): v for n, v in tensors.items() if n.startswith("method.")}
    try:
        method.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(
            f"{folder.parent}: its checkpoint is of other settings; choose another --out"
        ) from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    import torch

    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            parameter = parameters[int(index)]
            like = torch.empty_like(parameter) if value.shape == parameter.shape and value.ndim else value
            optimizer.state[parameter][field] = like.copy_(value) if like is not value else value
    return state


def write_best(folder: Path, method: Method) -> None:
    """Remember the method as it is now as the best so far."""
    _write(folder / BEST, dict(method.state_dict()), {})


def read_best(folder: Path, method: Method) -> None:
    """Put the best state back into the method."""
    if (folder / BEST).is_file():
        method.load_state_dict(_read(folder / BEST)[0])


def _write(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        write_tensors(tensors, partial, {"state": json.dumps(state)})


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged checkpoint; delete it to start the run again") from error
