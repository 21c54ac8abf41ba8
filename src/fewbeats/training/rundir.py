"""One run, one folder: settings, versions, provenance, metrics, weights. Nothing else is needed to predict.

run/
  run.json            format, task, resolved settings, versions, git commit, seed, structures
  provenance.json     content hashes of every image seen (by this run and its ancestors)
  metrics.jsonl       one line per logged step
  network.safetensors the exported weights (and network.onnx for fast CPU prediction)
  checkpoint/         what resuming needs; removed when training is complete
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fewbeats.disk import atomic_path, name_disk_trouble
from fewbeats.errors import InputError
from fewbeats.training.runconfig import FORMATS, RunConfig, read_config

VERSIONED = ("fewbeats", "torch", "timm", "segmentation-models-pytorch", "numpy")


SHIPPED = Path(__file__).parents[1] / "shipped"
"""Runs that come with the package, by name: `synthetic`, which `benchmarks/synthetic.py` makes."""


def shipped_run(name: Path | str) -> Path | None:
    """The run folder of that name that comes with the package."""
    folder = SHIPPED / name
    return folder if (folder / "run.json").is_file() else None


def find_run(run: Path | str) -> Path:
    """A run folder, or the one of that name that comes with the package, where there is none here."""
    return Path(run) if Path(run).exists() else shipped_run(run) or Path(run)


class RunDir:
    """A run's folder and the files in it."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint"

    def weights(self, name: str = "network") -> Path:
        """Exported weights of one network."""
        return self.path / f"{name}.safetensors"

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file so that it is there whole or not at all."""
        with atomic_path(self.path / name) as partial:
            partial.write_text(json.dumps(_plain(content), indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the run's JSON files.

        Raises:
            InputError: not a run folder, an unfinished one, or damaged.
        """
        file = self.path / name
        if not file.is_file():
            raise InputError(
                f"{self.path}: not a finished run folder ({name} is missing); give the --out of a run"
            )
        try:
            content = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise damaged(file) from error
        if not isinstance(content, dict):
            raise damaged(file)
        return content

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `run.json`: the given settings, what identifies this software, and what `RunConfig` names."""
        content = _as_json({"format": FORMATS[-1], **identity(), **config})
        read_config(content, file=self.path / "run.json")
        self.write_json("run.json", content)

    def read_config(self) -> RunConfig:
        """Read `run.json`.

        Raises:
            InputError: the folder is no finished run, is damaged, or of another format.
        """
        return read_config(self.read_json("run.json"), file=self.path / "run.json")

    def is_finished(self, request: Mapping[str, Any], *, weights: bool = True) -> bool:
        """Whether the folder holds the finished run of this request; nothing is written.

        What a run of an earlier version did not note in its request is not compared.

        Args:
            request: what decides the outcome.
            weights: whether such a run has weights of its own.

        Raises:
            InputError: the folder holds a run of other settings or data, or one that lost its weights.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; choose a folder for --out")
        if not (self.path / "request.json").is_file():
            return False
        earlier, wanted = self.read_json("request.json"), _as_json(request)
        if other := [name for name, value in wanted.items() if earlier.get(name, value) != value]:
            raise InputError(
                f"{self.path}: holds a run of other {', '.join(other)}; choose another --out or delete it"
            )
        finished = (self.path / "run.json").is_file()
        if finished and weights and not self.weights().is_file():
            raise damaged(self.weights())
        return finished

    def claim(self, request: Mapping[str, Any]) -> None:
        """Make the folder this request's own, to be resumed by the same alone.

        Raises:
            InputError: see `is_finished`.
        """
        self.is_finished(request, weights=False)
        self.write_json("request.json", _as_json(request))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to the metrics."""
        with name_disk_trouble(self.path), self.metrics.open("a") as file:
            file.write(json.dumps(_plain(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole lines written so far; a killed process may leave half of one.

        Raises:
            InputError: a line is none that was written here.
        """
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("}")]
        except json.JSONDecodeError as error:
            raise damaged(self.metrics) from error

    def trained_seconds(self) -> float:
        """What the steps logged so far took, s."""
        total, last = 0.0, 0
        for row in self.read_metrics():
            if "step_seconds" in row:
                total += row["step_seconds"] * (row["step"] - last)
                last = row["step"]
        return total

    def network_seconds(self) -> float:
        """What of them was spent in the networks, not in waiting for data, s."""
        total, last = 0.0, 0
        for row in self.read_metrics():
            if "step_seconds" in row:
                total += row["step_seconds"] * (1 - row.get("data_share", 0.0)) * (row["step"] - last)
                last = row["step"]
        return total

    def cut_metrics(self, step: int) -> None:
        """Drop lines after `step`, which a killed run wrote beyond its last checkpoint."""
        if self.metrics.is_file():
            kept = [json.dumps(row) + "\n" for row in self.read_metrics() if row.get("step", 0) <= step]
            with atomic_path(self.metrics) as partial:
                partial.write_text("".join(kept))

    def drop_checkpoint(self) -> None:
        """Remove what only resuming needs."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)


def damaged(file: Path) -> InputError:
    """What to say of a file of a run that is not as it was written."""
    return InputError(
        f"{file}: missing or damaged; restore it from a copy, or delete the folder and train again"
    )


def identity() -> dict[str, Any]:
    """Versions, commit and machine."""
    return {
        "versions": {name: _version(name) for name in VERSIONED} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "machine": f"{platform.machine()}, {platform.system()}",
    }


def machine() -> str:
    """Cores and processor, and the GPU where there is one."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    here = f"{len(models)} cores, {models[0]}" if models else platform.processor()
    return f"{here}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else here


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout this package lies in, None when it was installed."""
    here = Path(__file__).resolve().parent
    answer = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(_plain(content)))


def _plain(value: Any) -> Any:
    """Dataclasses, paths, tuples and numpy scalars -> JSON's own types."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
