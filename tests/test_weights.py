"""Weights on disk, and moving from one network to another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.weights import read_weights, save_weights, transfer_weights
from small_networks import LITE0, SMALL2D, SMALL3D, photograph_lite0

lite0 = pytest.fixture(photograph_lite0, scope="module")


def test_weights_come_back_as_they_were_also_from_channels_last(tmp_path):
    network = build_network(SMALL2D, classes=3).to(memory_format=torch.channels_last)
    state = network.state_dict()
    assert not all(value.is_contiguous() for value in state.values())
    save_weights(state, tmp_path / "network.safetensors")
    back = read_weights(tmp_path / "network.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    again = build_network(SMALL2D, classes=3)
    again.load_state_dict(back)
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again(image)[0], network(image)[0])


@pytest.mark.parametrize(
    "content", [None, b"", b"not weights", b"\xff" * 64], ids=["missing", "empty", "text", "noise"]
)
def test_unusable_weights_are_one_line(tmp_path, content):
    path = tmp_path / "network.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"network\.safetensors") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_cut_and_pickled_weights_are_refused(tmp_path):
    state = build_network(SMALL2D, classes=2).state_dict()
    save_weights(state, tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-10])
    torch.save(state, tmp_path / "pickle.safetensors")
    for path in (cut, tmp_path / "pickle.safetensors", tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_weights(path)


def test_all_weights_move_into_the_same_network():
    old, new = build_network(SMALL2D, classes=3), build_network(SMALL2D, classes=3)
    moved = transfer_weights(new, old.state_dict(), source="old")
    assert (moved.missing, moved.unused) == ((), ())
    assert set(moved.loaded) == {name for name, _ in new.named_parameters()}  # each tensor once
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(new(image)[0], old(image)[0])


def test_the_encoder_of_a_plain_unet_is_counted_once():
    old, new = build_network(SMALL2D, classes=3), build_network(SMALL2D, classes=3)
    moved = transfer_weights(new, old.state_dict(), source="old", encoder_only=True)
    assert moved.loaded
    assert not any("encoder." in name for name in moved.missing + moved.unused)


def test_other_classes_keep_all_but_the_last_layers():
    old, new = build_network(SMALL2D, classes=3), build_network(SMALL2D, classes=5)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    moved = transfer_weights(new, old.state_dict(), source="old")
    assert moved.missing == moved.unused
    assert all("seg_layers" in name for name in moved.missing)
    state = new.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in moved.missing)
    assert all(torch.equal(state[name], old.state_dict()[name]) for name in moved.loaded)
    assert f"{len(moved.loaded)} tensors loaded, {len(moved.missing)} left at their start" in str(moved)


def test_the_encoder_alone_can_move(lite0):
    new = build_network(LITE0, classes=2)
    start = {name: value.clone() for name, value in new.state_dict().items()}
    moved = transfer_weights(new, lite0.state_dict(), source="old", encoder_only=True)
    assert all(name.startswith("encoder.") for name in moved.loaded)
    for name, value in new.state_dict().items():
        expected = lite0.state_dict() if name.startswith("encoder.") else start
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    "other", [SMALL3D, NetworkSettings(kind="unet2d", base_channels=6, levels=3, context=1), LITE0,
              NetworkSettings(kind="hub", encoder="resnet18", context=1)],
    ids=["3D", "wider", "lite0", "resnet"],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused(lite0, other):
    """ResNet and Lite0 share the names of some vectors and counters, which is not enough."""
    states = {"small": build_network(SMALL2D, classes=2).state_dict()}
    if other.kind == "hub":
        states["photograph"] = lite0.state_dict()
    for source, state in states.items():
        with pytest.raises(InputError, match=rf"{source}.*another architecture"):
            transfer_weights(build_network(other, classes=2), state, source=source)


def test_kernels_over_colors_are_summed_for_a_gray_image():
    """As M&N starts from a file of photograph weights: the answer to a gray image stays."""
    one_channel = replace(LITE0, context=0)
    state = build_network(one_channel, classes=3).state_dict()
    first = next(name for name, value in state.items() if value.ndim == 4)
    state[first] = torch.randn(state[first].shape[0], 3, *state[first].shape[2:])
    network = build_network(one_channel, classes=3)
    moved = transfer_weights(network, state, source="photographs")
    assert moved.missing == ()
    torch.testing.assert_close(network.state_dict()[first], state[first].sum(1, keepdim=True))


def test_an_encoder_goes_behind_a_learned_stem():
    state = build_network(LITE0, classes=3).state_dict()
    first = next(name for name, value in state.items() if value.ndim == 4)
    state[first] = torch.randn(state[first].shape[0], 3, *state[first].shape[2:])
    network = build_network(replace(LITE0, stem="learned"), classes=3)
    moved = transfer_weights(network, state, source="photographs")
    assert moved.missing == ("encoder.stem.weight", "encoder.stem.bias")
    behind = first.replace("encoder.", "encoder.body.")
    assert torch.equal(network.state_dict()[behind], state[first])


def test_a_transformers_patches_must_have_the_size_they_were_learned_with():
    """All its other tensors would fit, and nobody would see that the first layer is random."""
    small = NetworkSettings(kind="vit", vit_width=24, vit_depth=1, vit_heads=2, vit_patch_px=8)
    state = build_network(small, classes=2).state_dict()
    other = build_network(replace(small, vit_patch_px=16), classes=2)
    with pytest.raises(InputError, match="patches of 8 pixels, the network has 16; give --network"):
        transfer_weights(other, state, source="encoder")


@pytest.mark.parametrize("depth", [1, 3])
def test_a_transformer_must_have_as_many_blocks(depth):
    """Of a deeper one the last blocks would stay random, of a shallower one the last ones fall away."""
    small = NetworkSettings(kind="vit", vit_width=24, vit_depth=depth, vit_heads=2, vit_patch_px=8)
    state = build_network(small, classes=2).state_dict()
    other = build_network(replace(small, vit_depth=2), classes=2)
    with pytest.raises(
        InputError, match=f"made of {depth} blocks, the network has 2; give --network.vit-depth"
    ):
        transfer_weights(other, state, source="encoder")


def test_a_transformers_tokens_must_have_as_many_numbers():
    small = NetworkSettings(kind="vit", vit_width=24, vit_depth=1, vit_heads=2, vit_patch_px=8)
    state = build_network(small, classes=2).state_dict()
    other = build_network(replace(small, vit_width=48), classes=2)
    with pytest.raises(
        InputError, match=r"tokens of 24 numbers, the network has 48; give --network\.vit-width 24"
    ):
        transfer_weights(other, state, source="encoder")


@pytest.mark.parametrize("side", [128, 64, 192])
def test_weights_serve_images_of_another_size(side):
    """Positions are interpolated: the grid of 16 x 16 is what is kept, whatever the images' size was."""
    torch.manual_seed(0)
    small = NetworkSettings(kind="vit", vit_width=24, vit_depth=1, vit_heads=2, vit_patch_px=8)
    network = build_network(small, classes=2)
    assert (
        len(transfer_weights(network, build_network(small, classes=2).state_dict(), source="x").missing) == 0
    )
    model, count = network.encoder.model, side // 8
    with torch.no_grad():
        added = model._pos_embed(torch.zeros(1, count, count, 24))[:, 1:]
        kept = model.pos_embed[:, 1:].reshape(1, 16, 16, 24).permute(0, 3, 1, 2)
        wanted = (
            F.interpolate(kept, (count, count), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        )
    torch.testing.assert_close(added, wanted, atol=1e-5, rtol=1e-4)
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 2, side, side)
