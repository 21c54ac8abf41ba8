"""The training loop: resuming changes nothing, budgets, inactive groups, choosing the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.sample import Batch
from fewbeats.training import loop
from fewbeats.training.loop import FitSettings, Validation, fit
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings
from fewbeats.training.rundir import RunDir
from tiny_training import (
    Killed,
    batches,
    equal,
    everything,
    killed_at,
    logged,
    norm_method,
    one_thread,
    short,
    unet_method,
)

METHODS = {"unet": unet_method, "norm": norm_method}
_threads = pytest.fixture(one_thread, autouse=True)


# Resuming


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", METHODS)
def test_resumed_is_never_stopped_bit_for_bit(tmp_path, monkeypatch, kind, threads):
    torch.set_num_threads(threads)
    whole = RunDir(tmp_path / "whole")
    fit(METHODS[kind](), batches, settings=short(steps=7), run=whole)

    broken = RunDir(tmp_path / "broken")
    save = loop._Loop.save
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "save", lambda self: save(self) if self.step <= 3 else None)
        with pytest.raises(Killed):
            fit(METHODS[kind](), killed_at(6), settings=short(steps=7), run=broken)
    assert [row["step"] for row in logged(broken)] == [2, 4, 6]  # beyond its last checkpoint
    with broken.metrics.open("a") as file:
        file.write('{"step": 7, "lo')  # killed within a line
    method = METHODS[kind](seed=1)
    torch.manual_seed(99)
    fit(method, batches, settings=short(steps=7), run=broken)

    assert equal(everything(broken), everything(whole))
    held = {f"method.{name}": value for name, value in method.state_dict().items()}
    assert all(torch.equal(value, everything(whole)[name]) for name, value in held.items())
    timeless = [
        [{k: v for k, v in row.items() if k not in ("step_seconds", "data_share")} for row in logged(run)]
        for run in (whole, broken)
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0]] == [2, 4, 6, 7]


def test_a_finished_run_is_left_alone(tmp_path):
    run = RunDir(tmp_path)
    fit(unet_method(), batches, settings=short(steps=3), run=run)
    before, metrics = everything(run), run.metrics.read_text()
    method = unet_method(seed=1)
    assert fit(method, killed_at(0), settings=short(steps=3), run=run) == 3
    assert equal(everything(run), before)
    assert run.metrics.read_text() == metrics
    assert torch.equal(method.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"],
                       before["method.network.encoder.stages.0.0.convs.0.conv.weight"])  # fmt: skip


def test_two_runs_in_one_process_do_not_disturb_each_other(tmp_path):
    runs = [RunDir(tmp_path / name) for name in "abc"]
    fit(norm_method(), batches, settings=short(), run=runs[0])
    fit(unet_method(), batches, settings=short(seed=3), run=runs[1])
    fit(norm_method(), batches, settings=short(), run=runs[2])
    assert equal(everything(runs[0]), everything(runs[2]))


def test_the_seed_decides_what_is_drawn(tmp_path):
    states = []
    for seed in (0, 1):
        run = RunDir(tmp_path / str(seed))
        fit(norm_method(), batches, settings=short(seed=seed), run=run)
        states.append(everything(run))
    assert not equal(*states)


def test_the_network_learns_and_its_average_is_exported(tmp_path):
    method = unet_method()
    fit(method, batches, settings=short(steps=60, log_every=10), run=RunDir(tmp_path))
    losses = [row["loss"] for row in logged(RunDir(tmp_path))]
    assert losses[-1] < 0.5 * losses[0]
    batch = batches(Clock(1000, 1001), size=8)
    found = method.networks()["network"].eval()(batch.views["image"])[0].argmax(1)
    overlap = (
        2 * ((found == 1) & (batch.target == 1)).sum() / ((found == 1).sum() + (batch.target == 1).sum())
    )
    assert overlap > 0.85
    assert method.networks()["network"] is not method.network


def test_resuming_with_momentum_changes_nothing(tmp_path):
    settings, methods = short(optim=OptimSettings(kind="sgd")), [unet_method() for _ in range(2)]
    fit(methods[0], batches, settings=settings, run=RunDir(tmp_path / "whole"))
    with pytest.raises(Killed):
        fit(methods[1], killed_at(5), settings=settings, run=RunDir(tmp_path / "broken"))
    again = unet_method(seed=3)
    fit(again, batches, settings=settings, run=RunDir(tmp_path / "broken"))
    assert equal(again.state_dict(), methods[0].state_dict())


# Budgets


def test_minutes_become_steps_and_the_run_is_the_run_of_those_steps(tmp_path):
    by_time, by_steps = RunDir(tmp_path / "time"), RunDir(tmp_path / "steps")
    settings = {"log_every": 1, "checkpoint_seconds": 60.0}
    steps = fit(norm_method(), batches, settings=short(steps=None, minutes=0.01, **settings), run=by_time)
    assert steps >= loop.TIMED_STEPS
    assert len(logged(by_time)) == steps
    fit(norm_method(), batches, settings=short(steps=steps, **settings), run=by_steps)
    assert equal(everything(by_time), everything(by_steps))


def test_a_resumed_budget_is_not_timed_again(tmp_path, monkeypatch):
    run, settings = RunDir(tmp_path), short(steps=None, minutes=0.004)
    monkeypatch.setattr(loop._Loop, "steps_for", lambda *_: 7)
    with pytest.raises(Killed):
        fit(norm_method(), killed_at(4), settings=settings, run=run)
    monkeypatch.setattr(loop._Loop, "steps_for", lambda *_: pytest.fail("timed again"))
    assert fit(norm_method(), batches, settings=settings, run=run) == 7


@pytest.mark.parametrize(
    "budget",
    [{}, {"steps": 3, "minutes": 1.0}, {"steps": 0}, {"steps": -4}, {"minutes": math.nan}],
)
def test_budgets_that_make_no_sense_are_refused(tmp_path, budget):
    with pytest.raises(InputError, match=r"--steps|--minutes"):
        fit(norm_method(), batches, settings=FitSettings(**budget), run=RunDir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_spent_budget_still_gives_a_run(tmp_path):
    settings = short(steps=None, minutes=1e-9)
    assert fit(norm_method(), batches, settings=settings, run=RunDir(tmp_path)) == loop.TIMED_STEPS


# What a step may change


class Alternating(Method):
    """Two groups that both have gradients; steps take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.turn = 0

    def forward(self, batch: Batch, clock: Clock) -> Step:
        self.turn = len(self.seen) % 3
        active = (("a",), ("b",), None)[self.turn]
        return Step((self.a * self.b).sum() * 100, {"turn": float(self.turn)}, active)

    def parameter_groups(self) -> list[ParameterGroup]:
        rate, decay = (lambda clock: 0.1 * (1 - clock.progress)), (lambda _: 0.5)
        return [ParameterGroup(name, (getattr(self, name),), rate, decay, network=name) for name in "ab"]

    def after_update(self, clock: Clock) -> None:
        norms = [0.0 if p.grad is None else p.grad.norm().item() for p in (self.a, self.b)]
        self.seen.append((self.a.detach().clone(), self.b.detach().clone()))
        assert not max(norms) > 5.0 + 1e-4  # clip_norm, of each network apart
        assert self.turn < 2 or math.hypot(*norms) > 5.0 + 1e-4

    def networks(self) -> dict[str, nn.Module]:
        return {}


