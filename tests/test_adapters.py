"""Encoders that learn in part, stems in front of them, and networks beside the house's own."""

from __future__ import annotations

import json

import pytest
import torch

from fewbeats.cli import main
from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.models.adapters import is_adapted, limit_encoder, merge_adapters
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.pretrained2d import load_natural
from fewbeats.sample import Batch
from fewbeats.semi_supervised.co_training import CoTraining
from fewbeats.semi_supervised.settings import MnSettings
from test_cotrain import DEEP, cotrain

LITE = NetworkSettings(decoder_channels=(8, 8, 8, 4, 4))
MIT = NetworkSettings(kind="hub", encoder="mit_b0", architecture="segformer")


def built(settings: NetworkSettings) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(settings, classes=3)


@pytest.mark.parametrize("settings", [LITE, MIT], ids=["lite0", "segformer"])
def test_additions_change_nothing_at_first_learn_alone_and_merge_exactly(settings):
    image = torch.randn(2, 1, 64, 64)
    plain, network = built(settings).eval(), built(settings)
    limit_encoder(network, "lora", rank=4)
    network.eval()
    torch.testing.assert_close(network(image), plain(image))
    moved = {n for n, p in network.named_parameters() if p.requires_grad and n.startswith("encoder.")}
    assert moved
    assert all("lora_" in name or name.endswith(".bias") for name in moved)
    frozen = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    for _ in range(3):
        learn(network.train(), image)
    assert all(torch.equal(p, frozen[n]) for n, p in network.named_parameters() if n in frozen)
    network.eval()
    merged = merge_adapters(network)
    assert is_adapted(network)
    assert not is_adapted(merged)
    assert [*merged.state_dict()] == [*plain.state_dict()]
    torch.testing.assert_close(merged(image), network(image), rtol=1e-4, atol=1e-4)
    assert float((merged(image) - plain(image)).detach().abs().max()) > 1e-3


def learn(network: torch.nn.Module, image: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    network(image).square().mean().backward()
    optimizer.step()


def test_a_frozen_encoder_keeps_its_weights_and_the_decoder_learns():
    network, before = built(LITE), built(LITE).state_dict()
    limit_encoder(network, "frozen", rank=1)
    learn(network.train(), torch.randn(2, 1, 64, 64))
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
    assert merge_adapters(network) is network


def test_what_a_co_training_exports_is_merged():
    flat, deep = built(LITE), built(NetworkSettings(kind="unet3d", base_channels=4, levels=2))
    limit_encoder(flat, "lora", rank=2)
    method = CoTraining(flat, deep, settings=MnSettings())
    assert not is_adapted(method.networks()["flat"])
    assert is_adapted(method.flat)


def test_lora_without_peft_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"needs peft; pip install 'fewbeats\[lora\]'"):
        limit_encoder(built(LITE), "lora", rank=4)


def test_swinunetr_without_monai_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(InputError, match=r"needs MONAI; pip install 'fewbeats\[monai\]'"):
        build_network(NetworkSettings(kind="swinunetr", base_channels=12), classes=2)


def test_a_learned_stem_begins_as_the_image_in_all_three_colors():
    """So a network with it starts as the one that takes the gray image itself."""
    settings = NetworkSettings(decoder_channels=(8, 8, 8, 4, 4), stem="learned")
    plain, stemmed = built(LITE).eval(), built(settings).eval()
    load_natural(plain, LITE)
    load_natural(stemmed, settings)
    image = torch.randn(2, 1, 64, 64)
    stemmed.decoder.load_state_dict(plain.decoder.state_dict())
    stemmed.segmentation_head.load_state_dict(plain.segmentation_head.state_dict())
    torch.testing.assert_close(stemmed(image), plain(image), rtol=1e-4, atol=1e-4)
    learn(stemmed.train(), image)
    assert not torch.equal(stemmed.encoder.stem.weight, torch.ones(3, 1, 1, 1))


def test_swinunetrs_width_is_checked():
    with pytest.raises(InputError, match="swinunetr needs a multiple of 12"):
        NetworkSettings(kind="swinunetr", base_channels=16)


def test_a_segformer_with_low_rank_additions_learns_and_predicts(phantoms, tmp_path, no_onnx):
    """From the command to a mask, beside the plain 3D U-Net."""
    flags = [flag for flag in DEEP if not flag.startswith("--flat.")]
    flat = ["--flat.kind=hub", "--flat.encoder=mit_b0", "--flat.architecture=segformer"]
    lora = ["--mn.flat-learns=lora", "--mn.rank=4", "--mn.iterations=1"]
    run = tmp_path / "run"
    assert cotrain(phantoms, run, "mn", *flags, *flat, *lora, "--steps=8") == 0
    settings = json.loads((run / "flat" / "run.json").read_text())["settings"]
    assert settings["network"]["architecture"] == "segformer"
    predict = ["predict", str(run), str(phantoms), "--split=tune", "--network=mean"]
    assert main([*predict, f"--out={tmp_path / 'masks'}"]) == 0


def test_swinunetr_is_a_partner_like_another():
    settings = NetworkSettings(kind="swinunetr", base_channels=12)
    assert (settings.dims, settings.stride, settings.slice_stride, settings.in_channels) == (3, 32, 32, 1)
    deep, flat = built(settings).train(), built(LITE)
    method = CoTraining(flat, deep, settings=MnSettings(iterations=1))
    volume = torch.randn(1, 1, 32, 64, 64)
    batch = Batch(views={"image": volume}, target=torch.zeros(1, 32, 64, 64, dtype=torch.long))
    step = method(batch, Clock(2, 8))
    assert step.active == ("deep",)
    step.loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in deep.parameters() if p.grad is not None)
