"""Networks as ONNX, for the runtimes that are fastest on a CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.disk import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def can_export() -> bool:
    """Whether the optional packages for writing ONNX are there."""
    return find_spec("onnx") is not None and find_spec("onnxscript") is not None


def export_onnx(network: nn.Module, path: Path, *, example_shape: tuple[int, ...]) -> None:
    """Write a network as ONNX with a free batch size; appears under its name only when whole.

    Args:
        network: in evaluation mode, on any device; moved to the CPU.
        path: `.onnx`.
        example_shape: (B, C, [Z,] Y, X) with B of 2 or more.
    """
    import torch

    network = network.cpu().eval()
    example = torch.zeros(example_shape)
    with (
        atomic_path(path) as partial,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        _quiet_logs(),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(partial),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
        )


@contextlib.contextmanager
def _quiet_logs():
    """The exporter narrates its optimizations; errors still pass."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@lru_cache(maxsize=1)
def _openvino_core() -> Any:
    """One for the process: where the last one goes and unloads its plugin, the next signal is fatal."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its import would call home
    import openvino

    return openvino.Core()


def open_openvino(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Run an ONNX file with OpenVINO on the CPU."""
    core = _openvino_core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda batch: request.infer({0: batch}, share_inputs=True)[0]


def open_onnxruntime(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Run an ONNX file with onnxruntime on the CPU."""
    return call_session(open_session(path))


def call_session(session: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The first output of an onnxruntime session for its one input."""
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it looks for a host and lists devices at home
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_torch(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Run a network with torch, on a GPU where there is one."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval()

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy(batch).to(device)
            if image.ndim == 4:
                image = image.contiguous(memory_format=torch.channels_last)
            return network(image).float().cpu().numpy()

    return run


def time_engine(
    engine: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], *, runs: int = 7
) -> float:
    """Least seconds of one batch, which a busy machine disturbs least, after one that is not counted."""
    batch = np.zeros(shape, np.float32)
    engine(batch)
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        engine(batch)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
