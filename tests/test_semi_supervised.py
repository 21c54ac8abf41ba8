"""Mean Teacher, UniMatch and BCP: what they learn from what, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fewbeats.clock import Clock
from fewbeats.losses import dice_ce_loss, supervised_loss
from fewbeats.sample import Batch
from fewbeats.semi_supervised import bcp, co_training, mean_teacher, unimatch
from fewbeats.semi_supervised.bcp import Bcp, draw_mask, keep_largest_parts
from fewbeats.semi_supervised.mean_teacher import MeanTeacher
from fewbeats.semi_supervised.methods import METHODS, find_recipe
from fewbeats.semi_supervised.settings import BcpSettings, MeanTeacherSettings, UnimatchSettings
from fewbeats.semi_supervised.unimatch import Unimatch, draw_boxes, dropped_channels
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.views import ViewSettings, follow
from tiny_training import at

OPTIM = OptimSettings(learning_rate=1e-2)


class Small(nn.Module):
    """Logits from an encoder of two maps, as the house's networks have."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = Encoder()
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat(self.encoder(image), 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image, self.first(image)]


def method_of(cls, settings):
    return cls(Small(), settings=settings, optim=OPTIM, ema_decay=0.9).train()


def batch_of(*names: str, labeled: int = 2, size: int = 4, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(size, 1, 16, 16, generator=draw) for name in names}
    target = torch.randint(0, 3, (size, 16, 16), generator=draw)
    known = torch.arange(size) < labeled
    target, place = target.where(known[:, None, None], 0), untouched(size, 16)
    return Batch(views=views, target=target, labeled=known, place=place)


def untouched(count: int, px: int) -> torch.Tensor:
    """The place of views that show what is stored as it is."""
    at = (2 * torch.arange(px) + 1) / px - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).expand(count, px, px, 3)


# Mean Teacher


def test_the_consistency_rises_as_the_paper_says():
    method = method_of(MeanTeacher, MeanTeacherSettings(consistency=2.0, ramp=0.4))
    assert method.weight(at(0.0)) == pytest.approx(2 * math.exp(-5))
    assert method.weight(at(0.2)) == pytest.approx(2 * math.exp(-5 / 4))
    assert [method.weight(at(p)) for p in (0.4, 0.9)] == pytest.approx([2.0, 2.0])


def test_mean_teachers_loss_is_labels_and_agreement():
    method, batch = method_of(MeanTeacher, MeanTeacherSettings(ramp=0.0)), batch_of("image", "stored")
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(1.3)
    step = method(batch, at(0.5))
    method.student.train()
    with torch.no_grad():
        logits = method.student(batch.views["image"])
        wanted = method.teacher.eval()(batch.views["stored"]).softmax(1)
    apart = (logits.softmax(1) - wanted).square().mean()
    assert step.logs["consistency"] == pytest.approx(float(apart), rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(float(supervised_loss(logits, batch) + apart), rel=1e-5)
    step.loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


# UniMatch


def test_what_is_not_sure_is_not_learned_from():
    settings = UnimatchSettings(threshold=1.0, weight=0.4)
    method, batch = method_of(Unimatch, settings), batch_of("stored", "image", "strong0", "strong1")
    step = method(batch, at(0.5))
    known = batch.select([0, 1])
    method.student.load_state_dict(Small().state_dict())
    labels = supervised_loss(method.student(known.views["image"]), known)
    assert step.logs["sure"] == 0
    assert step.loss.item() == pytest.approx(0.6 * labels.item(), rel=1e-4)


def test_a_strong_view_is_held_to_what_the_teacher_says_of_the_weak_one():
    settings = UnimatchSettings(threshold=0.0, features=0.0, strong_views=1, cutmix=0.0, weight=1.0)
    method, batch = method_of(Unimatch, settings), batch_of("stored", "image", "strong0")
    step = method(batch, at(0.5))
    with torch.no_grad():
        wanted = method.teacher.eval()(batch.views["stored"][2:]).argmax(1)
    again = Small().train()
    again(batch.views["image"][:2])  # the labels were learned first: its statistics have moved
    expected = dice_ce_loss(again(batch.views["strong0"][2:]), wanted, weight=torch.ones(2, 16, 16))
    assert float(step.loss) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "own", "told"),
    [
        (Unimatch, UnimatchSettings(threshold=0.0, features=0.0), "sure"),
        (MeanTeacher, MeanTeacherSettings(ramp=0.0), "consistency"),
    ],
)
def test_what_the_teacher_did_not_see_is_not_learned_from(cls, own, told):
    batch = batch_of("stored", "image", "strong0", "strong1")
    outside = replace(batch, place=batch.place + torch.tensor([3.0, 0.0, 0.0]))
    assert method_of(cls, own)(batch, at(0.5)).logs[told] > 0
    assert method_of(cls, own)(outside, at(0.5)).logs[told] == 0


