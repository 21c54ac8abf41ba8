"""A method and a target move in from a page: what `docs/training.md` shows is run here, and nothing else is
needed. A toy of co-training shows that two networks in turns fit the same contracts.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewbeats.cli import main
from fewbeats.clock import Clock
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.recipes.pools import Labels, Pool, Pools, choose_pools
from fewbeats.recipes.run import Training
from fewbeats.recipes.starts import Start
from fewbeats.sample import Batch
from fewbeats.training import loop
from fewbeats.training.checkpoint import STATE
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.method import Method
from fewbeats.training.optim import OptimSettings, gather_networks
from fewbeats.training.rundir import RunDir
from test_architecture import FLOORS, imports_of, room
from toy_co_training import NAMES, CoTraining, Schedule, Volumes

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
FULL = OptimSettings(precision="full", learning_rate=1e-2)


def _load(name: str, text: str) -> ModuleType:
    """A block as the file that it would be."""
    file = Path(f"{name}.py")
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory) -> Iterator[Path]:
    """Working folder with a cohort, as the page names it."""
    from fewbeats.inference import engine

    found = tmp_path_factory.mktemp("page")
    write_cohort(read_cohort(phantoms), found / "cohort.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        patch.setattr(engine, "can_export", lambda: False)  # ONNX is tested elsewhere, and takes long
        yield found


@pytest.fixture(scope="module")
def page(folder) -> Any:
    """Mean Teacher as on the page, trained."""
    return _load("mean_teacher_of_the_page", BLOCKS[0] + "\n\n" + BLOCKS[1])


@pytest.fixture
def pools(page, folder) -> Pools:
    return choose_pools(
        folder / "cohort.csv",
        labels=Labels(budget=2),
        pool=Pool(),
        out=folder / "other",
    )


@pytest.fixture
def teach(page, pools):
    """A Mean Teacher of the page's settings and others: (seed, network settings) -> Training."""

    def build(seed: int = 0, **network: Any) -> Training:
        settings = replace(page.settings, network=replace(page.settings.network, **network), optim=FULL)
        return page.mean_teaching(pools, settings, page.MeanTeacherSettings(labeled=2), seed=seed)

    return build


def _short(**changes: Any) -> FitSettings:
    return FitSettings(**({"steps": 6, "optim": FULL, "checkpoint_seconds": 0.0} | changes))


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def _metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Mean Teacher


@pytest.mark.parametrize("block", BLOCKS, ids=["method", "run", "target"])
def test_a_block_builds_on_recipes_and_below_and_on_no_command(block):
    rooms = {room(module) for module in imports_of(ast.parse(block))}
    assert rooms
    assert max(FLOORS[name] for name in rooms) <= FLOORS["recipes"] < FLOORS["commands"]


def test_student_moves_teacher_follows_and_gets_no_gradient(teach, tmp_path):
    training = teach()
    method: Any = training.method
    start = _state(method.network)
    assert _equal(start, _state(method.teacher.module))
    fit(method, training.batches, settings=_short(), run=RunDir(tmp_path))
    student, teacher = _state(method.network), _state(method.teacher.module)
    assert not any(_equal(a, b) for a, b in ((student, start), (teacher, start), (student, teacher)))
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    learned = {id(p) for group in method.parameter_groups() for p in group.parameters}
    assert learned == {id(p) for p in method.network.parameters()}
    assert method.networks() == {"network": method.teacher.module}


def test_the_teacher_is_the_moving_average_of_the_student(teach):
    method: Any = teach().method
    weight, shadow = (next(m.parameters()) for m in (method.network, method.teacher.module))
    expected = None
    for step in range(1, 5):
        with torch.no_grad():
            weight.fill_(float(step))
        method.after_update(Clock(step, 9))
        count = step - 1  # a short past at first: (1 + n) / (10 + n), and the first update is a copy
        decay = 0.0 if expected is None else min(0.99, (1 + count) / (10 + count))
        expected = step if expected is None else decay * expected + (1 - decay) * step
        torch.testing.assert_close(shadow, torch.full_like(shadow, expected))


def test_being_asked_moves_no_statistics_of_the_teacher(teach):
    training = teach(norm="batch")
    method: Any = training.method.train()
    student, teacher = _state(method.network), _state(method.teacher)
    method(training.batches(Clock(0, 10)), Clock(0, 10)).loss.backward()
    assert _equal(_state(method.teacher), teacher)
    assert not _equal(_state(method.network), student)  # whose statistics are of this batch, too
    assert all(module.training for module in method.modules())


