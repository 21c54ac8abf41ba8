"""The learning rate follows the start, unless one is given, and the run says which it took and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewbeats.cli import main
from fewbeats.commands.finetune import Finetune
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings
from fewbeats.recipes.starts import rate_of_start, settle_rate
from fewbeats.training.optim import OptimSettings

LITE0, PLAIN = NetworkSettings(), NetworkSettings(kind="unet2d")


def asked(init: str, *, network: NetworkSettings = LITE0, rate: float | None = None) -> tuple[float, str]:
    """What a fine-tuning takes, and what it says."""
    model = SegmentationSettings(network=network, optim=OptimSettings(learning_rate=rate))
    command, said = Finetune(cohort=Path("c.csv"), out=Path("out"), init=init, model=model), []
    taken = settle_rate(model, init, tell=said.append).optim.learning_rate
    assert command.describe()["model"]["optim"]["learning_rate"] == taken
    return taken, "".join(said)


@pytest.mark.parametrize(
    ("init", "network", "rate"),
    [
        ("natural", LITE0, 1e-3),
        ("scratch", LITE0, 1e-2),
        ("pretrained", LITE0, 1e-2),
        ("scratch", PLAIN, 1e-3),
    ],
)
def test_the_rate_is_that_of_the_start(init, network, rate):
    taken, said = asked(init, network=network)
    assert taken == rate
    assert said.startswith(f"learning rate {rate:g}, as ")
    assert "--optim.learning-rate sets another" in said


def test_a_rate_that_is_given_is_taken_in_silence():
    assert asked("scratch", rate=3e-3) == (3e-3, "")


def test_a_run_that_segments_is_not_forgotten(small_run):
    taken, said = asked(str(small_run))
    assert taken == 1e-3
    assert "the start is a network of segmentation" in said


@pytest.mark.parametrize(("task", "rate"), [("landmarks", 1e-3), ("pretraining", 1e-2)])
def test_a_whole_network_is_no_encoder_alone(task, rate, small_run, tmp_path):
    config = json.loads((small_run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**config, "task": task}))
    assert rate_of_start(LITE0, str(tmp_path))[0] == rate


@pytest.mark.usefixtures("no_onnx")
def test_the_run_keeps_it(phantoms, tmp_path, capfd):
    words = ["finetune", str(phantoms), "--labeled=1", "--steps=1", "--init=scratch", "--localizer-steps=0",
             "--batch-size=2", "--preprocess.size=64", f"--out={tmp_path / 'run'}"]  # fmt: skip
    assert main(words) == 0
    assert "learning rate 0.01, as the start is random" in capfd.readouterr().out
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["optim"]["learning_rate"] == 1e-2
    )
