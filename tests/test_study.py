"""Studies: what a plan may say, what is computed and what is not again, and what the rows are made to say."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.disk import append_locked
from fewbeats.errors import InputError
from fewbeats.study.plan import read_plan
from fewbeats.study.result import analyze, by_subject, points
from fewbeats.study.units import COLUMNS, Unit, localizer_of, missing_units, own_rows, read_rows

NETWORK = {"kind": "unet2d", "base-channels": 4, "levels": 4}
GRID = {"size": 64, "spacing-mm": 2.5}


def content(cohort, folder, **changes) -> dict:
    settings = {
        "cohort": str(cohort), "out": str(folder / "study"), "rows": str(folder / "rows" / "rows.csv"),
        "split": "tune", "labeled": [1, 2], "seeds": [0], "baseline": "scratch",
        "primary": {"arm": "mim", "labeled": 1},
        "finetune": {"init": "scratch", "steps": 2, "localizer-steps": 1, "batch-size": 8,
                     "network": NETWORK, "preprocess": GRID},
        "pretrain": {"steps": 2, "batch-size": 8, "network": NETWORK, "preprocess": GRID},
        "pretrainings": {"mim": {"method": "mim"}},
        "arms": {"scratch": {}, "mim": {"init": "mim"}},
    }  # fmt: skip
    return settings | changes


def write(folder, settings) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


@pytest.fixture
def no_onnx(monkeypatch):
    monkeypatch.setattr("fewbeats.inference.engine.can_export", lambda: False)


# Running


@pytest.mark.usefixtures("no_onnx")
def test_a_study_runs_resumes_and_reports(phantoms, tmp_path, capfd):
    file = write(tmp_path, content(phantoms, tmp_path))
    assert main(["study", file]) == 0
    said = capfd.readouterr().out
    assert said.count("to do:") == 1 + 2 + 4  # one pretraining, a localizer a budget, four runs
    rows = read_rows(tmp_path / "rows" / "rows.csv")
    assert rows.group_by("arm", "labeled", "seed").len().height == 4
    assert rows["subject"].unique().to_list() == ["phantom003"]
    assert set(rows["phase"].drop_nulls()) == {"ED", "ES"}
    summary = json.loads((tmp_path / "study" / "tiny.json").read_text())
    assert [c["arm"] for c in summary["cells"]] == ["scratch", "mim"] * 2
    assert [c["primary"] for c in summary["contrasts"]] == [True, False]
    page = (tmp_path / "study" / "tiny.html").read_text()
    assert "With 1 labeled subject" in page
    assert 'src="http' not in page

    assert main(["study", file]) == 0
    assert "to do:" not in capfd.readouterr().out  # nothing is computed again
    kept = rows.filter(~((pl.col("arm") == "mim") & (pl.col("labeled") == 2)))
    kept.write_csv(tmp_path / "rows" / "rows.csv")
    plan = read_plan(tmp_path / "tiny.yaml")
    assert missing_units(plan)[1] == [Unit("arm", "mim", 2, 0)]
    assert main(["study", file, "--report-only"]) == 0
    assert "1 run is still missing" in (tmp_path / "study" / "tiny.html").read_text()
    assert main(["study", file]) == 0
    again = read_rows(tmp_path / "rows" / "rows.csv")
    key = ["arm", "labeled", "subject", "phase", "structure"]
    assert again.sort(key)["dice"].to_list() == rows.sort(key)["dice"].to_list()

    # All arms of a budget use one localizer.
    made = [tmp_path / "study" / "arms" / f"{arm}_1_seed0" / "localizer" for arm in ("scratch", "mim")]
    one, two = ((folder / "network.safetensors").read_bytes() for folder in made)
    assert one == two


@pytest.mark.usefixtures("no_onnx")
def test_rows_of_other_settings_are_not_mixed_in(phantoms, tmp_path, capfd):
    settings = content(phantoms, tmp_path, labeled=[1], primary=None, arms={"scratch": {}})
    assert main(["study", write(tmp_path, settings)]) == 0
    settings["finetune"]["steps"] = 3
    assert main(["study", write(tmp_path, settings)]) == 2
    assert "has rows of 'scratch' with other settings" in capfd.readouterr().err
    settings["seeds"] = [1]  # old rows of other seeds are no part of the new study
    assert main(["study", write(tmp_path, settings)]) == 0
    cells = json.loads((tmp_path / "study" / "tiny.json").read_text())["cells"]
    assert list(cells[0]["draws"]) == ["1"]


@pytest.mark.usefixtures("no_onnx")
def test_another_pretraining_in_the_same_place_is_another_start(phantoms, tmp_path, capfd):
    settings = content(phantoms, tmp_path, labeled=[1])
    assert main(["study", write(tmp_path, settings)]) == 0
    (tmp_path / "rows" / "rows.csv").unlink()
    shutil.rmtree(tmp_path / "study" / "pretrained")
    settings["pretrain"]["steps"] = 3
    assert main(["study", write(tmp_path, settings)]) == 2  # the fine-tuned run is of the old weights
    assert "holds a run of other start" in capfd.readouterr().err


def test_rows_without_a_last_newline_stay_rows(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2")
    append_locked(file, "a,b\n3,4\n")
    assert file.read_text() == "a,b\n1,2\n3,4\n"
    with pytest.raises(InputError, match="has other columns"):
        append_locked(file, "a,c\n3,4\n")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--jobs=2"], ["--cluster=local", "--cluster-options", "timeout_min=5"]])
def test_runs_may_go_side_by_side_and_through_submitit(flags, phantoms, tmp_path):
    settings = content(phantoms, tmp_path, labeled=[1], arms={"scratch": {}, "mim": {"init": "mim"}})
    assert main(["study", write(tmp_path, settings), *flags]) == 0
    assert read_rows(tmp_path / "rows" / "rows.csv").group_by("arm").len().height == 2


# What a plan may not say


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"arm": {}}, "no setting 'arm'; perhaps you meant 'arms'"),
    ({"split": "train"}, "'train' is none of tune, dev, test"),
    ({"labeled": ["three"]}, "arms.scratch.labeled: give different whole numbers from 1 on"),
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


# What rows are made to say


def made_rows(
    effects: dict[str, float], *, seeds=(0, 1, 2), subjects=20, labeled=3, noise=0.01
) -> pl.DataFrame:
    """Dice of arms whose true effects are known: subjects differ much, arms little."""
    rng, rows = np.random.default_rng(0), []
    base = rng.uniform(0.6, 0.9, subjects)
    for arm, effect in effects.items():
        for seed in seeds:
            for i in range(subjects):
                for phase in ("ED", "ES"):
                    for structure in ("LV", "RV"):
                        dice = base[i] + effect + rng.normal(0, noise)
                        rows.append((arm, labeled, seed, "tune", f"s{i}", phase, structure, dice))
    names = ["arm", "labeled", "seed", "split", "subject", "phase", "structure", "dice"]
    more = {"group": None, "steps": 10, "minutes": 1.0, "pretraining_minutes": None, "commit": "abc",
            "settings": "x", "data": "y"}  # fmt: skip
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.with_columns(pl.lit(more.get(k)).alias(k) for k in COLUMNS if k not in names).select(
        *COLUMNS
    )


def test_a_true_gain_is_found_and_a_null_is_told_as_one():
    rows = made_rows({"scratch": 0.0, "good": 0.04, "same": 0.0})
    result = analyze(rows, ["scratch", "good", "same"], baseline="scratch", primary=("good", 3))
    good, same = result.contrasts
    assert good.difference.mean == pytest.approx(0.04, abs=0.004)
    assert good.primary
    assert good.is_clear
    assert good.p_value == good.difference.p_value
    assert not same.is_clear
    assert result.sentences[3].startswith("With 3 labeled subjects, take good: Dice")
    assert "The evidence is enough." in result.sentences[3]
    null = analyze(made_rows({"scratch": 0.0, "same": 0.0005}), ["scratch", "same"], baseline="scratch")
    assert "had a higher mean" in null.sentences[3] or "not enough" in null.sentences[3]


def test_draws_that_disagree_are_not_enough():
    rows = pl.concat([
        made_rows({"scratch": 0.0, "lucky": 0.08}, seeds=(0,)),
        made_rows({"scratch": 0.0, "lucky": -0.02}, seeds=(1,)),
    ])  # fmt: skip
    contrast = analyze(rows, ["scratch", "lucky"], baseline="scratch").contrasts[0]
    assert contrast.difference.ci95[0] > 0
    assert not contrast.is_clear
    sentence = analyze(rows, ["scratch", "lucky"], baseline="scratch").sentences[3]
    assert "The draws of labeled subjects do not agree" in sentence


def test_a_single_draw_is_not_enough():
    rows = made_rows({"scratch": 0.0, "good": 0.08}, seeds=(0,))
    result = analyze(rows, ["scratch", "good"], baseline="scratch")
    assert result.contrasts[0].p_value < 0.001
    assert not result.contrasts[0].is_clear
    assert "A single draw of labeled subjects does not speak for others. Take scratch." in result.sentences[3]


def test_arms_that_are_alike_are_named():
    rows = made_rows({"scratch": 0.0, "a": 0.05, "b": 0.0498})
    sentence = analyze(rows, ["scratch", "a", "b"], baseline="scratch").sentences[3]
    assert "It is not told apart from" in sentence


def test_the_subject_is_the_unit():
    """A subject with twice as many rows counts once; the same by hand, slowly."""
    rows = made_rows({"scratch": 0.0}, subjects=3)
    more = pl.concat([rows, rows.filter(pl.col("subject") == "s0")])
    slow = {}
    for subject in ("s0", "s1", "s2"):
        own = rows.filter(pl.col("subject") == subject)
        slow[subject] = np.mean([
            np.mean([
                np.mean(own.filter(pl.col("seed") == seed, pl.col("structure") == s)["dice"].to_numpy())
                for s in ("LV", "RV")
            ])
            for seed in (0, 1, 2)
        ])  # fmt: skip
    assert by_subject(rows) == pytest.approx(slow)
    assert by_subject(more) == pytest.approx(slow)


def test_only_draws_that_both_have_are_compared():
    rows = made_rows({"scratch": 0.0, "late": 0.04})
    rows = rows.filter((pl.col("arm") != "late") | (pl.col("seed") < 1))
    contrast = analyze(rows, ["scratch", "late"], baseline="scratch").contrasts[0]
    assert list(contrast.draws) == [0]
    nothing = analyze(
        rows.filter((pl.col("arm") == "late") | (pl.col("seed") > 0)), ["scratch", "late"], baseline="scratch"
    )
    assert nothing.contrasts == []
    assert "no arm shares a draw with scratch" in nothing.sentences[3]


def test_a_noisy_arm_does_not_hide_a_clearly_better_one():
    rows = made_rows({"scratch": 0.0, "good": 0.03, "wild": 0.0})
    rng = np.random.default_rng(1)
    jump = {f"s{i}": 0.8 if i == 0 else float(rng.normal(0, 0.02)) for i in range(20)}
    wild = pl.col("dice") + pl.col("subject").replace_strict(jump, return_dtype=pl.Float64)
    rows = rows.with_columns(
        pl.when(pl.col("arm") == "wild").then(wild).otherwise(pl.col("dice")).alias("dice")
    )
    result = analyze(rows, ["scratch", "good", "wild"], baseline="scratch", primary=("good", 3))
    assert result.contrasts[1].difference.mean > result.contrasts[0].difference.mean
    assert result.sentences[3].startswith("With 3 labeled subjects, take good")
    assert "not told apart from wild" in result.sentences[3]


def test_an_easy_draw_of_the_baseline_alone_does_not_decide():
    rows = pl.concat([
        made_rows({"scratch": 0.0, "good": 0.03}, seeds=(0, 1)),
        made_rows({"scratch": 0.1}, seeds=(2,)),
    ])  # fmt: skip
    assert "take good" in analyze(rows, ["scratch", "good"], baseline="scratch").sentences[3]


def test_the_sentence_is_of_the_draws_that_are_compared():
    """A draw that the baseline lacks must not lift the Dice beside the difference."""
    rows = made_rows({"scratch": 0.0, "mim": 0.05})
    lifted = pl.when((pl.col("arm") == "mim") & (pl.col("seed") == 2)).then(1.0).otherwise(pl.col("dice"))
    rows = rows.with_columns(dice=lifted).filter((pl.col("arm") == "mim") | (pl.col("seed") != 2))
    result = analyze(rows, ["scratch", "mim"], baseline="scratch", primary=None)
    shared = by_subject(rows.filter(pl.col("arm") == "mim", pl.col("seed") != 2))
    assert f"mim: Dice {np.mean(list(shared.values())):.3f}" in result.sentences[3]
    assert "p after Holm < 0.001" in result.sentences[3]


def test_arms_judged_on_different_subjects_are_refused():
    rows = made_rows({"scratch": 0.0, "good": 0.03})
    rows = rows.filter((pl.col("arm") == "scratch") | (pl.col("subject") != "s3"))
    with pytest.raises(InputError, match=r"of different subjects, .*: s3 0 ED LV"):
        analyze(rows, ["scratch", "good"], baseline="scratch")


def test_arms_judged_on_different_structures_are_refused():
    rows = made_rows({"scratch": 0.0, "good": 0.0})
    rows = rows.filter((pl.col("arm") == "scratch") | (pl.col("structure") != "RV"))
    with pytest.raises(InputError, match="RV"):
        analyze(rows, ["scratch", "good"], baseline="scratch")


def test_exploratory_tests_are_adjusted_and_the_primary_one_is_not():
    rows = made_rows({"scratch": 0.0, "a": 0.01, "b": 0.008, "c": 0.006}, noise=0.05)
    plain = analyze(rows, ["scratch", "a", "b", "c"], baseline="scratch", primary=("a", 3)).contrasts
    assert plain[0].p_value == plain[0].difference.p_value
    assert all(c.p_value >= c.difference.p_value for c in plain[1:])
    assert min(c.p_value for c in plain[1:]) == pytest.approx(
        min(1, 2 * min(c.difference.p_value for c in plain[1:]))
    )


def test_points_are_hundredths():
    assert [points(v) for v in (0.041, -0.0123, 0.0001)] == ["+4.1", "−1.2", "0.0"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01"])
def test_a_table_that_is_none_of_ours_is_refused(text, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(InputError, match="name another file"):
        read_rows(file)


# What a row is of


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


@pytest.mark.usefixtures("no_onnx")
def test_rows_of_other_labels_are_not_mixed_in_and_a_report_needs_no_scan(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms)
    label = tmp_path / "label.nii.gz"
    first, *rest = cohort["label"]
    shutil.copy(first, label)
    write_cohort(cohort.with_columns(label=pl.Series([str(label), *rest])), tmp_path / "cohort.csv")
    settings = content(tmp_path / "cohort.csv", tmp_path, labeled=[1], primary=None, arms={"scratch": {}})
    file = write(tmp_path, settings | {"pretrainings": {}})
    assert main(["study", file]) == 0
    shutil.copy(rest[0], label)
    assert main(["study", file]) == 2
    assert "has rows of other subjects or labels" in capfd.readouterr().err
    (tmp_path / "cohort.csv").unlink()
    assert main(["study", file, "--report-only"]) == 0


@pytest.mark.usefixtures("no_onnx")
def test_a_start_that_saw_more_labels_than_the_budget_is_refused(phantoms, small_run, tmp_path, capfd):
    arms = {"scratch": {}, "warm": {"init": str(small_run)}}
    network = {"kind": "unet2d", "base-channels": 8, "levels": 4}
    settings = content(phantoms, tmp_path, arms=arms, primary=None, pretrainings={}, labeled=[1])
    settings["finetune"]["network"] = network
    assert main(["study", write(tmp_path, settings)]) == 2
    told = capfd.readouterr()
    assert "has seen labels of phantom000, phantom001, phantom002" in told.err
    assert "to do:" not in told.out


def test_rows_with_holes_are_refused(tmp_path):
    rows = made_rows({"scratch": 0.0})
    rows.with_columns(dice=pl.when(pl.col("seed") == 0).then(None).otherwise(pl.col("dice"))).write_csv(
        tmp_path / "rows.csv"
    )
    with pytest.raises(InputError, match="rows without 'dice'"):
        read_rows(tmp_path / "rows.csv")


def test_options_for_no_cluster_are_refused(tmp_path, capfd):
    file = write(tmp_path, content("cohort.csv", tmp_path))
    assert main(["study", file, "--cluster-options", "timeout_min=5"]) == 2
    assert "are for --cluster" in capfd.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), 7.5, -3.0])
def test_a_dice_that_is_none_is_refused(value, tmp_path):
    rows = made_rows({"scratch": 0.0})
    rows.with_columns(dice=pl.when(pl.col("seed") == 0).then(value).otherwise("dice")).write_csv(
        tmp_path / "rows.csv"
    )
    with pytest.raises(InputError, match="not between 0 and 1"):
        read_rows(tmp_path / "rows.csv")


def test_rows_that_stand_twice_are_refused(tmp_path):
    """As a merge of two machines' tables may leave them."""
    rows = made_rows({"scratch": 0.0})
    pl.concat([rows, rows.head(3).with_columns(dice=pl.lit(0.5))]).write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="'scratch', 3 labeled, seed 0, tune twice"):
        read_rows(tmp_path / "rows.csv")


