"""Pixels that attract, patches that are hidden, views that grow, and stages that are read all at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewbeats.commands.pretrain import Pretrain
from fewbeats.errors import InputError
from fewbeats.models.heads import pool_stages, sum_of_stages
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining import dino, pix2rep
from fewbeats.pretraining.dino import Dino, draw_hidden
from fewbeats.pretraining.pix2rep import Pix2rep
from fewbeats.pretraining.settings import DinoSettings, Pix2repSettings, SimclrSettings
from fewbeats.pretraining.simclr import Simclr
from fewbeats.recipes.encoder import GrowingViews
from fewbeats.sample import Batch
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import ViewSettings, weaken
from tiny_training import at, method_of

OPTIM = OptimSettings(learning_rate=1e-2)
UNET = NetworkSettings(kind="unet2d", base_channels=4, levels=3, norm="batch")
VIT = NetworkSettings(kind="vit", vit_width=24, vit_depth=1, vit_heads=2, vit_patch_px=8)


def wide(seed: int = 0, side: int = 48) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(views={"image": torch.randn(3, 1, side, side, generator=generator)})


def pixels_method(features: int = 6) -> Pix2rep:
    torch.manual_seed(0)
    own = Pix2repSettings(features=features)
    return Pix2rep(build_network(UNET, classes=features), settings=own, optim=OPTIM)


def test_the_loss_is_that_of_barlow_twins_by_hand():
    """Against a loop over features, on pixels chosen by hand."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 50, 4)) * [1, 3, 0.2, 5] + 7
    method = pixels_method(4)
    found = float(method.correlate(torch.tensor(a), torch.tensor(b)))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            value = np.corrcoef(a[:, i], b[:, j])[0, 1]
            expected += (value - 1) ** 2 if i == j else 5e-3 * value**2
    assert found == pytest.approx(expected / 4, abs=1e-3)


def test_equal_features_have_no_loss_but_for_what_they_share():
    z = torch.linalg.qr(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))[0]
    z = z - z.mean(0)
    assert float(pixels_method(5).correlate(z, z)) < 1e-2


def test_pixels_of_one_place_meet():
    """With gray values as they are, a network that looks at each pixel alone tells the same of both views."""
    spatial = SpatialSettings(elastic_probability=0, scale=(0.95, 1.05), crop_probability=0.5)
    settings = ViewSettings(size=32, spatial=spatial, intensity=IntensitySettings(probability=0))
    smooth = F.interpolate(torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)), 48,
                           mode="bicubic")  # fmt: skip
    seen = pix2rep.views(Batch(views={"image": smooth}), torch.Generator().manual_seed(3), settings=settings,
                         own=Pix2repSettings())  # fmt: skip
    draw = pix2rep.SpatialDraw(seen.place[..., :2], seen.place[..., 2:].permute(0, 3, 1, 2) > 0)
    moved = pix2rep.apply_spatial(seen.views["a"], draw)
    both = (draw.keep[:, 0] & (draw.grid.abs() < 0.95).all(-1))[:, None]
    assert both.any()
    assert torch.allclose(moved[both], seen.views["b"][both], atol=0.05)


def test_pixels_outside_of_a_view_have_no_part_in_it():
    """What lies beyond the shared field changes nothing."""
    method, own = pixels_method(), Pix2repSettings(features=6)
    settings = ViewSettings(size=32)
    batch = pix2rep.views(wide(), torch.Generator().manual_seed(0), settings=settings, own=own)
    keep = batch.place.clone()
    keep[..., 2] = 0
    keep[:, 8:24, 8:24, 2] = 1
    with torch.no_grad():
        whole = method(replace(batch, place=batch.place), at(0.5)).loss
        part = method(replace(batch, place=keep), at(0.5)).loss
    assert float(whole) != float(part)


