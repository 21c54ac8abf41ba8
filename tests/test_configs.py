"""Every shipped configuration loads, and every command answers --help."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from fewbeats.cli import COMMANDS, main, read_command
from fewbeats.commands.cohorts import Index
from fewbeats.commands.cotrain import Cotrain
from fewbeats.commands.pretrain import Pretrain
from fewbeats.commands.task_file import open_task
from fewbeats.data.layouts import LAYOUTS
from fewbeats.pretraining.methods import FILES as RECIPES
from fewbeats.pretraining.methods import find_recipe
from fewbeats.semi_supervised.methods import METHODS, part_of
from fewbeats.study.many import read_plans
from fewbeats.study.reading import read_plan
from fewbeats.study.report import find_factors
from tiny_training import method_of

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
STUDIES = [f for f in FILES if f.name.startswith("study")]
COTRAINING = [f for f in FILES if f.stem.startswith("mn_")]
FINETUNING = {"finetune", "synthetic"}
TASKS = [f for f in FILES if f.parent.name == "tasks"]
MANY = [f for f in FILES if f.stem.startswith("nine_tasks")]
FOUNDATION = [f for f in FILES if f.stem.startswith("cmr_foundation")]
PRETRAINING = [f for f in FILES if f.stem in ("simclr", "pcl", "dino", "mim")]


def test_all_kinds_are_there():
    assert PRETRAINING
    assert STUDIES
    assert COTRAINING
    assert len(TASKS) == 9
    others = (*PRETRAINING, *COTRAINING, *STUDIES, *TASKS, *FOUNDATION)
    assert {f.stem for f in FILES} - {f.stem for f in others} == FINETUNING | {f.stem for f in MANY}


def test_what_may_be_chosen_is_what_there_is():
    """A choice of a flag that nothing stands behind, or a thing that no flag names."""
    assert set(choices_of(Pretrain, "method")) == {find_recipe(file).name for file in RECIPES}
    assert set(choices_of(Index, "layout")) == set(LAYOUTS)
    assert choices_of(Cotrain, "method") == tuple(METHODS)
    assert {part_of(method) for method in METHODS} <= {one.name for one in fields(Cotrain)}


@pytest.mark.parametrize("file", TASKS, ids=lambda f: f.stem)
def test_a_task_loads_with_its_settings(file):
    command = read_command("finetune", ["cohort.csv", f"--task={file}", "--out=x"])
    task, told = open_task(file)
    assert command.from_file == task
    assert command.steps == told["steps"]
    assert read_command("finetune", ["c.csv", f"--task={file}", "--out=x", "--steps=7"]).steps == 7


def test_nine_studies_of_nine_tasks(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    assert {plan.name for file in MANY for plan in read_plans(file)} >= {file.stem for file in TASKS}
    plans = read_plans(CONFIGS / "nine_tasks.yaml")
    sections: dict[str, list[str]] = {}
    for plan in plans:
        sections.setdefault(plan.section, []).append(plan.name)
    assert sections == {
        "Real scans": ["cine_sax", "lge_sax", "landmarks", "lge_detection", "disease"],
        "Function checks on phantoms": ["sequence", "view", "cine_lax", "mapping_sax"],
    }
    assert {file.stem for file in TASKS} == {plan.name for plan in plans}
    for plan in plans:
        for arm in plan.arms.values():
            assert arm.trainer.from_file.title
        assert plan.random_starts == {
            "vit-pretrained": "vit", "photographs": "cnn", "photographs-simclr": "cnn"
        }  # fmt: skip


@pytest.mark.parametrize("file", FOUNDATION, ids=lambda f: f.stem)
def test_a_foundation_model_loads_and_fits_its_method(file):
    command = read_command("pretrain", ["dino", "cohort.csv", "--out=x", "--steps=1", f"--config={file}"])
    command.check_settings()
    assert command.network.kind == "vit"
    if "small" in file.stem:
        method_of(command)


def choices_of(command: type, name: str) -> tuple[str, ...]:
    hint = get_type_hints(command)[name]
    return get_args(hint)


@pytest.mark.parametrize("file", PRETRAINING, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_a_pretraining_configuration_loads_and_fits_its_method(file):
    budget = [] if "steps" in yaml.safe_load(file.read_text()) else ["--steps=1"]
    command = read_command("pretrain", [file.stem, "cohort.csv", "--out=x", *budget, f"--config={file}"])
    if file.parent.name == "small":
        method_of(command)
    assert command.method == file.stem


@pytest.mark.parametrize("file", COTRAINING, ids=lambda f: f.name)
def test_a_co_training_configuration_loads(file):
    given = ["cohort.csv", "--method=mn", "--labeled=4", "--out=x", f"--config={file}"]
    command = read_command("cotrain", given)
    command.check_budget()
    assert (command.steps, command.model.batch_size, command.mn.iterations) == (32_000, 5, 8)
    assert (
        command.transductive == (command.model.preprocess.statistics == "minmax") == ("release" in file.stem)
    )


def test_the_fine_tuning_configuration_loads():
    file = CONFIGS / "ssp_cine" / "finetune.yaml"
    command = read_command("finetune", ["cohort.csv", "--out=x", "--steps=1", f"--config={file}"])
    read_command("finetune", ["cohort.csv", "--out=x", f"--config={CONFIGS / 'synthetic.yaml'}"])
    assert (command.model.optim.kind, command.model.network.norm) == ("sgd", "batch")
    assert command.model.optim.weight_decay == 3e-5


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.name)
def test_a_study_loads(file):
    plan = read_plan(file)
    assert plan.primary is None or plan.primary[0] in plan.arms
    assert set(plan.pretrainings) == {a.pretraining for a in plan.arms.values()} - {None}
    factors = find_factors(plan, list(plan.arms))
    assert factors, "arms are alike"
    assert all(set(of) == set(plan.arms) for of in factors.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name, capfd):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage" in capfd.readouterr().out