def test_an_unlabeled_item_changes_the_consistency_alone(teach):
    training, clock = teach(), Clock(5, 10)
    batch: Batch = training.batches(clock)
    assert batch.labeled is not None
    assert batch.target is not None
    assert batch.labeled.tolist() == [True, True, False, False, False, False]
    before = training.method(batch, clock)
    other = batch.target.clone()
    other[2:] = 1  # what nobody has said
    wrong = training.method(replace(batch, target=other), clock)
    assert wrong.logs == before.logs
    changed = {name: view.clone() for name, view in batch.views.items()}
    changed["teacher"][3] = changed["teacher"][3].flip(-1)
    changed["image"][4] += 1.0
    after = training.method(replace(batch, views=changed), clock)
    assert after.logs["supervised"] == pytest.approx(before.logs["supervised"], abs=1e-6)
    assert after.logs["consistency"] != pytest.approx(before.logs["consistency"], rel=1e-3)
    changed["image"][0] += torch.linspace(-2, 2, 64)
    labeled = training.method(replace(batch, views=changed), clock)
    assert labeled.logs["supervised"] != pytest.approx(before.logs["supervised"], rel=1e-3)


def test_both_views_and_the_mask_share_one_geometry(page, teach):
    settings = replace(page.settings, intensity=replace(page.settings.intensity, probability=0.0))
    viewed: Any = replace(teach().batches, views=partial(page.views, settings=settings))
    batch = viewed(Clock(1, 10))
    assert torch.equal(batch.views["image"], batch.views["teacher"])
    inside, heart = batch.views["image"][:2, 0] != 0, batch.target[:2] > 0
    assert heart.any()
    assert inside[heart].float().mean() > 0.99  # a mask that went another way would leave the image
    both = teach().batches(Clock(1, 10)).views
    assert not torch.equal(both["image"], both["teacher"])


def test_the_consistency_rises_to_its_weight(page):
    own = page.MeanTeacherSettings(weight=2.0, ramp=0.5)
    weights = [own.consistency(Clock(step, 100)) for step in range(100)]
    assert weights[0] == pytest.approx(2.0 * 2.718281828**-5)
    assert weights[:51] == sorted(weights[:51])
    assert set(weights[50:]) == {2.0}


class Killed(BaseException):
    pass


def test_a_killed_run_ends_with_the_same_bits(teach, tmp_path, monkeypatch):
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    training = teach(norm="batch")
    fit(training.method, training.batches, settings=_short(), run=whole)

    def until(clock: Clock) -> Batch:
        if clock.step >= 4:
            raise Killed
        return training.batches(clock)

    save = loop._Loop.save
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "save", lambda self: save(self) if self.step <= 3 else None)
        with pytest.raises(Killed):
            fit(teach(norm="batch").method, until, settings=_short(), run=broken)
    again = teach(seed=1, norm="batch").method
    torch.manual_seed(99)
    fit(again, training.batches, settings=_short(), run=broken)
    assert _equal(_state(again), _state(training.method))
    assert _equal(load_file(broken.checkpoint / STATE), load_file(whole.checkpoint / STATE))


def test_the_run_of_the_page_predicts(page, folder, capsys):
    run = folder / "taught"
    config = json.loads((run / "run.json").read_text())
    assert (config["task"], config["steps"], config["networks"]) == ("segmentation", 20, ["network"])
    assert {"supervised", "consistency"} <= _metrics(run)[-1].keys()
    seen = json.loads((run / "provenance.json").read_text())
    assert [len(seen[pool]) for pool in ("labeled", "unlabeled")] == [2, 3]
    exported = load_file(run / "network.safetensors")
    start = Start(init="scratch").build(page.settings.network, len(config["structures"]) + 1, seed=0)
    assert not _equal(exported, _state(start))
    (line,) = re.findall(r"^fewbeats (predict taught .*)$", PAGE.read_text(), re.MULTILINE)
    assert main(line.split()) == 0
    assert (folder / "predictions" / "phantom003_4d.nii.gz").is_file()
    capsys.readouterr()
    page.train_mean_teacher(run, Path("cohort.csv"), page.settings, page.MeanTeacherSettings(labeled=2),
                            labeled=2, steps=20)  # fmt: skip
    assert "already trained" in capsys.readouterr().out


