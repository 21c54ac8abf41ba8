"""`cotrain`: each method from a cohort to a run that predicts, and what is refused."""

from __future__ import annotations

import json
import math

import nibabel as nib
import polars as pl
import pytest

from fewbeats.cli import main, read_command
from fewbeats.commands.cotrain import Cotrain
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.recipes.cotrainer import warn_collapsed
from fewbeats.training.rundir import RunDir

PLAIN = ("--init=scratch", "--network.base-channels=4", "--network.levels=4", "--preprocess.size=64",
         "--preprocess.spacing-mm=2.5", "--localizer-steps=2")  # fmt: skip
FLAT = ("--network.kind=unet2d", "--batch-size=4", "--steps=4", *PLAIN)
DEEP = ("--network.kind=unet3d", "--slab-slices=8", "--batch-size=2", "--steps=16", *PLAIN,
        "--flat.kind=unet2d", "--flat.base-channels=4", "--flat.levels=4", "--flat-init=scratch")  # fmt: skip

SHAPE = ("frames", "slices", "rows", "columns", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm")


pytestmark = pytest.mark.usefixtures("no_onnx")


def cotrain(cohort, out, method, *flags) -> int:
    return main(["cotrain", str(cohort), f"--method={method}", "--labeled=1", f"--out={out}", *flags])


@pytest.mark.parametrize(
    ("method", "flags"),
    [("mean-teacher", FLAT), ("bcp", FLAT), ("unimatch", FLAT), ("mn", DEEP),
     ("mean-teacher", ("--network.kind=unet3d", "--slab-slices=8", "--batch-size=2", "--steps=2", *PLAIN))],
    ids=["mean-teacher", "bcp", "unimatch", "mn", "3D"],
)  # fmt: skip
def test_a_run_predicts_and_tells_what_it_saw(method, flags, phantoms, tmp_path, capfd):
    run = tmp_path / "run"
    assert cotrain(phantoms, run, method, *flags) == 0
    told = capfd.readouterr().out
    assert "images of 3 subjects" in told
    assert "labels of 3 scans of the pool stay closed" in told
    about = json.loads((run / "run.json").read_text())
    assert (about["method"], about["structures"]) == (method, ["LV", "MYO", "RV"])
    assert about["unlabeled_subjects"] == ["phantom000", "phantom001", "phantom002"]
    seen = json.loads((run / "provenance.json").read_text())
    assert (len(seen["labeled"]), len(seen["unlabeled"])) == (1, 3)
    predict = ["predict", str(run), str(phantoms), "--split=tune"]
    for network in ("network", "flat", "mean") if method == "mn" else ("network",):
        assert main([*predict, f"--network={network}", f"--out={tmp_path / network}"]) == 0
    if method == "mn":
        assert main(["predict", str(run / "flat"), *predict[2:], f"--out={tmp_path / 'alone'}"]) == 0
        mask = "phantom003_4d.nii.gz"
        assert (tmp_path / "alone" / mask).read_bytes() == (tmp_path / "flat" / mask).read_bytes()
    else:
        assert main([*predict, "--network=mean", f"--out={tmp_path / 'mean'}"]) == 2
        assert "has no network 'mean'; it has network" in capfd.readouterr().err
    assert cotrain(phantoms, run, method, *flags) == 0
    assert "already trained" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("method", "flags", "complaint"),
    [
        ("mn", FLAT, "needs a 3D network"),
        ("mn", (*DEEP, "--flat.context=1"), "--flat.context"),
        ("bcp", (*FLAT, "--batch-size=1"), "needs a labeled and an unlabeled item"),
        ("bcp", (*FLAT, "--parts=3"), "--parts 3: give at most 2 with --batch-size 4"),
        ("mn", (*DEEP, "--parts=3"), "--parts 3: give at most 2 with --batch-size 2"),
        ("bcp", (*FLAT, "--freeze-encoder=0.1"), "--freeze-encoder: cotrain trains the encoder"),
        ("mn", (*DEEP, "--optim.learning-rate=0.01"), "--optim.learning-rate: mn has a schedule of its own"),
        ("mn", (*DEEP, "--ema-decay=0.9"), "--ema-decay: mn averages no weights"),
        ("mn", (*DEEP, "--flat-init=natural"), "--flat-init natural: no photograph weights for 'unet2d'"),
        ("mn", (*DEEP, "--mn.flat-learns=lora"), "--mn.flat-learns lora: a plain U-Net cannot"),
        ("mn", (*DEEP, "--foreground=2"), "--foreground 2.0: must be between 0 and 1"),
        (
            "unimatch",
            (
                "--network.kind=swinunetr",
                "--network.base-channels=12",
                "--slab-slices=32",
                "--preprocess.size=64",
                "--steps=2",
            ),
            "--unimatch.features: swinunetr has no features",
        ),
        ("unimatch", (*FLAT, "--unimatch.threshold=2"), "--unimatch.threshold 2.0: must be between 0 and 1"),
        ("mean-teacher", (*FLAT, "--pool-subjects=9"), "--pool-subjects 9: split train has 3"),
        ("mn", (*DEEP, "--flat-init=nowhere"), "no such weights file"),
    ],
)
def test_what_cannot_be_trained_is_one_line(method, flags, complaint, phantoms, tmp_path, capfd):
    assert cotrain(phantoms, tmp_path / "run", method, *flags) == 2
    told = capfd.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_held_out_copy_in_the_pool_is_refused(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms)
    image = cohort.filter(pl.col("subject") == "phantom004")["image"][0]
    moved = pl.when(pl.col("subject") == "phantom000").then(pl.lit(image)).otherwise("image")
    write_cohort(cohort.with_columns(image=moved).drop(SHAPE), tmp_path / "c.csv")
    assert cotrain(tmp_path / "c.csv", tmp_path / "run", "bcp", *FLAT) == 2
    assert "copy of a scan of the held-out phantom004" in capfd.readouterr().err


