"""A run's network, ready to be called with arrays, in the runtime that was measured fastest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.export import (
    can_export,
    export_onnx,
    open_onnxruntime,
    open_openvino,
    open_torch,
    time_engine,
)
from fewbeats.training.runconfig import RunConfig, restore_settings
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from torch import nn

ONNX = "network.onnx"
SIZED = ("lite0", "unet2d", "unet3d", "vit")
"""Networks whose size is in their settings, not in a library's name."""
RUNTIMES = ("torch", "onnxruntime", "openvino")
"""What may run a network; no other name in a run folder is looked for, as looking may import it."""
LABELING = ("segmentation", "localizer")
"""Tasks whose networks put labels on images."""
FINGERPRINT = {"gray_mean", "gray_spread", "spacing_mm"}  # what a scan is compared with


@dataclass(frozen=True)
class Engine:
    """A network with what it needs to be used."""

    run: Path
    settings: SegmentationSettings
    structures: tuple[str, ...]
    runtime: str
    """torch, onnxruntime or openvino."""
    call: Callable[[np.ndarray], np.ndarray]
    """(B, C, [Z,] Y, X) float32 -> logits (B, 1 + structures, [Z,] Y, X) float32."""
    config: RunConfig
    """The run's `run.json`."""


def load_engine(run: Path | str, *, runtime: str | None = None) -> Engine:
    """Open a run's network.

    Args:
        run: run folder.
        runtime: torch, onnxruntime or openvino; by default the fastest of the installed ones as measured
            when the run finished, and torch where there is a GPU.

    Raises:
        InputError: not a finished run, or one of another version.
    """
    folder = RunDir(run)
    config = folder.read_config()
    if config.task not in LABELING:
        raise InputError(f"{folder.path}: a run of {config.task} labels nothing; give one of segmentation")
    try:
        settings, structures = restore_settings(SegmentationSettings, config.settings), config.structures
    except InputError as error:
        raise InputError(f"{folder.path}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder.path}: damaged run.json; restore the run folder from a copy") from error
    known = config.fingerprint.keys()
    if not structures or (known and not known >= FINGERPRINT):
        raise InputError(f"{folder.path}: damaged run.json; restore the run folder from a copy")
    runtime = runtime or _fastest(config.engines_seconds, folder.path)
    if runtime == "torch":
        call = open_torch(_network(folder, settings, len(structures) + 1))
    else:
        _check_onnx(folder, config)
        call = _open_onnx(folder.path / ONNX, runtime)
    return Engine(folder.path, settings, structures, runtime, call, config)


def _check_onnx(folder: RunDir, config: RunConfig) -> None:
    """Refuse an ONNX file that was not written with the weights beside it.

    Raises:
        InputError: either is another than the run wrote.
    """
    file = folder.path / ONNX
    if not file.is_file():
        raise InputError(f"{file}: missing; take --runtime torch")
    wanted = config.files.get(ONNX)  # runs of before have none
    if wanted and digest_of(file) != wanted:
        raise InputError(f"{file}: is not the run's own; take --runtime torch or restore the run folder")


def digest_of(file: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _open_onnx(file: Path, runtime: str) -> Callable[[np.ndarray], np.ndarray]:
    if runtime not in RUNTIMES or find_spec(runtime) is None:
        raise InputError(f"--runtime {runtime}: not installed; install it or take --runtime torch")
    try:
        return {"openvino": open_openvino, "onnxruntime": open_onnxruntime}[runtime](file)
    except Exception as error:  # each runtime has its own
        raise InputError(f"{file}: damaged; take --runtime torch or restore the run folder") from error


def _fastest(seconds: Mapping[str, float], run: Path) -> str:
    """The installed runtime with the least measured time."""
    if not (run / ONNX).is_file() or _has_gpu():
        return "torch"
    installed = [n for n in seconds if n == "torch" or (n in RUNTIMES and find_spec(n) is not None)]
    return min(installed, key=lambda name: seconds[name], default="torch")


def _has_gpu() -> bool:
    """Without importing torch, whose import takes longer than a whole cine."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _network(folder: RunDir, settings: SegmentationSettings, classes: int) -> nn.Module:
    import torch

    from fewbeats.models.network import build_network, set_deep_supervision
    from fewbeats.models.weights import read_weights

    weights = read_weights(folder.weights())
    misfit = InputError(f"{folder.path}: its weights do not fit its settings; restore the run folder")
    if settings.network.kind in SIZED:
        with torch.device("meta"):  # takes no memory, whatever size the settings claim
            claimed = build_network(settings.network, classes=classes).state_dict()
        if {n: v.shape for n, v in claimed.items()} != {n: v.shape for n, v in weights.items()}:
            raise misfit
    network = build_network(settings.network, classes=classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise misfit from error
    set_deep_supervision(network, False)
    return network.eval()


def export_network(run: Path, network: nn.Module, settings: SegmentationSettings) -> dict[str, float]:
    """Write the network as ONNX beside its weights, where the packages for it are installed.

    Returns:
        runtime -> least seconds of one batch of 8 on this machine's CPU.
    """
    side, batch = settings.preprocess.size, 8
    shape: tuple[int, ...] = (batch, settings.network.in_channels, side, side)
    if settings.network.dims == 3:
        batch = 2
        shape = (batch, 1, settings.slab_slices, side, side)
    seconds = {"torch": time_engine(open_torch(network), shape)}
    if can_export() and settings.network.dims == 2:
        export_onnx(network, run / ONNX, example_shape=shape)
        for name, opened in (("onnxruntime", open_onnxruntime), ("openvino", open_openvino)):
            if find_spec(name) is not None:
                seconds[name] = time_engine(opened(run / ONNX), shape)
    return seconds
