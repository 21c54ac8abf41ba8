"""What a network starts from, and what those weights have seen."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.training.optim import PRETRAINED_RATE
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.finetuning.segmentation import SegmentationSettings
    from fewbeats.models.network import NetworkSettings

FRESH_RATE = 1e-2
STARTS = ("scratch", "natural")
"""Starts that no run made; anything else is a run folder or a .safetensors file."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a network starts from."""

    init: str = "natural"
    """scratch, natural, a run folder, or a .safetensors file."""
    encoder_only: bool = False
    """Of a run or file, leave all but the encoder at its random start."""

    def build(
        self, settings: NetworkSettings, classes: int, *, seed: int, label: str = "training"
    ) -> nn.Module:
        """A network with this start; see `start_network`."""
        return start_network(
            settings, classes, self.init, seed=seed, label=label, encoder_only=self.encoder_only
        )


def default_start(settings: NetworkSettings) -> str:
    """What a network starts from where nobody says it: photographs where it can take their weights."""
    return "natural" if settings.kind == "lite0" else "scratch"


def rate_of_start(settings: NetworkSettings, init: str) -> tuple[float, str]:
    """The peak learning rate that a start wants, and why (measured on ACDC, docs/pretraining.md).

    Args:
        settings: of the network.
        init: scratch, natural, a run folder, or a .safetensors file.
    """
    if settings.kind != "lite0":
        return PRETRAINED_RATE, f"the default of '{settings.kind}'"
    if init == "natural":
        return PRETRAINED_RATE, "the start is of photographs"
    if init == "scratch":
        return FRESH_RATE, "the start is random"
    config = Path(init) / "run.json"
    if config.is_file() and (task := RunDir(init).read_config().task) != "pretraining":
        return PRETRAINED_RATE, f"the start is a network of {task}"
    return FRESH_RATE, "the start is an encoder alone"


def settle_rate(
    model: SegmentationSettings, init: str, *, tell: Callable[[str], None] = lambda said: None
) -> SegmentationSettings:
    """Settings with the learning rate that the start wants, where none was given."""
    if model.optim.learning_rate is not None:
        return model
    rate, why = rate_of_start(model.network, init)
    tell(f"learning rate {rate:g}, as {why}; --optim.learning-rate sets another")
    return replace(model, optim=replace(model.optim, learning_rate=rate))


def find_ancestors(init: str, *, localizer: Path | None = None) -> list[Provenance]:
    """What a start and a localizer that is taken over have seen.

    Raises:
        InputError: of a run, its provenance is missing or damaged; or the run has no localizer.
    """
    from fewbeats.data.provenance import load_provenance

    found = [] if init in STARTS else [trace_weights(Path(init))]
    return [*found, *([load_provenance(find_localizer(localizer))] if localizer else [])]


def start_network(
    settings: NetworkSettings,
    classes: int,
    init: str,
    *,
    seed: int,
    label: str = "training",
    encoder_only: bool = False,
) -> nn.Module:
    """A network with the wanted start; says what was loaded.

    Args:
        settings: kind and size.
        classes: background included.
        init: scratch, natural, a run folder, or a .safetensors file.
        seed: of the random start.
        label: what it is started for.
        encoder_only: of a run or file, leave all but the encoder at its random start.

    Raises:
        InputError: the weights do not exist or do not fit.
    """
    import torch

    from fewbeats.models.network import build_network

    torch.manual_seed(seed)
    network = build_network(settings, classes=classes)
    print(f"{label}: {_load_start(network, settings, init, encoder_only)}")
    return network


def _load_start(network: nn.Module, settings: NetworkSettings, init: str, encoder_only: bool) -> str:
    from fewbeats.models.pretrained2d import load_natural
    from fewbeats.models.weights import read_weights, transfer_weights

    if init == "scratch":
        return "random start"
    if init == "natural":
        return f"encoder from {load_natural(network, settings)}"
    path = Path(init)
    if path.is_dir():
        _check_heads(RunDir(path).read_config().network_settings or {}, settings, init)
        path = RunDir(path).weights()
    taken = transfer_weights(network, read_weights(path), source=init, encoder_only=encoder_only)
    return f"from {init}: {taken}"


def _check_heads(there: Mapping[str, Any], here: NetworkSettings, init: str) -> None:
    """Refuse a transformer of other heads: every tensor of it would fit, and mean something else."""
    heads = there.get("vit_heads", here.vit_heads)
    if here.kind == there.get("kind") == "vit" and heads != here.vit_heads:
        raise InputError(
            f"{init}: made with {heads} attention heads, the network has {here.vit_heads}; give "
            f"--network.vit-heads {heads}"
        )


def trace_weights(init: Path) -> Provenance:
    """What initial weights have seen; a file that no run of ours made is noted as of unknown origin.

    Raises:
        InputError: weights of a run without its `provenance.json`.
    """
    from fewbeats.data.provenance import FILE_NAME, Provenance, load_provenance
    from fewbeats.models.weights import is_of_run

    folder = init if init.is_dir() else init.parent
    if init.is_dir() or (folder / FILE_NAME).is_file() or is_of_run(init):
        return load_provenance(folder)
    return Provenance(run=f"{init.name} (of unknown origin)")


def start_digest(init: str) -> str:
    """What a start is, wherever it lies: its name, or the content of its weights.

    Raises:
        InputError: there are no such weights.
    """
    return init if init in STARTS else weights_digest(Path(init))


def weights_digest(source: Path) -> str:
    """Content of a run's or a file's weights, by which a start is known wherever it lies.

    Raises:
        InputError: there is no such file.
    """
    import hashlib

    file = RunDir(source).weights() if source.is_dir() else source
    if not file.is_file():
        raise InputError(f"{file}: no such weights file; give a run folder or a .safetensors file")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def find_localizer(run: Path) -> Path:
    """Folder of a run's localizer.

    Raises:
        InputError: no finished run with one.
    """
    folder = run / "localizer"
    RunDir(run).read_config()
    if not (folder / "run.json").is_file():
        raise InputError(f"{run}: has no localizer (trained with --localizer-steps 0); name another run")
    return folder


def copy_localizer(source: Path, run: RunDir) -> None:
    """Take over another run's localizer, whole or not at all; a run folder is all that prediction needs."""
    from accelerate import PartialState

    whole = run.path / "localizer"
    if PartialState().is_main_process and not whole.is_dir():
        with atomic_path(whole) as partial:
            shutil.copytree(find_localizer(source), partial)