def test_mn_needs_no_more_than_its_name(tmp_path):
    def read(*words: str) -> Cotrain:
        return read_command("cotrain", ["c.csv", *words, "--steps=9", f"--out={tmp_path}"])

    usual = read("--method", "mn")
    assert (usual.model.network.kind, usual.init, usual.model.batch_size) == ("unet3d", "scratch", 5)
    assert usual.model.foreground == 0.5
    usual.check_budget()
    given = read("--method=mn", "--batch-size=3", "--init=run")
    assert (given.model.batch_size, given.init) == (3, "run")
    other = read("--method=mn", "--method=bcp")
    assert (other.model.network.kind, other.init, other.model.batch_size) == ("lite0", "natural", 16)


@pytest.mark.parametrize("method", ["mean-teacher", "bcp", "unimatch", "mn"])
def test_an_update_can_be_computed_in_parts(method, phantoms, tmp_path):
    """Also where a part has no pseudo-label, or no label of its own."""
    flags = (*DEEP, "--mn.warmup=0.5") if method == "mn" else (*FLAT, "--bcp.pretraining=0.5")
    assert cotrain(phantoms, tmp_path / "run", method, *flags, "--parts=2") == 0
    rows = RunDir(tmp_path / "run").read_metrics()
    assert math.isfinite(rows[-1]["loss"])
    assert any(name.startswith("pseudo_largest") for name in rows[-1])


def test_the_pool_is_of_the_labels_views_and_of_stacks_for_a_3d_network(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms)
    beside = cohort.filter(pl.col("subject") == "phantom000")
    image = nib.load(beside["image"][0])
    nib.save(image.slicer[:, :, :1, :1], tmp_path / "slice.nii.gz")
    nib.save(image, tmp_path / "long.nii.gz")
    blank = [pl.lit(None, dtype=pl.String).alias(name) for name in ("label", "label_source", "convention")]
    blank += [pl.lit(None, dtype=pl.Int64).alias(name) for name in ("ed_frame", "es_frame")]
    single = {name: pl.lit(1).cast(beside[name].dtype) for name in ("slices", "frames")}
    one = beside.with_columns(
        *blank, image=pl.lit(str(tmp_path / "slice.nii.gz")), scan=pl.lit("one"), **single
    )
    long = beside.with_columns(
        *blank, image=pl.lit(str(tmp_path / "long.nii.gz")), scan=pl.lit("long"), view=pl.lit("4CH")
    )
    write_cohort(pl.concat([cohort, one, long]), tmp_path / "c.csv")
    assert cotrain(tmp_path / "c.csv", tmp_path / "run", "mn", *DEEP, "--steps=8") == 0
    told = capfd.readouterr().out
    assert "1 scans of the pool show other views than the labels (4CH) and are left out" in told
    assert "1 scans of the pool are single slices and left out: the network is 3D" in told


