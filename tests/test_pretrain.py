"""The command that pretrains, the pool it draws from and its probe."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import polars as pl
import pytest
import torch

import small_nifti
from fewbeats.cli import main
from fewbeats.clock import Clock
from fewbeats.commands.pretrain import Pretrain
from fewbeats.data.cohort import new_cohort, read_cohort
from fewbeats.data.pool import motion_center, prepare_pool, sample_slices
from fewbeats.data.sampler import Sampler
from fewbeats.data.split import labeled_subjects
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.weights import read_weights, transfer_weights
from fewbeats.pretraining.pcl import same_height
from fewbeats.pretraining.probe import explained, height_probe
from fewbeats.pretraining.settings import SimclrSettings
from fewbeats.pretraining.simclr import Simclr
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.method import Method, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.views import Viewed

# The pool


GRID = PreprocessSettings(size=64, spacing_mm=2.5)


@pytest.fixture(scope="module")
def pool(phantoms, tmp_path_factory):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    return prepare_pool(rows, GRID, cache=tmp_path_factory.mktemp("pool"))


def test_every_slice_of_every_frame_is_in_the_pool(pool, phantoms):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    assert len(pool) == (rows["frames"] * rows["slices"]).sum()
    assert len(pool.images) == len(rows) == 3


def test_a_step_draws_different_slices_and_ranks_share_them(pool):
    whole = Sampler(pool, 16, seed=1, epochs=False)(Clock(5, 9))
    halves = [Sampler(pool, 8, seed=1, epochs=False)(Clock(5, 9, rank, 2)) for rank in range(2)]
    joined = torch.stack([half.views["image"] for half in halves], 1).flatten(0, 1)
    assert torch.equal(joined, whole.views["image"])
    assert len({image.numpy().tobytes() for image in whole.views["image"]}) == 16
    assert not torch.equal(
        Sampler(pool, 16, seed=1, epochs=False)(Clock(6, 9)).views["image"], whole.views["image"]
    )


def test_slices_come_with_their_height_and_scan(pool):
    batch = Sampler(pool, 32, depth=3, seed=0, epochs=False)(Clock(0, 1))
    assert batch.views["image"].shape == (32, 3, 96, 96)
    for image, height, scan in zip(batch.views["image"].numpy(), batch.position, batch.scan):
        stored = pool.images[pool.which[scan]][...]
        z = round(float(height) * stored.shape[1])
        assert any(np.array_equal(image[1], stored[t, z].astype(np.float32)) for t in range(len(stored)))
    assert batch.directed.all()


def test_apex_first_is_turned_and_unknown_is_said(phantoms, tmp_path):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    order = pl.Series("slice_order", ["base_first", "apex_first", None])
    found = prepare_pool(rows.with_columns(order), GRID, cache=tmp_path)
    assert found.order.tolist() == [1, -1, 0]
    slices = found.slices[1]
    assert found.heights(np.array([0, 1, 2]), np.array([0, 0, 0])).tolist() == [0, (slices - 1) / slices, 0]


@pytest.mark.parametrize("slices", [7, 10, 20, 21])
def test_what_is_near_does_not_hang_on_rounding(slices):
    """Neighbors of a stack of 10 are a tenth apart, not less; in float32 it may look so."""
    height = torch.arange(slices) / slices
    near = same_height(height, torch.ones(slices, dtype=torch.bool), torch.arange(slices), distance=0.1)
    apart = (torch.arange(slices)[:, None] - torch.arange(slices)).abs()
    assert torch.equal(near, 10 * apart < slices)


def test_what_is_blanked_does_not_follow_how_a_slice_is_turned(pool, tmp_path):
    """Both draw from (seed, step, rank); the same numbers in both would tie them together."""
    drawn = []

    class Listens(Method):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch, clock):
            drawn.append((batch.views["numbers"][:, 0], torch.rand(4)))
            return Step(self.weight.sum())

        def parameter_groups(self):
            return one_group(self, OptimSettings())

        def networks(self):
            return {}

    images = Sampler(pool, 4, seed=3, epochs=False)
    numbers = Viewed(
        images, lambda batch, g: replace(batch, views={"numbers": torch.rand(4, 1, generator=g)}), 3
    )
    fit(Listens(), numbers, settings=FitSettings(steps=5, seed=3), run=RunDir(tmp_path / "run"))
    assert not any(torch.equal(*pair) for pair in drawn)


def test_what_moves_is_the_middle():
    still = np.random.default_rng(0).normal(100, 5, (2, 80, 80))
    beating = still.copy()
    beating[:, 45:60, 20:35] += 60
    assert motion_center([still, beating], (8.0, 2.0, 2.0)) == pytest.approx((52, 27), abs=3)
    assert motion_center([still], (8.0, 2.0, 2.0)) is None


def test_what_is_stored_follows_content_replaced_with_size_and_time_kept(tmp_path):
    file = small_nifti.image(tmp_path / "x.nii", frames=2)
    rows = new_cohort([{"subject": "x", "image": str(file), "frames": 2}])

    def pixels():
        return prepare_pool(rows, GRID, cache=tmp_path / "cache").read(0, 1, 2, 0)

    first = pixels()
    assert np.array_equal(pixels(), first)
    small_nifti.replace_unnoticed(file, np.asarray(nib.load(file).dataobj).T[:, :, ::-1])
    assert not np.array_equal(pixels(), first)


def test_a_pool_without_scans_is_refused(phantoms, tmp_path):
    with pytest.raises(InputError, match="no unlabeled scan"):
        prepare_pool(read_cohort(phantoms).clear(), GRID, cache=tmp_path)


# The probe


def test_the_probe_tells_what_features_know():
    rng = np.random.default_rng(0)
    height, subject = rng.random(120), np.repeat(np.arange(6), 20)
    angle = height * np.pi / 2
    knowing = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert explained(knowing, height, subject) > 0.95
    assert explained(rng.normal(size=(120, 16)), height, subject) < 0.2


def test_neighbors_of_the_same_heart_do_not_help_the_probe():
    """Features that name the subject alone: within it heights would be told, from others they are not."""
    subject = np.repeat(np.arange(4), 30)
    height = subject / 3 + np.random.default_rng(0).normal(0, 0.01, 120)
    features = np.eye(4)[subject] + np.random.default_rng(1).normal(0, 0.01, (120, 4))
    assert explained(features, height, subject) < 0


def test_slices_for_the_probe_are_the_same_each_time_and_of_known_direction(pool):
    first, second = (sample_slices(pool, 24, size=64, context=1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    images, heights, subjects = first
    assert images.shape == (24, 3, 64, 64)
    assert set(subjects) == {1, 2, 3}
    assert heights.min() >= 0
    assert heights.max() <= 1
    unknown = replace(pool, order=np.zeros(3, int))
    assert len(sample_slices(unknown, 24, size=64, context=0)[0]) == 0


def test_the_probe_leaves_the_method_as_it_was(pool):
    torch.manual_seed(0)
    network = build_network(NetworkSettings(kind="unet2d", base_channels=4, levels=3), classes=3)
    method = Simclr(network, settings=SimclrSettings(), optim=OptimSettings()).train()
    before = {n: v.clone() for n, v in method.state_dict().items()}
    images, heights, subjects = sample_slices(pool, 24, size=64, context=0)
    measure = height_probe(torch.from_numpy(images), heights, subjects)
    assert measure(method) == measure(method)
    assert all(torch.equal(v, before[n]) for n, v in method.state_dict().items())
    assert method.training


# The command


LITTLE = (
    "--network.kind=unet2d", "--network.base-channels=4", "--network.levels=4", "--preprocess.size=64",
    "--preprocess.spacing-mm=2.5", "--batch-size=8", "--dino.hidden=16", "--dino.prototypes=32",
)  # fmt: skip


@pytest.mark.parametrize("method", ["simclr", "pcl", "dino", "mim"])
def test_a_run_is_pretrained_and_its_weights_move_on(method, phantoms, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("fewbeats.inference.engine.can_export", lambda: False)
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


def test_a_damaged_log_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nx}\n{"step"')
    with pytest.raises(InputError, match=r"metrics.jsonl: missing or damaged"):
        RunDir(tmp_path).read_metrics()


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


def test_the_time_of_a_resumed_run_is_of_all_its_parts(tmp_path):
    run = RunDir(tmp_path)
    assert run.trained_seconds() == 0
    for row in (
        {"step": 10, "step_seconds": 0.5},
        {"step": 10, "probe": 1.0},
        {"step": 14, "step_seconds": 2.0},
    ):
        run.append_metrics(row)
    with run.metrics.open("a") as file:
        file.write('{"step": 20, "step_sec')  # killed while writing
    assert run.trained_seconds() == 10 * 0.5 + 4 * 2.0


def test_workers_change_nothing(phantoms, tmp_path):
    words = ["pretrain", "simclr", str(phantoms), "--steps=4", *LITTLE, f"--cache={tmp_path / 'cache'}"]
    for workers in (0, 2):
        assert main([*words, f"--out={tmp_path / str(workers)}", f"--workers={workers}"]) == 0
    one, two = ((tmp_path / name / "network.safetensors").read_bytes() for name in ("0", "2"))
    assert one == two


def test_memory_does_not_grow_with_the_table(phantoms, tmp_path):
    """10,000 rows that point at three files need no more than 100 do."""
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    peaks = []
    for count in (100, 10_000):
        many = pl.concat([rows] * (count // 3 + 1)).head(count)
        sampler = Sampler(prepare_pool(many, GRID, cache=tmp_path), 16, epochs=False)
        sampler(Clock(0, 200))
        tracemalloc.start()
        for step in range(200):
            sampler(Clock(step, 200))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000
