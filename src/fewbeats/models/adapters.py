"""How much of a pretrained encoder learns: all of it, nothing, or low-rank additions to its weights.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685,
through peft. What is exported has the additions added, so that prediction needs no peft.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

from torch import nn

from fewbeats.errors import InputError

Mode = Literal["train", "frozen", "lora"]
DROPOUT = 0.1  # of what enters the additions; with alpha = rank as M&N releases it


def limit_encoder(network: nn.Module, mode: Mode, *, rank: int) -> None:
    """Let an encoder learn whole, not at all, or by additions of low rank and by its biases.

    A stem in front of it and the rest of the network learn in any case, and so do BatchNorm's statistics.

    Args:
        network: with an `encoder`; changed in place.
        mode: train, frozen or lora.
        rank: of the additions, to every dense layer and every convolution that is not depthwise.

    Raises:
        InputError: peft is not installed.
    """
    if mode == "train":
        return
    if mode == "lora":
        _inject(network, rank)
    for name, parameter in network.named_parameters():
        learns = mode == "lora" and ("lora_" in name or name.endswith(".bias"))
        parameter.requires_grad_(learns or not _is_limited(name))


def _is_limited(name: str) -> bool:
    return name.startswith("encoder.") and not name.startswith("encoder.stem.")


def _inject(network: nn.Module, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("--mn.flat-learns lora: needs peft; pip install 'fewbeats[lora]'") from error
    names = [
        name
        for name, module in network.named_modules()
        if _is_limited(f"{name}.")
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=DROPOUT, bias="all", target_modules=names)
    inject_adapter_in_model(config, network)


def is_adapted(network: nn.Module) -> bool:
    """Whether a network has additions of low rank."""
    return any("lora_" in name for name, _ in network.named_parameters())


def merge_adapters(network: nn.Module) -> nn.Module:
    """A copy with the additions in the weights, shaped as it was built; without any the network itself."""
    if not is_adapted(network):
        return network
    from peft.tuners.tuners_utils import BaseTunerLayer

    network = deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, module.get_base_layer())
    return network
