"""Rounds of self-training: what is learned from, when they stop, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort
from fewbeats.data.provenance import load_provenance
from fewbeats.self_training.rounds import WORSE, Round, RoundSettings, best_of, give_verdict
from fewbeats.training.rundir import RunDir
from fuzzing import kill_after

TINY = (
    "--init=scratch", "--network.kind=unet2d", "--network.base-channels=8", "--network.levels=4",
    "--batch-size=8", "--preprocess.size=64", "--preprocess.spacing-mm=2.5", "--optim.learning-rate=0.01",
    "--ema-decay=0.95", "--spatial.turned=0", "--spatial.elastic-probability=0", "--intensity.probability=0",
    "--localizer-steps=0",
)  # fmt: skip


def words(cohort, out, *flags, teacher="oracle:random", steps=100) -> list[str]:
    return [
        "selftrain",
        str(cohort),
        f"--teacher={teacher}",
        f"--out={out}",
        f"--steps={steps}",
        *TINY,
        *flags,
    ]


def masks(out: Path, number: int) -> dict[str, bytes]:
    folder = out / f"round{number}" / "predictions"
    return {file.name: np.asarray(nib.load(file).dataobj).tobytes() for file in folder.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    """Two rounds from a spoiled truth, each judged on the subject of split tune."""
    out = tmp_path_factory.mktemp("selftrain") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewbeats.inference.engine.can_export", lambda: False)
        assert main(words(phantoms, out, "--rounds=2", "--judge=tune", "--settled=1", steps=200)) == 0
    return out


def test_students_see_through_mistakes_that_change_from_frame_to_frame(trained):
    state = json.loads((trained / "self_training.json").read_text())
    scores = [one["dice"] for one in state["rounds"]]
    assert state["finished"]
    assert state["best"] > 0
    assert max(scores[1:]) > scores[0] + 0.05, scores


def test_the_best_student_is_a_run_that_predicts(trained, phantoms, tmp_path):
    best = trained / "best"
    config = RunDir(best).read_config()
    assert config.labeled_subjects == ()
    assert config.record["pseudo_labeled_subjects"] == ["phantom000", "phantom001", "phantom002"]
    assert main(["predict", str(best), str(phantoms), "--split=dev", f"--out={tmp_path / 'dev'}"]) == 0
    assert main(["evaluate", str(tmp_path / "dev"), str(phantoms), f"--out={tmp_path / 'report'}"]) == 0
    seen = load_provenance(best)
    assert seen.labeled == {}
    assert sorted(seen.unlabeled) == ["phantom000", "phantom001", "phantom002"]


def test_manual_labels_stay_closed_and_held_out_scans_unlabeled(trained, phantoms):
    labels, cohort = read_cohort(trained / "round2" / "labels.csv"), read_cohort(phantoms)
    assert labels.filter(pl.col("split") != "train")["label"].null_count() == 3
    learned = labels.filter(pl.col("split") == "train")
    assert set(learned["label_source"]) == {"pseudo"}
    assert not set(learned["label"]) & set(cohort["label"])
    assert set(read_cohort(trained / "round1" / "labels.csv")["label_source"].drop_nulls()) == {"teacher"}


def test_done_is_done_and_other_settings_are_refused(trained, phantoms, capsys):
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.is_file()}
    asked = words(phantoms, trained, "--rounds=2", "--judge=tune", "--settled=1", steps=200)
    assert main(asked) == 0
    after = {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.is_file()}
    assert {f for f in before if before[f] != after[f]} <= {
        trained / "self_training.json",
        trained / "report.html",
    }
    assert main([*asked, "--seed=1"]) == 2
    assert "other settings" in capsys.readouterr().err


KILLED = ("--rounds=1", "--settled=1", "--crossfit=2", "--filters.qc", "--filters.temporal")


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory) -> Path:
    """A short self-training that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewbeats.inference.engine.can_export", lambda: False)
        assert main(words(phantoms, out, *KILLED, steps=6)) == 0
    return out


@pytest.mark.parametrize("changes", [25, 110, 220])
def test_a_killed_self_training_ends_as_one_that_was_not(whole, phantoms, tmp_path, no_onnx, changes):
    killed = tmp_path / "killed"
    asked = words(phantoms, killed, *KILLED, steps=6)
    assert kill_after(asked, changes) == 9
    assert main(asked) == 0
    assert masks(killed, 0) == masks(whole, 0)
    assert masks(killed, 1) == masks(whole, 1)


def test_with_crossfit_no_student_labels_who_it_learned_from(phantoms, tmp_path, no_onnx, monkeypatch):
    monkeypatch.setitem(WORSE, "quality", 1.0)  # students this short are
    out = tmp_path / "out"
    assert main(words(phantoms, out, "--rounds=1", "--settled=1", "--crossfit=2", steps=6)) == 0
    folds = [RunDir(out / "round1" / f"fold{i}").read_config().record for i in (0, 1)]
    learned = [set(fold["pseudo_labeled_subjects"]) for fold in folds]
    assert not learned[0] & learned[1]
    assert learned[0] | learned[1] == {"phantom000", "phantom001", "phantom002"}
    best = RunDir(out / "best").read_config().record["pseudo_labeled_subjects"]
    assert set(best) == learned[0] | learned[1]


