"""In which arithmetic a training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["auto", "full", "bf16"]


def choose_precision(wanted: Precision) -> Literal["full", "bf16"]:
    """bf16 where it is native, else full: emulated it is many times slower."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "full"
    able: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch do not tell
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "full"


@contextmanager
def full_depthwise(network: nn.Module) -> Iterator[None]:
    """Keep a network's depthwise convolutions in full precision on the CPU, whatever autocast says.

    Their gradient in bf16 takes so much longer than in fp32 that it eats what all others gain.
    """
    import torch

    outside: list[bool] = []

    def enter(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outside.append(torch.is_autocast_enabled("cpu"))
        torch.set_autocast_enabled("cpu", False)
        return tuple(value.float() for value in given)

    def leave(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        torch.set_autocast_enabled("cpu", outside.pop())

    handles = []
    for module in network.modules():
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters(recurse=False))
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1 and on_cpu:
            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave, always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
