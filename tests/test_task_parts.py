"""What tasks are made of: files, samplers, features, and what is judged as the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fewbeats.clock import Clock
from fewbeats.commands.task_file import open_task
from fewbeats.data.bags import StudySampler
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import Stacks
from fewbeats.errors import InputError
from fewbeats.evaluation.tasks import scan_truth
from fewbeats.finetuning.classification import ImageClassifier
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.finetuning.task import read_task, study_truth
from fewbeats.inference.examine import Examiner
from fewbeats.models.finish import finish_network
from fewbeats.models.heads import SteadyNorm, pool_features
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.recipes.pools import rows_where
from fewbeats.sample import UNKNOWN, Batch
from fewbeats.scan import ArrayPixels, Scan
from fewbeats.transforms.preprocess import PreprocessSettings


def test_the_truth_of_a_scan_is_that_of_its_slices():
    slices = {("a", 0, 0): "absent", ("a", 0, 1): "present", ("b", 0, 0): "absent", ("c", 0, 0): "absent"}
    rows = [{"level": "slice", "scan": s, "frame": 0, "slice": z} for s in "abc" for z in (0, 1)]
    del rows[3]  # of b one slice is told of, and known; of a and c two, of c one is unknown
    assert scan_truth(slices, rows) == {"a": "present", "b": "absent"}


BAD = {
    "kind": ({"kind": "guess"}, "kind is 'guess'"),
    "unknown": ({"colour": "red"}, "'colour' says nothing of a task"),
    "one class": ({"classes": ["SAX"]}, "one class leaves nothing to learn"),
    "twice": ({"classes": ["SAX", "SAX"]}, "names something twice"),
    "idle": ({"points": ["lv_center"]}, "does not look at points"),
    "both": ({"present": ["INFARCT"]}, "either column"),
    "where": ({"where": "SAX"}, "write columns and what stands in them"),
    "title": ({"title": 3}, "has no title"),
}


@pytest.mark.parametrize("name", BAD)
def test_task_files_that_make_no_sense(name):
    changes, complaint = BAD[name]
    content = {"title": "View", "kind": "classification", "column": "view", "classes": ["SAX", "4CH"]}
    read_task(content, file="view.yaml")
    with pytest.raises(InputError, match=complaint):
        read_task(content | changes, file="view.yaml")


@pytest.mark.parametrize(
    "scans", [[], [("a", Scan(pixels=ArrayPixels(np.zeros((1, 0, 8, 8))), affine=np.eye(4)))]]
)
def test_a_study_without_slices_tells_nothing(scans):
    with pytest.raises(InputError, match="a study without slices"):
        next(Examiner.examine(None, scans))


def test_a_study_of_two_classes_has_no_truth():
    task = read_task({"title": "t", "kind": "study", "column": "scar", "classes": ["no", "yes"],
                      "where": {"sequence": ["cine"]}}, file="t.yaml")  # fmt: skip
    row = {"subject": "a", "study": "first", "scar": "no", "sequence": "cine"}
    aside = row | {"scar": "yes", "sequence": "LGE"}
    assert study_truth(task, [row, row, aside]) == {("a", "first"): "no"}
    with pytest.raises(InputError, match="study first is of two classes"):
        study_truth(task, [row, row | {"scar": "yes"}])


def test_study_sampler_draws_classes_alike_and_each_slice_once():
    images = [np.full((2, 3, 8, 8), n, np.float16) for n in range(5)]
    whole = np.arange(5)
    stacks = Stacks(images=images, which=whole, frames=np.full(5, 2), slices=np.full(5, 3),
                    order=np.ones(5, int), subject=np.array(list("abcde"), object),
                    told=[np.full((2, 3), UNKNOWN) for _ in whole])  # fmt: skip
    sampler = StudySampler(stacks, study=np.array([0, 0, 1, 2, 3]), classes=np.array([0, 1, 1, 1]),
                           batch_size=64, count=6)  # fmt: skip
    batch = sampler(Clock(step=0, total=9))
    share = float((batch.target[:, 0] == 0).float().mean())
    assert 0.3 < share < 0.7  # one study of four
    values = batch.views["image"][:, :, 0, 0]
    twice = values[batch.target[:, 0] == 0]  # two stacks of six slices: both are seen
    assert {float(v) for v in twice.unique()} == {0.0, 1.0}
    single = values[batch.target[:, 0] == 1]
    assert all(len(set(row.tolist())) == 1 for row in single)  # slices of one study alone
    assert torch.equal(sampler(Clock(step=3, total=9)).target, sampler(Clock(step=3, total=9)).target)


def test_a_batch_of_studies_holds_no_class_twice_before_each_is_there():
    images = [np.zeros((1, 3, 8, 8), np.float16)] * 5
    ones = np.ones(5, int)
    stacks = Stacks(images=images, which=np.arange(5), frames=ones, slices=3 * ones, order=ones, subject=ones)
    for classes, size in ((5, 4), (2, 4), (2, 2), (5, 5)):
        draws = StudySampler(stacks, np.arange(5), np.arange(5) % classes, batch_size=size, count=2)
        for step in range(20):
            told = draws(Clock(step, 20)).target[:, 0].numpy()
            counts = np.bincount(told, minlength=classes)
            assert counts.max() - counts.min() <= 1, (classes, size, told)


def test_features_of_a_batch_keep_what_tells_it_from_others():
    """Normalized by its own mean, a batch of one class would be told nothing of it."""
    draw = torch.Generator().manual_seed(0)
    norm = SteadyNorm(3).train()
    for step in range(60):  # classes in turn, two standard deviations apart
        norm(torch.randn(8, 3, generator=draw) + 4.0 * (step % 2) + 7)
    one, other = (norm(torch.randn(64, 3, generator=draw) + 4.0 * c + 7).mean() for c in (0, 1))
    assert float(other - one) > 1.0
    parts = [torch.randn(50, 3, generator=draw) * 2 + 5 for _ in range(4)]
    torch.optim.swa_utils.update_bn(parts, norm)
    shown = norm.eval()(torch.cat(parts))
    assert shown.mean(0).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert shown.std(0).tolist() == pytest.approx([1, 1, 1], abs=0.05)


def test_features_are_normalized_as_they_are_in_prediction():
    """Not as they are under BatchNorm by a batch's own statistics, which hide what prediction sees."""
    torch.manual_seed(0)
    settings = NetworkSettings(kind="unet2d", base_channels=8, levels=3, norm="batch")
    network = ImageClassifier(build_network(settings, classes=2), classes=2)

    def batches(clock: Clock) -> Batch:
        draw = torch.Generator().manual_seed(clock.step)
        scale = torch.tensor([1.0, 4.0, 16.0])[torch.randint(3, (8, 1, 1, 1), generator=draw)]
        return Batch(views={"image": scale * torch.randn(8, 1, 32, 32, generator=draw)})

    ready = finish_network(network, batches)
    with torch.no_grad():
        seen = [pool_features(ready, batches(Clock(step, 25)).views["image"]) for step in range(25)]
        shown = ready.norm(torch.cat(seen))
    assert shown.mean(0).abs().max() < 0.01
    assert shown.std(0).tolist() == pytest.approx([1] * shown.shape[1], abs=0.15)


