"""Dice + cross-entropy against its definition, against MONAI, and where labels are silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.losses import contrastive_loss, dice_ce_loss


def dice_ce_slowly(
    logits: np.ndarray, target: np.ndarray, annotated: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Voxel by voxel, in double precision: (B, 1 + C, N) scores, (B, N) classes, (B, C) annotated, (B, N)."""
    batch, classes, voxels = logits.shape
    weight = np.ones((batch, voxels)) if weight is None else weight
    weight = weight * annotated.any(1)[:, None]  # a sample that speaks of nothing is none
    surprise, overlap, total = 0.0, [0.0] * classes, [0.0] * classes
    for b in range(batch):
        for v in range(voxels):
            shares = [math.exp(score - max(logits[b, :, v])) for score in logits[b, :, v]]
            shares = [share / sum(shares) for share in shares]
            unknown = [c for c in range(1, classes) if not annotated[b, c - 1]]
            shares[0] += sum(shares[c] for c in unknown)
            surprise -= weight[b, v] * math.log(shares[target[b, v]])
            for c in range(1, classes):
                if c not in unknown:
                    truth = float(target[b, v] == c)
                    overlap[c] += weight[b, v] * shares[c] * truth
                    total[c] += weight[b, v] * (shares[c] + truth)
    scored = [c for c in range(1, classes) if (weight.any(1) & annotated[:, c - 1]).any()]
    dice = [(2 * overlap[c] + 1e-5) / (total[c] + 1e-5) for c in scored]
    dice_loss = 1 - sum(dice) / len(dice) if dice else 0.0
    return 0.5 * dice_loss + 0.5 * surprise / max(weight.sum(), 1e-8)