def test_inactive_groups_get_neither_gradient_nor_decay(tmp_path):
    method = Alternating()
    fit(method, batches, settings=short(steps=9), run=RunDir(tmp_path))
    before = (torch.ones(3), torch.ones(3))
    for step, after in enumerate(method.seen):
        moved = tuple(not torch.equal(x, y) for x, y in zip(before, after))
        assert moved == ((True, False), (False, True), (True, True))[step % 3]
        before = after
    state = everything(RunDir(tmp_path))
    assert [state[f"optimizer.{i}.step"].item() for i in (0, 1)] == [6, 6]
    rows = logged(RunDir(tmp_path))
    assert [row["turn"] for row in rows] == [1, 0, 2, 1, 2]
    np.testing.assert_allclose([row["rate_a"] for row in rows], [0.1 * (1 - s / 9) for s in (1, 3, 5, 7, 8)])


def test_a_frozen_encoder_stays_as_it_started(tmp_path):
    method = unet_method()
    method.freeze = 0.5
    start = {n: p.detach().clone() for n, p in method.network.named_parameters()}
    moved = {}

    def look(method: Method) -> dict[str, float]:
        now = dict(method.network.named_parameters())
        sides = {
            s: [n for n in now if n.startswith("encoder.") == (s == "encoder")] for s in ("encoder", "rest")
        }
        for side, names in sides.items():
            moved.setdefault(side, []).append(any(not torch.equal(now[n], start[n]) for n in names))
        return {}

    fit(
        method,
        batches,
        settings=short(steps=8),
        run=RunDir(tmp_path),
        validation=Validation(measure=look, times=2),
    )
    assert moved == {"encoder": [False, True], "rest": [True, True]}


