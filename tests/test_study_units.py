"""Studies: what is computed and what is not again, and the table of rows."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.disk import append_locked
from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES
from fewbeats.recipes.starts import weights_digest
from fewbeats.study.reading import read_plan
from fewbeats.study.units import (
    COLUMNS,
    Unit,
    by_repeat,
    localizer_of,
    missing_arms,
    missing_units,
    open_rows,
    own_rows,
    read_rows,
)
from small_study import GRID, NETWORK, content, made_rows, write

ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("no_onnx")
def test_no_label_is_a_budget_too(phantoms, tmp_path):
    """Of an arm that needs none: here no student betters its teacher, which is judged then."""
    none = {"command": "selftrain", "teacher": ["synthetic"], "labeled": [0, 1], "rounds": 1, "settled": 1,
            "init": "scratch", "steps": 2, "localizer-steps": 0, "network": NETWORK,
            "preprocess": GRID}  # fmt: skip
    arms = {"scratch": {"labeled": [1]}, "none": none}
    settings = content(phantoms, tmp_path, arms=arms, labeled=[1], primary=None, pretrainings={})
    assert main(["study", write(tmp_path, settings)]) == 0
    rows = read_rows(tmp_path / "rows" / "rows.csv")
    assert rows.select("arm", "labeled").unique().sort("arm", "labeled").rows() == [
        ("none", 0),
        ("none", 1),
        ("scratch", 1),
    ]
    cells = json.loads((tmp_path / "study" / "tiny.json").read_text())["cells"]
    assert [(cell["arm"], cell["labeled"]) for cell in cells] == [("none", 0), ("scratch", 1), ("none", 1)]


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
    assert set(rows["metric"]) == {"dice", "hd95_mm", "assd_mm", "exchanged"}
    digest = weights_digest(tmp_path / "study" / "pretrained" / "mim")
    assert set(rows.select("arm", "weights").iter_rows()) == {("scratch", None), ("mim", digest)}
    summary = json.loads((tmp_path / "study" / "tiny.json").read_text())
    assert [c["arm"] for c in summary["cells"]] == ["scratch", "mim"] * 2
    assert [c["primary"] for c in summary["contrasts"]] == [True, False]
    page = (tmp_path / "study" / "tiny.html").read_text()
    assert "Structures missed<br>(Dice 0)" in page
    assert "With 1 labeled subject" in page
    assert digest in page
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
    key = ["arm", "labeled", "subject", "phase", "structure", "metric"]
    assert again.sort(key)["value"].to_list() == rows.sort(key)["value"].to_list()

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
@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("flags", [["--jobs=2"], ["--cluster=local", "--cluster-options", "timeout_min=5"]])
def test_runs_may_go_side_by_side_and_through_submitit(flags, phantoms, tmp_path):
    settings = content(phantoms, tmp_path, labeled=[1], arms={"scratch": {}, "mim": {"init": "mim"}})
    assert main(["study", write(tmp_path, settings), *flags]) == 0
    assert read_rows(tmp_path / "rows" / "rows.csv").group_by("arm").len().height == 2


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01"])
def test_a_table_that_is_none_of_ours_is_refused(text, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(InputError, match="name another file"):
        read_rows(file)


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
    holes = pl.when(pl.col("seed") == 0).then(None).otherwise(pl.col("value"))
    rows.with_columns(value=holes).write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="rows without 'value'"):
        read_rows(tmp_path / "rows.csv")


def test_options_for_no_cluster_are_refused(tmp_path, capfd):
    file = write(tmp_path, content("cohort.csv", tmp_path))
    assert main(["study", file, "--cluster-options", "timeout_min=5"]) == 2
    assert "are for --cluster" in capfd.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), 7.5, -3.0])
def test_a_dice_that_is_none_is_refused(value, tmp_path):
    rows = made_rows({"scratch": 0.0})
    wrong = pl.when(pl.col("seed") == 0).then(value).otherwise("value")
    rows.with_columns(value=wrong).write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="has a Dice that is not between 0 and 1"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize(("metric", "value", "complaint"), [
    ("hd95_mm", float("inf"), "has a HD95 that is not between 0 and inf"),
    ("happiness", 1.0, "has rows of 'happiness', which is no score"),
])  # fmt: skip
def test_scores_that_are_none_are_refused(metric, value, complaint, tmp_path):
    rows = made_rows({"scratch": 0.0}).with_columns(metric=pl.lit(metric), value=pl.lit(value))
    rows.write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=complaint):
        read_rows(tmp_path / "rows.csv")


def test_the_documented_columns_are_those_of_the_table():
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page.partition("## Rows")[2].partition("\n## ")[0], re.MULTILINE)
    assert [name for cell in cells for name in re.findall("`([^`]+)`", cell)] == list(COLUMNS)


def widen(rows: pl.DataFrame) -> pl.DataFrame:
    """As tables were: a column a score, and no word of networks."""
    distance = pl.when(pl.col("seed") > 0).then(9.5)  # unknown in the first draw
    wide = rows.rename({"value": "dice"}).drop("metric", "network", "network_seconds", "weights")
    return wide.with_columns(hd95_mm=distance)


def test_a_table_of_earlier_studies_is_read_and_gone_on_with(tmp_path):
    rows, file = made_rows({"scratch": 0.0}), tmp_path / "rows.csv"
    widen(rows).write_csv(file)
    found = read_rows(file)
    assert found.filter(pl.col("metric") == "dice").equals(rows)
    distances = found.filter(pl.col("metric") == "hd95_mm")
    assert len(distances) == len(rows.filter(pl.col("seed") > 0))
    assert set(distances["value"]) == {9.5}
    open_rows(file)
    more = made_rows({"mim": 0.0})
    append_locked(file, more.write_csv())
    assert read_rows(file).equals(pl.concat([found, more]))
    before = file.read_bytes()
    open_rows(file)
    assert file.read_bytes() == before
    found.drop("weights").write_csv(file)
    open_rows(file)
    assert file.read_bytes() == found.write_csv().encode()


@pytest.mark.parametrize(
    ("study", "runs"), [("acdc", 42), ("acdc_all", 2), ("acdc_short", 9), ("acdc_weak", 6)]
)
def test_tracked_rows_are_those_of_their_studies(study, runs, monkeypatch):
    """The digests of settings still match, so nothing is computed again."""
    monkeypatch.chdir(ROOT)
    plan = read_plan(Path(f"configs/ssp_cine/study_{study}.yaml"))
    rows = own_rows(plan)
    assert missing_arms(plan, rows) == []
    assert rows.group_by("arm", "labeled", "seed").len().height == runs


def test_rows_that_stand_twice_are_refused(tmp_path):
    """As a merge of two machines' tables may leave them."""
    rows = made_rows({"scratch": 0.0})
    pl.concat([rows, rows.head(3).with_columns(value=pl.lit(0.5))]).write_csv(tmp_path / "rows.csv")
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
    rows.write_csv(plan.rows)
    with pytest.raises(InputError, match="has no hd95_mm of 'scratch', 3 labeled; name another score"):
        own_rows(replace(plan, score=SCORES["hd95_mm"]))


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


