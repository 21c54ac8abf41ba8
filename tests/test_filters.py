"""Each filter takes out what it is for, and leaves true hearts alone."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from fewbeats.data.cohort import read_cohort
from fewbeats.errors import InputError
from fewbeats.recipes.jobs import jobs_of_cohort
from fewbeats.recipes.labeling import label_scans
from fewbeats.self_training.filters import FilterSettings, find_reasons, quality
from fewbeats.self_training.frames import tabulate_frames
from fewbeats.teachers.specs import open_teacher

ALL = FilterSettings(qc=True, species="human", temporal=True, agreement=0.7)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Folder of the true masks of phantoms of 8 frames, as a labeler writes them."""
    from fewbeats.cli import main

    folder = tmp_path_factory.mktemp("truth")
    made = ["--subjects=4", "--frames=8", "--matrix=80", "--pixel-mm", "2.0", "2.1"]
    assert main(["phantom", str(folder / "source"), *made]) == 0
    assert main(["index", str(folder / "source"), "--layout=phantom", f"--out={folder / 'cohort.csv'}"]) == 0
    teacher = open_teacher("oracle:clean", cohort=read_cohort(folder / "cohort.csv"))
    jobs = jobs_of_cohort(folder / "cohort.csv", None)
    label_scans(jobs, teacher, folder / "masks", about={}, tell=lambda line: None)
    return folder / "masks"


@pytest.fixture
def spoiled(truth, tmp_path):
    """Changes the masks of one scan in a copy: `spoil(change)` -> the table of the copy."""
    import shutil

    copy = tmp_path / "masks"
    shutil.copytree(truth, copy)

    def spoil(change, name="phantom001_4d") -> pl.DataFrame:
        file = copy / f"{name}.nii.gz"
        image = nib.load(file)
        array = np.array(image.dataobj)
        change(array)  # (x, y, z, t)
        nib.save(nib.Nifti1Image(array, image.affine, image.header), file)
        return tabulate_frames(copy, before=truth)

    return spoil


def test_true_hearts_pass_every_filter(truth):
    table = tabulate_frames(truth, before=truth)
    assert find_reasons(table, ALL).is_empty()
    assert quality(table, "human")["score"].to_list() == [1.0] * 4
    assert table["agreement"].to_list() == [1.0] * len(table)
    assert table["neighbor"].drop_nulls().min() > 0.5


def lose(value, t):
    def change(array):
        array[..., t][array[..., t] == value] = 0

    return change


def exchange(array):
    part = array[..., 2]
    lv, rv = part == 1, part == 3
    part[lv], part[rv] = 3, 1


def still(array):
    array[...] = array[..., :1]


def shift(array):
    array[..., 4] = np.roll(array[..., 4], 30, 0)


@pytest.mark.parametrize(
    ("change", "frames", "reason"),
    [
        (lose(3, 5), {5}, "no RV was found"),
        (exchange, {2}, "the LV is not enclosed by myocardium"),
        (still, set(range(8)), "LV does not beat"),
        (lose(1, 3), {3}, "LV jumps"),
        (shift, {4}, "differs from the masks of before"),
    ],
)
def test_what_is_wrong_is_named(spoiled, change, frames, reason):
    table = spoiled(change)
    found = find_reasons(table, ALL)
    assert set(found["scan"]) == {"phantom001_4d"}, "others stay"
    assert set(found.filter(pl.col("reason") == reason)["frame"]) == frames
    scores = dict(quality(table, "human").iter_rows())
    if reason != "differs from the masks of before":
        assert scores["phantom001_4d"] < min(s for name, s in scores.items() if name != "phantom001_4d")


def test_filters_that_are_off_take_out_nothing_but_what_is_empty(spoiled):
    table = spoiled(lose(3, 5))
    assert find_reasons(table, FilterSettings()).is_empty()
    emptied = spoiled(lambda array: array.fill(0))
    assert set(find_reasons(emptied, FilterSettings())["reason"]) == {"nothing was found"}
    assert dict(quality(emptied, "any").iter_rows())["phantom001_4d"] == 0.0


def test_impossible_volumes_are_of_a_species(spoiled):
    def shrink(array):
        array[:, :, : array.shape[2] // 2] = 0
        array[::2] = 0

    table = spoiled(shrink)
    human = find_reasons(table, FilterSettings(qc=True, species="human"))
    unknown = find_reasons(table, FilterSettings(qc=True))
    assert len(human) >= len(unknown)


def test_a_share_is_one():
    with pytest.raises(InputError, match="must be between 0 and 1"):
        FilterSettings(agreement=1.5)
