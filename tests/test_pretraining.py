"""Self-supervised methods against slow twins and hand-computed values, and the pool they draw from."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import reference
from fewbeats.cli import main
from fewbeats.commands.pretrain import Pretrain, choose_pool
from fewbeats.data.cohort import read_cohort
from fewbeats.data.pool import PoolSampler, motion_center, prepare_pool, sample_slices
from fewbeats.data.split import labeled_subjects
from fewbeats.errors import InputError
from fewbeats.losses import contrastive_loss
from fewbeats.models.heads import PrototypeHead, spread
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.models.weights import read_weights, transfer_weights
from fewbeats.pretraining import dino, mim, pcl, simclr
from fewbeats.pretraining.dino import Dino
from fewbeats.pretraining.mim import Mim, draw_blanks
from fewbeats.pretraining.pcl import Pcl, same_height
from fewbeats.pretraining.probe import explained, height_probe
from fewbeats.pretraining.settings import DinoSettings, MimSettings, PclSettings, SimclrSettings
from fewbeats.pretraining.simclr import Simclr, same_slice
from fewbeats.sample import Batch
from fewbeats.training.loop import FitSettings, fit
from fewbeats.training.method import Method, Step
from fewbeats.training.optim import OptimSettings, one_group
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.views import ViewSettings, with_views

SMALL = NetworkSettings(kind="unet2d", base_channels=4, levels=3)
OPTIM = OptimSettings()


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return build_network(SMALL, classes=channels)


def shown(names, *, size: int = 16, batch: int = 4, seed: int = 0, **more) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = {name: torch.randn(batch, 1, size, size, generator=generator) for name in names}
    return Batch(views=views, **more)


# Contrast


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_its_double_loop(temperature):
    z = torch.randn(10, 7, generator=torch.Generator().manual_seed(1))
    found = contrastive_loss(z, same_slice(5, z.device), temperature=temperature)
    pairs = {i: [(i + 5) % 10] for i in range(10)}
    assert float(found) == pytest.approx(reference.info_nce(z.tolist(), pairs, temperature), abs=1e-5)


def test_nt_xent_is_that_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed (make test installs it)")
    a, b = torch.randn(2, 16, 9, generator=torch.Generator().manual_seed(4)).unbind()
    found = contrastive_loss(torch.cat([a, b]), same_slice(16, a.device), temperature=0.1)
    torch.testing.assert_close(found, loss.NTXentLoss(temperature=0.1)(a, b))


def test_positional_contrast_is_its_double_loop():
    generator = torch.Generator().manual_seed(2)
    z, position = torch.randn(12, 5, generator=generator), torch.rand(12, generator=generator)
    scan = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    directed = torch.tensor([True] * 6 + [False] * 6)
    near = same_height(position, directed, scan, distance=0.3)
    pairs = {
        i: [
            j
            for j in range(12)
            if j != i
            and abs(float(position[i] - position[j])) < 0.3
            and (scan[i] == scan[j] or (directed[i] and directed[j]))
        ]
        for i in range(12)
    }
    assert 0 < sum(map(len, pairs.values())) < 12 * 11
    found = contrastive_loss(z, near, temperature=0.2)
    assert float(found) == pytest.approx(reference.info_nce(z.tolist(), pairs, 0.2), abs=1e-5)


def test_a_scan_of_unknown_direction_is_near_itself_alone():
    position, scan = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 1, 0])
    near = same_height(position, torch.tensor([False, False, False]), scan, distance=0.1)
    assert near.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_anchors_without_a_positive_are_left_out():
    z = torch.eye(4)
    pairs = torch.zeros(4, 4, dtype=torch.bool)
    pairs[0, 1] = pairs[1, 0] = True
    expected = reference.info_nce(z.tolist(), {0: [1], 1: [0], 2: [], 3: []}, 0.5)
    assert float(contrastive_loss(z, pairs, temperature=0.5)) == pytest.approx(expected)


def test_simclr_and_pcl_train_their_encoder():
    for method in (
        Simclr(network(), settings=SimclrSettings(), optim=OPTIM),
        Pcl(network(), settings=PclSettings(), optim=OPTIM),
    ):
        place = {
            "position": torch.rand(4),
            "directed": torch.ones(4, dtype=torch.bool),
            "scan": torch.arange(4),
        }
        step = method(shown(("a", "b"), **place), 0.0)
        step.loss.backward()
        assert all(p.grad is not None for p in method.encoder.parameters())
        assert set(method.networks()["network"].state_dict()) <= set(network().state_dict())
        assert step.logs["spread"] > 0


# DINO


def small_dino(**changes) -> Dino:
    settings = DinoSettings(**{"hidden": 8, "bottleneck": 4, "prototypes": 6, "small_views": 2} | changes)
    torch.manual_seed(3)
    return Dino(network(), settings=settings, optim=OPTIM)


def test_the_teacher_starts_as_a_copy_and_follows_by_hand_computed_steps():
    method = small_dino(teacher_momentum=0.9)
    student, teacher = (list(m.parameters()) for m in (method.student, method.teacher))
    assert all(torch.equal(a, b) for a, b in zip(student, teacher))
    assert not any(p.requires_grad for p in teacher)
    before = teacher[0].clone()
    with torch.no_grad():
        student[0].add_(1.0)
    method.after_update(0.0)
    torch.testing.assert_close(teacher[0], before + 0.1)  # 0.9 t + 0.1 (t + 1)
    assert method.momentum(0.5) == pytest.approx(0.95)
    assert method.momentum(1.0) == pytest.approx(1.0)


def test_the_center_moves_by_hand_computed_steps():
    method = small_dino()
    method.train()
    batch = shown(("large0", "large1"))
    with torch.no_grad():
        seen = dino._judge(method.teacher, torch.cat([batch.views["large0"], batch.views["large1"]]))
    method(batch, 0.5)
    torch.testing.assert_close(method.center, 0.1 * seen.mean(0))


def test_the_loss_is_its_double_loop():
    method = small_dino().eval()
    method.center = torch.linspace(-0.1, 0.1, 6)
    names = ("large0", "large1", "small0", "small1")
    batch = shown(names)
    seen = {n: dino._judge(method.teacher, batch.views[n]) - method.center for n in names[:2]}
    told = {n: dino._judge(method.student, batch.views[n]) for n in names}
    expected = reference.distillation(
        {n: v.tolist() for n, v in seen.items()},
        {n: v.tolist() for n, v in told.items()},
        teacher_temperature=method.teacher_temperature(0.15),
        student_temperature=0.1,
    )
    assert float(method(batch, 0.15).loss.detach()) == pytest.approx(expected, abs=1e-4)


def test_the_loss_and_the_center_are_those_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed (make test installs it)")
    method = small_dino(teacher_temperature=(0.04, 0.04)).eval()
    twin = loss.DINOLoss(
        output_dim=6, warmup_teacher_temp=0.04, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9
    )
    names = ("large0", "large1", "small0", "small1")
    for seed in range(3):  # the center moves from step to step
        batch = shown(names, seed=seed)
        with torch.no_grad():
            seen = [dino._judge(method.teacher, batch.views[n]) for n in names[:2]]
            told = [dino._judge(method.student, batch.views[n]) for n in names]
            found = method(batch, 0.5).loss
        torch.testing.assert_close(found, twin(seen, told, epoch=0), atol=1e-5, rtol=1e-5)


def test_the_exported_teacher_has_its_own_statistics():
    """An average of weights would leave its BatchNorm at the start; it has seen slices itself."""
    torch.manual_seed(0)
    settings = NetworkSettings(kind="unet2d", base_channels=4, levels=3, norm="batch")
    small = DinoSettings(hidden=8, bottleneck=4, prototypes=6, small_views=0)
    method = Dino(build_network(settings, classes=1), settings=small, optim=OPTIM).train()
    for seed in range(3):
        method(shown(("large0", "large1"), seed=seed), 0.5)
        method.after_update(0.5)
    state = method.networks()["network"].state_dict()
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    assert means
    assert all(value.abs().max() > 0 for value in means)


def test_the_teachers_temperature_warms_up():
    method = small_dino()
    assert [method.teacher_temperature(p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx(
        [0.02, 0.03, 0.04, 0.04]
    )


def test_the_last_layer_is_frozen_at_first():
    method = small_dino(freeze=0.1)
    assert method(shown(("large0", "large1")), 0.05).active == ("network",)
    assert method(shown(("large0", "large1")), 0.1).active is None
    groups = {group.name: group.parameters for group in method.parameter_groups()}
    assert [p.shape for p in groups["prototypes"]] == [(6, 4)]
    assert len(groups["network"]) + 1 == len(list(method.student.parameters()))


def test_prototypes_count_by_direction_alone():
    head = PrototypeHead(5, hidden=8, bottleneck=4, prototypes=6)
    features = torch.randn(3, 5)
    before = head(features)
    with torch.no_grad():
        head.prototypes.weight.mul_(7.0)
    torch.testing.assert_close(head(features), before)
    assert float(before.detach().abs().max()) <= 1 + 1e-6


def test_small_views_are_cut_from_the_field_of_view():
    settings = ViewSettings(size=32)
    image = torch.randn(2, 1, 48, 48)
    found = dino.views(image, torch.Generator().manual_seed(0), settings, dino=DinoSettings(small_views=3))
    assert {name: v.shape[-1] for name, v in found.items()} == {
        "large0": 32, "large1": 32, "small0": 16, "small1": 16, "small2": 16,
    }  # fmt: skip


# MIM


@pytest.mark.parametrize(("patch", "ratio", "blanked"), [(16, 0.75, 48), (32, 0.6, 10), (16, 0.5, 32)])
def test_exactly_the_stated_share_is_blanked_in_whole_patches(patch, ratio, blanked):
    blank = draw_blanks(torch.zeros(5, 1, 128, 128), MimSettings(patch_px=patch, ratio=ratio))
    patches = blank.unfold(2, patch, patch).unfold(3, patch, patch).flatten(1, 3).flatten(2)
    assert (patches.all(-1) == patches.any(-1)).all()
    assert patches.all(-1).sum(1).tolist() == [blanked] * 5
    assert len({tuple(p.all(-1).tolist()) for p in patches}) > 1


class Constant(nn.Module):
    """Answers with what it is given plus a visible error, to see what the loss looks at."""

    def __init__(self):
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, image):
        self.seen.append(image)
        return torch.where(image == 0, self.answer, torch.full_like(image, 1e6))


def test_visible_pixels_are_ignored_and_blanked_ones_are_hidden():
    method = Mim(Constant(), settings=MimSettings(patch_px=4, ratio=0.5), optim=OPTIM, size=16)
    image = torch.full((3, 1, 16, 16), 2.0)
    step = method(Batch(views={"image": image}), 0.0)
    assert float(step.loss.detach()) == pytest.approx(
        4.0
    )  # (0 - 2)^2 where blanked; visible errors of 1e6 do not count
    assert float((method.network.seen[0] == 0).float().mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(("settings", "complaint"), [
    (MimSettings(patch_px=10), "does not divide the view of 16 pixels"),
    (MimSettings(patch_px=8, ratio=0.05), "blanks none or all"),
    (MimSettings(patch_px=8, ratio=0.99), "blanks none or all"),
])  # fmt: skip
def test_patches_that_do_not_fit_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        Mim(network(), settings=settings, optim=OPTIM, size=16)


# All


def test_a_collapse_has_no_spread():
    assert spread(torch.randn(64, 32)) == pytest.approx(1.0, abs=0.1)
    assert spread(torch.ones(64, 32)) < 1e-3


@pytest.mark.parametrize("module", [simclr, pcl, mim], ids=lambda m: m.__name__)
def test_views_are_named_and_of_the_networks_size(module):
    found = module.views(torch.randn(2, 1, 48, 48), torch.Generator().manual_seed(0), ViewSettings(size=32))
    assert all(view.shape == (2, 1, 32, 32) for view in found.values())
    if len(found) == 2:
        a, b = found.values()
        assert not torch.equal(a, b)


# The pool


GRID = PreprocessSettings(size=64, spacing_mm=2.5)


@pytest.fixture(scope="module")
def pool(phantoms, tmp_path_factory):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    return prepare_pool(rows, GRID, cache=tmp_path_factory.mktemp("pool"))


def test_every_slice_of_every_frame_is_in_the_pool(pool, phantoms):
    rows = read_cohort(phantoms).filter(pl.col("split") == "train")
    assert len(pool) == (rows["frames"] * rows["slices"]).sum()
    assert len(pool.files) == len(rows) == 3


def test_a_step_draws_different_slices_and_ranks_share_them(pool):
    whole = next(PoolSampler(pool, 16, seed=1)(5, 0, 1))
    halves = [next(PoolSampler(pool, 8, seed=1)(5, rank, 2)) for rank in range(2)]
    joined = torch.stack([half.views["image"] for half in halves], 1).flatten(0, 1)
    assert torch.equal(joined, whole.views["image"])
    assert len({image.numpy().tobytes() for image in whole.views["image"]}) == 16
    assert not torch.equal(next(PoolSampler(pool, 16, seed=1)(6, 0, 1)).views["image"], whole.views["image"])


def test_slices_come_with_their_height_and_scan(pool):
    batch = next(PoolSampler(pool, 32, context=1, seed=0)(0, 0, 1))
    assert batch.views["image"].shape == (32, 3, 96, 96)
    for image, height, scan in zip(batch.views["image"].numpy(), batch.position, batch.scan):
        stored = np.load(pool.files[scan])
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

        def forward(self, batch, progress):
            drawn.append((batch.views["numbers"][:, 0], torch.rand(4)))
            return Step(self.weight.sum())

        def parameter_groups(self):
            return one_group(self, OptimSettings())

        def networks(self):
            return {}

    images = PoolSampler(pool, 4, seed=3)
    numbers = with_views(images, lambda image, g: {"numbers": torch.rand(4, 1, generator=g)}, seed=3)
    fit(Listens(), numbers, settings=FitSettings(steps=5, seed=3), run=RunDir(tmp_path / "run"))
    assert not any(torch.equal(*pair) for pair in drawn)


def test_what_moves_is_the_middle():
    still = np.random.default_rng(0).normal(100, 5, (2, 80, 80))
    beating = still.copy()
    beating[:, 45:60, 20:35] += 60
    assert motion_center([still, beating], (8.0, 2.0, 2.0)) == pytest.approx((52, 27), abs=3)
    assert motion_center([still], (8.0, 2.0, 2.0)) is None


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
    method = Simclr(network(3), settings=SimclrSettings(), optim=OPTIM).train()
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
        rows, _ = choose_pool(command)
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
        sampler = PoolSampler(prepare_pool(many, GRID, cache=tmp_path), 16)
        next(sampler(0, 0, 1))
        tracemalloc.start()
        stream = sampler(0, 0, 1)
        for _ in range(200):
            next(stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000