def _case(seed: int, *, batch: int = 3, classes: int = 4, shape=(2, 5), spread: float = 3.0):
    """Random logits, which structures are annotated, and labels that hold no others."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (batch, classes, *shape))
    annotated = rng.random((batch, classes - 1)) < 0.6
    target = rng.integers(0, classes, (batch, *shape))
    for b, c in np.argwhere(~annotated):
        target[b][target[b] == c + 1] = 0
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target), torch.tensor(annotated)


@given(st.integers(0, 2**32), st.sampled_from([0.1, 3.0, 30.0]), st.sampled_from([(5,), (2, 3), (2, 2, 3)]))
@settings(max_examples=80, deadline=None)
def test_agrees_with_the_definition(seed, spread, shape):
    logits, target, annotated = _case(seed, shape=shape, spread=spread)
    slow = dice_ce_slowly(logits.flatten(2).double().numpy(), target.flatten(1).numpy(), annotated.numpy())
    assert dice_ce_loss(logits, target, annotated).item() == pytest.approx(slow, rel=1e-4, abs=1e-5)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_weights_agree_with_the_definition(seed, of_samples):
    logits, target, annotated = _case(seed, shape=(5,))
    draw = np.random.default_rng(seed)
    weight = draw.choice([0.0, 0.5, 1.0], (3,) if of_samples else (3, 5))
    every = np.broadcast_to(weight[:, None], (3, 5)) if of_samples else weight
    slow = dice_ce_slowly(logits.double().numpy(), target.numpy(), annotated.numpy(), every)
    found = dice_ce_loss(logits, target, annotated, weight=torch.tensor(weight, dtype=torch.float32))
    assert found.item() == pytest.approx(slow, rel=1e-4, abs=1e-5)


def test_soft_masks_of_sure_labels_are_those_labels():
    logits, target, annotated = _case(5)
    soft = torch.nn.functional.one_hot(target, 4).movedim(-1, 1).float()
    for silent in (None, annotated):
        hard = dice_ce_loss(logits, target, silent)
        torch.testing.assert_close(dice_ce_loss(logits, soft, silent), hard)
    even = torch.full_like(soft, 0.25)
    best = dice_ce_loss(torch.zeros_like(logits), even)
    assert best < dice_ce_loss(logits, even)


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_gradient_agrees_with_small_steps(seed):
    logits, target, annotated = _case(seed, batch=2, classes=3, shape=(4,), spread=2.0)
    logits.requires_grad_()
    dice_ce_loss(logits, target, annotated).backward()
    values, step = logits.detach().double().numpy(), 1e-5
    slow = np.zeros(values.shape)
    for index in np.ndindex(values.shape):
        there, back = values.copy(), values.copy()
        there[index] += step
        back[index] -= step
        ends = [dice_ce_slowly(v, target.numpy(), annotated.numpy()) for v in (there, back)]
        slow[index] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(logits.grad, slow, atol=2e-5)


@pytest.mark.parametrize("shape", [(8, 9), (4, 6, 5)])
def test_agrees_with_monai(shape):
    losses = pytest.importorskip("monai.losses")
    theirs = losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5,
        lambda_dice=0.5, lambda_ce=0.5,
    )  # fmt: skip
    for seed in range(5):
        logits, target, _ = _case(seed, shape=shape)
        expected = theirs(logits, target[:, None])
        torch.testing.assert_close(dice_ce_loss(logits, target), expected)
        torch.testing.assert_close(dice_ce_loss(logits, target, torch.ones(3, 3, dtype=torch.bool)), expected)


def test_a_perfect_answer_costs_nothing():
    _, target, _ = _case(0)
    logits = 100.0 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1).float()
    assert dice_ce_loss(logits, target).item() == pytest.approx(0.0, abs=1e-5)


def test_calling_a_silent_structure_present_or_absent_costs_the_same():
    """Labels of LV alone: whether the background voxels are called background or MYO is not judged."""
    target = torch.tensor([[0, 0, 1, 1]])
    annotated = torch.tensor([[True, False]])
    background = 50.0 * torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 1]]), 3).movedim(-1, 1).float()
    structure = 50.0 * torch.nn.functional.one_hot(torch.tensor([[2, 2, 1, 1]]), 3).movedim(-1, 1).float()
    for logits in (background, structure):
        logits.requires_grad_()
        loss = dice_ce_loss(logits, target, annotated)
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-5)
        assert logits.grad.abs().max() < 1e-5
    assert dice_ce_loss(structure.detach(), target).item() > 1  # judged where labels speak


def test_between_background_and_a_silent_structure_there_is_no_pull():
    """The two scores' gradients split by their shares, so their ratio is left alone."""
    logits, target, _ = _case(1, batch=2, classes=3)
    annotated = torch.tensor([[True, False], [True, False]])
    target[target == 2] = 0
    logits.requires_grad_()
    dice_ce_loss(logits, target, annotated).backward()
    shares = logits.detach().softmax(1)
    torch.testing.assert_close(
        logits.grad[:, 0] * shares[:, 2], logits.grad[:, 2] * shares[:, 0], atol=1e-6, rtol=1e-4
    )


def test_a_silent_sample_changes_nothing_of_others():
    logits, target, _ = _case(2, batch=2, classes=3)
    target[1] = 0
    annotated = torch.tensor([[True, True], [False, False]])
    both, alone = dice_ce_loss(logits, target, annotated), dice_ce_loss(logits[:1], target[:1])
    assert both.item() == pytest.approx(alone.item(), abs=1e-5)


def test_labels_that_speak_of_nothing_teach_nothing():
    logits, _, _ = _case(3)
    logits.requires_grad_()
    loss = dice_ce_loss(logits, torch.zeros(3, 2, 5, dtype=torch.long), torch.zeros(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("speaking", [0.0, 0.5, 1.0])
def test_extreme_scores_stay_finite(scale, speaking):
    logits, target, _ = _case(4)
    annotated = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)) < speaking
    logits = (logits * scale).requires_grad_()
    loss = dice_ce_loss(logits, target * annotated.any(), annotated)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_scores_are_summed_in_single():
    logits, target, annotated = _case(5, shape=(40, 40))
    half = dice_ce_loss(logits.half(), target, annotated)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(dice_ce_loss(logits, target, annotated).item(), rel=1e-3)


def test_contrast_is_summed_in_single_precision_under_autocast():
    embeddings = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    positives = torch.arange(8).repeat(2)[:, None] == torch.arange(8).repeat(2)[None]
    alone = contrastive_loss(embeddings, positives, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(embeddings, positives, temperature=0.05), alone)