@pytest.mark.usefixtures("no_onnx")
def test_a_pretraining_can_be_drawn_with_the_labels(phantoms, tmp_path, capfd):
    """Then each draw has its own, with the draw's seed, and a change of it is a change of settings."""
    pretrainings = {"mim": {"method": "mim", "seed": "draw"}}
    settings = content(phantoms, tmp_path, labeled=[1], seeds=[0, 3], pretrainings=pretrainings, primary=None)
    file = write(tmp_path, settings)
    assert main(["study", file]) == 0
    assert capfd.readouterr().out.count("to do:") == 2 + 2 + 4  # a pretraining and a localizer a draw
    for seed in (0, 3):
        folder = tmp_path / "study" / "pretrained" / f"mim_seed{seed}"
        assert json.loads((folder / "run.json").read_text())["seed"] == seed
    drawn = read_plan(Path(file))
    once = read_plan(Path(write(tmp_path, settings | {"pretrainings": {"mim": {"method": "mim"}}})))
    assert drawn.digest(drawn.arms["mim"]) != once.digest(once.arms["mim"])
    page = (tmp_path / "study" / "tiny.html").read_text()
    assert "share one pretraining each" not in page


@pytest.mark.usefixtures("no_onnx")
def test_folds_judge_every_subject_once_in_each_repeat(phantoms, tmp_path):
    settings = content(
        phantoms, tmp_path, labeled=["all"], seeds=[0, 1, 2, 3], folds=2, pretrainings={}, primary=None,
        arms={"scratch": {}, "slow": {"optim": {"learning-rate": 1e-4}}},
    )  # fmt: skip
    file = write(tmp_path, settings)
    assert main(["study", file]) == 0
    rows, everybody = read_rows(tmp_path / "rows" / "rows.csv"), set(read_cohort(phantoms)["subject"])
    for repeat in (0, 1):
        halves = [set(rows.filter(pl.col("seed") == 2 * repeat + fold)["subject"]) for fold in (0, 1)]
        assert halves[0] | halves[1] == everybody
        assert not halves[0] & halves[1]
    for seed in range(4):
        run = tmp_path / "study" / "arms" / f"scratch_all_seed{seed}" / "run.json"
        trained = set(json.loads(run.read_text())["labeled_subjects"])
        assert trained == everybody - set(rows.filter(pl.col("seed") == seed)["subject"])
    cells = json.loads((tmp_path / "study" / "tiny.json").read_text())["cells"]
    assert [sorted(map(int, cell["draws"])) for cell in cells] == [[0, 1], [0, 1]]
    assert {cell["subjects"] for cell in cells} == {len(everybody)}
    page = (tmp_path / "study" / "tiny.html").read_text()
    assert "2-fold cross-validation" in page
    assert "With all labeled subjects" in page
    rows.filter(pl.col("seed") != 3).write_csv(tmp_path / "rows" / "rows.csv")  # half of a repeat is none
    assert main(["study", file, "--report-only"]) == 0
    cells = json.loads((tmp_path / "study" / "tiny.json").read_text())["cells"]
    assert [list(cell["draws"]) for cell in cells] == [["0"], ["0"]]


