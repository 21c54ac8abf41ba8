"""Self-supervised methods against slow twins and hand-computed values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reference
from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.losses import contrastive_loss
from fewbeats.models.heads import PrototypeHead, spread
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining import dino, mim, pcl, simclr
from fewbeats.pretraining.dino import Dino
from fewbeats.pretraining.mim import Mim, draw_blanks
from fewbeats.pretraining.pcl import Pcl, same_height
from fewbeats.pretraining.settings import DinoSettings, MimSettings, PclSettings, SimclrSettings
from fewbeats.pretraining.simclr import Simclr, same_slice
from fewbeats.sample import Batch
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.views import ViewSettings
from tiny_training import at

SMALL = NetworkSettings(kind="unet2d", base_channels=4, levels=3)
OPTIM = OptimSettings()


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return build_network(SMALL, classes=channels)


def shown(names, *, size: int = 16, batch: int = 4, seed: int = 0, **more) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(batch, 1, size, size, generator=generator) for name in names}
    return Batch(views=views, **more)


# Contrast


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_its_double_loop(temperature):
    z = torch.randn(10, 7, generator=torch.Generator().manual_seed(1))
    found = contrastive_loss(z, same_slice(5, z.device), temperature=temperature)
    pairs = {i: [(i + 5) % 10] for i in range(10)}
    assert float(found) == pytest.approx(reference.info_nce(z.tolist(), pairs, temperature), abs=1e-5)


def test_nt_xent_is_that_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed (make test installs it)")
    a, b = torch.randn(2, 16, 9, generator=torch.Generator().manual_seed(4)).unbind()
    found = contrastive_loss(torch.cat([a, b]), same_slice(16, a.device), temperature=0.1)
    torch.testing.assert_close(found, loss.NTXentLoss(temperature=0.1)(a, b))


def test_positional_contrast_is_its_double_loop():
    generator = torch.Generator().manual_seed(2)
    z, position = torch.randn(12, 5, generator=generator), torch.rand(12, generator=generator)
    scan = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    directed = torch.tensor([True] * 6 + [False] * 6)
    near = same_height(position, directed, scan, distance=0.3)
    pairs = {
        i: [
            j
            for j in range(12)
            if j != i
            and abs(float(position[i] - position[j])) < 0.3
            and (scan[i] == scan[j] or (directed[i] and directed[j]))
        ]
        for i in range(12)
    }
    assert 0 < sum(map(len, pairs.values())) < 12 * 11
    found = contrastive_loss(z, near, temperature=0.2)
    assert float(found) == pytest.approx(reference.info_nce(z.tolist(), pairs, 0.2), abs=1e-5)


def test_a_scan_of_unknown_direction_is_near_itself_alone():
    position, scan = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 1, 0])
    near = same_height(position, torch.tensor([False, False, False]), scan, distance=0.1)
    assert near.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_anchors_without_a_positive_are_left_out():
    z = torch.eye(4)
    pairs = torch.zeros(4, 4, dtype=torch.bool)
    pairs[0, 1] = pairs[1, 0] = True
    expected = reference.info_nce(z.tolist(), {0: [1], 1: [0], 2: [], 3: []}, 0.5)
    assert float(contrastive_loss(z, pairs, temperature=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("slices", [7, 10, 20, 21])
def test_what_is_near_does_not_hang_on_rounding(slices):
    """Neighbors of a stack of 10 are a tenth apart, not less; in float32 it may look so."""
    height = torch.arange(slices) / slices
    near = same_height(height, torch.ones(slices, dtype=torch.bool), torch.arange(slices), distance=0.1)
    apart = (torch.arange(slices)[:, None] - torch.arange(slices)).abs()
    assert torch.equal(near, 10 * apart < slices)


def test_simclr_and_pcl_train_their_encoder():
    for method in (
        Simclr(network(), settings=SimclrSettings(), optim=OPTIM),
        Pcl(network(), settings=PclSettings(), optim=OPTIM),
    ):
        place = {
            "position": torch.rand(4),
            "directed": torch.ones(4, dtype=torch.bool),
            "scan": torch.arange(4),
        }
        step = method(shown(("a", "b"), **place), at(0.0))
        step.loss.backward()
        assert all(p.grad is not None for p in method.encoder.parameters())
        assert set(method.networks()["network"].state_dict()) <= set(network().state_dict())
        assert step.logs["spread"] > 0


# DINO


def small_dino(**changes) -> Dino:
    settings = DinoSettings(**{"hidden": 8, "bottleneck": 4, "prototypes": 6, "small_views": 2} | changes)
    torch.manual_seed(3)
    return Dino(network(), settings=settings, optim=OPTIM)


def test_the_teacher_starts_as_a_copy_and_follows_by_hand_computed_steps():
    method = small_dino(teacher_momentum=0.9)
    student, teacher = (list(m.parameters()) for m in (method.student, method.teacher))
    assert all(torch.equal(a, b) for a, b in zip(student, teacher))
    assert not any(p.requires_grad for p in teacher)
    before = teacher[0].clone()
    with torch.no_grad():
        student[0].add_(1.0)
    method.after_update(at(0.0))
    torch.testing.assert_close(teacher[0], before + 0.1)  # 0.9 t + 0.1 (t + 1)
    assert method.momentum(at(0.5)) == pytest.approx(0.95)
    assert method.momentum(at(1.0)) == pytest.approx(1.0)


def test_the_center_moves_by_hand_computed_steps():
    method = small_dino()
    method.train()
    batch = shown(("large0", "large1"))
    with torch.no_grad():
        seen = dino._judge(method.teacher, torch.cat([batch.views["large0"], batch.views["large1"]]))
    method(batch, at(0.5))
    torch.testing.assert_close(method.center, 0.1 * seen.mean(0))


def test_the_loss_is_its_double_loop():
    method = small_dino().eval()
    method.center = torch.linspace(-0.1, 0.1, 6)
    names = ("large0", "large1", "small0", "small1")
    batch = shown(names)
    seen = {n: dino._judge(method.teacher, batch.views[n]) - method.center for n in names[:2]}
    told = {n: dino._judge(method.student, batch.views[n]) for n in names}
    expected = reference.distillation(
        {n: v.tolist() for n, v in seen.items()},
        {n: v.tolist() for n, v in told.items()},
        teacher_temperature=method.teacher_temperature(at(0.15)),
        student_temperature=0.1,
    )
    assert float(method(batch, at(0.15)).loss.detach()) == pytest.approx(expected, abs=1e-4)


def test_the_loss_and_the_center_are_those_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed (make test installs it)")
    method = small_dino(teacher_temperature=(0.04, 0.04)).eval()
    twin = loss.DINOLoss(
        output_dim=6, warmup_teacher_temp=0.04, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9
    )
    names = ("large0", "large1", "small0", "small1")
    for seed in range(3):  # the center moves from step to step
        batch = shown(names, seed=seed)
        with torch.no_grad():
            seen = [dino._judge(method.teacher, batch.views[n]) for n in names[:2]]
            told = [dino._judge(method.student, batch.views[n]) for n in names]
            found = method(batch, at(0.5)).loss
        torch.testing.assert_close(found, twin(seen, told, epoch=0), atol=1e-5, rtol=1e-5)


def test_the_exported_teacher_has_its_own_statistics():
    """An average of weights would leave its BatchNorm at the start; it has seen slices itself."""
    torch.manual_seed(0)
    settings = NetworkSettings(kind="unet2d", base_channels=4, levels=3, norm="batch")
    small = DinoSettings(hidden=8, bottleneck=4, prototypes=6, small_views=0)
    method = Dino(build_network(settings, classes=1), settings=small, optim=OPTIM).train()
    for seed in range(3):
        method(shown(("large0", "large1"), seed=seed), at(0.5))
        method.after_update(at(0.5))
    method.start_left.fill_(0.0)  # as after a long run: the teacher is handed on
    state = method.networks()["network"].state_dict()
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    assert means
    assert all(value.abs().max() > 0 for value in means)


@pytest.mark.parametrize(("steps", "left", "side"), [(600, 0.30, "student"), (4000, 0.000335, "teacher")])
def test_what_is_handed_on_is_no_average_with_the_random_start(steps, left, side):
    method = small_dino()
    for step in range(steps):
        method.start_left.mul_(method.momentum(Clock(step, steps)))
    assert float(method.start_left) == pytest.approx(left, rel=0.02, abs=2e-5)
    assert method.describe()["handed_on"] == side
    encoder = method.networks()["network"]["encoder"]
    assert encoder is getattr(method, side)["encoder"]


def test_the_share_of_the_start_is_counted_as_the_teacher_moves():
    method = small_dino(teacher_momentum=0.9)
    start = next(method.teacher.parameters()).clone()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.zero_()
    for step in range(5):
        method.after_update(Clock(step, 10))
    moved = next(method.teacher.parameters())
    torch.testing.assert_close(moved, start * float(method.start_left), rtol=1e-5, atol=1e-7)


def test_the_teachers_temperature_warms_up():
    method = small_dino()
    assert [method.teacher_temperature(at(p)) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx(
        [0.02, 0.03, 0.04, 0.04]
    )


def test_the_last_layer_is_frozen_at_first():
    method = small_dino(freeze=0.1)
    assert method(shown(("large0", "large1")), at(0.05)).active == ("network",)
    assert method(shown(("large0", "large1")), at(0.1)).active is None
    groups = {group.name: group.parameters for group in method.parameter_groups()}
    assert [p.shape for p in groups["prototypes"]] == [(6, 4)]
    assert len(groups["network"]) + 1 == len(list(method.student.parameters()))


def test_prototypes_count_by_direction_alone():
    head = PrototypeHead(5, hidden=8, bottleneck=4, prototypes=6)
    features = torch.randn(3, 5)
    before = head(features)
    with torch.no_grad():
        head.prototypes.weight.mul_(7.0)
    torch.testing.assert_close(head(features), before)
    assert float(before.detach().abs().max()) <= 1 + 1e-6


def test_small_views_are_cut_from_the_field_of_view():
    settings = ViewSettings(size=32)
    wide, own = Batch(views={"image": torch.randn(2, 1, 48, 48)}), DinoSettings(small_views=3)
    found = dino.views(wide, torch.Generator().manual_seed(0), settings=settings, own=own)
    assert {name: v.shape[-1] for name, v in found.views.items()} == {
        "large0": 32, "large1": 32, "small0": 16, "small1": 16, "small2": 16,
    }  # fmt: skip


# MIM


@pytest.mark.parametrize(("patch", "ratio", "blanked"), [(16, 0.75, 48), (32, 0.6, 10), (16, 0.5, 32)])
def test_exactly_the_stated_share_is_blanked_in_whole_patches(patch, ratio, blanked):
    blank = draw_blanks(torch.zeros(5, 1, 128, 128), MimSettings(patch_px=patch, ratio=ratio))
    patches = blank.unfold(2, patch, patch).unfold(3, patch, patch).flatten(1, 3).flatten(2)
    assert (patches.all(-1) == patches.any(-1)).all()
    assert patches.all(-1).sum(1).tolist() == [blanked] * 5
    assert len({tuple(p.all(-1).tolist()) for p in patches}) > 1


class Constant(nn.Module):
    """Answers with what it is given plus a visible error, to see what the loss looks at."""

    def __init__(self):
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, image):
        self.seen.append(image)
        return torch.where(image == 0, self.answer, torch.full_like(image, 1e6))


def test_visible_pixels_are_ignored_and_blanked_ones_are_hidden():
    method = Mim(Constant(), settings=MimSettings(patch_px=4, ratio=0.5), optim=OPTIM, size=16)
    image = torch.full((3, 1, 16, 16), 2.0)
    step = method(Batch(views={"image": image}), at(0.0))
    assert float(step.loss.detach()) == pytest.approx(
        4.0
    )  # (0 - 2)^2 where blanked; visible errors of 1e6 do not count
    assert float((method.network.seen[0] == 0).float().mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(("settings", "complaint"), [
    (MimSettings(patch_px=10), "does not divide the view of 16 pixels"),
    (MimSettings(patch_px=8, ratio=0.05), "blanks none or all"),
    (MimSettings(patch_px=8, ratio=0.99), "blanks none or all"),
])  # fmt: skip
def test_patches_that_do_not_fit_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        Mim(network(), settings=settings, optim=OPTIM, size=16)


# All


def test_a_collapse_has_no_spread():
    assert spread(torch.randn(64, 32)) == pytest.approx(1.0, abs=0.1)
    assert spread(torch.ones(64, 32)) < 1e-3


@pytest.mark.parametrize("module", [simclr, pcl, mim], ids=lambda m: m.__name__)
def test_views_are_named_and_of_the_networks_size(module):
    wide, draw = Batch(views={"image": torch.randn(2, 1, 48, 48)}), torch.Generator().manual_seed(0)
    found = module.views(wide, draw, settings=ViewSettings(size=32), own=None).views
    assert all(view.shape == (2, 1, 32, 32) for view in found.values())
    if len(found) == 2:
        a, b = found.values()
        assert not torch.equal(a, b)
