"""Batches: in which order slices are drawn, what is cut, and how labeled and unlabeled ones mix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.clock import Clock
from fewbeats.data.mixture import Mixture
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks, stack_samples
from fewbeats.losses import dice_ce_loss
from fewbeats.sample import Sample


def _stack(slices: int, number: int, *, order: int = 1) -> Sample:
    """Slice z of stack n has the gray value 100 n + z, and its mask too, modulo 256."""
    values = 100 * number + np.arange(slices)
    plane = np.ones((slices, 4, 4))
    return Sample(
        image=(values[:, None, None] * plane).astype(np.float16),
        mask=(values[:, None, None] * plane % 256).astype(np.uint8),
        annotated=(True, number % 2 == 0),
        subject=f"s{number}",
        scan=f"s{number}_ed",
        frame=number,
        source="manual",
        spacing_mm=(8.0, 1.0, 1.0),
        order=order,
    )


STACKS = [_stack(n, i + 1) for i, n in enumerate((5, 1, 3, 8, 2))]
TABLE = stack_samples(STACKS)
SLICES = [(i + 1, z) for i, s in enumerate(STACKS) for z in range(len(s.image))]


def _take(sampler: Sampler, count: int, *, start: int = 0, rank: int = 0, world: int = 1):
    return [sampler(Clock(step, start + count, rank, world)) for step in range(start, start + count)]


def _drawn(batch) -> list[tuple[int, int]]:
    """(stack, slice) of each sample of a 2D batch, from the middle channel's gray value."""
    middle = batch.views["image"].shape[1] // 2
    return [divmod(int(v), 100) for v in batch.views["image"][:, middle, 0, 0]]


# Order