def test_a_3d_network_needs_stacks(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms)
    for row in cohort.iter_rows(named=True):
        for name in ("image", "label"):
            nib.save(nib.load(row[name]).slicer[:, :, 4:5], tmp_path / f"{row['subject']}_{name}.nii.gz")
    here = {
        n: pl.concat_str(pl.lit(f"{tmp_path}/"), "subject", pl.lit(f"_{n}.nii.gz"))
        for n in ("image", "label")
    }
    write_cohort(cohort.with_columns(**here).drop(SHAPE), tmp_path / "c.csv")
    assert cotrain(tmp_path / "c.csv", tmp_path / "run", "mn", *DEEP) == 2
    assert "the labeled images are single slices; take a 2D network" in capfd.readouterr().err


def test_labels_that_are_silent_are_refused_where_the_loss_cannot_skip_them(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms)
    partly = (
        pl.when(pl.col("subject") == "phantom000").then(pl.lit("fewbeats:LV+MYO")).otherwise("convention")
    )
    write_cohort(cohort.with_columns(convention=partly), tmp_path / "c.csv")
    flags = ("--labeled=3", *FLAT)
    assert (
        main(["cotrain", str(tmp_path / "c.csv"), "--method=bcp", f"--out={tmp_path / 'run'}", *flags]) == 2
    )
    assert "silent about RV" in capfd.readouterr().err


def test_only_the_chosen_method_decides(tmp_path):
    one = Cotrain(cohort=tmp_path, out=tmp_path, method="bcp", steps=1)
    assert not {"mn", "unimatch", "flat", "flat_init", "parts", "init"} & one.describe().keys()
    assert {"bcp", "model", "pool_subjects"} <= one.describe().keys()


@pytest.mark.parametrize(
    ("largest", "foreground", "told"),
    [(1.0, 0.0, "pseudo-labels are background alone"), (1.0, 1.0, "one structure alone"), (0.99, 0.01, "")],
)
def test_pseudo_labels_of_one_class_are_told(largest, foreground, told, tmp_path, capfd):
    run = RunDir(tmp_path)
    for step in range(1, 21):
        row = {"pseudo_largest": largest, "pseudo_foreground": foreground} if step > 10 else {}
        run.append_metrics({"step": step, **row})
    warn_collapsed(run, longer="--bcp.pretraining")
    said = capfd.readouterr().out
    assert told in said
    assert bool(said) == bool(told)


def test_of_two_networks_the_one_that_collapsed_is_named(tmp_path, capfd):
    """They take turns: a mean over both would hide it."""
    run = RunDir(tmp_path)
    for step in range(40):
        name, largest = ("_flat", 0.93) if step % 2 else ("_deep", 1.0)
        run.append_metrics({f"pseudo_largest{name}": largest, f"pseudo_foreground{name}": 1 - largest})
    warn_collapsed(run, longer="--mn.warmup")
    told = capfd.readouterr().out
    assert "pseudo-labels of the 3D network are background alone; train longer on labels first" in told
    assert "(--mn.warmup)" in told
    assert "2D" not in told


def test_a_transductive_pool_is_told_wherever_figures_stand(phantoms, tmp_path):
    run, masks = tmp_path / "run", tmp_path / "masks"
    assert cotrain(phantoms, run, "mean-teacher", *FLAT, "--transductive") == 0
    assert json.loads((run / "run.json").read_text())["transductive"]
    assert len(json.loads((run / "provenance.json").read_text())["unlabeled"]) == 6
    assert main(["predict", str(run), str(phantoms), "--split=dev", f"--out={masks}"]) == 0
    page = tmp_path / "page"
    assert main(["evaluate", str(masks), str(phantoms), f"--out={page}"]) == 0
    assert json.loads((page / "summary.json").read_text())["subjects_seen_unlabeled"] == 2
    assert "learned from the images of 2 judged subjects" in (page / "report.html").read_text()


def test_held_out_labels_are_refused_in_a_transductive_run(phantoms, tmp_path, capfd):
    (tmp_path / "who.txt").write_text("phantom004\n")
    flags = ["--method=bcp", f"--labeled-subjects={tmp_path / 'who.txt'}", f"--out={tmp_path / 'run'}", *FLAT]
    assert main(["cotrain", str(phantoms), *flags, "--transductive"]) == 2
    assert "phantom004" in capfd.readouterr().err


def test_workers_change_nothing(phantoms, tmp_path):
    for workers in (0, 1):
        place = (f"--workers={workers}", f"--cache={tmp_path / 'cache'}", "--localizer-steps=0")
        assert cotrain(phantoms, tmp_path / str(workers), "mn", *DEEP, "--steps=8", *place) == 0
    one, two = ((tmp_path / name / "network.safetensors").read_bytes() for name in ("0", "1"))
    assert one == two
