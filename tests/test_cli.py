"""The command line: help, hints, YAML as strict as flags, exit codes, and what a stopped run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from conftest import TINY
from fewbeats.cli import COMMANDS, main, read_command


def refusal(capsys, *arguments) -> str:
    """The one line on standard error with which a command is refused."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("fewbeats: error: ")
    assert line.count("\n") == 1
    return line


def settings_file(folder, **content):
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"fewbeats {command}" in capsys.readouterr().out


def test_overview_and_version(capsys):
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["finetun"], "perhaps you meant 'finetune'"),
        (["xyzzy"], "see fewbeats --help"),
        (["finetune", "c.csv", "--out", "o", "--labled", "3"], "perhaps you meant --labeled"),
        (["finetune", "c.csv", "--out", "o", "--labeled", "seven"], "seven"),
        (["finetune", "c.csv", "--out", "o", "--network.kind", "resnet"], "lite0"),
        (["finetune", "c.csv", "--out", "o", "--steps"], "--steps"),
        (["finetune", "c.csv"], "--out"),
        (["predict", "run", "a.nii", "--out", "o", "--runtime", "tpu"], "openvino"),
        (["info"], "PATH"),
        (["info", "a.nii", "--config"], "name a YAML file"),
        (["phantom", "o", "--subjects", "0"], "at least 1"),
        (["evaluate", "p", "c.csv", "--out", "o"], "no such table"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hint in refusal(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ({"labled": 3}, "perhaps you meant 'labeled'"),
        ({"preprocess": {"sise": 64}}, "perhaps you meant 'preprocess.size'"),
        ({"zzz": 1}, "there are"),
        ({"cohort": "a.csv"}, "no setting 'cohort'"),  # what is worked on stands on the command line
        ({"labeled": "seven"}, "seven"),
        ({"labeled": 2.5}, "2.5"),
        ({"batch_size": True}, "batch-size"),
        ({"network": "lite0"}, "has settings of its own"),
        ({"steps": {"a": 1}}, "takes a value"),
        ({"spatial": {"scale": [0.9]}}, "scale"),
    ],
)
def test_yaml_is_as_strict_as_flags(content, hint, capsys, tmp_path):
    file = settings_file(tmp_path, **content)
    line = refusal(capsys, "finetune", "c.csv", "--out", tmp_path / "o", "--config", file)
    assert hint in line
    assert file.name in line


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "", "plain", "\x00"])
def test_files_that_hold_no_settings(text, capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert str(file) in refusal(capsys, "info", "a.nii", f"--config={file}")
    assert "no-such.yaml" in refusal(capsys, "info", "a.nii", "--config", tmp_path / "no-such.yaml")


def test_yaml_means_what_the_flags_mean_and_flags_win(tmp_path):
    from fewbeats import cli

    content = {
        "out": "o", "labeled": 3, "structures": ["LV", "MYO"], "steps": None,
        "preprocess": {"window_hu": [-150, 300], "size": 64}, "spatial": {"flip": False},
        "optim": {"learning-rate": "1e-3"}, "batch_size": 4,
    }  # fmt: skip
    file = settings_file(tmp_path, **content)
    flags = [
        "c.csv", "--out", "o", "--labeled", "3", "--structures", "LV", "MYO", "--preprocess.size", "64",
        "--preprocess.window-hu", "-150", "300", "--spatial.no-flip", "--optim.learning-rate", "1e-3",
        "--batch-size", "4",
    ]  # fmt: skip
    same = cli.read_command("finetune", ["c.csv", "--config", str(file)])
    assert same == cli.read_command("finetune", flags)
    other = cli.read_command("finetune", ["c.csv", "--config", str(file), "--labeled", "5", "--spatial.flip"])
    assert (other.labeled, other.model.spatial.flip) == (5, True)


def test_info_prints_json(phantoms, capsys):
    image = phantoms.parent / "source" / "images" / "phantom000_4d.nii.gz"
    capsys.readouterr()
    assert main(["info", str(image), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)[0]
    assert (about["frames"], about["rows"], about["columns"]) == (3, 64, 64)
    assert main(["info", str(image)]) == 0
    assert "3 frames" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_crash(phantoms):
    image = phantoms.parent / "source" / "images" / "phantom000_4d.nii.gz"
    found = subprocess.run(
        f"{sys.executable} -m fewbeats.cli info {image} > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in found.stderr


# What follows stops real processes. They save after every step, which a user's run does each minute.

STEPS = 30
SLOWLY = (
    "import sys; sys.modules['onnxscript'] = None\n"  # writing ONNX takes seconds
    "import time, functools, fewbeats.cli, fewbeats.training.loop as l\n"
    "import fewbeats.recipes.segmenter as f\n"
    "f.FitSettings = functools.partial(f.FitSettings, checkpoint_seconds=0.0)\n"
    "save = l._Loop.save\n"
    "def slow(self): save(self); print('step', self.step, flush=True); time.sleep(0.02)\n"
    "l._Loop.save = slow\n"
    "sys.exit(fewbeats.cli.main(sys.argv[1:]))"
)


def start(phantoms, out) -> subprocess.Popen:
    flags = [f"--out={out}", f"--steps={STEPS}", "--localizer-steps=0", "--batch-size=2"]
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "finetune", str(phantoms), *TINY, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stop_in_the_middle(phantoms, out, number) -> subprocess.Popen:
    process = start(phantoms, out)
    for line in process.stdout:
        if line.startswith("step 1"):  # 1, or 10 to 19
            process.send_signal(number)
            break
    process.stderr_text = process.communicate(timeout=120)[1]
    return process


@pytest.fixture(scope="module")
def never_stopped(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("never") / "run"
    assert start(phantoms, out).communicate(timeout=200) is not None
    return (out / "network.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_is_never_stopped_bit_for_bit(phantoms, tmp_path, never_stopped):
    out = tmp_path / "run"
    assert stop_in_the_middle(phantoms, out, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (out / "run.json").exists()
    assert (out / "checkpoint" / "state.safetensors").exists()
    again = start(phantoms, out)
    printed, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    first = next(line for line in printed.splitlines() if line.startswith("step"))
    assert int(first.split()[1]) > 1  # it went on
    assert (out / "network.safetensors").read_bytes() == never_stopped
    assert not (out / "checkpoint").exists()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_interrupted_says_so_in_one_line_and_goes_on(phantoms, tmp_path, never_stopped):
    out = tmp_path / "run"
    process = stop_in_the_middle(phantoms, out, signal.SIGINT)
    assert process.returncode == 2
    assert process.stderr_text.count("\n") == 1
    assert "interrupted" in process.stderr_text
    assert not [f for f in out.rglob("*") if "partial" in f.name]
    again = start(phantoms, out)
    again.communicate(timeout=200)
    assert again.returncode == 0
    assert (out / "network.safetensors").read_bytes() == never_stopped


@pytest.mark.slow
def test_interrupted_prediction_leaves_whole_scans(phantoms, small_run, tmp_path):
    slow = (
        "import sys, time, fewbeats.cli, fewbeats.inference.segment as s\n"
        "keep = s.keep_largest\n"
        "def wait(*a): print('frame', flush=True); time.sleep(0.2); return keep(*a)\n"
        "s.keep_largest = wait\n"
        "sys.exit(fewbeats.cli.main(sys.argv[1:]))"
    )
    out = tmp_path / "masks"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "predict", str(small_run), str(phantoms), f"--out={out}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    begun = time.monotonic()
    frames = 0
    for line in process.stdout:
        frames += line.startswith("frame")
        if frames == 5:  # one scan is done, the second begun
            os.kill(process.pid, signal.SIGINT)
            break
        assert time.monotonic() - begun < 100
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "interrupted" in error
    left = sorted(p.name for p in out.iterdir())
    assert left == ["phantom000_4d.nii.gz", "predictions.csv", "provenance.json", "run.json"]
    assert json.loads((out / "run.json").read_text())["finished"] is False


def test_threads_wait_as_a_shared_machine_needs_it_unless_told_otherwise(monkeypatch):
    from fewbeats import entry

    monkeypatch.setattr(sys, "argv", ["fewbeats", "--version"])
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert entry.main() == 0
    assert os.environ.pop("GOMP_SPINCOUNT") == entry.SPINS
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert entry.main() == 0
    assert "GOMP_SPINCOUNT" not in os.environ


def test_interrupted_before_it_began(monkeypatch, capsys):
    from fewbeats import cli, entry

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(cli, "main", interrupt)
    assert entry.main() == 2
    assert capsys.readouterr().err == "fewbeats: interrupted before it began\n"


NAMED = {
    "apart": ["--teacher", "a", "--teacher", "b"],
    "equals": ["--teacher=a", "--teacher=b"],
    "once": ["--teacher", "a", "b"],
}


@pytest.mark.parametrize("name", NAMED)
def test_each_teacher_may_have_a_flag_of_its_own(name):
    """Else the last of them would stand alone, unseen."""
    for command in ("audit", "selftrain"):
        assert read_command(command, ["c.csv", *NAMED[name], "--out", "x"]).teacher == ("a", "b")