def test_boxes_are_in_plane_and_of_the_stated_size():
    torch.manual_seed(0)
    boxes = draw_boxes(torch.zeros(400, 1, 3, 40, 40), chance=0.5)
    assert boxes.shape == (400, 3, 40, 40)
    assert torch.equal(boxes[:, 0], boxes[:, 2])
    area = boxes[:, 0].float().mean((1, 2))
    assert 0.4 < float((area > 0).float().mean()) < 0.6
    assert float(area[area > 0].min()) > 0.01
    assert float(area.max()) < 0.42
    assert not draw_boxes(torch.zeros(9, 1, 8, 8), chance=0.0).any()


def test_dropped_channels_are_whole_and_come_back():
    network = Small().eval()
    image = torch.randn(64, 1, 8, 8)
    torch.manual_seed(1)
    with dropped_channels(network, 0.5):
        first, second = network.encoder(image)
    assert torch.equal(first, image)  # the image itself is no feature
    gone = (second == 0).all((2, 3))
    assert 0.3 < float(gone.float().mean()) < 0.8
    _, whole = network.encoder(image)
    kept = second[~gone]
    torch.testing.assert_close(kept, 2 * whole[~gone])


def test_dropped_channels_move_no_statistics():
    """The teacher takes them over, and no teacher sees maps with holes."""
    network = Small().train()
    norm, image = network.encoder.first[1], torch.randn(4, 1, 8, 8)
    before = norm.running_mean.clone()
    with dropped_channels(network, 0.5):
        network(image)
    assert torch.equal(norm.running_mean, before)
    network(image)
    assert norm.momentum == 0.1
    assert not torch.equal(norm.running_mean, before)


# BCP


def test_labeled_and_unlabeled_are_pasted_into_each_other_both_ways(monkeypatch):
    seen = []
    method = method_of(Bcp, BcpSettings(pretraining=0.3, unlabeled=0.5))
    monkeypatch.setattr(bcp, "supervised_loss", lambda logits, batch: seen.append(batch) or logits.sum())
    batch = batch_of("image", "stored")
    method(batch, at(0.5))
    (mixed,) = seen
    image, target, weight = mixed.views["image"][:, 0], mixed.target, mixed.weight
    with torch.no_grad():
        answer = keep_largest_parts(method.teacher.eval()(batch.views["stored"][2:]).argmax(1))
    labels = torch.cat([batch.target[:2], answer])
    for i, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        own = image[i] == batch.views["image"][i, 0]
        assert 0.4 < float(own.float().mean()) < 0.7  # the box has 4 / 9 of the image
        assert torch.equal(
            image[i], torch.where(own, batch.views["image"][i, 0], batch.views["image"][other, 0])
        )
        assert torch.equal(target[i], torch.where(own, labels[i], labels[other]))
        weights = [1.0, 1.0, 0.5, 0.5]
        assert torch.equal(weight[i], torch.where(own, weights[i], weights[other]))


def test_what_bcps_teacher_did_not_see_weighs_nothing(monkeypatch):
    seen = []
    method = method_of(Bcp, BcpSettings(pretraining=0.0, unlabeled=0.5))
    monkeypatch.setattr(bcp, "supervised_loss", lambda logits, batch: seen.append(batch) or logits.sum())
    batch = batch_of("image", "stored")
    place = batch.place.clone()
    place[:, :, :4, 0] = 3.0  # what the first columns of a view show lies outside
    method(replace(batch, place=place), at(0.5))
    weight = seen[0].weight
    assert set(weight[:, :, :4].unique().tolist()) == {0.0, 1.0}
    assert set(weight[:, :, 6:].unique().tolist()) == {0.5, 1.0}


