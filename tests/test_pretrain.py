"""The command that pretrains."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.commands.pretrain import Pretrain
from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.data.split import labeled_subjects
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.weights import read_weights, transfer_weights
from fewbeats.recipes.encoder import share_sources

LITTLE = (
    "--network.kind=unet2d", "--network.base-channels=4", "--network.levels=4", "--preprocess.size=64",
    "--preprocess.spacing-mm=2.5", "--batch-size=8", "--dino.hidden=16", "--dino.prototypes=32",
)  # fmt: skip


@pytest.mark.parametrize("method", ["simclr", "pcl", "dino", "mim"])
def test_a_run_is_pretrained_and_its_weights_move_on(method, phantoms, tmp_path, capfd, no_onnx):
    run, tuned = tmp_path / "ssl", tmp_path / "tuned"
    words = ["pretrain", method, str(phantoms), f"--out={run}", "--steps=3", *LITTLE]
    assert main(words) == 0
    assert "slices in 3 steps" in capfd.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe_height_r2" in row] == [1, 2, 3]
    page = (run / "report.html").read_text()
    shown = {"mim": 3, "dino": 8}.get(method, 2)
    assert page.count("<img") == 8 * shown
    assert "Height told from the encoder" in page
    assert main(words) == 0
    assert "already trained" in capfd.readouterr().out
    provenance = json.loads((run / "provenance.json").read_text())
    assert sorted(provenance["unlabeled"]) == ["phantom000", "phantom001", "phantom002"]
    assert provenance["labeled"] == {}
    flags = [f for f in (*LITTLE, "--localizer-steps=0", "--steps=1") if "dino" not in f]
    assert main(["finetune", str(phantoms), f"--out={tuned}", f"--init={run}", *flags]) == 0
    assert "tensors loaded" in capfd.readouterr().out
    descent = json.loads((tuned / "provenance.json").read_text())["ancestors"]
    assert sorted(descent[0]["unlabeled"]) == ["phantom000", "phantom001", "phantom002"]


def test_a_look_ahead_says_nothing_that_the_run_will_say(phantoms, tmp_path, capfd):
    small = NetworkSettings(kind="unet2d", base_channels=4, levels=4)
    settings = {"network": small, "steps": 1, "batch_size": 8, "pool_subjects": 2}
    command = Pretrain(method="pcl", cohort=phantoms, out=tmp_path / "out", **settings)
    capfd.readouterr()
    command.preflight()
    assert capfd.readouterr().out == ""
    with pytest.raises(InputError, match="split train has 3"):
        replace(command, pool_subjects=9).preflight()


def test_a_blank_scan_is_named_and_not_learned_from(phantoms, tmp_path, capfd):
    cohort, blank = read_cohort(phantoms), tmp_path / "blank.nii.gz"
    image = nibabel.load(cohort["image"][0])
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.int16), image.affine, image.header), blank)
    first = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(str(blank)))
    write_cohort(cohort.with_columns(image=first.otherwise("image")), tmp_path / "cohort.csv")
    words = ["pretrain", "pcl", str(tmp_path / "cohort.csv"), f"--out={tmp_path / 'ssl'}", "--steps=2"]
    assert main([*words, *LITTLE]) == 2
    assert "blank.nii.gz: frame 0 is empty (one gray value)" in capfd.readouterr().err


@pytest.mark.parametrize(("method", "flags", "complaint"), [
    ("simclr", ["--batch-size=2"], "too few negatives"),
    ("simclr", ["--batch-size=500"], "are fewer than --batch-size 500"),
    ("mim", ["--mim.patch-px=10"], "does not divide the view"),
    ("dino", ["--preprocess.size=60"], "must be a multiple of 8"),
    ("pcl", ["--pool-subjects=9"], "split train has 3"),
    ("pcl", ["--network.kind=unet3d"], "pretraining is for 2D networks"),
    ("mim", ["--minutes=1"], "either --steps or --minutes"),
    ("mim", ["--steps=0"], "--steps 0: give at least 1"),
    ("mim", ["--seed=-1"], "--seed -1: give a number from 0 to 4294967295"),
    ("mim", [f"--seed={2**32}"], "--seed 4294967296: give a number from 0 to 4294967295"),
    ("mim", ["--batch-size=0"], "--batch-size 0: give at least 2"),
    ("mim", ["--batch-size=1"], "--batch-size 1: give at least 2"),
    ("mim", ["--mim.patch-px=0"], "--mim.patch-px 0: give at least 1"),
    ("mim", ["--mim.ratio=nan"], "--mim.ratio nan: must be between 0 and 1"),
    ("mim", ["--optim.learning-rate=0"], "--optim.learning-rate 0.0: must be positive"),
    ("mim", ["--optim.layer-decay=0.5"], "are for fine-tuning"),
    ("mim", ["--intensity.structures=0.5"], "are for fine-tuning"),
    ("mim", ["--simmim.ratio=0.5"], "--simmim: with --network.kind unet2d mim looks at --mim instead"),
    ("mim", ["--network.kind=vit", "--mim.ratio=0.5"], "--mim: with --network.kind vit mim looks at"),
    ("simclr", ["--simclr.projector", "64", "0"], "--simclr.projector 64 0: give at least 1"),
    ("simclr", ["--simclr.temperature=0"], "--simclr.temperature 0.0: must be positive"),
    ("pcl", ["--pcl.distance=0"], "--pcl.distance 0.0: must be between 0.001 and 1"),
    ("pcl", ["--pcl.distance=1e-9"], "--pcl.distance 1e-09: must be between 0.001 and 1"),
    ("dino", ["--dino.small-size=0.01"], "makes views of 1 pixels; must be a multiple of 8, at least 16"),
    ("mim", ["--preprocess.size=8"], "must be a multiple of 8, at least 16"),
    ("dino", ["--dino.small-size=1.5"], "--dino.small-size 1.5: must be between 0 and 1"),
    ("dino", ["--dino.prototypes=0"], "--dino.prototypes 0: give at least 2"),
    ("dino", ["--dino.prototypes=1"], "--dino.prototypes 1: give at least 2"),
    ("simclr", ["--network.levels=1"], "--network.levels 1: a U-Net has at least 2"),
    ("simclr", ["--network.context=-1"], "--network.context -1: must not be negative"),
    ("simclr", ["--spatial.scale", "0", "1"], "--spatial.scale 0.0 1.0: must be positive"),
])  # fmt: skip
def test_what_cannot_be_pretrained_is_refused(method, flags, complaint, phantoms, tmp_path, capfd):
    words = ["pretrain", method, str(phantoms), f"--out={tmp_path / 'run'}", "--steps=3", *LITTLE, *flags]
    assert main(words) == 2
    told = capfd.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("context", [0, 1])
def test_the_layer_that_paints_gray_values_is_not_handed_on(context, phantoms, tmp_path, capfd):
    """With three channels and three classes it would fit by its shape."""
    words = ["pretrain", "mim", str(phantoms), f"--out={tmp_path / 'run'}", "--steps=2", *LITTLE]
    assert main([*words, f"--network.context={context}"]) == 0
    weights = read_weights(tmp_path / "run" / "network.safetensors")
    network = build_network(
        NetworkSettings(kind="unet2d", base_channels=4, levels=4, context=context), classes=3
    )
    moved = transfer_weights(network, weights, source="run")
    assert moved.unused == ()
    assert moved.missing
    assert all(".seg_layers." in name for name in moved.missing)


def test_a_small_pool_is_drawn_apart_from_the_labeled(phantoms, tmp_path):
    """In one order, a pool of one would be the labeled subject of its seed each time."""
    cohort, shared = read_cohort(phantoms), []
    for seed in range(12):
        command = Pretrain(
            method="mim", cohort=phantoms, out=tmp_path, batch_size=2, pool_subjects=1, seed=seed
        )
        rows = command.choose().unlabeled
        shared.append(rows["subject"].unique().to_list() == labeled_subjects(cohort, 1, seed))
    assert 0 < sum(shared) < len(shared)  # one in three, by chance


@pytest.mark.parametrize(("name", "text"), [
    ("request.json", "[]"), ("run.json", "[]"), ("run.json", '{"format": 1, "network": "x"}'),
    ("run.json", '{"format": 1, "settings": null}'), ("network.safetensors", None),
])  # fmt: skip
def test_damaged_runs_are_told_in_one_line(name, text, phantoms, tmp_path, capfd):
    words = ["pretrain", "mim", str(phantoms), f"--out={tmp_path / 'run'}", "--steps=2", *LITTLE]
    assert main(words) == 0
    file = tmp_path / "run" / name
    file.unlink() if text is None else file.write_text(text)
    capfd.readouterr()
    export = ["export", str(tmp_path / "run"), "--to=nnunet", f"--out={tmp_path / 'x.pth'}"]
    assert main(words if name == "request.json" else export) == 2
    assert capfd.readouterr().err.count("\n") == 1
    if text is None:
        assert main(words) == 2  # not "already trained"
        assert "network.safetensors: missing or damaged" in capfd.readouterr().err


def test_no_label_is_needed_and_a_start_that_saw_one_is_refused(phantoms, small_run, tmp_path, capfd):
    bare = tmp_path / "bare.csv"
    read_cohort(phantoms).with_columns(label=None, label_source=None, convention=None).write_csv(bare)
    words = ["pretrain", "mim", str(bare), "--steps=1", *LITTLE, "--network.base-channels=8"]
    assert main([*words, f"--out={tmp_path / 'run'}"]) == 0
    capfd.readouterr()
    assert main([*words, f"--out={tmp_path / 'again'}", f"--init={small_run}"]) == 2
    assert "has seen labels, of phantom" in capfd.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_start_is_known_by_its_weights_and_a_scan_by_its_direction(phantoms, tmp_path, capfd):
    flags = ["--steps=1", *LITTLE]
    first, second, run = (tmp_path / name for name in ("first", "second", "run"))
    for seed, out in enumerate((first, second)):
        assert main(["pretrain", "mim", str(phantoms), f"--out={out}", f"--seed={seed}", *flags]) == 0
    words = ["pretrain", "pcl", str(phantoms), f"--out={run}", f"--init={first}", *flags]
    assert main(words) == 0
    shutil.copytree(first, tmp_path / "moved")
    assert main([*words, f"--init={tmp_path / 'moved'}"]) == 0
    assert "already trained" in capfd.readouterr().out
    assert main([*words, f"--init={second}"]) == 2
    assert "holds a run of other settings" in capfd.readouterr().err
    turned = tmp_path / "turned.csv"
    read_cohort(phantoms).with_columns(slice_order=pl.lit("apex_first")).write_csv(turned)
    words[2] = str(turned)
    assert main(words) == 2
    assert "holds a run of other slice order" in capfd.readouterr().err


def test_workers_change_nothing(phantoms, tmp_path):
    words = ["pretrain", "simclr", str(phantoms), "--steps=4", *LITTLE, f"--cache={tmp_path / 'cache'}"]
    for workers in (0, 2):
        assert main([*words, f"--out={tmp_path / str(workers)}", f"--workers={workers}"]) == 0
    one, two = ((tmp_path / name / "network.safetensors").read_bytes() for name in ("0", "2"))
    assert one == two


def test_a_pool_of_unknown_sizes_is_judged_once_it_is_read(phantoms, tmp_path, capfd):
    sizes = ("frames", "slices", "rows", "columns")
    read_cohort(phantoms).drop(sizes).write_csv(tmp_path / "bare.csv")
    words = ["pretrain", "mim", str(tmp_path / "bare.csv"), f"--out={tmp_path / 'run'}", "--steps=1", *LITTLE]
    assert main([*words, "--batch-size=400"]) == 2
    told = capfd.readouterr().err
    assert "slices are fewer than --batch-size 400; lower it" in told
    assert not (tmp_path / "run").exists()


def test_sources_are_drawn_as_their_weights_say(phantoms, tmp_path, capfd):
    cohort = read_cohort(phantoms).with_columns(
        source=pl.when(pl.col("subject") == "phantom000").then(pl.lit("one")).otherwise(pl.lit("others"))
    )
    write_cohort(cohort, tmp_path / "cohort.csv")
    rows = cohort.filter(pl.col("split") == "train")
    counts = np.arange(1, len(rows) + 1)
    stacks = SimpleNamespace(frames=counts, slices=2 * counts)
    shares = share_sources(rows, stacks, {"one": 3.0, "others": 1.0})
    mine = (rows["source"] == "one").to_numpy()
    assert shares[mine].sum() == pytest.approx(3)
    assert shares[~mine].sum() == pytest.approx(1)
    within = shares[~mine] / counts[~mine] ** 2  # slices of one source are alike
    assert within == pytest.approx(np.full(len(within), within[0]))
    assert share_sources(rows, stacks, {}) is None
    command = [
        "pretrain",
        "mim",
        str(tmp_path / "cohort.csv"),
        f"--out={tmp_path / 'run'}",
        "--steps=2",
        *LITTLE,
    ]
    assert main([*command, "--weights", "one=1"]) == 2
    assert "'others' has none" in capfd.readouterr().err
    assert main([*command, "--weights", "one=1", "others=-2"]) == 2
    assert "write SOURCE=NUMBER" in capfd.readouterr().err
    assert main([*command, "--weights", "one=1", "others=2", "third=1"]) == 2
    assert "there is no 'third'" in capfd.readouterr().err
    assert main([*command, "--weights", "one=1", "others=2"]) == 0