class Surveyed(Alternating):
    rate_flags = "--its-own-rate"

    def __init__(self):
        super().__init__()
        self.surveys: list[int] = []

    def survey(self, clock: Clock) -> None:
        self.surveys.append(clock.step)


def test_surveys_are_made_in_the_run_and_not_while_steps_are_timed(tmp_path):
    method = Surveyed()
    total = fit(method, batches, settings=short(steps=None, minutes=0.001), run=RunDir(tmp_path))
    assert method.surveys == list(range(total))


def test_figures_of_parts_are_means_over_those_that_have_them():
    def step(**logs: float) -> Step:
        return Step(torch.zeros(()), logs)

    told = loop._mean_logs([(step(a=1.0, b=4.0), 0.25), (step(a=3.0), 0.75)])
    assert told == {"a": 2.5, "b": 4.0}


class Exploding(Alternating):
    def forward(self, batch: Batch, clock: Clock) -> Step:
        return Step(self.a.sum() * (math.nan if len(self.seen) == 4 else 1.0) + 0 * self.b.sum())


def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path):
    run = RunDir(tmp_path)
    with pytest.raises(InputError, match=r"loss nan at step 5; lower --optim\.learning-rate"):
        fit(Exploding(), batches, settings=short(log_every=50), run=run)
    assert all(value.isfinite().all() for value in everything(run).values())


# Choosing the best


def test_the_best_state_is_kept(tmp_path):
    scores, states = iter([0.2, 0.9, 0.9, 0.5]), []

    def score(method: Method) -> dict[str, float]:
        states.append({n: v.clone() for n, v in method.state_dict().items()})
        return {"validation": next(scores)}

    method = norm_method()
    fit(
        method,
        batches,
        settings=short(),
        run=RunDir(tmp_path),
        validation=Validation(measure=score, times=3, best="validation"),
    )
    assert len(states) == 3
    assert equal(method.state_dict(), states[1])  # the first of two as good
    assert [r["validation"] for r in logged(RunDir(tmp_path)) if "validation" in r] == [0.2, 0.9, 0.9]


@pytest.mark.parametrize(("total", "looks"), [(3, 3), (10, 10), (19, 10), (1599, 10)])
def test_a_run_is_validated_as_often_as_was_said(total, looks):
    validation = Validation(measure=lambda method: {}, times=10)
    due = [step for step in range(1, total + 1) if validation.is_due(step, total)]
    assert len(due) == looks
    assert due[-1] == total


def test_the_best_survives_a_kill(tmp_path):
    def judge(values: dict[int, float]) -> Validation:
        return Validation(
            measure=lambda method: {"score": values[int(method.average.n_averaged)]}, times=4, best="score"
        )

    values = {3: 0.1, 5: 0.8, 7: 0.3, 9: 0.5}
    whole, broken = norm_method(), norm_method()
    fit(whole, batches, settings=short(), run=RunDir(tmp_path / "whole"), validation=judge(values))
    run = RunDir(tmp_path / "broken")
    with pytest.raises(Killed):
        fit(broken, killed_at(7), settings=short(), run=run, validation=judge(values))
    broken = norm_method(seed=1)
    fit(broken, batches, settings=short(), run=run, validation=judge(values))
    assert int(broken.average.n_averaged) == 5
    assert equal(broken.state_dict(), whole.state_dict())


class Steep(Alternating):
    """A loss that is finite where its gradient is not."""

    def forward(self, batch: Batch, clock: Clock) -> Step:
        steep = (self.a - self.a.detach()).sqrt().sum() if len(self.seen) == 4 else self.a.sum()
        return Step(steep + 0 * self.b.sum())


def test_a_gradient_that_is_no_number_moves_nothing(tmp_path):
    run, method = RunDir(tmp_path), Steep()
    with pytest.raises(InputError, match=r"gradient (inf|nan) at step 5; lower --optim\.learning-rate"):
        fit(method, batches, settings=short(), run=run)
    assert all(value.isfinite().all() for value in everything(run).values())
    assert method.a.isfinite().all()
