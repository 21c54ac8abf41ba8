"""The network that comes with the package: from phantoms alone, opened by its name, worth starting from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.inference.labeler import open_run
from fewbeats.metrics import dice
from fewbeats.models.weights import read_weights
from fewbeats.phantom.scan import PhantomSettings, make_scan
from fewbeats.phantom.subject import make_subject
from fewbeats.teachers.specs import open_teacher
from fewbeats.training.rundir import SHIPPED, RunDir, find_run

MOST_MB = 12


def test_it_is_small_and_holds_no_scan():
    files = [file for file in (SHIPPED / "synthetic").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < MOST_MB * 2**20
    weights = read_weights(RunDir(SHIPPED / "synthetic").weights())
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
    seen = open_run(Path("synthetic")).provenance
    assert "phantoms" in seen.run
    assert not any(one.labeled or one.unlabeled for one in seen.lineage())


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_run("synthetic") == SHIPPED / "synthetic"
    Path("synthetic").mkdir()
    assert find_run("synthetic") == Path("synthetic")
    assert find_run("artificial") == Path("artificial")
    with pytest.raises(InputError, match="not a finished run folder"):
        open_run(Path("synthetic"))


@pytest.mark.parametrize("contrast", ["bright", "dark"])
def test_it_labels_hearts_and_contrasts_it_was_not_made_for(contrast):
    subject = make_subject(20261126, group="normal")
    scan, mask = make_scan(subject, PhantomSettings(contrast=contrast, frames=2, matrix=160))
    teacher = open_teacher("synthetic")
    assert teacher.structures == ("LV", "MYO", "RV")
    found = np.stack([one.mask for one in teacher.label(scan)])
    for name, least in (("LV", 0.85), ("MYO", 0.7), ("RV", 0.75)):
        value = FEWBEATS_VALUES[name]
        assert dice(found == value, mask == value) > least, name
