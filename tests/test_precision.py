"""Precision: bf16 where the processor has it, and what stays in full precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbeats.training.loop import fit
from fewbeats.training.optim import OptimSettings
from fewbeats.training.precision import choose_precision, full_depthwise
from fewbeats.training.rundir import RunDir
from tiny_training import batches, logged, one_thread, short, unet_method

_threads = pytest.fixture(one_thread, autouse=True)


class Depthwise(nn.Module):
    """Writes down in which type each of its convolutions answers."""

    def __init__(self):
        super().__init__()
        self.full, self.depthwise = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
        self.seen: list[torch.dtype] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.full(image)
        second = self.depthwise(first)
        third = self.full(second[:, :1])
        self.seen = [first.dtype, second.dtype, third.dtype]
        return third


def test_depthwise_convolutions_alone_stay_in_full_precision():
    network, image = Depthwise(), torch.randn(1, 1, 16, 16)
    with full_depthwise(network), torch.autocast("cpu", dtype=torch.bfloat16):
        network(image).float().sum().backward()
        assert network.seen == [torch.bfloat16, torch.float32, torch.bfloat16]
        with pytest.raises(RuntimeError):  # the depthwise convolution itself fails: the state is put back
            network.depthwise(torch.randn(1, 3, 16, 16))
        assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(image)
    assert network.seen == [torch.bfloat16] * 3


def test_bf16_learns_what_full_precision_learns(tmp_path):
    ends = {}
    for precision in ("full", "bf16"):
        method = unet_method()
        optim = OptimSettings(precision=precision)
        fit(method, batches, settings=short(steps=40, optim=optim), run=RunDir(tmp_path / precision))
        ends[precision] = logged(RunDir(tmp_path / precision))
        assert all(p.dtype == torch.float32 for p in method.parameters())
    first = ends["full"][0]["loss"]
    for precision, log in ends.items():
        assert log[-1]["loss"] < 0.6 * first, precision
    assert ends["full"][-1]["loss"] != ends["bf16"][-1]["loss"]
    assert ends["full"][-1]["loss"] == pytest.approx(ends["bf16"][-1]["loss"], abs=0.05)


@pytest.mark.parametrize(
    ("able", "chosen"), [({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "full"), (None, "full")]
)
def test_bf16_is_chosen_where_the_processor_has_it(monkeypatch, able, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if able is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert choose_precision("auto") == chosen
    assert choose_precision("full") == "full"
    assert choose_precision("bf16") == "bf16"
