"""Tasks of classes and points, from a YAML file to a judged folder, on exams of phantoms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from fewbeats.cli import main
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.models.weights import read_weights
from fewbeats.recipes.jobs import CohortJobs, jobs_of_cohort
from fewbeats.training.rundir import RunDir

TASKS = Path(__file__).parents[1] / "configs" / "tasks"
TINY = (
    "--init=scratch", "--network.kind=unet2d", "--network.base-channels=8", "--network.levels=4",
    "--network.norm=batch", "--preprocess.size=48", "--preprocess.spacing-mm=4", "--optim.learning-rate=0.01",
    "--ema-decay=0.9", "--localizer-steps=0", "--spatial.turned=0", "--spatial.elastic-probability=0",
)  # fmt: skip
SPLITS = ("train", "train", "train", "train", "dev", "dev")


@pytest.fixture(scope="module")
def exams(tmp_path_factory) -> Path:
    """Six exams of 64 x 64 pixels, of which every second heart has a scar."""
    folder = tmp_path_factory.mktemp("exams")
    made = ("--subjects=6", "--frames=2", "--matrix=64", "--pixel-mm", "3.4", "3.6")
    assert main(["phantom", str(folder / "source"), "--exam", *made]) == 0
    rows = [f"phantom{number:03d},{split}" for number, split in enumerate(SPLITS)]
    (folder / "split.csv").write_text("\n".join(["subject,split", *rows]))
    out = folder / "cohort.csv"
    index = ["--layout=phantom", f"--split={folder / 'split.csv'}", f"--out={out}"]
    assert main(["index", str(folder / "source"), *index]) == 0
    scars = pl.read_csv(folder / "source" / "subjects.csv").select("subject", "scar")
    write_cohort(read_cohort(out).join(scars, on="subject", how="left", maintain_order="left"), out)
    return out


def fit(cohort: Path, task: Path, out: Path, *flags: str, steps: int = 4) -> Path:
    asked = ["finetune", str(cohort), f"--task={task}", f"--out={out}", f"--steps={steps}", *TINY, *flags]
    assert main(asked) == 0
    return out


def answer(run: Path, cohort: Path, *flags: str) -> Path:
    out = run.with_name(f"{run.name}_dev")
    assert main(["predict", str(run), str(cohort), "--split=dev", f"--out={out}", *flags]) == 0
    assert main(["evaluate", str(out), str(cohort), f"--out={out / 'report'}"]) == 0
    return out


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "report" / "summary.json").read_text())


def test_an_exam_holds_views_and_sequences_of_one_heart(exams):
    cohort = read_cohort(exams)
    kinds = set(cohort.select("sequence", "view").iter_rows())
    assert kinds == {("cine", v) for v in ("SAX", "2CH", "3CH", "4CH")} | {
        (s, "SAX") for s in ("lge", "t1map", "t2map")
    }
    assert cohort.filter(pl.col("view") != "SAX")["slices"].unique().to_list() == [1]
    assert cohort.filter(pl.col("sequence") != "cine")["frames"].unique().to_list() == [1]


def test_views_are_told_apart_after_a_short_training(exams, tmp_path):
    few = ("--spatial.rotation-degrees=10", "--batch-size=16")
    run = fit(exams, TASKS / "view.yaml", tmp_path / "view", *few, steps=100)
    config = RunDir(run).read_config()
    assert (config.task, config.record["classes"]) == ("classification", ["SAX", "2CH", "3CH", "4CH"])
    found = answer(run, exams)
    rows = read(found / "classes.csv")
    assert {row["level"] for row in rows} == {"scan", "slice"}
    assert len({row["scan"] for row in rows}) == 2 * 4  # cines alone
    shares = np.array([[float(row[f"p_{name}"]) for name in config.record["classes"]] for row in rows])
    assert np.allclose(shares.sum(1), 1, atol=1e-4)
    told = summary_of(found)["scan"]
    assert told["items"] == 8
    assert told["balanced_accuracy"]["value"] >= 0.5, told["confusion"]  # by chance 0.25
    page = (found / "report" / "report.html").read_text()
    assert "View of a cine" in page
    assert "Worst cases first" in page


def test_points_are_found_in_mm(exams, tmp_path):
    run = fit(exams, TASKS / "landmarks.yaml", tmp_path / "points", "--batch-size=8", steps=110)
    found = answer(run, exams)
    figures = summary_of(found)["points"]
    assert set(figures) == {"rv_insertions", "lv_center", "mean"}
    assert figures["lv_center"]["median_mm"] < 20, figures  # of a field of view of 192 mm
    rows = read(found / "points.csv")
    one = [row for row in rows if row["slice"] == "3" and row["frame"] == "0"]
    counts = {name: sum(row["point"] == name for row in one) for name in ("rv_insertions", "lv_center")}
    assert counts["rv_insertions"] == 2 * counts["lv_center"] > 0


def test_points_of_a_table_are_learned_from_and_judged_by(exams, tmp_path):
    """What was predicted, mended by hand, comes back as labels; here of a point that no mask tells."""
    cohort = read_cohort(exams).filter(pl.col("sequence") == "t1map")
    tables = []
    for row in cohort.iter_rows(named=True):
        from fewbeats.io.nifti import read_nifti

        at = read_nifti(row["image"]).affine @ [20.0, 30.0, 2.0, 1.0]
        file = tmp_path / f"{row['scan']}.csv"
        file.write_text("point,x_mm,y_mm,z_mm\napex," + ",".join(f"{v:.3f}" for v in at[:3]))
        tables.append(str(file))
    table = tmp_path / "cohort.csv"
    write_cohort(cohort.with_columns(points=pl.Series(tables)), table)
    task = tmp_path / "apex.yaml"
    task.write_text(yaml.safe_dump({"title": "Apex", "kind": "landmarks", "points": ["apex"]}))
    found = answer(fit(table, task, tmp_path / "apex"), table)
    assert summary_of(found)["points"]["apex"]["points"] == 2


def test_scars_of_studies_and_slices(exams, tmp_path):
    task = tmp_path / "scar.yaml"
    content = yaml.safe_load((TASKS / "lge_detection.yaml").read_text())
    task.write_text(yaml.safe_dump(content | {"column": "scar", "classes": ["no", "yes"]}))
    run = fit(exams, task, tmp_path / "scar", "--batch-size=4")
    found = answer(run, exams)
    rows = read(found / "classes.csv")
    studies = [row for row in rows if row["level"] == "study"]
    slices = [row for row in rows if row["level"] == "slice"]
    assert [row["subject"] for row in studies] == ["phantom004", "phantom005"]
    for study in studies:
        own = [float(row["attention"]) for row in slices if row["subject"] == study["subject"]]
        assert sum(own) == pytest.approx(1, abs=1e-4)
    told = summary_of(found)
    assert told["study"]["items"] == 2
    assert told["slice"]["classes"] == ["absent", "present"]
    within = told["slice_within_studies_with_any"]
    assert within["subjects"] == 1
    assert 0 < within["items"] < told["slice"]["items"]
    page = (found / "report" / "report.html").read_text()
    assert "how likely it was held to be" in page
    assert page.count('<rect class="share') == len(slices)  # a bar each


def test_scans_of_what_slices_show_are_judged(exams, tmp_path):
    task = tmp_path / "scar.yaml"
    task.write_text(yaml.safe_dump({"title": "Scar", "kind": "classification", "present": ["INFARCT"],
                                    "where": {"sequence": ["lge"]}}))  # fmt: skip
    told = summary_of(answer(fit(exams, task, tmp_path / "scar", "--batch-size=4"), exams))
    assert told["scan"]["items"] == 2
    assert sorted(map(sum, told["scan"]["confusion"])) == [1, 1]  # one of the two has a scar


def test_studies_without_a_scan_of_the_task_are_counted(exams, capsys):
    jobs = jobs_of_cohort(exams, "dev")
    assert len(jobs.about({"sequence": ["cine"]})) > 2
    assert "left out" not in capsys.readouterr().out
    rows = jobs.rows.filter((pl.col("subject") == "phantom004") | (pl.col("sequence") != "cine"))
    CohortJobs(rows).about({"sequence": ["cine"]})
    assert "1 of 2 studies have no scan that the task is about and are left out" in capsys.readouterr().out


def test_a_task_of_masks_takes_the_scans_it_is_about(exams, tmp_path):
    run = fit(exams, TASKS / "cine_lax.yaml", tmp_path / "lax", steps=2)
    config = RunDir(run).read_config()
    assert (config.task, config.structures) == ("segmentation", ("LV", "MYO", "LA"))
    assert config.labeled_subjects == tuple(f"phantom{n:03d}" for n in range(4))
    out = tmp_path / "masks"
    assert main(["predict", str(run), str(exams), "--split=dev", "--out", str(out)]) == 0
    cohort, told = read_cohort(exams), pl.read_csv(out / "predictions.csv")
    about = cohort.filter(split="dev", sequence="cine").filter(pl.col("view").is_in(["2CH", "3CH", "4CH"]))
    assert set(told["scan"]) == set(about["scan"])


def test_a_tenth_task_is_one_file(exams, tmp_path):
    """As docs/tasks.md shows it: a column of the cohort, and its classes."""
    task = tmp_path / "size.yaml"
    cohort = read_cohort(exams).with_columns(
        size=pl.when(pl.col("subject") < "phantom002").then(pl.lit("small")).otherwise(pl.lit("large"))
    )
    write_cohort(cohort, tmp_path / "cohort.csv")
    told = {"title": "Size", "kind": "classification", "column": "size", "classes": ["small", "large"],
            "where": {"sequence": ["lge"]}, "settings": {"batch-size": 4}}  # fmt: skip
    task.write_text(yaml.safe_dump(told))
    run = fit(tmp_path / "cohort.csv", task, tmp_path / "run", "--labeled=1")
    assert RunDir(run).read_config().labeled_subjects == tuple(
        sorted(RunDir(run).read_config().labeled_subjects)
    )
    assert len(RunDir(run).read_config().labeled_subjects) == 2  # one of each class
    assert RunDir(run).read_config().settings["batch_size"] == 4
    assert summary_of(answer(run, tmp_path / "cohort.csv"))["scan"]["items"] == 2


def test_classes_that_a_network_does_not_know_are_told(exams, tmp_path, capsys):
    run = fit(exams, TASKS / "view.yaml", tmp_path / "view", "--batch-size=8")
    renamed = read_cohort(exams).with_columns(
        view=pl.when(pl.col("view") == "3CH").then(pl.lit("AX")).otherwise("view")
    )
    write_cohort(renamed, tmp_path / "cohort.csv")
    found = answer(run, tmp_path / "cohort.csv")
    assert summary_of(found)["unknown_classes"] == {"AX": 2 * (1 + 2)}  # scans, and their frames
    assert "does not know the class: AX" in (found / "report" / "report.html").read_text()


REFUSED = {
    "no such column": ({"column": "color"}, "has no column 'color'"),
    "no labels": ({"classes": ["AX", "COR"]}, "split train has none"),
    "one class": ({"classes": ["SAX", "AX"]}, "split train has only SAX"),
    "unseen class": (
        {"classes": ["SAX", "2CH", "AX", "COR"]},
        "has no AX, COR of SAX, 2CH, AX, COR, by column",
    ),
    "no such scan": ({"where": {"sequence": ["perfusion"]}}, "no scan has sequence perfusion"),
    "too few": ({}, "split train has 4 subjects of view"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cohorts_that_a_task_cannot_be_learned_from(exams, tmp_path, capsys, name):
    changes, complaint = REFUSED[name]
    content = yaml.safe_load((TASKS / "view.yaml").read_text()) | changes
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    asked = ["finetune", str(exams), f"--task={tmp_path / 'task.yaml'}", f"--out={tmp_path / 'run'}", *TINY]
    assert main([*asked, "--labeled=9" if name == "too few" else "--steps=2", "--steps=2"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_volume_network_learns_no_classes(exams, tmp_path, capsys):
    asked = ["finetune", str(exams), f"--task={TASKS / 'view.yaml'}", f"--out={tmp_path}", "--steps=2"]
    assert main([*asked, "--network.kind=unet3d", "--init=scratch", "--structures", "LV"]) == 2
    assert "--structures: is of masks" in capsys.readouterr().err


def test_steps_of_a_localizer_mean_nothing_to_a_task_of_classes(exams, tmp_path, capsys):
    asked = ["finetune", str(exams), f"--task={TASKS / 'view.yaml'}", f"--out={tmp_path / 'run'}", *TINY]
    assert main([*asked, "--steps=2", "--localizer-steps=20"]) == 2
    assert "--localizer-steps: is of masks" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["view", "cine_sax"])
def test_a_linear_probe_leaves_the_encoder_as_it_was(exams, tmp_path, task):
    """Of classes and of masks the head alone learns; statistics of BatchNorm are taken anew."""
    once = fit(exams, TASKS / f"{task}.yaml", tmp_path / "once", "--batch-size=4", "--ema-decay=0")
    probe = fit(exams, TASKS / f"{task}.yaml", tmp_path / "probe", "--batch-size=4", "--ema-decay=0",
                f"--init={once}", "--freeze-encoder=1", "--seed=3")  # fmt: skip
    before, after = (read_weights(RunDir(run).weights()) for run in (once, probe))
    moved = [n for n, value in before.items() if not is_same(value, after[n]) and "running_" not in n]
    assert moved
    assert not [name for name in moved if name.startswith("encoder.") and "num_batches" not in name]


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def test_masks_that_are_silent_about_a_points_structures_tell_none_of_it(exams, tmp_path):
    """As late enhancement without a right ventricle: its slices would be taught to have no point."""
    from fewbeats.data.points import tells_points

    row = read_cohort(exams).row(0, named=True)
    assert tells_points(row, ["rv_insertions"])
    assert not tells_points({**row, "convention": "emidec"}, ["rv_insertions"])
    assert tells_points({**row, "convention": "emidec"}, ["lv_center"])
    assert not tells_points({**row, "label_source": "teacher"}, ["lv_center"])
    assert not tells_points(row, ["apex"])
    assert tells_points({**row, "points": "somewhere.csv"}, ["apex"])


MASKLESS = {
    "study": ({"kind": "study", "column": "scar", "classes": ["no", "yes"], "present": ["INFARCT"],
               "where": {"sequence": ["t1map"]}}, "all labeled slices are 'absent'"),
    "own": ({"kind": "landmarks", "points": ["apex"]}, "no scan of split train tells apex"),
    "batch": ({"kind": "classification", "column": "view", "classes": ["SAX", "4CH"]}, "needs at least 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKLESS)
def test_tasks_that_would_learn_from_nothing(exams, tmp_path, capsys, name):
    content, complaint = MASKLESS[name]
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"title": name, **content}))
    asked = ["finetune", str(exams), f"--task={tmp_path / 'task.yaml'}", f"--out={tmp_path / 'run'}", *TINY]
    assert main([*asked, "--steps=2", "--batch-size=1" if name == "batch" else "--batch-size=2"]) == 2
    assert complaint in capsys.readouterr().err


def test_named_subjects_need_no_masks_where_a_column_is_learned(exams, tmp_path, capsys):
    bare = read_cohort(exams).with_columns(
        [pl.lit(None, pl.String).alias(n) for n in ("label", "label_source", "convention", "label_frames")]
    )
    write_cohort(bare, tmp_path / "cohort.csv")
    (tmp_path / "names.txt").write_text("phantom000\nphantom002\n")
    both = (f"--labeled-subjects={tmp_path / 'names.txt'}", "--labeled=1", "--steps=1", *TINY)
    words = [
        "finetune",
        str(tmp_path / "cohort.csv"),
        f"--task={TASKS / 'view.yaml'}",
        f"--out={tmp_path / 'no'}",
    ]
    assert main([*words, *both]) == 2
    assert "give either --labeled or --labeled-subjects" in capsys.readouterr().err
    run = fit(tmp_path / "cohort.csv", TASKS / "view.yaml", tmp_path / "run", "--batch-size=4",
              f"--labeled-subjects={tmp_path / 'names.txt'}")  # fmt: skip
    assert RunDir(run).read_config().labeled_subjects == ("phantom000", "phantom002")


def test_what_is_of_masks_alone_is_refused_of_a_task(exams, tmp_path, capsys):
    run = fit(exams, TASKS / "view.yaml", tmp_path / "view", "--batch-size=4", steps=1)
    for flag in ("--smooth=1", "--network=mean", "--runtime=torch"):
        assert main(["predict", str(run), str(exams), f"--out={tmp_path / 'out'}", flag]) == 2
        assert "is of masks" in capsys.readouterr().err
    (run / "network.safetensors").unlink()
    assert main(["predict", str(run), str(exams), f"--out={tmp_path / 'out'}"]) == 2
    assert "missing or damaged" in capsys.readouterr().err


def test_a_start_that_saw_held_out_images_is_refused_or_told(exams, tmp_path, capfd):
    """A pretraining that knows no split has seen the images of those who are held out."""
    everyone, called = tmp_path / "everyone.csv", "x-" + pl.col("subject")
    write_cohort(read_cohort(exams).with_columns(subject=called, split=pl.lit("train")), everyone)
    network = [flag for flag in TINY if flag.startswith(("--network", "--preprocess"))]
    asked = ["pretrain", "mim", str(everyone), "--steps=2", "--batch-size=4", "--mim.patch-px=8", *network]
    assert main([*asked, f"--out={tmp_path / 'encoder'}"]) == 0
    flags = (*TINY[1:], f"--init={tmp_path / 'encoder'}", "--steps=2")
    asked = ["finetune", str(exams), f"--task={TASKS / 'view.yaml'}", f"--out={tmp_path / 'view'}", *flags]
    assert main(asked) == 2
    assert "has seen held-out subjects" in capfd.readouterr().err
    assert main([*asked, "--transductive"]) == 0
    told = answer(tmp_path / "view", exams)
    assert summary_of(told)["subjects_seen_unlabeled"] == 2
    assert "Transductive" in (told / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def scar_run(exams, tmp_path_factory) -> Path:
    """A run of studies that learned from the training subjects."""
    folder = tmp_path_factory.mktemp("scar_run")
    content = {"title": "Scar", "kind": "study", "column": "scar", "classes": ["no", "yes"],
               "where": {"sequence": ["lge"]}}  # fmt: skip
    (folder / "scar.yaml").write_text(yaml.safe_dump(content))
    return fit(exams, folder / "scar.yaml", folder / "run", "--batch-size=2", steps=1)


def test_studies_that_were_learned_from_are_not_judged_whatever_scans_are_called(
    scar_run, exams, tmp_path, capsys
):
    told = tmp_path / "told"
    assert main(["predict", str(scar_run), str(exams), "--split=train", f"--out={told}"]) == 0
    renamed, out = tmp_path / "renamed.csv", f"--out={tmp_path / 'report'}"
    write_cohort(read_cohort(exams).with_columns(scan=pl.col("scan") + "_v2"), renamed)
    for cohort in (exams, renamed):
        assert main(["evaluate", str(told), str(cohort), out]) == 2
        assert "has seen held-out subjects: phantom000" in capsys.readouterr().err
    others = read_cohort(exams).with_columns(subject="x-" + pl.col("subject"))
    write_cohort(others, renamed)
    assert main(["evaluate", str(told), str(renamed), out]) == 2
    assert "none of its subjects is in the cohort (phantom000" in capsys.readouterr().err


def test_a_class_that_is_misspelled_is_told(scar_run, exams, tmp_path, capsys):
    wrong = pl.when(pl.col("subject").is_in(["phantom001", "phantom005"])).then(pl.lit("Yes"))
    write_cohort(read_cohort(exams).with_columns(scar=wrong.otherwise(pl.col("scar"))), tmp_path / "c.csv")
    task = scar_run.with_name("scar.yaml")
    fit(tmp_path / "c.csv", task, tmp_path / "run", "--batch-size=2", steps=1)
    assert "scans of split train are of no class of the task: Yes" in capsys.readouterr().out
    answer(scar_run, tmp_path / "c.csv")
    assert "the network does not know the class: Yes (1)" in capsys.readouterr().out


def test_predict_does_not_write_over_what_it_did_not_write(scar_run, exams, tmp_path, capsys):
    asked = ["predict", str(scar_run), str(exams), "--split=dev", f"--out={tmp_path / 'told'}"]
    table = tmp_path / "told" / "classes.csv"
    assert main(asked) == 0
    whole = table.read_bytes()
    assert main(asked) == 0
    assert table.read_bytes() == whole
    table.write_text("\n".join(table.read_text().splitlines()[:2]))
    mended = table.read_bytes()
    assert main(asked) == 2
    assert "was changed by hand and would be overwritten" in capsys.readouterr().err
    assert table.read_bytes() == mended
    table.unlink()
    assert main(asked) == 0
    assert table.read_bytes() == whole
    for name in ("classes.csv", "run.json"):
        own = tmp_path / name.replace(".", "_")
        own.mkdir()
        (own / name).write_text("mine")
        assert main([*asked[:-1], f"--out={own}"]) == 2
        assert "would be overwritten; choose another --out" in capsys.readouterr().err
        assert (own / name).read_text() == "mine"
