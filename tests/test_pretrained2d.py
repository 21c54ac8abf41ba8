"""Weights learned on photographs: known answers, and how they reach an encoder."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.pretrained2d import load_natural, read_lite0
from small_networks import SMALL2D, photograph_lite0

lite0 = pytest.fixture(photograph_lite0, scope="module")


@pytest.fixture(scope="module")
def timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        return timm


@pytest.fixture(scope="module")
def photograph_network(timm) -> torch.nn.Module:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(read_lite0(), strict=True)
    return network.eval()


def test_the_photograph_weights_know_a_cat(photograph_network):
    skimage = pytest.importorskip("skimage")
    from PIL import Image

    cat = Image.fromarray(skimage.data.chelsea())
    scale = 256 / min(cat.size)
    cat = cat.resize([round(side * scale) for side in cat.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in cat.size)
    pixels = np.asarray(cat.crop((left, top, left + 224, top + 224)), np.float32)
    image = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        shares = photograph_network(image).softmax(1)[0]
    for kind_of_cat, share in ((282, 0.395), (285, 0.355), (281, 0.170)):  # tiger, Egyptian, tabby
        assert shares[kind_of_cat].item() == pytest.approx(share, abs=0.01)


def test_the_encoder_sees_what_the_photograph_network_sees(timm, lite0):
    alone = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    alone.load_state_dict(
        {name: value for name, value in read_lite0().items() if name in alone.state_dict()}, strict=True
    )
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = lite0.encoder(image)[1:], alone.eval()(image)
    assert len(ours) == len(theirs) == 5
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("context", [0, 2])
def test_a_gray_image_is_seen_alike_through_any_number_of_channels(lite0, context):
    settings = NetworkSettings(context=context)
    network = build_network(settings, classes=2).eval()
    load_natural(network, settings)
    gray = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = [
            n.encoder(gray.expand(-1, c, -1, -1)) for n, c in ((lite0, 3), (network, settings.in_channels))
        ]
    for ours, theirs in zip(features[0][1:], features[1][1:]):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_plain_networks_have_no_photograph_weights():
    with pytest.raises(InputError, match=r"--network\.kind lite0"):
        load_natural(build_network(SMALL2D, classes=2), SMALL2D)


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_hub_weights_reach_the_encoder(timm, monkeypatch, encoder):
    """A stand-in for the hub: "pretrained" gives weights of a known start; convnext renames its parts."""
    create = timm.create_model

    def stand_in(name, *, pretrained=False, **options):
        network = create(name, pretrained=False, **options)
        if pretrained:
            for value in network.state_dict().values():
                value.fill_(3)
        return network

    monkeypatch.setattr(timm, "create_model", stand_in)
    settings = NetworkSettings(kind="hub", encoder=encoder, context=0)
    network = build_network(settings, classes=2)
    assert encoder in load_natural(network, settings)
    values = network.encoder.model.state_dict()
    first = next(iter(values))
    assert values[first].shape[1] == 1
    assert (values.pop(first) == 9).all()  # three colors of 3
    assert all((value == 3).all() for value in values.values())


def test_an_unreachable_hub_is_one_line(timm, monkeypatch):
    settings = NetworkSettings(kind="hub", encoder="resnet18", context=1)
    network = build_network(settings, classes=2)
    create = timm.create_model

    def offline(name, *, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("many\nlines")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="'resnet18' could not be fetched") as error:
        load_natural(network, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoder", ["nosuchnet", "vit_tiny_patch16_224", ""])
def test_an_encoder_no_unet_can_stand_on_is_refused(encoder):
    with pytest.raises(InputError, match=f"encoder '{encoder}'"):
        build_network(NetworkSettings(kind="hub", encoder=encoder), classes=2)