# A class of each slice


def test_a_class_of_each_slice_is_learned(folder):
    target: Any = _load("slice_class_of_the_page", BLOCKS[2])
    assert target.names == ["dilated", "hypertrophic", "normal"]
    batch = target.batches(Clock(0, 40))
    groups = dict(read_cohort(folder / "cohort.csv").select("subject", "group").iter_rows())
    assert [target.names[c] for c in batch.target] == [groups[subject] for subject in batch.subject]
    fresh = target.SliceClass(Start(init="scratch").build(target.small, 1, seed=0), 3, target.optim)
    losses = [_mean_loss(method, target.batches) for method in (fresh, target.method)]
    assert losses[1] < 0.85 * losses[0]


def _mean_loss(method: Method, batches: Any, *, count: int = 5) -> float:
    """Over some batches that were not trained on."""
    clocks = [Clock(1000 + step, 2000) for step in range(count)]
    with torch.no_grad():
        return sum(float(method.train()(batches(clock), clock).loss) for clock in clocks) / count


# Two networks in turns


@pytest.mark.parametrize(
    ("step", "pseudo", "learners"),
    [
        (0, 0, NAMES),
        (499 * 8 + 7, 0, NAMES),
        (500 * 8, 0, ("flat",)),
        (501 * 8, 0, ("deep",)),
        (1199 * 8 + 7, 0, ("deep",)),
        (1200 * 8, 1, ("flat",)),
        (1900 * 8, 2, ("flat",)),
        (2600 * 8, 3, ("flat",)),
        (3300 * 8, 4, ("flat",)),
        (31_999, 4, ("deep",)),
    ],
)
def test_turns_and_shares_are_exact_at_the_bounds(step, pseudo, learners):
    schedule, clock = Schedule(), Clock(step, 4000 * 8)
    assert schedule.learners(clock) == learners
    batch = Volumes(schedule)(clock)
    assert batch.labeled is not None
    assert batch.labeled.tolist() == [True] * (5 - pseudo) + [False] * pseudo
    assert len(batch.views["image"]) == 5


def test_every_epoch_has_its_eight_steps():
    schedule, shares = Schedule(), []
    for step in range(4000 * 8):
        clock, epoch = Clock(step, 4000 * 8), step // 8
        assert schedule.learners(clock) == (NAMES if epoch < 500 else (NAMES[epoch % 2],))
        shares.append(5 - schedule.labels(clock))
    assert [shares.index(count) // 8 for count in range(5)] == [0, 1200, 1900, 2600, 3300]
    assert shares == sorted(shares)


def test_the_idle_network_does_not_move(tmp_path):
    schedule = Schedule(epochs=10, warm_up=2)
    method = CoTraining(schedule)
    settings = _short(steps=20, log_every=1)
    fit(method, Volumes(schedule), settings=settings, run=RunDir(tmp_path))
    assert method.moved == [schedule.learners(Clock(step, 20)) for step in range(20)]
    assert method.moved[:6] == [NAMES] * 4 + [("flat",)] * 2
    rows = _metrics(tmp_path)
    assert [tuple(n for n in NAMES if n in row) for row in rows] == method.moved
    assert all(module.training for module in method.modules())
    assert {n: len(found) for n, found in gather_networks(method).items()} == {
        n: len(list(getattr(method, n).parameters())) for n in NAMES
    }
    state = load_file(RunDir(tmp_path).checkpoint / STATE)
    counts = {int(value) for name, value in state.items() if re.fullmatch(r"optimizer\.\d+\.step", name)}
    assert counts == {12}  # 4 of both, then half of 16 each


def test_a_partner_answers_as_it_would_in_use():
    schedule = Schedule(epochs=10, warm_up=2)
    method, clock = CoTraining(schedule).train(), Clock(19, 20)
    batch = Volumes(schedule)(clock)
    soft = method.target("deep", batch)
    assert batch.labeled is not None
    assert batch.target is not None
    known = batch.labeled
    assert torch.equal(soft[known].argmax(1), batch.target[known].long())
    with torch.no_grad():
        told = method.flat.eval()(batch.views["image"][~known]).softmax(1)
    torch.testing.assert_close(soft[~known], told)
    assert not soft.requires_grad
    assert method.networks().keys() == {"network", "flat"}