def test_in_the_beginning_labels_alone_are_pasted(monkeypatch):
    seen = []
    method = method_of(Bcp, BcpSettings(pretraining=0.3))
    monkeypatch.setattr(bcp, "supervised_loss", lambda logits, batch: seen.append(batch) or logits.sum())
    batch = batch_of("image", labeled=3, size=5)
    method(batch, at(0.1))
    assert len(seen[0].views["image"]) == 3
    assert (seen[0].weight == 1).all()
    for i in range(3):
        both = torch.stack([batch.views["image"][j, 0] for j in (i, (i - 1) % 3)])
        assert (seen[0].views["image"][i, 0] == both).any(0).all()


def test_a_box_is_somewhere_and_of_the_stated_side():
    torch.manual_seed(0)
    masks = [draw_mask(torch.zeros(2, 1, 12, 30, 30), side=2 / 3) for _ in range(20)]
    assert all(int((~mask[0]).sum()) == 8 * 20 * 20 for mask in masks)
    assert len({mask.numpy().tobytes() for mask in masks}) > 10


def test_of_each_class_the_largest_part_stays():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, :3, :3], labels[0, 6, 6], labels[0, 5:7, 0] = 1, 1, 2
    labels[1] = 2
    kept = keep_largest_parts(labels)
    assert int((kept[0] == 1).sum()) == 9
    assert int((kept[0] == 2).sum()) == 2
    assert torch.equal(kept[1], labels[1])


# All


@pytest.mark.parametrize("module", [mean_teacher, unimatch, bcp])
def test_all_views_and_the_target_share_one_geometry(module):
    """With gray values left alone every view is the same image, and the mask lies on it."""
    settings = ViewSettings(size=32, intensity=IntensitySettings(probability=0.0))
    target = torch.zeros(3, 1, 48, 48, dtype=torch.long)
    target[:, :, 15:30, 12:34] = 1
    wide = Batch(views={"image": target * 50.0}, target=target)
    found = module.views(wide, torch.Generator().manual_seed(0), settings=settings, own=UnimatchSettings())
    for name, view in found.views.items():
        if name.startswith("strong"):  # these are changed whatever the settings say
            continue
        if name == "stored":
            view = follow(view, found.place)
            seen = follow(torch.ones_like(view), found.place) > 0.99
            assert 0.3 < float(seen.float().mean()) < 1
        else:
            seen = torch.ones_like(view, dtype=torch.bool)
        same = (view > 25) == (found.target == 1)
        assert float(same[seen].float().mean()) > 0.98, name


@pytest.mark.parametrize("module", [mean_teacher, unimatch, bcp, co_training])
def test_labels_are_recolored_where_it_is_asked_for(module):
    target = torch.zeros(3, 1, 48, 48, dtype=torch.long)
    target[:, :, 15:30, 12:34] = 1
    wide = Batch(views={"image": target * 1.0 + 0.1}, target=target)
    shown = [
        module.views(
            wide,
            torch.Generator().manual_seed(0),
            settings=ViewSettings(size=32, intensity=IntensitySettings(probability=0.0, structures=strength)),
            own=UnimatchSettings(),
        ).views["image"]
        for strength in (0.0, 0.5)
    ]
    assert float((shown[0] - shown[1]).abs().max()) > 0.05


def test_every_method_is_there_by_its_name():
    assert [find_recipe(name).name for name in METHODS] == list(METHODS)
    assert find_recipe("mean-teacher").labels(Clock(0, 1), MeanTeacherSettings(), 5) == 3


@pytest.mark.parametrize(
    ("name", "own"),
    [("bcp", BcpSettings(pretraining=0.25)), ("unimatch", UnimatchSettings(pretraining=0.25))],
)
def test_labels_alone_come_first(name, own):
    counts = [find_recipe(name).labels(Clock(step, 8), own, 5) for step in range(8)]
    assert counts == [5, 5, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("cls", "settings", "names"),
    [
        (MeanTeacher, MeanTeacherSettings(), ("image", "stored")),
        (Unimatch, UnimatchSettings(), ("stored", "image", "strong0", "strong1")),
        (Bcp, BcpSettings(), ("image", "stored")),
    ],
)
def test_the_teacher_follows_and_is_exported(cls, settings, names):
    method = method_of(cls, settings)
    before = {n: v.clone() for n, v in method.teacher.state_dict().items()}
    method(batch_of(*names), at(0.9)).loss.backward()
    assert all(torch.equal(v, before[n]) for n, v in method.teacher.state_dict().items())
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.1)
    method.after_update(at(0.9))
    assert method.networks() == {"network": method.teacher}
    start, now = before["head.weight"], method.teacher.state_dict()["head.weight"]
    assert not torch.equal(start, now)
    assert np.isfinite(now).all()
