"""Training teaches: a trained network beats its random start on subjects it has not seen."""

from __future__ import annotations

import json

import pytest

from conftest import TINY
from fewbeats.cli import main


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