@given(st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_an_epoch_has_every_slice_once(batch_size, seed):
    sampler = Sampler(TABLE, batch_size, depth=1, seed=seed)
    batches = _take(sampler, 3 * len(SLICES))  # a whole number of epochs whatever the batch size
    drawn = [slice_ for batch in batches for slice_ in _drawn(batch)]
    epochs = [drawn[i : i + len(SLICES)] for i in range(0, len(drawn), len(SLICES))]
    assert all(Counter(epoch) == Counter(SLICES) for epoch in epochs)
    assert epochs[0] != epochs[1]


@given(st.integers(0, 60), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_any_step_can_be_resumed(start, world):
    sampler = Sampler(TABLE, 3, depth=3, seed=4)
    for rank in range(world):
        never_stopped = _take(sampler, start + 3, rank=rank, world=world)[start:]
        resumed = _take(sampler, 3, start=start, rank=rank, world=world)
        for a, b in zip(never_stopped, resumed):
            assert torch.equal(a.views["image"], b.views["image"])
            assert torch.equal(a.target, b.target)
            assert a.subject == b.subject


@given(st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=16, deadline=None)
def test_ranks_share_a_step_of_the_one_process_with_the_larger_batch(world, batch_size):
    alone = _take(Sampler(TABLE, batch_size * world, depth=1), 12)
    ranks = [_take(Sampler(TABLE, batch_size, depth=1), 12, rank=rank, world=world) for rank in range(world)]
    for step, together in enumerate(alone):
        assert [s for rank in ranks for s in _drawn(rank[step])] == _drawn(together)


def test_the_seed_decides_the_order():
    orders = [[_drawn(b) for b in _take(Sampler(TABLE, 4, depth=1, seed=seed), 5)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# What is cut


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_slice_comes_with_its_neighbors_and_the_last_is_repeated(depth):
    for batch in _take(Sampler(TABLE, 4, depth=depth), 10):
        assert batch.views["image"].shape == (4, depth, 4, 4)
        assert batch.views["image"].dtype == torch.float32
        assert batch.target.shape == (4, 1, 4, 4)
        for i, (number, z) in enumerate(_drawn(batch)):
            stack = STACKS[number - 1]
            last = len(stack.image) - 1
            wanted = [100 * number + min(max(z + d, 0), last) for d in range(-(depth // 2), depth // 2 + 1)]
            assert batch.views["image"][i, :, 1, 2].tolist() == wanted
            assert (batch.target[i] == (100 * number + z) % 256).all()
            assert batch.annotated[i].tolist() == list(stack.annotated)
            assert (batch.subject[i], batch.frame[i], batch.source[i]) == (f"s{number}", number, "manual")
            assert batch.position[i].item() == pytest.approx(z / len(stack.image))
            assert batch.directed[i]


def test_an_unknown_direction_is_told():
    (batch,) = _take(Sampler(stack_samples([_stack(3, 1, order=0)]), 2, depth=1), 1)
    assert not batch.directed.any()


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_slabs_are_drawn_from_thick_stacks_and_thin_ones_get_empty_slices(depth):
    sampler = Sampler(TABLE, 5, depth=depth, slab=True)
    (batch,) = _take(sampler, 1)
    assert sorted(batch.subject) == [s.subject for s in STACKS]  # one slab a stack
    assert batch.views["image"].shape == batch.target.shape == (5, depth, 4, 4)
    assert batch.position.isnan().all()
    for i, subject in enumerate(batch.subject):
        number = int(subject[1:])
        values = [100 * number + z for z in range(len(STACKS[number - 1].image))]
        beside = depth - len(values)
        if beside >= 0:
            wanted = [0] * (beside // 2) + values + [0] * (beside - beside // 2)
        else:
            first = values.index(int(batch.views["image"][i, 0, 0, 0]))
            wanted = values[first : first + depth]
        assert batch.views["image"][i, :, 0, 0].tolist() == wanted
        assert batch.target[i, :, 3, 1].tolist() == [v % 256 for v in wanted]


def test_every_slice_of_a_thick_stack_is_drawn():
    seen = {
        int(value)
        for batch in _take(Sampler(stack_samples([_stack(9, 1)]), 4, depth=4, slab=True), 20)
        for value in batch.views["image"][..., 0, 0].flatten()
    }
    assert seen == {100 + z for z in range(9)}


# Labeled and unlabeled


UNLABELED = Stacks(
    images=[np.full((2, 4, 4, 4), -1.0, np.float16)], which=np.zeros(3, int), frames=np.full(3, 2),
    slices=np.full(3, 4), order=np.array([1, -1, 0]), subject=np.array(["u0", "u1", "u2"], object),
)  # fmt: skip


def _mixture(labels) -> Mixture:
    return Mixture(Sampler(TABLE, 5), Sampler(UNLABELED, 5, epochs=False), 5, labels)


def test_a_mixture_asks_the_clock():
    mixture = _mixture(lambda clock: 5 - clock.block(5))
    for step in range(0, 600, 37):
        batch = mixture(Clock(step, 600))
        count = 5 - step * 5 // 600
        assert batch.labeled.tolist() == [True] * count + [False] * (5 - count)
        assert (batch.views["image"][count:] == -1).all()
        assert batch.target.shape == (5, 1, 4, 4)
        assert [s[0] for s in batch.subject] == ["s"] * count + ["u"] * (5 - count)
        assert batch.source == ("manual",) * count + ("",) * (5 - count)
        assert torch.equal(batch.label_weight, batch.labeled.float())
    again = mixture(Clock(259, 600))
    assert torch.equal(again.views["image"], mixture(Clock(259, 600)).views["image"])


def test_an_impossible_share_is_no_batch():
    with pytest.raises(ValueError, match="6 labeled items of 5"):
        _mixture(lambda clock: 6)(Clock(0, 1))


@given(st.integers(1, 4))
@settings(max_examples=4, deadline=None)
def test_an_unlabeled_sample_changes_no_supervised_term(count):
    batch = _mixture(lambda clock: count)(Clock(3, 9))
    target = (batch.target[:, 0] % 2).long()  # class 2 is not annotated everywhere
    logits = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = dice_ce_loss(logits, target, batch.annotated, weight=batch.label_weight)
    alone = dice_ce_loss(logits[:count], target[:count], batch.annotated[:count])
    torch.testing.assert_close(mixed, alone)


def test_a_batch_in_parts_is_the_same_batch():
    batch = _mixture(lambda clock: 3)(Clock(1, 9))
    parts = list(batch.split(2))
    assert [share for _, share in parts] == [0.6, 0.4]
    order = [0, 2, 4, 1, 3]
    assert torch.equal(torch.cat([p.views["image"] for p, _ in parts]), batch.views["image"][order])
    assert [p.labeled.tolist() for p, _ in parts] == [[True, True, False], [True, False]]  # spread
    assert parts[0][0].subject + parts[1][0].subject == tuple(batch.subject[i] for i in order)
    with pytest.raises(ValueError, match="6 parts"):
        list(batch.split(6))