def test_a_scan_shows_what_one_of_its_slices_shows():
    task = read_task({"title": "Scar", "kind": "classification", "present": ["INFARCT"]}, file="test")
    logits = np.array([[5.0, -5.0]] * 9 + [[-5.0, 5.0]])
    pixels = np.random.default_rng(0).normal(size=(1, 10, 64, 64)).astype(np.float32)
    scan = Scan(pixels=ArrayPixels(pixels), affine=np.eye(4))
    settings = SegmentationSettings(preprocess=PreprocessSettings(size=64))
    examiner = Examiner(Path("run"), task, settings, config=None, provenance=None)
    rows = list(examiner._classes(lambda batch: logits, "one", scan))
    assert (rows[0]["level"], rows[0]["class"]) == ("scan", "present")
    assert [row["class"] for row in rows[1:]] == ["absent"] * 9 + ["present"]


def test_shares_decide_how_often_a_stack_is_drawn():
    images = [np.full((4, 5, 8, 8), n, np.float16) for n in range(3)]
    stacks = Stacks(images=images, which=np.arange(3), frames=np.array([4, 4, 1]), slices=np.full(3, 5),
                    order=np.ones(3, int), subject=np.array(list("abc"), object))  # fmt: skip
    sampler = Sampler(stacks, 4000, shares=np.array([0.0, 1.0, 3.0]))
    drawn = sampler(Clock(step=0, total=1)).scan.bincount(minlength=3) / 4000
    assert drawn.tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)


EXAMS = pl.DataFrame({"scan": ["a", "b"], "view": [None, None], "sequence": ["lge", "t1"]})


@pytest.mark.parametrize(("where", "complaint"), [
    ({"sequence": ["cine"]}, "no scan has sequence cine, which the task is about, but lge, t1; mend"),
    ({"view": ["SAX"]}, "column 'view', by which the task chooses scans, is empty; fill it in"),
    ({"scanner": ["1.5 T"]}, "column 'scanner', by which the task chooses scans, is empty; fill it in"),
])  # fmt: skip
def test_a_task_about_scans_that_are_not_there(where, complaint):
    with pytest.raises(InputError, match=complaint):
        rows_where(EXAMS, where)
    assert rows_where(EXAMS, {"sequence": ["lge"]})["scan"].to_list() == ["a"]


def test_a_task_file_does_not_name_another(tmp_path):
    (tmp_path / "task.yaml").write_text("title: a\nkind: segmentation\nsettings: {task: other.yaml}")
    with pytest.raises(InputError, match="settings: task is this file itself"):
        open_task(tmp_path / "task.yaml")
