"""Networks: known answers of photograph weights, shapes, moving weights, one answer from every runtime."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fewbeats.errors import InputError
from fewbeats.models.export import export_onnx, open_onnxruntime, open_openvino, open_torch, time_engine
from fewbeats.models.network import NetworkSettings, build_network, set_deep_supervision
from fewbeats.models.pretrained2d import load_natural, read_lite0
from fewbeats.models.weights import read_weights, save_weights, transfer_weights

SMALL2D = NetworkSettings(kind="unet2d", base_channels=4, levels=3, context=1)
SMALL3D = NetworkSettings(kind="unet3d", base_channels=4, levels=4)
LITE0 = NetworkSettings(context=1)  # three channels, as photographs have


@pytest.fixture(scope="module")
def timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        return timm


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    network = build_network(LITE0, classes=4)
    load_natural(network, LITE0)
    return network.eval()


# Weights learned on photographs


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


# Networks


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("settings", "shape"), [(SMALL2D, (2, 3, 32, 48)), (SMALL3D, (1, 1, 4, 32, 40))], ids=["2D", "3D"]
)
def test_plain_unets_keep_the_size_and_halve_it_at_each_scale(settings, shape, classes):
    network, image = build_network(settings, classes=classes), torch.randn(shape)
    scales = network(image)
    assert scales[0].shape == (shape[0], classes, *shape[2:])
    assert [s.shape[-1] for s in scales] == [shape[-1] // 2**i for i in range(settings.levels - 1)]
    set_deep_supervision(network, False)
    torch.testing.assert_close(network(image), scales[0])
    set_deep_supervision(network, True)
    assert len(network(image)) == len(scales)


@pytest.mark.parametrize("settings", [SMALL2D, SMALL3D, NetworkSettings(kind="unet3d", base_channels=2)])
def test_the_said_strides_are_the_smallest_input(settings):
    network = build_network(settings, classes=2)
    set_deep_supervision(network, False)
    slices = (settings.slice_stride,) if settings.dims == 3 else ()
    shape = (2, settings.in_channels, *[2 * s for s in slices], settings.stride, 2 * settings.stride)
    assert network(torch.randn(shape)).shape == (2, 2, *shape[2:])


def test_widths_double_up_to_sixteen_times():
    network = build_network(NetworkSettings(kind="unet2d", base_channels=2, levels=7), classes=2)
    assert network.encoder.output_channels == [2, 4, 8, 16, 32, 32, 32]


def test_switching_deep_supervision_of_other_networks_does_nothing(lite0):
    set_deep_supervision(lite0, True)
    with torch.inference_mode():
        assert lite0(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)


# Moving weights


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


# Runtimes


@pytest.fixture(scope="module")
def exported(lite0, tmp_path_factory):
    """(network, ONNX file) of both kinds of 2D network; the batch size is left free."""
    pytest.importorskip("onnxscript")
    plain = build_network(SMALL2D, classes=4).eval()
    set_deep_supervision(plain, False)
    folder = tmp_path_factory.mktemp("onnx")
    out = {}
    for name, network in (("lite0", lite0), ("plain", plain)):
        export_onnx(network, folder / f"{name}.onnx", example_shape=(2, 3, 64, 64))
        out[name] = (network, folder / f"{name}.onnx")
    return out


@pytest.mark.parametrize("kind", ["lite0", "plain"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_agree_with_torch(exported, kind, runtime):
    pytest.importorskip(runtime)
    network, path = exported[kind]
    engine = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[runtime](path)
    reference = open_torch(network)
    for batch in (1, 2, 5):
        image = np.random.default_rng(batch).normal(size=(batch, 3, 64, 64)).astype(np.float32)
        expected, found = reference(image), np.array(engine(image))
        assert found.shape == (batch, 4, 64, 64)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_only_whole_exports_have_a_name(exported, tmp_path, monkeypatch, capfd):
    assert sorted(p.name for p in exported["plain"][1].parent.iterdir()) == ["lite0.onnx", "plain.onnx"]

    def broken(*arguments, **_):
        with open(arguments[2], "wb") as file:
            file.write(b"half")
        raise OSError("no more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(OSError, match="no more"):
        export_onnx(exported["plain"][0], tmp_path / "plain.onnx", example_shape=(2, 3, 32, 32))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_an_engine_is_timed_after_a_first_call():
    calls = []
    seconds = time_engine(lambda batch: calls.append(batch.shape), (2, 3, 4, 4), runs=5)
    assert calls == [(2, 3, 4, 4)] * 6
    assert 0 <= seconds < 0.1
