"""Several studies of one file: each has rows and a page, and one page shows all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.errors import InputError
from fewbeats.study.judged import read_scores
from fewbeats.study.many import read_plans, write_overview
from fewbeats.study.reading import read_plan
from fewbeats.study.report import write_report
from fewbeats.study.units import read_rows
from small_study import GRID, content, made_rows, write

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
    assert "labeled subjects of each class" in page
    assert "With 1 labeled subject of each class" in page
    assert "With 1 labeled subject " in page  # of points
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


def test_the_page_says_which_pretrainings_ran_anew_for_each_draw(tmp_path):
    arms = {"scratch": {}, "mim": {"init": "mim"}, "wide": {"network": WIDE}, "wide-mim": FOUR["wide-mim"]}
    cases = {
        "Each pretraining ran once": frozenset(),
        "Each pretraining ran anew for each draw": frozenset({"mim", "wide-mim"}),
        "wide-mim ran once": frozenset({"mim"}),
        "mim ran anew for each draw": frozenset({"mim"}),
    }
    for number, (words, anew) in enumerate(cases.items()):
        plan = replace(plan_of(tmp_path / f"{number}", arms), drawn=anew)
        _, page, _ = reported(plan, {"scratch": 0.0, "mim": 0.02, "wide": 0.0, "wide-mim": 0.02})
        assert words in page.read_text()
        assert ("ran once" in page.read_text()) == (len(anew) < 2)


def test_studies_stand_under_their_sections_and_transductive_arms_are_marked(tmp_path):
    random, taught = {"scratch": {}}, {"mim": {"init": "mim", "transductive": True}}
    plans = [plan_of(tmp_path / "a", random | taught, section="Checks"),
             plan_of(tmp_path / "b", random | {"mim": {"init": "mim"}}, section="Real")]  # fmt: skip
    results = [reported(plan, {"scratch": 0.0, "mim": 0.05}) for plan in plans]
    page = write_overview(tmp_path / "all.html", results).read_text()
    checks, real = page.split("<h2>")[1:3]
    assert checks.startswith("Checks")
    assert real.startswith("Real")
    assert "transductive</span>" in checks
    assert "ransductive" not in real


# Pretrained arms and random starts of their networks

SMALL, WIDE = {"kind": "unet2d", "base-channels": 4, "levels": 4}, {"kind": "unet2d", "base-channels": 8}


def plan_of(folder: Path, arms: dict, **changes):
    made = {"mim": {"method": "mim", "network": SMALL}, "wide-mim": {"method": "mim", "network": WIDE}}
    used = {name: made[name] for name in made if name in {arm.get("init") for arm in arms.values()}}
    settings = content("cohort.csv", folder, arms=arms, pretrainings=used, may_differ=["network"],
                       labeled=[3], seeds=[0, 1, 2], primary=None)  # fmt: skip
    folder.mkdir(exist_ok=True)
    return read_plan(Path(write(folder, settings | changes)))


def reported(plan, effects: dict[str, float], **about):
    digests = {name: plan.digest(arm) for name, arm in plan.arms.items()}
    plan.rows.parent.mkdir()
    rows = made_rows(effects, **about)
    rows.with_columns(settings=pl.col("arm").replace_strict(digests)).write_csv(plan.rows)
    return plan, *write_report(plan)


FOUR = {"scratch": {}, "small": {"init": "mim"}, "wide": {"network": WIDE},
        "wide-mim": {"init": "wide-mim", "network": WIDE}}  # fmt: skip
EFFECTS = {"scratch": 0.0, "small": 0.02, "wide": 0.05, "wide-mim": 0.09}


def test_a_pretrained_arm_meets_the_random_start_of_its_own_network(tmp_path):
    plan = plan_of(tmp_path, FOUR)
    assert plan.random_starts == {"small": "scratch", "wide-mim": "wide"}
    _, page, found = reported(plan, EFFECTS)
    assert [(gain.arm, gain.baseline) for gain in found.gains] == list(plan.random_starts.items())
    small, wide = found.gains
    assert small == next(c for c in found.contrasts if c.arm == "small")  # one contrast, one p
    assert wide.p_value == wide.difference.p_value  # alone in its table
    assert (small.difference.mean, wide.difference.mean) == pytest.approx((0.02, 0.04), abs=0.004)
    assert page.read_text().count("a random start of the same network</h3>") == 1
    assert "Against wide, a random start of the same network" in page.read_text()


def test_starts_that_are_none_or_doubtful(tmp_path):
    mim, fast = {"init": "mim"}, {"optim": {"learning-rate": 0.5}}
    assert plan_of(tmp_path / "a", {"scratch": {}, "mim": mim}).random_starts == {"mim": "scratch"}
    two = plan_of(tmp_path / "b", {"scratch": {}, "fast": fast, "mim": mim})
    assert two.random_starts == {"mim": "scratch"}  # the baseline, though `fast` comes later
    two = plan_of(tmp_path / "c", {"scratch": {}, "fast": fast, "mim": mim}, baseline="mim")
    assert two.random_starts == {}  # nobody says which of two
    assert plan_of(tmp_path / "d", {"scratch": {"steps": 9}, "mim": mim}).random_starts == {}
    taught = {"scratch": {}, "mim": mim, "mt": {"command": "cotrain", "method": "mean-teacher"}}
    cotrain = {"init": "scratch", "steps": 2, "localizer-steps": 1, "batch-size": 8, "network": SMALL,
               "preprocess": GRID}  # fmt: skip
    assert plan_of(tmp_path / "e", taught, cotrain=cotrain).random_starts == {"mim": "scratch"}


def test_an_arm_has_one_color_in_all_panels(tmp_path):
    full = reported(plan_of(tmp_path / "a", FOUR), EFFECTS)
    half = reported(plan_of(tmp_path / "b", FOUR), {"scratch": 0.0, "wide-mim": 0.09})
    third = replace(full[0], title="Third")
    page = write_overview(tmp_path / "all.html", [full, half], left_out=[third]).read_text()
    legend, *panels = page.split("<figure>")
    assert legend.count('<span class="key arm3"></span>wide-mim') == 1
    assert len(panels) == 2
    assert all("dot arm3" in panel for panel in panels)
    assert "dot arm1" in panels[0]
    assert "dot arm1" not in panels[1]  # `small`, which was not tried there
    assert "Third not computed yet" in page
    assert f'href="{half[1].relative_to(tmp_path)}"' in page  # so that the folder can travel
    assert "Pretrained against a random start of the same network" in page
