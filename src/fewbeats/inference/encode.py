"""Embeddings of slices by the encoder of any run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.errors import InputError
from fewbeats.inference.asked import Asked, open_once
from fewbeats.inference.engine import digest_of
from fewbeats.models.network import NetworkSettings
from fewbeats.training.runconfig import RunConfig, restore_settings
from fewbeats.training.rundir import RunDir, damaged
from fewbeats.transforms.inputs import cut_inputs
from fewbeats.transforms.preprocess import PreprocessSettings, prepare_frame

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.scan import Scan


def open_encoder(run: Path) -> Encoder:
    """The encoder of a run of whatever task.

    Raises:
        InputError: not a finished run, or one without a 2D encoder.
    """
    from fewbeats.data.provenance import load_provenance

    config = RunDir(run).read_config()
    if not (weights := RunDir(run).weights()).is_file():
        raise damaged(weights)
    told: Mapping[str, Any] = config.settings or config.record
    try:
        network = restore_settings(NetworkSettings, dict(config.network_settings or {}))
        grid = restore_settings(PreprocessSettings, dict(told["preprocess"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}: a run of {config.task} has no encoder; name another") from error
    if network.dims != 2:
        raise InputError(f"{run}: its network is 3D; slices are encoded by 2D ones")
    return Encoder(run, network, grid, config, load_provenance(run))


@dataclass(frozen=True)
class Encoder:
    """A run's encoder; loaded where it is first asked, in whatever process that is."""

    run: Path
    network: NetworkSettings
    grid: PreprocessSettings
    config: RunConfig
    provenance: Provenance

    @cached_property
    def key(self) -> str:
        """Digest of all that decides its embeddings."""
        weights = digest_of(RunDir(self.run).weights())
        return hashlib.sha256(repr((weights, self.network, self.grid)).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """What is noted beside its embeddings."""
        return {
            **self.config.origin,
            "task": "encoding",
            "model": self.run,
            "network": self.network,
            "preprocess": self.grid,
        }

    def encode(self, scan: Scan) -> Iterator[tuple[int, np.ndarray]]:
        """Number and embeddings (Z, D) float32 of each frame.

        The field of view is centered on the image. A transformer gives its [CLS] token, a convolutional
        encoder the mean of its last map.

        Raises:
            InputError: a frame cannot be read, or is empty; or weights that do not fit.
        """
        from fewbeats.models.heads import pool_features

        network = _open(self)
        for t in range(scan.shape[0]):
            image, _ = prepare_frame(
                scan.shown(t), scan.spacing_mm, self.grid, modality=scan.modality or "MR"
            )
            slices = cut_inputs(image, dims=2, context=self.network.context, multiple=1)
            yield t, network(slices, call=partial(pool_features, network.network))


def _open(encoder: Encoder) -> Asked:
    def build() -> nn.Module:
        import torch

        from fewbeats.models.network import build_network
        from fewbeats.models.weights import read_weights, transfer_weights

        network = build_network(encoder.network, classes=2)
        state = read_weights(RunDir(encoder.run).weights())
        taken = transfer_weights(network, state, source=encoder.run, encoder_only=True)
        if left := [name for name in taken.missing if name.startswith("encoder.")]:
            raise InputError(f"{encoder.run}: its weights lack {left[0]}; restore the run folder")
        return network.to(memory_format=torch.channels_last)

    return open_once(encoder.key, build)