def a_round(number: int, **values) -> Round:
    usual = {"quality": 0.9, "agreement": 0.8 if number else None, "dice": None, "frames": 10, "kept": 10}
    return Round(number=number, failed={}, seconds={}, **{**usual, **values})


@pytest.mark.parametrize(
    ("rounds", "told", "best"),
    [
        ([a_round(0)], "", 0),
        ([a_round(0, quality=0.3)], "too weak to start from", 0),
        ([a_round(0, quality=0.3, dice=0.6)], "", 0),
        ([a_round(0, kept=0)], "all 10 frames were left out", 0),
        ([a_round(0), a_round(1)], "", 1),
        ([a_round(0), a_round(1), a_round(2), a_round(3)], "all 3 rounds are done", 3),
        ([a_round(0), a_round(1, agreement=0.99)], "have settled", 1),
        ([a_round(0), a_round(1, quality=0.8)], "round 1 is worse than the one before", 0),
        ([a_round(0), a_round(1), a_round(2, quality=0.85)], "round 2 is worse", 1),
        ([a_round(0, dice=0.7), a_round(1, dice=0.8), a_round(2, dice=0.79)], "round 2 is worse", 1),
        ([a_round(0, dice=0.8), a_round(1, dice=0.799)], "", 0),
    ],
)
def test_verdicts(rounds, told, best):
    verdict = give_verdict(rounds, RoundSettings(rounds=3))
    assert told in verdict
    assert bool(told) == bool(verdict)
    assert best_of(rounds) == best


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--judge=train"], "those labels are learned from"),
        (["--judge=test"], "has no scan of this split"),
        (["--rounds=0"], "--rounds 0"),
        (["--crossfit=3"], "has 3 subjects to learn from"),
        (["--filters.agreement=2"], "must be between 0 and 1"),
        (["--teacher=oracle:evil"], "write one of random"),
        (["--minutes=1"], "give either --steps or --minutes"),
    ],
)
def test_settings_that_cannot_be_are_one_line(phantoms, tmp_path, flags, told, capsys):
    assert main(words(phantoms, tmp_path / "out", *flags)) == 2
    assert told in capsys.readouterr().err


def test_a_teacher_that_fails_on_one_scan_of_many_is_told_and_the_rest_goes_on(phantoms, tmp_path, no_onnx):
    source = phantoms.parent / "source" / "labels"
    folder = tmp_path / "masks"
    shutil.copytree(source, folder)
    (folder / "card.yaml").write_text("labels: fewbeats")
    (folder / "phantom001_4d.nii.gz").write_bytes(b"no mask")
    out = tmp_path / "out"
    asked = words(phantoms, out, "--rounds=1", teacher=f"folder:{folder}", steps=4)
    assert main(asked) == 0
    first = json.loads((out / "round0" / "round.json").read_text())
    assert list(first["failed"]) == ["phantom001_4d"]
    assert first["frames"] == 6
    learned = read_cohort(out / "round1" / "labels.csv")
    assert learned.filter(pl.col("label").is_not_null())["subject"].to_list() == ["phantom000", "phantom002"]


def test_a_teacher_that_fails_on_most_stops_it(phantoms, tmp_path, capsys):
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "card.yaml").write_text("labels: fewbeats")
    shutil.copy(phantoms.parent / "source" / "labels" / "phantom000_4d.nii.gz", folder)
    assert main(words(phantoms, tmp_path / "out", teacher=f"folder:{folder}", steps=4)) == 2
    assert "2 of 3 scans cannot be labeled" in capsys.readouterr().err


def test_empty_masks_are_never_learned_from(phantoms, tmp_path, capsys):
    folder = tmp_path / "masks"
    shutil.copytree(phantoms.parent / "source" / "labels", folder)
    (folder / "card.yaml").write_text("labels: fewbeats:LV+MYO+RV".replace(":LV+MYO+RV", ""))
    for file in folder.glob("*.nii.gz"):
        image = nib.load(file)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine, image.header), file)
    assert main(words(phantoms, tmp_path / "out", teacher=f"folder:{folder}", steps=4)) == 0
    assert "all 9 frames were left out" in capsys.readouterr().out
    assert not (tmp_path / "out" / "best").exists()


def test_unsure_voxels_weigh_less(phantoms, tmp_path, no_onnx, monkeypatch):
    monkeypatch.setitem(WORSE, "quality", 1.0)
    out = tmp_path / "out"
    asked = words(phantoms, out, "--rounds=2", "--settled=1", "--filters.uncertainty", steps=6)
    assert main(asked) == 0
    sure = nib.load(out / "round1" / "predictions" / "phantom000_4d_confidence.nii.gz")
    mask = nib.load(out / "round1" / "predictions" / "phantom000_4d.nii.gz")
    assert sure.shape == mask.shape
    values = np.asarray(sure.dataobj)
    assert values.dtype == np.uint8
    assert len(np.unique(values)) > 20
    first, second = (read_cohort(out / f"round{n}" / "labels.csv") for n in (1, 2))
    assert first["label_confidence"].null_count() == len(first), "an oracle does not tell"
    assert second.filter(pl.col("label_confidence").is_not_null())["split"].unique().to_list() == ["train"]