def test_folds_that_are_none(phantoms, tmp_path):
    for folds in (1, -2, "five"):
        with pytest.raises(InputError, match="folds"):
            read_plan(Path(write(tmp_path, content(phantoms, tmp_path, folds=folds))))
    with pytest.raises(InputError, match="no whole repeats of 2 folds"):
        read_plan(Path(write(tmp_path, content(phantoms, tmp_path, folds=2, seeds=[0, 1, 2]))))


def test_other_folds_and_other_groups_are_other_data(phantoms, tmp_path):
    def data(cohort, folds):
        settings = content(cohort, tmp_path, folds=folds, seeds=list(range(max(1, folds))))
        return read_plan(Path(write(tmp_path, settings))).data

    regrouped = tmp_path / "regrouped.csv"
    write_cohort(read_cohort(phantoms).with_columns(group=pl.lit("one")), regrouped)
    assert len({data(phantoms, 0), data(phantoms, 2), data(phantoms, 3), data(regrouped, 2)}) == 4
    assert data(regrouped, 0) == data(phantoms, 0)  # no mask depends on it
    rows = pl.DataFrame({"arm": "a", "labeled": 1, "seed": [0, 1], "subject": ["s", "s"]})
    with pytest.raises(InputError, match="judge s twice in one repeat of 2 folds"):
        by_repeat(rows, 2)


def test_a_pretraining_that_saw_the_judged_is_refused_before_it_runs(phantoms, tmp_path, capsys):
    """With folds everybody is judged, so a pool of all is known to hold them by content, by any name."""
    renamed = tmp_path / "renamed.csv"
    everyone = read_cohort(phantoms).with_columns(subject="x-" + pl.col("subject"), split=pl.lit("train"))
    write_cohort(everyone, renamed)
    pretrainings = {"mim": {"method": "mim", "cohort": str(renamed)}}
    settings = content(phantoms, tmp_path, folds=2, seeds=[0, 1], primary=None, pretrainings=pretrainings)
    assert main(["study", write(tmp_path, settings)]) == 2
    assert "learns from images of those who are judged, phantom000" in capsys.readouterr().err
    assert not (tmp_path / "study" / "pretrained").exists()
    one = read_plan(tmp_path / "tiny.yaml")
    before = one.digest(one.arms["mim"])
    write_cohort(everyone.head(4), renamed)
    assert read_plan(tmp_path / "tiny.yaml").digest(one.arms["mim"]) != before


def test_all_labels_are_no_budget_of_self_training(phantoms, tmp_path):
    arms = {"scratch": {}, "none": {"command": "selftrain", "teacher": ["synthetic"], "steps": 2}}
    settings = content(
        phantoms, tmp_path, labeled=["all"], arms=arms, primary={"arm": "none", "labeled": "all"}
    )
    with pytest.raises(InputError, match="give numbers"):
        read_plan(Path(write(tmp_path, settings)))