def test_a_command_trains_the_whole_unet_and_keeps_all_but_its_last_layer(phantoms, tmp_path):
    from safetensors.torch import load_file

    from fewbeats.cli import main

    small = ["--network.kind=unet2d", "--network.base-channels=4", "--network.levels=4",
             "--network.norm=batch", "--preprocess.size=64", "--preprocess.spacing-mm=2.5"]  # fmt: skip
    run = tmp_path / "run"
    asked = ["pretrain", "pix2rep", str(phantoms), f"--out={run}", "--steps=2", "--batch-size=4"]
    assert main([*asked, "--growth=0.5", *small]) == 0
    names = list(load_file(run / "network.safetensors"))
    assert any(name.startswith("decoder.stages.") for name in names)
    assert not any(name.startswith("decoder.seg_layers.") for name in names)
    tuned = ["finetune", str(phantoms), f"--out={tmp_path / 'tuned'}", f"--init={run}", "--steps=1"]
    assert main([*tuned, "--localizer-steps=0", *small]) == 0


def test_a_transformer_has_no_unet_to_train():
    command = Pretrain(method="pix2rep", cohort="c.csv", out="out", network=VIT, steps=1)
    with pytest.raises(InputError, match="pix2rep: for U-Nets"):
        method_of(command)


# Hidden patches (iBOT)


def dino_method(**own) -> Dino:
    torch.manual_seed(0)
    settings = DinoSettings(hidden=8, bottleneck=4, prototypes=6, small_views=0, **own)
    return Dino(build_network(VIT, classes=1), settings=settings, optim=OPTIM)


def large(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        views={name: torch.randn(4, 1, 32, 32, generator=generator) for name in ("large0", "large1")}
    )


