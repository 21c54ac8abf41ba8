"""How sure a label is, from the network to the weight of a voxel in the loss."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from fewbeats.clock import Clock
from fewbeats.data.cohort import new_cohort, read_cohort, write_cohort
from fewbeats.data.sampler import Sampler
from fewbeats.data.samples import prepare_labeled, weigh
from fewbeats.data.store import stack_samples
from fewbeats.errors import InputError
from fewbeats.inference.labeler import open_run
from fewbeats.losses import supervised_loss
from fewbeats.sample import Batch
from fewbeats.transforms.preprocess import PreprocessSettings

GRID = PreprocessSettings(spacing_mm=2.0, size=32)


@pytest.fixture
def rows(tmp_path):
    """Two scans, one of which says how sure its labels are: not at all in the left half."""
    affine, listed = np.diag([2.0, 2.0, 8.0, 1.0]), []
    for number, name in enumerate("ab"):
        random = np.random.default_rng(number)
        image, mask = random.integers(1, 99, (48, 48, 4)), np.zeros((48, 48, 4), np.uint8)
        mask[16:32, 16:32] = 1
        sure = np.full(mask.shape, 255, np.uint8)
        sure[:24] = 55
        for what, array in (("image", image.astype(np.int16)), ("label", mask), ("sure", sure)):
            nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}_{what}.nii.gz")
        told = {"label_confidence": str(tmp_path / f"{name}_sure.nii.gz")} if name == "a" else {}
        files = {what: str(tmp_path / f"{name}_{what}.nii.gz") for what in ("image", "label")}
        listed.append({"subject": name, "convention": "la2018", **files, **told})
    return new_cohort(listed)


def test_confidence_becomes_a_weight_where_there_is_one(rows, tmp_path):
    samples = prepare_labeled(rows.iter_rows(named=True), GRID, structures=["LA"], cache=tmp_path / "cache")
    assert samples[1].weight is None
    batch = Sampler(stack_samples(samples), batch_size=8, depth=1)(Clock(step=0, total=1))
    assert batch.weight is not None
    assert batch.target is not None
    assert batch.weight.shape == batch.target.shape
    for subject, weight in zip(batch.subject, batch.weight.numpy()):
        left, right = weight[..., :20], weight[..., 28:40]
        assert (left == (1 if subject == "b" else 0)).mean() > 0.9
        assert (right == 1).mean() > 0.9
    plain = rows.with_columns(label_confidence=None)
    others = prepare_labeled(plain.iter_rows(named=True), GRID, structures=["LA"], cache=tmp_path / "cache")
    assert samples[0].key != others[0].key
    assert samples[1].key == others[1].key


def test_a_voxel_without_weight_changes_nothing():
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    target, weight = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4)
    weight[..., :2] = 0
    batch = Batch(views={"image": torch.zeros(1, 1, 4, 4)}, target=target, weight=weight)
    changed = logits.clone()
    changed[..., :2] = 5
    assert supervised_loss(logits, batch) == supervised_loss(changed, batch)


def test_weights_span_the_range_of_a_frame():
    assert weigh(np.array([55.0, 155.0, 255.0])).tolist() == [0.0, 0.5, 1.0]
    assert weigh(np.array([200.0, 200.0])).tolist() == [1.0, 1.0]


def test_a_confidence_of_another_grid_is_refused(rows, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "a_sure.nii.gz")
    with pytest.raises(InputError, match="is not the image's"):
        prepare_labeled(rows.iter_rows(named=True), GRID, structures=["LA"], cache=tmp_path / "cache")


def test_the_column_travels_with_the_table(rows, tmp_path):
    write_cohort(rows, tmp_path / "cohort.csv")
    assert "a_sure.nii.gz" in (tmp_path / "cohort.csv").read_text()
    assert (
        read_cohort(tmp_path / "cohort.csv")["label_confidence"].to_list()
        == rows["label_confidence"].to_list()
    )


def test_a_run_is_least_sure_at_borders_and_labels_as_before(small_run, phantoms):
    from fewbeats.data.files import open_scan

    scan = open_scan(read_cohort(phantoms).row(4, named=True))
    plain = [labeled.mask for labeled in open_run(small_run).label(scan)]
    told = list(open_run(small_run, confident=True).label(scan))
    np.testing.assert_array_equal(plain, [labeled.mask for labeled in told])
    sure, mask = told[0].confidence, told[0].mask
    assert sure is not None
    assert sure.min() >= 0
    assert sure.max() <= 1
    border = np.zeros(mask.shape, bool)
    border[:, :, 1:] = mask[:, :, 1:] != mask[:, :, :-1]
    assert sure[border].mean() < sure[~border].mean() - 0.05
