"""M&N: the paper's schedule to the step, whose turn it is, and what reaches a partner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewbeats.clock import Clock
from fewbeats.losses import soft_dice_kl
from fewbeats.sample import Batch
from fewbeats.semi_supervised.co_training import (
    CoTraining,
    Folded,
    count_labeled,
    find_learners,
    fold,
    relative_rate,
    unfold,
)
from fewbeats.semi_supervised.settings import MnSettings
from fewbeats.training.loop import fit
from fewbeats.training.rundir import RunDir
from tiny_training import Killed, short

EPOCHS, ITERATIONS = 4000, 8
STEPS = EPOCHS * ITERATIONS
PAPER = MnSettings()


def at_epoch(epoch: int, iteration: int = 0) -> Clock:
    return Clock(epoch * ITERATIONS + iteration, STEPS)


@pytest.mark.parametrize(
    ("epoch", "pseudo", "learners"),
    [
        (0, 0, ("flat", "deep")), (499, 0, ("flat", "deep")), (500, 0, ("flat",)), (1199, 0, ("deep",)),
        (1200, 1, ("flat",)), (1900, 2, ("flat",)), (2600, 3, ("flat",)), (3300, 4, ("flat",)),
        (3999, 4, ("deep",)),
    ],
)  # fmt: skip
def test_composition_and_turns_of_the_papers_schedule(epoch, pseudo, learners):
    for iteration in (0, 7):
        clock = at_epoch(epoch, iteration)
        assert count_labeled(clock, PAPER, size=5) == 5 - pseudo
        assert find_learners(clock, PAPER) == learners


def test_every_step_of_the_paper_is_in_its_epoch():
    """In whole numbers; as a share of the run 24 of the 32,000 steps would fall into the wrong epoch."""
    for step in range(STEPS):
        clock, epoch = Clock(step, STEPS), step // ITERATIONS
        pseudo = 0 if epoch < 500 else (epoch - 500) * 5 // 3500
        turn = ("flat", "deep") if epoch < 500 else (("flat",), ("deep",))[epoch % 2]
        assert (count_labeled(clock, PAPER, size=5), find_learners(clock, PAPER)) == (5 - pseudo, turn)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.01), (49, 0.9802), (50, 1.0), (275, 0.5), (500, 1.0), (1200, 0.9045), (1900, 0.6545),
     (2600, 0.3455), (3300, 0.0955)],
)  # fmt: skip
def test_rates_of_the_papers_schedule(epoch, rate):
    assert relative_rate(at_epoch(epoch), PAPER) == pytest.approx(rate, abs=5e-5)


def test_the_share_may_follow_the_learning_rate():
    settings = MnSettings(sampling="learning_rate")
    counts = [count_labeled(at_epoch(epoch), settings, size=5) for epoch in range(EPOCHS)]
    assert set(counts[:500]) == {5}
    assert counts[500:] == sorted(counts[500:], reverse=True)
    assert counts[-1] == 1  # one labeled item always
    for epoch in (800, 2250, 3900):
        assert counts[epoch] == max(1, 5 - int((1 - relative_rate(at_epoch(epoch), settings)) * 5))
    half = MnSettings(sampling="half")
    assert [count_labeled(at_epoch(e), half, size=5) for e in (499, 500, 3999)] == [5, 3, 3]


@pytest.mark.parametrize("total", [300, 1500, 4001])
def test_a_scaled_schedule_keeps_its_shape(total):
    clocks = [Clock(step, total) for step in range(total)]
    counts = [count_labeled(clock, PAPER, size=5) for clock in clocks]
    turns = [find_learners(clock, PAPER) for clock in clocks]
    first = next(i for i, turn in enumerate(turns) if len(turn) == 1)
    assert first / total == pytest.approx(0.125, abs=0.03)
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {5, 4, 3, 2, 1}
    assert abs(turns.count(("flat",)) - turns.count(("deep",))) <= 0.03 * total
    assert relative_rate(clocks[-1], PAPER) < 0.02


def test_fold_and_unfold_are_exact_inverses():
    volume = torch.randn(3, 2, 4, 5, 6)
    slices = fold(volume)
    assert slices.shape == (12, 2, 5, 6)
    assert torch.equal(slices[5], volume[1, :, 1])
    assert torch.equal(unfold(slices, 3), volume)


def test_the_loss_agrees_with_its_definition():
    logits, target = torch.randn(2, 3, 4), torch.rand(2, 3, 4).softmax(1)
    p, t = logits.double().softmax(1).numpy(), target.double().numpy()
    dice = np.mean([
        (2 * (p[:, c] * t[:, c]).sum() + 1e-5) / ((p[:, c] ** 2).sum() + (t[:, c] ** 2).sum() + 1e-5)
        for c in range(3)
    ])  # fmt: skip
    kl = np.mean(t * (np.log(t) - np.log(p)))
    assert float(soft_dice_kl(logits, target)) == pytest.approx(1 - dice + kl, rel=1e-5)
    hard = nn.functional.one_hot(torch.randint(0, 3, (2, 4)), 3).movedim(-1, 1).float()
    surprise = -(hard * logits.log_softmax(1)).sum(1).mean()
    entropy_part = soft_dice_kl(logits, hard) - (1 - _dice(logits, hard))
    assert float(entropy_part) == pytest.approx(float(surprise) / 3, rel=1e-4)


def _dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(1)
    both, total = (p * target).sum((0, 2)), (p**2).sum((0, 2)) + (target**2).sum((0, 2))
    return ((2 * both + 1e-5) / (total + 1e-5)).mean()


# The method


def pair(seed: int = 0, **changes) -> CoTraining:
    torch.manual_seed(seed)
    flat = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    deep = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1))
    return CoTraining(flat, deep, settings=MnSettings(**changes))


def volumes(clock: Clock, *, settings: MnSettings = PAPER, size: int = 4) -> Batch:
    """Volumes with a bright box; the last ones of a batch are unlabeled, as many as the clock says."""
    draw = np.random.default_rng([3, clock.step])
    target = torch.zeros(size, 4, 8, 8, dtype=torch.long)
    for one in target:
        y, x = draw.integers(0, 4, 2)
        one[1:3, y : y + 4, x : x + 4] = 1
    image = torch.from_numpy(draw.normal(size=(size, 1, 4, 8, 8)).astype(np.float32)) + 2 * target[:, None]
    labeled = torch.arange(size) < count_labeled(clock, settings, size=size)
    return Batch(
        views={"image": image}, target=target.where(labeled[:, None, None, None], 0), labeled=labeled
    )


@pytest.mark.parametrize("learner", ["flat", "deep"])
def test_no_gradient_reaches_the_partner_and_its_statistics_stand_still(learner):
    method, clock = pair().train(), at_epoch(3300 if learner == "flat" else 3301)
    partner = method.deep if learner == "flat" else method.flat
    before = {name: value.clone() for name, value in partner.state_dict().items()}
    step = method(volumes(clock), clock)
    step.loss.backward()
    assert step.active == (learner,)
    assert all(p.grad is None for p in partner.parameters())
    assert all(p.grad is not None for p in getattr(method, learner).parameters())
    assert all(torch.equal(value, before[name]) for name, value in partner.state_dict().items())
    assert all(module.training for module in method.modules())


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_targets_are_labels_and_the_partners_answer(targets):
    method, clock = pair(targets=targets).eval(), at_epoch(3300)
    batch = volumes(clock)
    target = method.target("deep", batch, classes=2)
    torch.testing.assert_close(target.sum(1), torch.ones(4, 4, 8, 8))
    assert torch.equal(target[batch.labeled].argmax(1), batch.target[batch.labeled])
    with torch.no_grad():
        answer = unfold(method.flat(fold(batch.views["image"])), 4).softmax(1)[~batch.labeled]
    if targets == "hard":
        answer = nn.functional.one_hot(answer.argmax(1), 2).movedim(-1, 1).float()
    torch.testing.assert_close(target[~batch.labeled], answer)


def test_empty_slices_are_background_and_never_shown_to_the_2d_network():
    """They fill up thin stacks; BatchNorm's statistics and the other slices' logits are as without them."""
    method, whole = pair(), torch.randn(2, 1, 4, 8, 8)
    padded = torch.nn.functional.pad(whole, (0, 0, 0, 0, 1, 2))
    logits = method.train().logits("flat", padded)
    assert float(logits[:, :, [0, 5, 6]].softmax(1)[:, 1].max()) < 1e-6
    padded_mean = method.flat[1].running_mean.clone()
    again = pair().train()
    torch.testing.assert_close(logits[:, :, 1:5], again.logits("flat", whole))
    torch.testing.assert_close(padded_mean, again.flat[1].running_mean)
    batches = Folded(lambda clock: Batch(views={"image": padded}))
    assert torch.equal(batches(Clock(0, 1)).views["image"], fold(whole))


def test_each_network_tells_its_own_pseudo_labels():
    clock = Clock(500, 1000)
    told = pair(turns="joint")(volumes(clock), clock).logs
    assert {"pseudo_largest_flat", "pseudo_largest_deep"} <= told.keys()
    alone = pair()(volumes(clock), clock).logs
    assert len({"pseudo_largest_flat", "pseudo_largest_deep"} & alone.keys()) == 1


def test_a_killed_co_training_ends_bit_equal(tmp_path):
    def broken(clock: Clock) -> Batch:
        if clock.step >= 21:
            raise Killed
        return volumes(clock)

    fit(whole := pair(), volumes, settings=short(steps=40), run=RunDir(tmp_path / "whole"))
    with pytest.raises(Killed):
        fit(pair(), broken, settings=short(steps=40), run=RunDir(tmp_path / "broken"))
    fit(again := pair(seed=1), volumes, settings=short(steps=40), run=RunDir(tmp_path / "broken"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_both_networks_learn(tmp_path):
    method = pair(flat_rate=3e-2, deep_rate=3e-2)
    fit(method, volumes, settings=short(steps=160), run=RunDir(tmp_path))
    clock = Clock(500, 1000)
    batch = volumes(clock, size=8)
    truth = volumes(Clock(500, 10**9), size=8).target  # the same, all labeled
    for name in ("flat", "deep"):
        with torch.no_grad():
            found = method.eval().logits(name, batch.views["image"]).argmax(1)
        overlap = 2 * (found * truth).sum() / (found.sum() + truth.sum())
        assert overlap > 0.8, name
