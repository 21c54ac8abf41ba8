"""A folder of masks: whole or absent, one labeler's, and finished by the next call wherever it was killed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.evaluation.predictions import read_predictions
from fewbeats.inference.labeler import Labeled
from fewbeats.io.nifti import read_nifti
from fewbeats.recipes.jobs import Job, Phases
from fewbeats.recipes.labeled_folder import open_labeled
from fewbeats.recipes.labeling import label_scans
from fuzzing import die_after
from refusals import is_one_line

SCANS = ("a", "b", "c")


@dataclass(frozen=True)
class Constant:
    """Labels every voxel with one value."""

    value: int
    provenance: Provenance
    structures = ("LV", "MYO", "RV")
    known = None

    @property
    def key(self):
        return f"labeler{self.value}"

    def label(self, scan):
        for _ in range(scan.shape[0]):
            yield Labeled(np.full(scan.shape[1:], self.value, np.uint8))

    def describe(self):
        return {"structures": self.structures, "model": self.key}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(SCANS):
        values = np.random.default_rng(number).integers(0, 99, (6, 6, 3, 2)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])), folder / f"{name}.nii")
    return folder


def jobs_of(images: Path, **phases) -> list[Job]:
    return [
        Job(n, n, str(images / f"{n}.nii"), partial(read_nifti, images / f"{n}.nii"), phases=Phases(**phases))
        for n in SCANS
    ]


def label(images: Path, out: Path, value: int, *, said: list[str] | None = None, **phases) -> None:
    labeler = Constant(value, Provenance(run=f"run{value}"))
    tell = [].append if said is None else said.append
    label_scans(jobs_of(images, **phases), labeler, out, about={}, tell=tell)


def values_in(out: Path) -> dict[str, set[int]]:
    """Of each mask; all of them can be read."""
    return {
        f.name.removesuffix(".nii.gz"): set(np.unique(np.asarray(nib.load(f).dataobj)))
        for f in sorted(out.glob("*.nii.gz"))
    }


def whole(out: Path, value: int) -> None:
    """All scans are there, of one labeler, and nothing else."""
    assert values_in(out) == {name: {value} for name in SCANS}
    scans, run = read_predictions(out)
    assert [scan.scan for scan in scans] == list(SCANS)
    assert run["model"] == f"labeler{value}"
    wanted = {"predictions.csv", "run.json", "provenance.json", *(f"{name}.nii.gz" for name in SCANS)}
    assert {p.name for p in out.iterdir()} == wanted


@pytest.mark.parametrize("earlier", [None, 1])
def test_wherever_it_is_killed_nothing_is_mixed_and_the_next_one_finishes(images, tmp_path, earlier):
    points = 0
    for after in range(400):
        out = tmp_path / str(after)
        if earlier:
            label(images, out, earlier)
            (out / "report.html").write_text("of the earlier labeler")
        if die_after(partial(label, images, out, 2), after) != 9:
            break
        points += 1
        try:
            scans, run = read_predictions(out)
        except InputError:
            pass
        else:  # it counts as finished: then it is
            value = int(run["model"].removeprefix("labeler"))
            assert {s.scan: values_in(out)[s.scan] for s in scans} == {n: {value} for n in SCANS}
        values_in(out)
        label(images, out, 2)
        whole(out, 2)
    assert points > 30


def test_what_was_labeled_before_is_left_as_it_is(images, tmp_path):
    out, said = tmp_path / "out", []
    label(images, out, 1)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    label(images, out, 1, said=said)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert said == [f"{out}: 3 of 3 labeled before, by the same network from the same files"]


def test_a_changed_image_or_option_is_labeled_again(images, tmp_path):
    out, said = tmp_path / "out", []
    label(images, out, 1)
    values = np.ones((4, 4, 2, 2), np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), images / "b.nii")
    label(images, out, 1, said=said)
    assert [line.split(":")[0] for line in said] == ["b", str(out)]
    assert nib.load(out / "b.nii.gz").shape == (4, 4, 2, 2)
    label(images, out, 1, said=said, ed=1)
    assert [line.split(":")[0] for line in said[2:]] == list(SCANS)
    whole(out, 1)


def test_a_bad_scan_leaves_the_good_ones_and_the_next_call_goes_on(images, tmp_path):
    out, good = tmp_path / "out", (images / "c.nii").read_bytes()
    (images / "c.nii").write_bytes(good[:300])
    with pytest.raises(InputError, match=r"c\.nii"):
        label(images, out, 1)
    assert sorted(values_in(out)) == ["a", "b"]
    with pytest.raises(InputError, match="its labeling was stopped; run the same") as error:
        read_predictions(out)
    is_one_line(error, str(out))
    (images / "c.nii").write_bytes(good)
    said: list[str] = []
    label(images, out, 1, said=said)
    assert [line.split(":")[0] for line in said] == ["c", str(out)]
    whole(out, 1)


def test_nothing_of_an_earlier_result_is_lost_before_a_new_scan_is_whole(images, tmp_path):
    out = tmp_path / "out"
    label(images, out, 1)
    for name in SCANS:
        (images / f"{name}.nii").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3 of 3 scans cannot be labeled: .*a\.nii.*b\.nii.*c\.nii"):
        label(images, out, 2)
    whole(out, 1)


def test_masks_of_two_networks_are_not_judged_as_one(images, tmp_path):
    out = tmp_path / "out"
    label(images, out, 1)
    table = (out / "predictions.csv").read_text()
    (out / "predictions.csv").write_text(table.replace("labeler1", "labeler7", 1))
    with pytest.raises(InputError, match="masks of another network") as error:
        read_predictions(out)
    is_one_line(error, "predictions.csv")


def test_places_of_something_else_are_refused(images, tmp_path):
    (tmp_path / "out").mkdir()
    for name, text in (("report.html", "of something else"), ("request.json", "{}")):
        (tmp_path / "out" / name).write_text(text)
        with pytest.raises(InputError, match="would be overwritten"):
            label(images, tmp_path / "out", 1)
    given = {"labeler": "x", "about": {}, "provenance": Provenance(run="x")}
    label(images, tmp_path / "b", 1)
    with (
        pytest.raises(InputError, match="holds predictions of other scans"),
        open_labeled(tmp_path / "b", jobs=[Job("z", "z", "z.nii", lambda: None)], **given),
    ):
        pass
    whole(tmp_path / "b", 1)