def test_hidden_patches_teach_what_stands_for_them():
    method = dino_method(patches=1.0)
    torch.manual_seed(1)
    method(large(), at(0.5)).loss.backward()
    assert method.token.grad is not None
    assert float(method.token.grad.abs().sum()) > 0
    named = {id(p) for group in method.parameter_groups() for p in group.parameters}
    assert id(method.token) in named


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_hidden_patches_by_hand(weight):
    """The student, who sees no hidden patch, against the teacher: of slices, and place by place."""
    method, batch = dino_method(patches=weight), large()
    image = torch.cat([batch.views[name] for name in ("large0", "large1")])
    torch.manual_seed(2)
    hidden = draw_hidden(image, 8, (0.1, 0.5))
    sharp, soft = method.teacher_temperature(at(1.0)), method.settings.student_temperature
    with torch.no_grad():
        torch.manual_seed(2)
        found = method(batch, at(1.0))
        summary, told = method.student["encoder"].tokens(image, hidden, method.token)
        whole, seen = method.teacher["encoder"].tokens(image)

        def apart(seen: Tensor, told: Tensor) -> float:
            q = (method.teacher["head"](seen[None]) / sharp).softmax(1)
            p = (method.student["head"](told[None]) / soft).log_softmax(1)
            return -float((q * p).sum())

        places = [apart(seen[b, i], told[b, i]) for b, i in hidden.flatten(1).nonzero().tolist()]
        slices = [apart(whole[i], summary[(i + 4) % 8]) for i in range(8)]  # against the other view
    assert places
    assert found.logs["patches"] == pytest.approx(sum(places) / len(places), rel=1e-4)
    expected = sum(slices) / len(slices) + weight * found.logs["patches"]
    assert float(found.loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_a_head_with_batchnorm_wants_two_patches(norm, count, monkeypatch):
    def few(image, patch_px, share):
        hidden = torch.zeros(len(image), 1, 4, 4, dtype=torch.bool)
        hidden.view(-1)[:count] = True
        return hidden

    monkeypatch.setattr(dino, "draw_hidden", few)
    method = dino_method(patches=1.0, head_norm=norm).train()
    found = [m for m in method.student["head"].modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(found) == 2 * norm
    answer = method(large(), at(0.5))
    assert answer.logs["patches"] == 0
    assert torch.isfinite(answer.loss)


def test_without_a_hidden_patch_their_center_stays(monkeypatch):
    none = lambda image, patch_px, share: torch.zeros(len(image), 1, 4, 4, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(dino, "draw_hidden", none)
    method = dino_method(patches=1.0)
    method.patch_center.fill_(1.0)
    method(large(), at(0.5))
    assert torch.equal(method.patch_center, torch.ones_like(method.patch_center))


def test_the_center_of_patches_moves_towards_what_the_teacher_tells():
    method = dino_method(patches=1.0)
    image = torch.cat([large().views[name] for name in ("large0", "large1")])
    torch.manual_seed(3)
    hidden = draw_hidden(image, 8, (0.1, 0.5)).flatten(1)
    with torch.no_grad():
        seen = method.teacher["head"](method.teacher["encoder"].tokens(image)[1][hidden])
    torch.manual_seed(3)
    method(large(), at(0.5))
    torch.testing.assert_close(method.patch_center, 0.1 * seen.mean(0))


def test_half_of_the_views_hide_a_share_of_their_patches():
    torch.manual_seed(0)
    hidden = draw_hidden(torch.zeros(400, 1, 80, 80), 8, (0.2, 0.4)).flatten(1).float().mean(1)
    some = hidden > 0
    assert 0.4 < float(some.float().mean()) < 0.6
    assert float(hidden[some].min()) >= 0.19
    assert float(hidden[some].max()) <= 0.41


def test_patches_are_a_transformers():
    command = Pretrain(method="dino", cohort="c.csv", out="out", network=UNET, steps=1,
                       dino=DinoSettings(patches=1.0))  # fmt: skip
    with pytest.raises(InputError, match="only a vision transformer has patches"):
        method_of(command)


# Views that grow, stages


def test_views_grow_from_weak_to_those_of_the_settings():
    full = ViewSettings(size=32)
    first, middle = weaken(full, 0.0), weaken(full, 0.5)
    assert weaken(full, 1.0) == full
    reach = [one.spatial.rotation_degrees for one in (first, middle, full)]
    assert reach == sorted(reach)
    assert (first.spatial.turned, first.spatial.crop_probability) == (0, 0)
    assert first.intensity.probability == 0.25 * full.intensity.probability
    assert first.spatial.scale[0] == pytest.approx(full.spatial.scale[0] ** 0.25)


def test_growing_views_end_as_those_that_do_not_grow():
    def shown(batch, generator, *, settings):
        return replace(batch, views={"reach": torch.tensor(settings.spatial.rotation_degrees)})

    full = ViewSettings(size=32)
    growing = GrowingViews(lambda clock: wide(), shown, full, seed=0, growth=0.5)
    reach = [float(growing(at(p)).views["reach"]) for p in (0.0, 0.25, 0.5, 0.9)]
    assert reach == pytest.approx([11.25, 28.125, 45, 45])
    still = GrowingViews(lambda clock: wide(), shown, full, seed=0, growth=0.0)
    assert float(still(at(0.0)).views["reach"]) == 45


@pytest.mark.parametrize("network", [UNET, NetworkSettings()], ids=["plain", "lite0"])
def test_all_stages_are_read(network):
    torch.manual_seed(0)
    built = build_network(network, classes=1)
    method = Simclr(built, settings=SimclrSettings(stages="all", projector=(16, 8)), optim=OPTIM)
    image = torch.randn(4, 1, 64, 64)
    pooled = pool_stages(method, image)
    assert pooled.shape == (4, sum_of_stages(built))
    lengths = pooled.square().sum(1)
    assert torch.allclose(lengths, lengths.round(), atol=1e-3)  # a whole number of unit vectors
    assert float(lengths[0]) >= 3
    batch = Batch(views={"a": image, "b": image.flip(-1)})
    assert torch.isfinite(method(batch, at(0.5)).loss)


def test_small_views_grow_as_large_ones_do(monkeypatch):
    """From the middle of a slice to anywhere in a large view's field."""
    seen = []
    monkeypatch.setattr(dino, "draw_view", lambda image, settings, generator: seen.append(settings) or image)
    own, full = DinoSettings(small_views=1, small_size=0.5), ViewSettings(size=48)
    for settings in (full, weaken(full, 0.0)):
        dino.views(wide(), torch.Generator(), settings=settings, own=own)
    shifts = [settings.spatial.shift_px for settings in seen if settings.size == 24]
    assert shifts == pytest.approx([12.0, 3.0])


def test_views_are_matched_by_the_answers_they_share():
    answers = torch.eye(4)
    assert dino.views_matched(answers, 2 * answers) == 1.0
    assert dino.views_matched(answers, answers[[1, 0, 2, 3]]) == 0.5
