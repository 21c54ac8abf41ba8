"""Training teaches: a trained network beats its random start on subjects it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from conftest import TINY
from fewbeats.cli import main, read_command
from fewbeats.clock import Clock
from fewbeats.data.cohort import read_cohort
from fewbeats.data.pool import prepare_pool
from fewbeats.data.sampler import Sampler
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.views import Viewed
from tiny_training import method_of


def dice(run, cohort, folder) -> float:
    """Mean Dice on the held-out phantoms, as the command line tells it."""
    assert main(["predict", str(run), str(cohort), "--split=dev", f"--out={folder / 'masks'}"]) == 0
    assert main(["evaluate", str(folder / "masks"), str(cohort), f"--out={folder / 'report'}"]) == 0
    return json.loads((folder / "report" / "summary.json").read_text())["dice"]["mean"]


@pytest.mark.slow
def test_supervised_training_beats_its_random_start(phantoms, small_run, tmp_path):
    start = tmp_path / "start"
    steps = ["--steps=1", "--localizer-steps=0", "--optim.learning-rate=1e-9"]
    assert main(["finetune", str(phantoms), f"--out={start}", *TINY, *steps]) == 0
    trained = dice(small_run, phantoms, tmp_path / "a")
    assert trained > dice(start, phantoms, tmp_path / "b") + 0.3
    assert trained > 0.55


@pytest.mark.slow
def test_starting_from_a_run_keeps_what_it_learned(phantoms, small_run, tmp_path):
    again = tmp_path / "again"
    steps = ["--steps=1", "--localizer-steps=0", "--optim.learning-rate=1e-9", f"--init={small_run}"]
    assert main(["finetune", str(phantoms), f"--out={again}", *TINY, *steps]) == 0
    assert abs(dice(again, phantoms, tmp_path / "a") - dice(small_run, phantoms, tmp_path / "b")) < 0.02


PRETRAINED = (
    "--network.kind=unet2d", "--network.base-channels=8", "--network.levels=4", "--network.norm=batch",
    "--preprocess.size=64", "--preprocess.spacing-mm=2.5", "--batch-size=16",
    "--spatial.rotation-degrees=15", "--spatial.turned=0", "--spatial.scale", "0.9", "1.1",
    "--spatial.shift-px=4", "--spatial.elastic-probability=0", "--spatial.crop-probability=0",
    "--dino.hidden=64", "--dino.prototypes=128", "--dino.small-views=2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gain"), [("simclr", 0.15), ("pcl", 0.12), ("mim", 0.25), ("dino", 0.1)])
def test_pretraining_lowers_its_loss_on_unseen_subjects(name, gain, phantoms, tmp_path):
    """Beside a twin whose weights stayed as they were; by its center DINO changes without learning."""
    learned, stayed = (unseen_step(name, rate, phantoms, tmp_path / rate) for rate in ("3e-3", "1e-12"))
    assert float(stayed.loss - learned.loss) >= gain
    if name == "dino":
        assert learned.logs["spread"] > 0.03


def unseen_step(name: str, rate: str, phantoms: Path, folder: Path):
    """What a method says of subjects it has not seen, after 60 steps on others."""
    cohort = read_cohort(phantoms)
    flags = (*PRETRAINED, f"--optim.learning-rate={rate}")
    command = read_command("pretrain", [name, str(phantoms), "--out=x", "--steps=1", *flags])
    method, views = method_of(command)
    seen, unseen = (
        Viewed(Sampler(pool, size, seed=7, epochs=False), views, 3)
        for pool, size in (
            (prepare_pool(cohort.filter(pl.col("split") == "train"), command.preprocess, cache=folder), 16),
            (prepare_pool(cohort.filter(pl.col("split") != "train"), command.preprocess, cache=folder), 64),
        )
    )
    fit(method, seen, settings=FitSettings(steps=60), run=RunDir(folder / "run"))
    torch.manual_seed(0)
    with torch.no_grad():
        return method.eval()(unseen(Clock(0, 1)), Clock(60, 60))
