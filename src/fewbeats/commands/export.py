"""Hand a run's weights to other software."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fewbeats.errors import InputError
from fewbeats.training.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run's network as pretrained weights for nnU-Net v2, and the architecture they belong to."""

    model: tyro.conf.Positional[Path]
    """Run folder of `fewbeats pretrain` or `fewbeats finetune` with a plain U-Net."""
    to: Literal["nnunet"]
    """For which software."""
    out: Path
    """File to write, .pth; beside it goes .json with the architecture for nnU-Net's plans."""

    def run(self) -> Path:
        """Write both files; returns the weights' path.

        Raises:
            InputError: no finished run, or a network that nnU-Net does not have.
        """
        import torch

        from fewbeats.disk import atomic_path
        from fewbeats.models.network import (
            NAMED_BY_IMPORT,
            NetworkSettings,
            build_network,
            plain_unet_plan,
        )
        from fewbeats.models.weights import read_weights, transfer_weights
        from fewbeats.training.runconfig import restore_settings

        if self.out.suffix != ".pth":
            raise InputError(f"{self.out}: nnU-Net's weights are called .pth; name the file so")
        if (self.out.parent / "request.json").is_file():
            raise InputError(f"{self.out}: would lie among the files of a run; choose another folder")
        run, config = RunDir(self.model), RunDir(self.model).read_config()
        stored = config.network_settings
        if stored is None:
            raise InputError(f"{self.model}: a run of {config.task} has no network to export")
        settings = restore_settings(NetworkSettings, stored)
        if settings.kind not in ("unet2d", "unet3d"):
            raise InputError(
                f"{self.model}: nnU-Net has no '{settings.kind}'; train with --network.kind unet2d or unet3d"
            )
        torch.manual_seed(config.seed)
        network = build_network(settings, classes=2)
        moved = transfer_weights(network, read_weights(run.weights()), source=self.model)
        start = {n for n in moved.missing if ".seg_layers." not in n}
        with atomic_path(self.out) as file:
            # A pickle, because that is what nnU-Net reads; it holds tensors alone.
            torch.save({"network_weights": network.state_dict()}, file)
        architecture = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": plain_unet_plan(settings),
            "_kw_requires_import": NAMED_BY_IMPORT,
        }
        with atomic_path(self.out.with_suffix(".json")) as file:
            file.write_text(json.dumps({"architecture": architecture}, indent=1) + "\n")
        print(f"{self.out}: {len(moved.loaded)} tensors of {self.model}, {len(start)} at a random start")
        print(f"{self.out.with_suffix('.json')}: the architecture; put it into nnU-Net's plans")
        return self.out
