"""Studies: what a plan may say, and what decides what its rows are of."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.errors import InputError
from fewbeats.study.reading import read_plan
from small_study import GRID, NETWORK, content, write


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"arm": {}}, "no setting 'arm'; perhaps you meant 'arms'"),
    ({"split": "train"}, "'train' is none of tune, dev, test"),
    ({"labeled": ["three"]}, "arms.scratch.labeled: give different whole numbers from 0 on"),
    ({"labeled": [-1]}, "give different whole numbers from 0 on"),
    ({"score": "dise"}, "score: 'dise' is none; perhaps you meant 'dice'"),
    ({"score": 3}, "score: '3' is none; there are dice, hd95_mm, assd_mm"),
    ({"score": "accuracy"}, "score: these arms have no accuracy; name dice or hd95_mm"),
    ({"seeds": [0, 0]}, "give different whole numbers"),
    ({"baseline": "scrach"}, "no arm 'scrach'; perhaps you meant 'scratch'"),
    ({"primary": {"arm": "mim"}}, "name its arm and labeled"),
    ({"primary": {"arm": "mim", "labeled": 9}}, "9 labeled is no budget of both"),
    ({"primary": {"arm": "scratch", "labeled": 1}}, "no arm beside the baseline"),
    ({"arms": {"scratch": {}, "mim": {"init": "mimm"}}}, "'mimm' is no start; perhaps you meant 'mim'"),
    ({"arms": {"scratch": {}, "mim": {"stepps": 4}}}, "no setting 'stepps'; perhaps you meant 'steps'"),
    ({"arms": {"scratch": {}, "mim": {"init": "mim", "steps": "four"}}}, "arms.mim"),
    ({"arms": {"scratch": {}, "mim": {"minutes": 4}}}, "arms.mim.minutes: the study decides it"),
    ({"arms": {"scratch": {}, "mim": {"seed": 4}}}, "arms.mim.seed: the study decides it"),
    ({"arms": {"scratch": {}, "mim": {"batch-size": 4}}}, "differ in batch_size"),
    ({"arms": {"scratch": {}, "mim": {"network": {"base-channels": 8}}}}, "differ in network.base_channels"),
    ({"pretrain": {"steps": 2, "preprocess": GRID}}, "pretrains another network"),
    ({"pretrainings": {"mim": {"method": "mimic"}}}, "pretrainings.mim"),
    ({"pretrainings": {"mim": {"method": "mim", "out": "x"}}}, "the study decides it"),
    ({"arms": []}, "arms: holds no settings"),
    ({"pretrainings": {"scratch": {"method": "mim"}}}, "scratch: is the name of a start"),
    ({"rows": 3}, "rows: give a name"),
    ({"rows": ""}, "rows: give a name"),
    ({"primary": {"arm": "mim", "labeled": True}}, "name its arm and labeled"),
    ({"seeds": [0, 2**32]}, "seeds: give numbers below 4294967296"),
    ({"pretrainings": {"mim": {"method": "mim", "steps": -1}}}, "mim.steps: give at least 1"),
    ({"arms": {"scratch": {}, "../mim": {"init": "mim"}}}, "'../mim' is no name for a folder"),
    ({"arms": {"scratch": {}, "": {"init": "mim"}}}, "'' is no name for a folder"),
    ({"arms": {"scratch": {}, 1: {"init": "mim"}}}, "a name is read as something else"),
    ({"arms": {"scratch": {}, "mim": ""}}, "arms.mim: holds no settings"),
    ({"arms": {"scratch": {}, "mim": []}}, "arms.mim: holds no settings"),
])  # fmt: skip
def test_plans_that_cannot_be_run_are_refused(changes, complaint, tmp_path, capfd):
    file = write(tmp_path, content("cohort.csv", tmp_path, **changes))
    assert main(["study", file]) == 2
    told = capfd.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("again", ["seeds: [1]", "arms: {scratch: {}, mim: {init: mim}, mim: {}}"])
def test_what_stands_twice_is_refused(again, tmp_path, capfd):
    """YAML would let the last one win: an arm named mim, without its start."""
    settings = content("cohort.csv", tmp_path)
    if again.startswith("arms"):
        del settings["arms"]
    file = Path(write(tmp_path, settings))
    file.write_text(file.read_text() + again + "\n")
    assert main(["study", str(file)]) == 2
    assert "stands there a second time" in capfd.readouterr().err


@pytest.mark.parametrize(("text", "complaint"), [
    ("a: &x {b: *x}\n", "no setting 'a'"), ("a: &x [*x]\n", "no setting 'a'"),
    ("x: &x {seeds: 1}\ny: {<<: *x}\n", "no setting 'x'"), ("{[1]: 2}\n", "a name is read as something else"),
    ("? {a: 1}\n: 2\n", "a name is read as something else"),
])  # fmt: skip
def test_yaml_that_refers_to_itself_or_merges_is_read(text, complaint, tmp_path, capfd):
    (tmp_path / "tiny.yaml").write_text(text)
    assert main(["study", str(tmp_path / "tiny.yaml")]) == 2
    told = capfd.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"labeled": [1, 9]}, "labeled 9: 3 subjects of split train have manual labels"),
    ({"pretrainings": {"mim": {"method": "mim", "pool-subjects": 9}}}, "split train has 3"),
    ({"pretrainings": {"mim": {"method": "mim", "mim": {"patch-px": 10}}}}, "does not divide the view"),
    ({"split": "test"}, "no labeled scan of split 'test'"),
    ({"arms": {"scratch": {}, "natural": {"init": "natural"}}, "primary": None}, "natural"),
    ({"pretrain": {"steps": 2, "batch-size": 999, "network": NETWORK, "preprocess": GRID}}, "are fewer than"),
    ({"pretrainings": {"mim": {"method": "mim", "init": "nowhere"}}}, "nowhere"),
    ({"finetune": {"steps": 2, "select": "best", "network": NETWORK, "preprocess": GRID}},
     "needs a second labeled subject"),
    ({"pretrainings": {"mim": {"method": "mim", "seed": -1}}}, "--seed -1: give a number from 0"),
    ({"pretrainings": {"mim": {"method": "mim", "seed": 10**30}}}, "give a number from 0 to 4294967295"),
])  # fmt: skip
def test_what_the_cohort_cannot_give_is_refused_before_anything_runs(
    changes, complaint, phantoms, tmp_path, capfd
):
    assert main(["study", write(tmp_path, content(phantoms, tmp_path, **changes))]) == 2
    told = capfd.readouterr()
    assert complaint in told.err
    assert "to do:" not in told.out
    assert not [p for p in (tmp_path / "study").glob("*") if p.name != "sample-cache"]


def test_a_pairs_second_start_decides_its_rows(phantoms, tmp_path):
    mn = {"command": "cotrain", "method": "mn", "network": {"kind": "unet3d"}, "init": "scratch"}
    arms = {"usual": mn, "named": mn | {"flat-init": "natural"}, "random": mn | {"flat-init": "scratch"}}
    settings = content(
        phantoms, tmp_path, arms=arms, primary=None, pretrainings={}, cotrain={"steps": 2, "init": "scratch"},
        baseline="usual", may_differ=["flat_init"],
    )  # fmt: skip
    plan = read_plan(Path(write(tmp_path, settings)))
    usual, named, random = (plan.digest(arm) for arm in plan.arms.values())
    assert usual == named != random


def test_what_decides_a_row_is_known_by_content(phantoms, tmp_path):
    """Labels and weights count, not where they lie, nor what no mask depends on."""
    cohort = read_cohort(phantoms)
    labels = tmp_path / "labels"
    labels.mkdir()
    moved = [
        str(shutil.copy(label, labels / f"{number}.nii.gz")) for number, label in enumerate(cohort["label"])
    ]
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"some")
    arms = {"scratch": {}, "given": {"init": str(weights)}}
    settings = content(tmp_path / "cohort.csv", tmp_path, arms=arms, primary=None, pretrainings={})

    def known(**columns) -> tuple[str, list[str]]:
        changed = cohort.with_columns(**{"label": pl.Series(moved)} | columns)
        write_cohort(changed, tmp_path / "cohort.csv")
        plan = read_plan(Path(write(tmp_path, settings)))
        return plan.data, [plan.digest(arm) for arm in plan.arms.values()]

    data, digests = known()
    assert (
        read_plan(Path(write(tmp_path, settings | {"cohort": str(phantoms)}))).data == data
    )  # another place
    assert known(group=pl.lit("NOR"), sequence=pl.lit("cine"))[0] == data
    assert known(slice_order=pl.lit("apex_first"))[0] != data
    weights.write_bytes(b"other")
    assert [a == b for a, b in zip(known()[1], digests)] == [True, False]

    train, _, _, tune, dev, _ = (Path(name) for name in moved)
    dev.write_bytes(train.read_bytes())  # of nobody this study looks at
    assert known()[0] == data
    tune.write_bytes(gzip.compress(gzip.decompress(tune.read_bytes()), 1))
    assert known()[0] == data
    tune.write_bytes(train.read_bytes())
    assert known()[0] != data
    tune.unlink()
    with pytest.raises(InputError, match="no such file"):
        known()


def test_no_label_at_all_is_a_budget(tmp_path):
    settings = content("cohort.csv", tmp_path, labeled=[0, 3], primary={"arm": "mim", "labeled": 0})
    plan = read_plan(Path(write(tmp_path, settings)))
    assert plan.arms["mim"].labeled == (0, 3)
    assert plan.primary == ("mim", 0)
    assert plan.score.name == "dice"  # where nothing is said
    settings["score"] = "hd95_mm"
    assert read_plan(Path(write(tmp_path, settings))).score.better == "lower"
