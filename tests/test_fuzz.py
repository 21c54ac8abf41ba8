"""Some hundred damaged files: each is read or refused in one line, at once. The long form is a benchmark."""

from __future__ import annotations

import gzip
import time

import nibabel as nib
import numpy as np
import pytest

from fewbeats.errors import InputError
from fuzzing import count_outcomes, damage, damaged_dicom, damaged_nifti, damaged_runs, judge


def faults(cases) -> list[str]:
    """What must not be, and whether nearly all cases end alike, so that they show little."""
    counts, bad = count_outcomes(cases)
    mixed = min(counts["read"], counts["refused"]) > 0.02 * counts.total()
    return bad if mixed else [*bad, f"nearly all alike: {counts}"]


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_nifti_files(tmp_path, seed):
    assert faults(damaged_nifti(tmp_path / "nifti", 300, seed=seed)) == []


def test_damaged_dicom_folders(tmp_path):
    assert faults(damaged_dicom(tmp_path / "dicom", 120)) == []


def test_damaged_run_folders(small_run, tmp_path):
    assert faults(damaged_runs(small_run, tmp_path / "runs", 40)) == []


def test_the_judge_sees_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzzing.SECONDS", 0.05)

    def endless():
        while True:
            time.sleep(0.01)

    def fails(error):
        raise error

    assert judge(endless) == "hang"
    assert judge(lambda: fails(KeyError("x"))).startswith("traceback: ")
    assert judge(lambda: fails(InputError("a line"))) == "refused"
    assert judge(lambda: fails(InputError("two\nlines"))).startswith("told: ")
    assert judge(lambda: None) == "read"


def test_damage_changes_files_and_is_the_seeds():
    sound = gzip.compress(nib.Nifti1Image(np.zeros((4, 4, 4), "i2"), np.eye(4)).to_bytes())
    made = [[damage(sound, np.random.default_rng(seed)) for seed in range(40)] for _ in range(2)]
    assert made[0] == made[1]
    assert sum(one != sound for one in made[0]) > 30
