"""Slabs that are moved onto foreground: of labels, and of what a network in training finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbeats.clock import Clock
from fewbeats.data.foreground import Surveys, force_starts, labeled_extents
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks
from fewbeats.semi_supervised.co_training import asks_survey
from fewbeats.semi_supervised.settings import MnSettings
from fewbeats.training import loop
from test_cotrain import DEEP, cotrain

SLICES, DEPTH = 40, 4


def thick(*shown: slice) -> Stacks:
    """One stack a range of slices with foreground."""
    masks = [np.zeros((SLICES, 8, 8), np.uint8) for _ in shown]
    for mask, where in zip(masks, shown):
        mask[where] = 1
    count = np.ones(len(shown), int)
    return Stacks(
        images=[mask.astype(np.float16) for mask in masks], masks=masks, which=np.arange(len(shown)),
        frames=count, slices=SLICES * count, order=count, subject=np.array(["a"] * len(shown), object),
        annotated=np.ones((len(shown), 1), bool), source=np.array([""] * len(shown), object),
    )  # fmt: skip


def share_on_foreground(sampler: Sampler, steps: int = 100) -> float:
    shown = [sampler(Clock(step, steps)).target.flatten(1).any(1) for step in range(steps)]
    return float(np.mean([one.float().mean() for one in shown]))


@pytest.mark.parametrize("forced", [0.0, 0.5, 1.0])
def test_the_wanted_share_of_slabs_shows_foreground(forced):
    stacks = thick(slice(17, 19), slice(30, 31))
    sampler = Sampler(stacks, batch_size=8, depth=DEPTH, slab=True)
    extents = labeled_extents(stacks)
    by_chance = share_on_foreground(sampler)
    assert 0.05 < by_chance < 0.2
    found = share_on_foreground(replace(sampler, forced=forced, extents=extents))
    assert found == pytest.approx(forced + (1 - forced) * by_chance, abs=0.06)


def test_without_foreground_or_before_a_survey_slabs_lie_as_drawn(tmp_path):
    stacks = thick(slice(0, 0))
    sampler = Sampler(stacks, batch_size=6, depth=DEPTH, slab=True)
    empty = replace(sampler, forced=1.0, extents=labeled_extents(stacks))
    unknown = replace(sampler, forced=1.0, extents=Surveys(tmp_path))
    stacks.images[0][:] = np.arange(SLICES)[:, None, None]  # a slab shows where it lies
    for step in range(5):
        drawn, *others = (one(Clock(step, 9)).views["image"] for one in (sampler, empty, unknown))
        assert all((drawn == other).all() for other in others)


@given(st.integers(0, 36), st.integers(0, 39), st.integers(1, 40), st.floats(0, 0.999))
def test_a_forced_slab_lies_in_the_stack_and_on_its_foreground(first, low, length, draw):
    extent = np.array([[low, min(SLICES, low + length)]])
    room = np.array([SLICES - DEPTH])
    start = force_starts(np.array([first]), extent, room=room, depth=DEPTH, draw=np.array([draw]))
    assert 0 <= start[0] <= room[0]
    assert start[0] < extent[0, 1]
    assert start[0] + DEPTH > extent[0, 0]


def test_a_step_sees_the_last_survey_before_it(tmp_path):
    surveys = Surveys(tmp_path / "run")
    assert surveys(Clock(50, 100)) is None
    for step in (10, 20, 90):  # of a run that was stopped after 90 and goes on from an earlier step
        surveys.write(step, np.array([[step, step + 1]]))
    seen = [surveys(Clock(step, 100)) for step in (9, 10, 19, 20, 89)]
    assert seen[0] is None
    assert [int(one[0, 0]) for one in seen[1:]] == [10, 10, 20, 20]


def test_surveys_come_after_the_epochs_of_the_release():
    settings, steps = MnSettings(), 4000 * 8
    asked = [step for step in range(steps) if asks_survey(Clock(step, steps), settings)]
    assert asked == [epoch * 8 - 1 for epoch in (500, 1000, 1500, 2000, 3000)]


@pytest.mark.usefixtures("no_onnx")
def test_crops_of_a_co_training_are_placed_by_its_own_masks(phantoms, tmp_path, monkeypatch):
    """In the paper's order, kept in the run while it lasts; a user's files have no part in it."""
    written = []
    write = Surveys.write
    monkeypatch.setattr(Surveys, "write", lambda *given: (written.append(given[1:]), write(*given))[1])
    slabs = [flag for flag in DEEP if not flag.startswith("--slab-slices")]
    assert cotrain(phantoms, tmp_path / "run", "mn", *slabs, "--slab-slices=4", "--mn.iterations=1") == 0
    assert [step for step, _ in written] == [2, 4, 6, 8, 12]
    assert all(extents.shape == (9, 2) for _, extents in written)  # three cines of three frames
    assert not (tmp_path / "run" / "foreground").exists()


@pytest.mark.usefixtures("no_onnx")
def test_a_killed_run_ends_bit_equal_with_the_crops_it_would_have_had(phantoms, tmp_path, monkeypatch):
    flags = [flag for flag in DEEP if not flag.startswith("--slab-slices")]
    # In bf16 oneDNN's weight gradients of small 3D convolutions differ from call to call, where a CPU has it.
    flags += ["--slab-slices=4", "--mn.iterations=1", "--optim.precision=full"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cotrain(phantoms, whole, "mn", *flags) == 0
    update = loop._Loop._update

    def killed(self, batch, clock):
        if clock.total == 16 and clock.step == 9:
            self.save()
            raise KeyboardInterrupt
        return update(self, batch, clock)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_update", killed)
        assert cotrain(phantoms, broken, "mn", *flags) == 2
    assert sorted(int(f.stem) for f in (broken / "foreground").glob("*.npy")) == [2, 4, 6, 8]
    assert cotrain(phantoms, broken, "mn", *flags) == 0
    for name in ("network.safetensors", "flat/network.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
