"""The training loop: resuming changes nothing, budgets, inactive groups, and what must never be written."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.sample import Batch
from fewbeats.training import loop
from fewbeats.training.checkpoint import STATE
from fewbeats.training.loop import FitSettings, Validation, fit
from fewbeats.training.method import Method, ParameterGroup, Step
from fewbeats.training.optim import OptimSettings, encoder_groups, warmup_decay
from fewbeats.training.precision import choose_precision, full_depthwise
from fewbeats.training.runconfig import restore_settings
from fewbeats.training.rundir import RunDir
from tiny_training import RATES, batches, norm_method, short, unet_method

METHODS = {"unet": unet_method, "norm": norm_method}


def _everything(run: RunDir) -> dict[str, torch.Tensor]:
    """Weights, moving average and optimizer, as last saved."""
    return load_file(run.checkpoint / STATE)


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def _metrics(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


class Killed(BaseException):
    pass


def _killed_at(step: int):
    def until(clock: Clock) -> Batch:
        if clock.step >= step:
            raise Killed
        return batches(clock)

    return until


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
            fit(METHODS[kind](), _killed_at(6), settings=short(steps=7), run=broken)
    assert [row["step"] for row in _metrics(broken)] == [2, 4, 6]  # beyond its last checkpoint
    with broken.metrics.open("a") as file:
        file.write('{"step": 7, "lo')  # killed within a line
    method = METHODS[kind](seed=1)
    torch.manual_seed(99)
    fit(method, batches, settings=short(steps=7), run=broken)

    assert _equal(_everything(broken), _everything(whole))
    held = {f"method.{name}": value for name, value in method.state_dict().items()}
    assert all(torch.equal(value, _everything(whole)[name]) for name, value in held.items())
    timeless = [
        [{k: v for k, v in row.items() if k not in ("step_seconds", "data_share")} for row in _metrics(run)]
        for run in (whole, broken)
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0]] == [2, 4, 6, 7]


def test_a_finished_run_is_left_alone(tmp_path):
    run = RunDir(tmp_path)
    fit(unet_method(), batches, settings=short(steps=3), run=run)
    before, metrics = _everything(run), run.metrics.read_text()
    method = unet_method(seed=1)
    assert fit(method, _killed_at(0), settings=short(steps=3), run=run) == 3
    assert _equal(_everything(run), before)
    assert run.metrics.read_text() == metrics
    assert torch.equal(method.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"],
                       before["method.network.encoder.stages.0.0.convs.0.conv.weight"])  # fmt: skip


def test_two_runs_in_one_process_do_not_disturb_each_other(tmp_path):
    runs = [RunDir(tmp_path / name) for name in "abc"]
    fit(norm_method(), batches, settings=short(), run=runs[0])
    fit(unet_method(), batches, settings=short(seed=3), run=runs[1])
    fit(norm_method(), batches, settings=short(), run=runs[2])
    assert _equal(_everything(runs[0]), _everything(runs[2]))


def test_the_seed_decides_what_is_drawn(tmp_path):
    states = []
    for seed in (0, 1):
        run = RunDir(tmp_path / str(seed))
        fit(norm_method(), batches, settings=short(seed=seed), run=run)
        states.append(_everything(run))
    assert not _equal(*states)


def test_the_network_learns_and_its_average_is_exported(tmp_path):
    method = unet_method()
    fit(method, batches, settings=short(steps=60, log_every=10), run=RunDir(tmp_path))
    losses = [row["loss"] for row in _metrics(RunDir(tmp_path))]
    assert losses[-1] < 0.5 * losses[0]
    batch = batches(Clock(1000, 1001), size=8)
    found = method.networks()["network"].eval()(batch.views["image"])[0].argmax(1)
    overlap = (
        2 * ((found == 1) & (batch.target == 1)).sum() / ((found == 1).sum() + (batch.target == 1).sum())
    )
    assert overlap > 0.85
    assert method.networks()["network"] is not method.network


# Budgets


def test_minutes_become_steps_and_the_run_is_the_run_of_those_steps(tmp_path):
    by_time, by_steps = RunDir(tmp_path / "time"), RunDir(tmp_path / "steps")
    settings = {"log_every": 1, "checkpoint_seconds": 60.0}
    steps = fit(norm_method(), batches, settings=short(steps=None, minutes=0.01, **settings), run=by_time)
    assert steps >= loop.TIMED_STEPS
    assert len(_metrics(by_time)) == steps
    fit(norm_method(), batches, settings=short(steps=steps, **settings), run=by_steps)
    assert _equal(_everything(by_time), _everything(by_steps))


def test_a_resumed_budget_is_not_timed_again(tmp_path, monkeypatch):
    run, settings = RunDir(tmp_path), short(steps=None, minutes=0.004)
    monkeypatch.setattr(loop._Loop, "steps_for", lambda *_: 7)
    with pytest.raises(Killed):
        fit(norm_method(), _killed_at(4), settings=settings, run=run)
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
    state = _everything(RunDir(tmp_path))
    assert [state[f"optimizer.{i}.step"].item() for i in (0, 1)] == [6, 6]
    rows = _metrics(RunDir(tmp_path))
    assert [row["turn"] for row in rows] == [1, 0, 2, 1, 2]
    np.testing.assert_allclose([row["rate_a"] for row in rows], [0.1 * (1 - s / 9) for s in (1, 3, 5, 7, 8)])


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    rate = warmup_decay(2.0, warmup=0.1, final=0.01)
    assert [rate(Clock(s, 100)) for s in (0, 5, 10)] == pytest.approx([0.02, 1.01, 2.0])
    assert rate(Clock(55, 100)) == pytest.approx(0.02 + 1.98 / 2)
    assert rate(Clock(100, 100)) == pytest.approx(0.02)
    falling = [rate(Clock(s, 100)) for s in range(10, 101)]
    assert falling == sorted(falling, reverse=True)
    assert warmup_decay(2.0, warmup=0.0, final=0.5)(Clock(0, 1)) == pytest.approx(2.0)


def test_the_rate_may_fall_as_a_power():
    rate = warmup_decay(2.0, warmup=0.0, final=0.0, decay="poly")
    assert [rate(Clock(s, 2)) for s in (0, 1, 2)] == pytest.approx([2.0, 2.0 * 0.5**0.9, 0.0])


@pytest.mark.parametrize("kind", ["unet2d", "lite0"])
def test_with_layer_decay_earlier_stages_learn_less(kind):
    network = build_network(NetworkSettings(kind=kind, base_channels=4, levels=3), classes=2)
    optim = OptimSettings(learning_rate=1.0, layer_decay=0.5, warmup=0.0, encoder_rate_factor=0.8)
    groups = encoder_groups(network, optim)
    rates = [group.rate(Clock(0, 1)) for group in groups]
    stages = {"unet2d": 3, "lite0": 8}[kind]
    assert rates == pytest.approx([0.8 * 0.5**i for i in reversed(range(stages))])
    found = [id(p) for group in groups for p in group.parameters]
    wanted = [id(p) for n, p in network.named_parameters() if n.startswith("encoder.")]
    assert sorted(found) == sorted(wanted)
    first = next(p for n, p in network.named_parameters() if n.startswith("encoder."))
    assert any(first is p for p in groups[0].parameters)
    assert [g.name for g in encoder_groups(network, OptimSettings())] == ["encoder"]


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


def test_resuming_with_momentum_changes_nothing(tmp_path):
    settings, methods = short(optim=OptimSettings(kind="sgd")), [unet_method() for _ in range(2)]
    fit(methods[0], batches, settings=settings, run=RunDir(tmp_path / "whole"))
    with pytest.raises(Killed):
        fit(methods[1], _killed_at(5), settings=settings, run=RunDir(tmp_path / "broken"))
    again = unet_method(seed=3)
    fit(again, batches, settings=settings, run=RunDir(tmp_path / "broken"))
    assert _equal(again.state_dict(), methods[0].state_dict())


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
    assert _equal(method.state_dict(), states[1])  # the first of two as good
    assert [r["validation"] for r in _metrics(RunDir(tmp_path)) if "validation" in r] == [0.2, 0.9, 0.9]


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
        fit(broken, _killed_at(7), settings=short(), run=run, validation=judge(values))
    broken = norm_method(seed=1)
    fit(broken, batches, settings=short(), run=run, validation=judge(values))
    assert int(broken.average.n_averaged) == 5
    assert _equal(broken.state_dict(), whole.state_dict())


# What must never be written


class Exploding(Alternating):
    def forward(self, batch: Batch, clock: Clock) -> Step:
        return Step(self.a.sum() * (math.nan if len(self.seen) == 4 else 1.0) + 0 * self.b.sum())


def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path):
    run = RunDir(tmp_path)
    with pytest.raises(InputError, match=r"loss nan at step 5; lower --optim\.learning-rate"):
        fit(Exploding(), batches, settings=short(log_every=50), run=run)
    assert all(value.isfinite().all() for value in _everything(run).values())


def test_a_partial_checkpoint_is_ignored_and_the_old_one_stays(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    with pytest.raises(Killed):
        fit(norm_method(), _killed_at(3), settings=short(), run=run)
    before = (run.checkpoint / STATE).read_bytes()
    import safetensors.torch

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            fit(norm_method(), batches, settings=short(), run=run)
    assert (run.checkpoint / STATE).read_bytes() == before
    assert [p.name for p in run.checkpoint.iterdir()] == [STATE]
    (run.checkpoint / f".{STATE}.4711.partial").write_bytes(before[:100])  # of a process that was killed
    assert fit(norm_method(), batches, settings=short(), run=run) == 9


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"\xff" * 40])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    run = RunDir(tmp_path)
    fit(norm_method(), batches, settings=short(steps=1), run=run)
    file = run.checkpoint / STATE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="damaged checkpoint; delete it"):
        fit(norm_method(), batches, settings=short(), run=run)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(norm_method(), batches, settings=short(steps=1), run=RunDir(tmp_path))
    with pytest.raises(InputError, match="of other settings; choose another --out"):
        fit(unet_method(), batches, settings=short(steps=1), run=RunDir(tmp_path))


@pytest.mark.parametrize("words", [True, False], ids=["safetensors", "system"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch, words):
    import safetensors.torch
    from safetensors import SafetensorError

    run, save_file = RunDir(tmp_path / "run"), safetensors.torch.save_file
    saves = []

    def full(tensors, path, metadata):
        saves.append(path)
        if len(saves) == 4:
            Path(path).write_bytes(b"half")
            text = "I/O error: No space left on device (os error 28)"
            raise SafetensorError(text) if words else OSError(errno.ENOSPC, text)
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(InputError, match="the disk is full") as error:
            fit(norm_method(), batches, settings=short(), run=run)
    assert "\n" not in str(error.value)
    assert [p.name for p in run.checkpoint.iterdir()] == [STATE]
    fit(norm_method(seed=1), batches, settings=short(), run=run)
    whole = RunDir(tmp_path / "whole")
    fit(norm_method(), batches, settings=short(), run=whole)
    assert _equal(_everything(run), _everything(whole))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 kB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "fewbeats-test", str(folder)]
    try:
        mounted = (
            os.name == "posix" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    run = RunDir(small_disk / "run")
    with pytest.raises(InputError, match="the disk is full"):
        fit(unet_method(), batches, settings=short(), run=run)
    assert not list(run.checkpoint.iterdir())
    (small_disk / "filler").write_bytes(
        bytes(60 * 1024 - sum(p.stat().st_size for p in small_disk.rglob("*.*")))
    )
    with pytest.raises(InputError, match="the disk is full"):
        run.write_json("run.json", {"long": "x" * 20_000})
    with pytest.raises(InputError, match="the disk is full"):
        run.append_metrics({"long": "x" * 20_000})
    assert not (run.path / "run.json").exists()


# The run folder


def test_a_folder_belongs_to_one_request(tmp_path):
    run = RunDir(tmp_path / "run")
    assert run.is_finished({"steps": 3, "optim": RATES}) is False
    assert not run.path.exists()
    run.claim({"steps": 3, "optim": RATES})
    assert run.is_finished({"steps": 3, "optim": RATES}) is False  # to be resumed
    with pytest.raises(InputError, match="holds a run of other steps"):
        run.claim({"steps": 4, "optim": RATES})
    run.write_config({"task": "segmentation", "steps": 3})
    with pytest.raises(InputError, match=r"network\.safetensors: missing"):
        run.is_finished({"steps": 3, "optim": RATES})
    run.weights().write_bytes(b"")
    assert run.is_finished({"steps": 3, "optim": RATES}) is True
    assert run.is_finished({"steps": 3, "noted since": 1}) is True
    assert run.read_config().steps == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunDir(tmp_path / "file").claim({})


def test_settings_come_back_from_json(tmp_path):
    settings = OptimSettings(learning_rate=3e-4, warmup=0.0)
    RunDir(tmp_path).write_json("settings.json", {"optim": settings})
    content = RunDir(tmp_path).read_json("settings.json")
    assert restore_settings(OptimSettings, content["optim"]) == settings
    with pytest.raises(InputError, match="setting 'rate' is unknown"):
        restore_settings(OptimSettings, {"rate": 1.0})


@pytest.mark.parametrize("content", ["", "{", '{"format": 99}', "[]"])
def test_unusable_run_folders_are_one_line(tmp_path, content):
    with pytest.raises(InputError, match="not a finished run folder"):
        RunDir(tmp_path).read_config()
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"damaged|format"):
        RunDir(tmp_path).read_config()


# Precision


class Depthwise(nn.Module):
    """Writes down in which type each of its convolutions answers."""

    def __init__(self):
        super().__init__()
        self.full, self.depthwise = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
        self.seen: list[torch.dtype] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.full(image)
        second = self.depthwise(first)
        third = self.full(second[:, :1])
        self.seen = [first.dtype, second.dtype, third.dtype]
        return third


def test_depthwise_convolutions_alone_stay_in_full_precision():
    network, image = Depthwise(), torch.randn(1, 1, 16, 16)
    with full_depthwise(network), torch.autocast("cpu", dtype=torch.bfloat16):
        network(image).float().sum().backward()
        assert network.seen == [torch.bfloat16, torch.float32, torch.bfloat16]
        with pytest.raises(RuntimeError):  # the depthwise convolution itself fails: the state is put back
            network.depthwise(torch.randn(1, 3, 16, 16))
        assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(image)
    assert network.seen == [torch.bfloat16] * 3


def test_bf16_learns_what_full_precision_learns(tmp_path):
    ends = {}
    for precision in ("full", "bf16"):
        method = unet_method()
        optim = OptimSettings(precision=precision)
        fit(method, batches, settings=short(steps=40, optim=optim), run=RunDir(tmp_path / precision))
        ends[precision] = _metrics(RunDir(tmp_path / precision))
        assert all(p.dtype == torch.float32 for p in method.parameters())
    first = ends["full"][0]["loss"]
    for precision, log in ends.items():
        assert log[-1]["loss"] < 0.6 * first, precision
    assert ends["full"][-1]["loss"] != ends["bf16"][-1]["loss"]
    assert ends["full"][-1]["loss"] == pytest.approx(ends["bf16"][-1]["loss"], abs=0.05)


@pytest.mark.parametrize(
    ("able", "chosen"), [({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "full"), (None, "full")]
)
def test_bf16_is_chosen_where_the_processor_has_it(monkeypatch, able, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if able is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert choose_precision("auto") == chosen
    assert choose_precision("full") == "full"
    assert choose_precision("bf16") == "bf16"