def test_a_run_that_lost_some_of_its_rows_is_refused(tmp_path):
    settings = content("cohort.csv", tmp_path, labeled=[3], seeds=[0, 1, 2], primary=None, pretrainings={},
                       arms={"scratch": {}}, rows=str(tmp_path / "rows.csv"))  # fmt: skip
    plan = read_plan(Path(write(tmp_path, settings)))
    rows = made_rows({"scratch": 0.0}).with_columns(settings=pl.lit(plan.digest(plan.arms["scratch"])))
    rows.write_csv(plan.rows)
    assert len(own_rows(plan)) == len(rows)
    rows.filter((pl.col("seed") > 0) | (pl.col("subject") != "s3")).write_csv(plan.rows)
    with pytest.raises(InputError, match="lacks rows of a seed of 'scratch', 3 labeled"):
        own_rows(plan)


@pytest.mark.parametrize(("rows", "complaint"), [("taken", "cannot be written"), ("file/x.csv", "file")])
def test_rows_that_cannot_be_written_are_told_before_anything_runs(
    rows, complaint, phantoms, tmp_path, capfd
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["study", write(tmp_path, content(phantoms, tmp_path, rows=str(tmp_path / rows)))]) == 2
    told = capfd.readouterr()
    assert complaint in told.err
    assert told.err.count("\n") == 1
    assert "to do:" not in told.out


def test_a_study_of_one_phase_finds_the_heart_by_that_phase(phantoms, tmp_path):
    """Else its localizer had seen labels that its arms must not."""
    settings = content(phantoms, tmp_path)
    unit = Unit("localizer", "localizer", 1, 0)
    assert localizer_of(read_plan(Path(write(tmp_path, settings))), unit).phase is None
    settings["finetune"]["phase"] = "ED"
    assert localizer_of(read_plan(Path(write(tmp_path, settings))), unit).phase == "ED"


@pytest.mark.parametrize("flags", [["--cluster=cloud"], ["--cluster=local", "--cluster-options", "bogus=1"]])
def test_clusters_that_are_none_are_refused(flags, phantoms, tmp_path, capfd):
    assert main(["study", write(tmp_path, content(phantoms, tmp_path)), *flags]) == 2
    told = capfd.readouterr()
    assert told.err.count("\n") == 1
    assert "to do:" not in told.out
