"""The vision transformer, SimMIM on it, and its way into segmentation."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import TINY
from fewbeats.cli import main
from fewbeats.errors import InputError
from fewbeats.models.heads import feature_width, pool_features
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining import simmim
from fewbeats.pretraining.settings import SimmimSettings
from fewbeats.pretraining.simmim import Simmim
from fewbeats.sample import Batch
from fewbeats.training.optim import OptimSettings, encoder_groups
from tiny_training import at

SMALL = NetworkSettings(kind="vit", vit_width=24, vit_depth=2, vit_heads=2, vit_patch_px=8)
FLAGS = ("--network.kind=vit", "--network.vit-width=24", "--network.vit-depth=2", "--network.vit-heads=2")


def network(channels: int = 1):
    torch.manual_seed(0)
    return build_network(SMALL, classes=channels).eval()


@pytest.mark.parametrize("size", [32, 64, (64, 128)])
def test_images_of_any_size_pass(size):
    net, shape = network(3), (size, size) if isinstance(size, int) else size
    image = torch.randn(2, 1, *shape)
    assert net(image).shape == (2, 3, *shape)
    (tokens,) = net.encoder(image)
    assert tokens.shape == (2, 24, shape[0] // 8, shape[1] // 8)
    assert pool_features(net, image).shape == (2, feature_width(net)) == (2, 24)


def test_tokens_lie_where_their_patches_do():
    """Without attention between patches, a changed patch changes its own token alone."""
    net = network()
    net.encoder.model.blocks = torch.nn.Identity()
    image = torch.zeros(1, 1, 32, 64)
    other = image.clone()
    other[0, 0, 16:24, 40:48] = 1
    changed = (net.encoder(image)[0] != net.encoder(other)[0]).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 5]]


def test_the_embedding_is_the_cls_token():
    net, image = network(), torch.randn(2, 1, 32, 32)
    expected = net.encoder.model.forward_features(image)[:, 0]
    torch.testing.assert_close(pool_features(net, image), expected)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"vit_heads": 5}, "must divide --network.vit-width"),
    ({"vit_patch_px": 12}, "must be a power of 2"),
    ({"vit_depth": 0}, "--network.vit-depth 0: give at least 1"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        build_network(
            NetworkSettings(**({"kind": "vit", "vit_width": 24, "vit_heads": 2} | changes)), classes=2
        )


def test_layer_decay_counts_its_blocks():
    groups = encoder_groups(network(), OptimSettings(learning_rate=1.0, layer_decay=0.5, warmup=0.0))
    assert [g.rate(at(0.0)) for g in groups] == pytest.approx([0.25, 0.5, 1.0])
    norm = network().encoder.model.norm.weight.shape
    assert any(p.shape == norm for p in groups[-1].parameters)


# SimMIM


def method(**changes) -> Simmim:
    return Simmim(network(), settings=SimmimSettings(**changes), optim=OptimSettings(), size=64)


def test_hidden_pixels_are_not_seen():
    learner = method().eval()
    image = torch.randn(2, 1, 64, 64)
    blank = simmim.draw_blanks(image, learner.settings)
    other = torch.where(blank, torch.randn_like(image), image)
    with torch.no_grad():
        torch.testing.assert_close(learner._restore(image, blank), learner._restore(other, blank))
        seen = learner._restore(torch.where(blank, image, image + 1), blank)
        assert not torch.allclose(seen, learner._restore(image, blank))


def test_the_loss_is_the_mean_distance_of_hidden_pixels():
    learner = method().eval()
    image = torch.randn(3, 1, 64, 64)
    torch.manual_seed(5)
    loss = learner(Batch(views={"image": image}), at(0.0)).loss
    torch.manual_seed(5)
    blank = simmim.draw_blanks(image, learner.settings)
    assert blank.float().mean() == pytest.approx(10 / 16)  # 0.6 of 16 squares, rounded
    told = learner._restore(image, blank).detach()
    by_hand = [abs(float(told[i] - image[i])) for i in map(tuple, blank.nonzero().tolist())]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_pixels_are_told_where_they_belong():
    """With a linear layer that tells each pixel its own number, squares of numbers come back in place."""
    learner = method()
    with torch.no_grad():
        learner.pixels.weight.zero_()
        learner.pixels.bias.copy_(torch.arange(64.0))
        told = learner._restore(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.bool))
    assert torch.equal(told[0, 0, 8:16, 16:24], torch.arange(64.0).view(8, 8))


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"patch_px": 4}, "must be a multiple of the network's 8"),
    ({"patch_px": 24}, "does not divide the view"),
    ({"ratio": 1.0}, "none or all"),
])  # fmt: skip
def test_squares_that_do_not_fit_are_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        method(**changes)


# The command


@pytest.mark.parametrize("name", ["dino", "mim"])
def test_a_transformer_is_pretrained_and_moves_on(name, phantoms, tmp_path, capfd, no_onnx):
    run, tuned, common = tmp_path / "ssl", tmp_path / "tuned", [*FLAGS, "--batch-size=8"]
    grid = ["--preprocess.size=64", "--preprocess.spacing-mm=2.5"]
    words = ["pretrain", name, str(phantoms), f"--out={run}", "--steps=2", *common, *grid]
    assert main([*words, "--dino.hidden=16", "--dino.prototypes=32"]) == 0
    about = json.loads((run / "run.json").read_text())
    assert ("simmim" in about) == (name == "mim")
    assert "mim" not in about
    flags = [f for f in TINY if "network" not in f and "init" not in f]
    assert main(["finetune", str(phantoms), f"--out={tuned}", f"--init={run}", *FLAGS, *flags, "--steps=2",
                 "--localizer-steps=2"]) == 0  # fmt: skip
    told = capfd.readouterr().out
    loaded = int(told.split(f"from {run}: ")[1].split(" tensors")[0])
    assert loaded == len(network().encoder.state_dict())
    assert main(["predict", str(tuned), str(phantoms), "--split=tune", f"--out={tmp_path / 'm'}"]) == 0
    others = [f for f in FLAGS if "heads" not in f] + ["--network.vit-heads=1"]
    assert main(["finetune", str(phantoms), f"--out={tmp_path / 'other'}", f"--init={run}", *others, *flags,
                 "--steps=2", "--localizer-steps=2"]) == 2  # fmt: skip
    assert "attention heads, the network has 1; give --network.vit-heads" in capfd.readouterr().err


def test_contrast_is_for_u_nets(phantoms, tmp_path, capfd):
    words = ["pretrain", "simclr", str(phantoms), f"--out={tmp_path / 'x'}", "--steps=2", *FLAGS]
    assert main(words) == 2
    assert "a vision transformer learns by dino or mim" in capfd.readouterr().err
