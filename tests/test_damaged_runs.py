"""Run folders that were damaged or made up: one line with the file, never a traceback, and no code is run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fewbeats.errors import InputError
from fewbeats.inference.engine import load_engine
from fewbeats.inference.labeler import open_run
from fewbeats.recipes.starts import trace_weights
from fuzzing import spoil


@pytest.mark.parametrize("file", ["run.json", "provenance.json"])
def test_a_run_with_any_entry_spoiled_is_opened_or_refused(small_run, tmp_path, file):
    run = shutil.copytree(small_run, tmp_path / "run")
    whole = json.loads((run / file).read_text())
    rng, opened, refused = np.random.default_rng(0), 0, []
    for _ in range(100):  # and more of them in test_fuzz
        (run / file).write_text(json.dumps(spoil(whole, rng)))
        try:
            open_run(run, runtime="torch")
            trace_weights(run)
            opened += 1
        except InputError as error:
            refused.append(str(error))
    assert all(str(run) in line and "\n" not in line for line in refused)
    assert min(opened, len(refused)) > 5


def test_a_name_in_a_run_folder_imports_nothing(small_run, tmp_path, monkeypatch):
    """Looking for a dotted name imports what stands before the dot."""
    run = shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "__init__.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((run / "run.json").read_text())
    content["engines_seconds"] = {"trap.inner": 0.0, "torch": 1.0}
    (run / "run.json").write_text(json.dumps(content))
    assert load_engine(run).runtime == "torch"


@pytest.mark.parametrize("encoder", ["hf-hub:somebody/model", "https://example.org/model"])
def test_an_encoder_with_an_address_is_fetched_by_nobody(small_run, tmp_path, encoder):
    run = shutil.copytree(small_run, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["settings"]["network"] |= {"kind": "hub", "encoder": encoder}
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="a timm name without an address"):
        load_engine(run, runtime="torch")


def test_an_onnx_file_of_another_run_is_refused(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    if not (run / "network.onnx").is_file():
        pytest.skip("no packages to write ONNX with")
    other = run / "localizer" / "network.onnx"
    shutil.copy(other, run / "network.onnx")
    with pytest.raises(InputError, match=r"network\.onnx: is not the run's own; take --runtime torch"):
        load_engine(run, runtime="onnxruntime")
    assert load_engine(run, runtime="torch").runtime == "torch"


def test_weights_of_another_size_take_no_memory_before_they_are_refused(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["settings"]["network"] |= {"base_channels": 4096}  # 10 GB in its first two levels alone
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="its weights do not fit its settings"):
        load_engine(run, runtime="torch")
