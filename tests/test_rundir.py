"""The run folder: one request, settings that come back, and a log that may be cut."""

from __future__ import annotations

import pytest

from fewbeats.errors import InputError
from fewbeats.training.optim import OptimSettings
from fewbeats.training.runconfig import restore_settings
from fewbeats.training.rundir import RunDir
from tiny_training import RATES


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


def test_a_damaged_log_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nx}\n{"step"')
    with pytest.raises(InputError, match=r"metrics.jsonl: missing or damaged"):
        RunDir(tmp_path).read_metrics()


def test_the_time_of_a_resumed_run_is_of_all_its_parts(tmp_path):
    run = RunDir(tmp_path)
    assert run.trained_seconds() == 0
    for row in (
        {"step": 10, "step_seconds": 0.5},
        {"step": 10, "probe": 1.0},
        {"step": 14, "step_seconds": 2.0},
    ):
        run.append_metrics(row)
    with run.metrics.open("a") as file:
        file.write('{"step": 20, "step_sec')  # killed while writing
    assert run.trained_seconds() == 10 * 0.5 + 4 * 2.0
