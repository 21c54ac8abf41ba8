"""Learning rates: over time, and from stage to stage of an encoder."""

from __future__ import annotations

import pytest
import torch

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.training.optim import OptimSettings, _stage, encoder_groups, warmup_decay


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    rate = warmup_decay(2.0, warmup=0.1, final=0.01)
    assert [rate(Clock(s, 100)) for s in (0, 5, 10)] == pytest.approx([0.02, 1.01, 2.0])
    assert rate(Clock(55, 100)) == pytest.approx(0.02 + 1.98 / 2)
    assert rate(Clock(100, 100)) == pytest.approx(0.02)
    falling = [rate(Clock(s, 100)) for s in range(10, 101)]
    assert falling == sorted(falling, reverse=True)
    assert warmup_decay(2.0, warmup=0.0, final=0.5)(Clock(0, 1)) == pytest.approx(2.0)


def test_the_rate_may_fall_as_a_power():
    rate = warmup_decay(2.0, warmup=0.0, final=0.0, decay="poly")
    assert [rate(Clock(s, 2)) for s in (0, 1, 2)] == pytest.approx([2.0, 2.0 * 0.5**0.9, 0.0])


@pytest.mark.parametrize("kind", ["unet2d", "lite0"])
def test_with_layer_decay_earlier_stages_learn_less(kind):
    network = build_network(NetworkSettings(kind=kind, base_channels=4, levels=3), classes=2)
    optim = OptimSettings(learning_rate=1.0, layer_decay=0.5, warmup=0.0, encoder_rate_factor=0.8)
    groups = encoder_groups(network, optim)
    rates = [group.rate(Clock(0, 1)) for group in groups]
    stages = {"unet2d": 3, "lite0": 8}[kind]
    assert rates == pytest.approx([0.8 * 0.5**i for i in reversed(range(stages))])
    found = [id(p) for group in groups for p in group.parameters]
    wanted = [id(p) for n, p in network.named_parameters() if n.startswith("encoder.")]
    assert sorted(found) == sorted(wanted)
    first = next(p for n, p in network.named_parameters() if n.startswith("encoder."))
    assert any(first is p for p in groups[0].parameters)
    assert [g.name for g in encoder_groups(network, OptimSettings())] == ["encoder"]


def test_layers_of_unknown_order_have_no_decay():
    network = torch.nn.ModuleDict(
        {"encoder": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 2, 3))}
    )
    assert len(encoder_groups(network, OptimSettings())) == 1
    with pytest.raises(InputError, match="layer-decay: the order of this encoder's layers is not known"):
        encoder_groups(network, OptimSettings(layer_decay=0.5))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("encoder.patch_embed.proj.weight", 0),
        ("encoder.features.denseblock3.denselayer1.conv1.weight", 4),
        ("encoder.block2.0.attn.q.weight", 3),
        ("encoder.s4.b1.conv1.conv.weight", 5),
        ("encoder.model.norm.weight", -1),
    ],
)
def test_stages_are_told_by_the_names_of_networks_outside(name, stage):
    assert _stage(name) == stage
