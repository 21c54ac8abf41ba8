"""Several studies of one file: each has rows and a page, and one page shows all."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.errors import InputError
from fewbeats.study.judged import read_scores
from fewbeats.study.many import read_plans
from fewbeats.study.units import read_rows
from small_study import GRID

ROOT = Path(__file__).parents[1]
NETWORK = {"kind": "unet2d", "base-channels": 4, "levels": 4, "norm": "batch"}


def two_tasks(cohort: Path, folder: Path) -> Path:
    """A file of two studies: two groups told apart, and points found."""
    table = folder / "cohort.csv"
    first = pl.col("subject").is_in(["phantom000", "phantom003"])
    told = read_cohort(cohort).with_columns(heart=pl.when(first).then(pl.lit("a")).otherwise(pl.lit("b")))
    write_cohort(told, table)
    tasks = {
        "group": {"title": "Group", "kind": "study", "column": "heart", "classes": ["a", "b"], "slices": 4},
        "points": {"title": "Points", "kind": "landmarks", "points": ["lv_center"]},
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    content = {
        "cohort": str(table), "out": str(folder / "studies"), "rows": str(folder / "rows"), "split": "tune",
        "labeled": [1], "seeds": [0], "baseline": "scratch",
        "finetune": {"steps": 2, "batch-size": 2, "network": NETWORK, "preprocess": GRID, "init": "scratch"},
        "arms": {"scratch": {}, "slow": {"optim": {"learning-rate": 1e-4}}},
        "studies": {
            "group": {"title": "Which group", "score": "accuracy",
                      "finetune": {"task": str(folder / "group.yaml")}},
            "points": {"score": "error_mm", "finetune": {"task": str(folder / "points.yaml")}},
        },
    }  # fmt: skip
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_studies_of_tasks_run_and_show_up_on_one_page(phantoms, tmp_path, capfd):
    file = two_tasks(phantoms, tmp_path)
    assert main(["study", str(file)]) == 0
    assert capfd.readouterr().out.count("to do:") == 4  # no localizers
    classes, points = (read_rows(tmp_path / "rows" / f"{name}.csv") for name in ("group", "points"))
    assert set(classes["metric"]) == {"accuracy"}
    assert set(classes["structure"]) == {"study"}
    assert set(classes["value"]) <= {0.0, 1.0}
    assert set(points.select("metric", "structure").iter_rows()) == {("error_mm", "lv_center")}
    assert (points["value"] > 0).all()
    page = (tmp_path / "studies" / "two.html").read_text()
    assert "Which group" in page
    assert page.count("<svg") == 2
    cells = json.loads((tmp_path / "studies" / "points" / "points.json").read_text())["cells"]
    assert [cell["arm"] for cell in cells] == ["scratch", "slow"]
    assert main(["study", str(file)]) == 0
    assert "to do:" not in capfd.readouterr().out
    (tmp_path / "rows" / "group.csv").unlink()
    assert main(["study", str(file), "--report-only"]) == 0
    assert "group.csv: nothing to report yet; left out" in capfd.readouterr().out
    assert (tmp_path / "studies" / "two.html").read_text().count("<svg") == 1
    (tmp_path / "rows" / "points.csv").unlink()
    assert main(["study", str(file), "--report-only"]) == 2
    assert "run the study first" in capfd.readouterr().err


def test_each_study_says_what_differs(phantoms, tmp_path):
    one, other = read_plans(two_tasks(phantoms, tmp_path))
    assert (one.name, one.title, one.score.name) == ("group", "Which group", "accuracy")
    assert (other.name, other.score.name) == ("points", "error_mm")
    assert one.rows != other.rows
    assert one.arms["scratch"].trainer.model == other.arms["scratch"].trainer.model


def test_studies_that_are_none(phantoms, tmp_path):
    file = two_tasks(phantoms, tmp_path)
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"studies": {}}))
    with pytest.raises(InputError, match="name one or more"):
        read_plans(file)
    file.write_text(yaml.safe_dump(content | {"studies": {"a/b": {}}}))
    with pytest.raises(InputError, match="is no name for a folder"):
        read_plans(file)


def test_a_cohort_that_tells_no_class_cannot_judge(phantoms, tmp_path, capsys):
    file = two_tasks(phantoms, tmp_path)
    table = tmp_path / "cohort.csv"
    write_cohort(read_cohort(table).drop("heart"), table)
    assert main(["study", str(file)]) == 2
    assert "to judge by" in capsys.readouterr().err


def test_studies_share_a_pretraining_on_scans_of_their_own(phantoms, tmp_path, capfd):
    file, config = two_tasks(phantoms, tmp_path), tmp_path / "encoder.yaml"
    config.write_text(yaml.safe_dump({"network": NETWORK, "preprocess": GRID, "batch-size": 8}))
    other = read_cohort(phantoms).with_columns(subject="other-" + pl.col("subject"))
    write_cohort(other, tmp_path / "other.csv")
    joined = ["join", str(tmp_path / "cohort.csv"), str(tmp_path / "other.csv"), "--apart"]
    assert main([*joined, f"--out={tmp_path / 'pool.csv'}"]) == 0
    encoder = {"method": "mim", "cohort": str(tmp_path / "pool.csv"), "config": str(config), "steps": 2,
               "weights": ["cohort=3", "other=1"]}  # fmt: skip
    content = yaml.safe_load(file.read_text())
    content |= {"pretrainings": {"encoder": encoder}}
    content["arms"] = {"scratch": {}, "encoder": {"init": "encoder"}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    one, two = read_plans(file)
    assert one.pretrained == two.pretrained == tmp_path / "studies" / "pretrained"
    assert main(["study", str(file)]) == 0
    assert capfd.readouterr().out.count("encoder: mim saw") == 1
    told = json.loads((tmp_path / "studies" / "pretrained" / "encoder" / "run.json").read_text())
    assert told["pool_subjects"] is None
    assert told["weights"] == ["cohort=3", "other=1"]


def test_classes_that_are_called_by_numbers_are_texts(tmp_path):
    (tmp_path / "judged.csv").write_text("subject,study,level,class,truth\na,a,study,1,1\nb,b,study,1,x\n")
    rows, scores = read_scores(tmp_path)
    assert scores == ("accuracy",)
    assert rows["accuracy"].to_list() == [1.0, 0.0]
