"""Labelers from outside: what they give is on the scan's grid and named; what they cannot is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbeats.data.cohort import new_cohort, read_cohort
from fewbeats.data.files import open_labels, open_scan
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.metrics import dice
from fewbeats.scan import ArrayPixels, Scan, Source
from fewbeats.teachers.card import card_of, read_card, refuse_seen_data
from fewbeats.teachers.network import Feeder, Feeding
from fewbeats.teachers.oracle import miss_a_side, spoil_at_random
from fewbeats.teachers.outside import Outside
from fewbeats.teachers.specs import open_teacher, open_teachers
from fewbeats.teachers.vote import SHARES, decide, staple

SHAPE = (5, 40, 48)


def make_scan(frames: int = 2, *, shape=SHAPE, path="scan_1.nii.gz") -> Scan:
    pixels = np.random.default_rng(0).integers(1, 500, (frames, *shape)).astype(np.int16)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    source = Source(path=Path(path), affine=affine, shape=shape)
    return Scan(pixels=ArrayPixels(pixels), affine=affine, modality="MR", source=source)


def outside(segment, **about) -> Outside:
    card = card_of({"labels": {1: "RV", 2: "MYO", 3: "LV"}, **about}, file="card.yaml")
    return Outside("test:it", card, segment, "key")


def open_drawn(folder: Path) -> Scan:
    return read_nifti(folder / "images" / "scan_1.nii.gz")


@pytest.fixture
def drawn(tmp_path) -> tuple[Path, np.ndarray]:
    """A folder with a 4D image of two frames and its mask, in the values of ACDC."""
    mask = np.zeros((2, *SHAPE), np.uint8)
    mask[:, 1:4, 10:30, 12:32], mask[:, 1:4, 14:26, 16:28] = 2, 3
    image = np.random.default_rng(0).integers(1, 500, mask.shape).astype(np.int16)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    for folder, array in (("images", image), ("masks", mask)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array.T, affine), tmp_path / folder / "scan_1.nii.gz")
    (tmp_path / "masks" / "card.yaml").write_text("labels: acdc\nlicense: CC0\ntrained_on: [MMs]\n")
    return tmp_path, mask


def test_masks_of_a_folder_are_named_and_on_the_scans_grid(drawn):
    folder, mask = drawn
    teacher = open_teacher(f"folder:{folder / 'masks'}")
    found = np.stack([labeled.mask for labeled in teacher.label(open_drawn(folder))])
    assert teacher.structures == ("LV", "MYO", "RV")
    np.testing.assert_array_equal(found, np.array([0, 3, 2, 1])[mask])
    assert teacher.describe()["teacher"]["license"] == "CC0"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "masks" / "card.yaml").unlink(), "nothing says what the masks' values mean"),
        (lambda f: (f / "masks" / "card.yaml").write_text("labels: [LV]"), "write them like"),
        (lambda f: (f / "masks" / "card.yaml").write_text("labels: {1: LV}\nlicence: MIT"), "unknown field"),
        (lambda f: (f / "masks" / "scan_1.nii.gz").rename(f / "masks" / "other.nii.gz"), "has no mask in"),
        (lambda f: (f / "masks" / "card.yaml").write_text("labels: {1: LV}"), "unknown to the convention"),
        (lambda f: nib.save(nib.Nifti1Image(np.zeros((48, 40, 5), np.uint8), np.diag([1.5, 1.5, 8, 1])),
                            f / "masks" / "scan_1.nii.gz"), "1 frames for 2 of the image"),
        (lambda f: nib.save(nib.Nifti1Image(np.zeros((40, 40, 5, 2), np.uint8), np.diag([1.5, 1.5, 8, 1])),
                            f / "masks" / "scan_1.nii.gz"), "is not the image's"),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_are_told(drawn, spoil, told):
    folder, _ = drawn
    spoil(folder)
    with pytest.raises(InputError, match=told):
        list(open_teacher(f"folder:{folder / 'masks'}").label(open_drawn(folder)))


@pytest.mark.parametrize(
    ("segment", "told"),
    [
        (lambda scan: iter([(np.zeros((5, 40, 40), int), None)] * 2), r"a mask of \(5, 40, 40\)"),
        (lambda scan: iter([(np.full(SHAPE, 7), None)] * 2), "are unknown to the convention"),
        (lambda scan: iter([(np.zeros(SHAPE, int), None)]), "labeled 1 of its 2 frames"),
        (lambda scan: iter([(np.full(SHAPE, 0.5), None)] * 2), "not whole numbers"),
        (lambda scan: (1 / 0 for _ in range(2)), r"failed on frame 0 \(ZeroDivisionError"),
    ],
)
def test_a_teacher_that_gives_something_else_is_one_line(segment, told):
    with pytest.raises(InputError, match=told):
        list(outside(segment).label(make_scan()))


def test_a_model_is_refused_for_the_data_it_was_trained_on():
    cohort = new_cohort([{"subject": "a", "image": "/data/acdc/patient001.nii.gz"}])
    card = card_of({"labels": {1: "LV"}, "trained_on": ["ACDC"]}, file="card.yaml")
    with pytest.raises(InputError, match="was trained on ACDC, which this cohort is of"):
        refuse_seen_data(card, cohort, spec="onnx:a")
    refuse_seen_data(replace(card, contaminated=True), cohort, spec="onnx:a")
    refuse_seen_data(card, new_cohort([{"subject": "a", "image": "/data/mine/a.nii.gz"}]), spec="onnx:a")


def by_gray(levels: int):
    """A network that reads the class off the gray value, one class each 100."""
    return lambda batch: (
        -np.abs(batch[:, :1] / 100 - np.arange(levels).reshape(1, -1, *[1] * (batch.ndim - 2)))
    )


@pytest.mark.parametrize(
    "feeding",
    [
        Feeding(size=(64, 64), spacing_mm=(1.5, 1.5), scale="raw"),
        Feeding(size=(80, 96), spacing_mm=(0.75, 0.75), scale="raw"),
        Feeding(size=(80, 80), scale="raw"),
        Feeding(size=(8, 64, 64), spacing_mm=(8.0, 1.5, 1.5), scale="raw"),
        Feeding(size=(8, 48, 64), spacing_mm=(8.0, 1.5, 1.5), scale="raw", axes="reversed"),
    ],
    ids=["own pixels", "finer", "scaled square", "3D", "reversed"],
)
def test_what_a_network_sees_comes_back_where_it_was(feeding):
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:4, 8:30, 10:36], truth[1:4, 14:24, 18:30] = 1, 2
    seen: list[tuple[int, ...]] = []

    def call(batch):
        seen.append(batch.shape[2:])
        return by_gray(3)(batch)

    mask, sure = Feeder(call, feeding, 3).segment(100.0 * truth + 1.0, (8.0, 1.5, 1.5))
    assert set(seen) == {feeding.size[::-1] if feeding.axes == "reversed" else feeding.size}
    assert min(dice(mask == c, truth == c) for c in (1, 2)) > 0.9
    assert sure.shape == SHAPE
    assert sure.min() >= 1 / 3 - 1e-6
    assert sure.max() <= 1 + 1e-6


def test_gray_values_are_scaled_as_the_card_says():
    frame = np.concatenate([np.zeros(50), np.linspace(100, 200, 50)]).reshape(1, 10, 10)
    unit = Feeding(size=(8, 8), clip_percent=(0, 100), nonzero=True, scale="unit").scaled(frame)
    assert (unit.min(), unit.max(), np.count_nonzero(unit == 0)) == (0.0, 1.0, 51)
    window = Feeding(size=(8, 8), window=(0.0, 150.0), scale="zscore").scaled(frame)
    assert abs(window.mean()) < 1e-9
    assert abs(window.std() - 1) < 1e-9


def write_network(folder: Path, card: str) -> Path:
    import torch

    class ByGray(torch.nn.Module):
        def forward(self, image):
            return -(image * 3 - torch.arange(4.0).view(1, -1, 1, 1)).abs() * 50

    torch.jit.save(torch.jit.script(ByGray()), folder / "net.pt")
    (folder / "net.yaml").write_text(card)
    return folder / "net.pt"


CARD = """
name: by gray
labels: {1: RV, 2: MYO, 3: LV}
network: {size: [64, 64], spacing_mm: [1.5, 1.5], clip_percent: [0, 100], scale: unit}
"""


def test_a_torchscript_network_labels_a_cohort(tmp_path, drawn):
    folder, mask = drawn
    image = mask.astype(np.int16) * 100
    nib.save(nib.Nifti1Image(image.T, np.diag([1.5, 1.5, 8.0, 1.0])), folder / "images" / "scan_1.nii.gz")
    teacher = open_teacher(f"torchscript:{write_network(tmp_path, CARD)}")
    found = np.stack([labeled.mask for labeled in teacher.label(open_drawn(folder))])
    np.testing.assert_array_equal(found, np.array([0, 3, 2, 1])[mask])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("size: [64, 64]", "size: [64]"), "give rows and columns"),
        (("spacing_mm: [1.5, 1.5]", "spacing_mm: [1.5]"), "a positive number for each"),
        (("scale: unit", "scale: half"), "its fields are size"),
        (("size: [64, 64], ", ""), "its fields are size"),
        (("3: LV", "5: LV"), "gives 4 channels, its card names label 5"),
    ],
)
def test_a_card_that_does_not_fit_its_network_is_told(tmp_path, change, told):
    file = write_network(tmp_path, CARD.replace(*change))
    with pytest.raises(InputError, match=told):
        list(open_teacher(f"torchscript:{file}").label(make_scan()))


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        ((), "name one"),
        (("folder:a", "folder:a"), "is named twice"),
        (("magic:a",), "no such kind; write one of"),
        (("folder:nowhere",), "no such folder"),
        (("onnx:nowhere.onnx",), "no such file"),
        (("run:nowhere",), "nowhere"),
        (("oracle:evil",), "write one of random"),
        (("oracle",), "no manual labels"),
    ],
)
def test_teachers_that_are_none_are_told(specs, told):
    with pytest.raises(InputError, match=told):
        open_teachers(specs)


def test_a_vote_asks_only_those_who_look_for_a_structure():
    votes = np.array([[1, 2, 0, 3], [1, 1, 0, 0], [2, 2, 0, 0]], np.uint8).reshape(3, 1, 1, 4)
    speaks = np.array([[True, True, True], [True, True, False], [True, True, False]])
    mask, sure = decide(votes, speaks, ("LV", "MYO", "RV"), share=SHARES["majority"])
    assert mask.ravel().tolist() == [1, 2, 0, 3]
    np.testing.assert_allclose(sure.ravel(), [2 / 3, 2 / 3, 1, 1], rtol=1e-6)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_a_majority_is_what_most_say(said):
    votes = np.array(said, np.uint8).reshape(3, 1, 1, 1)
    mask, sure = decide(votes, np.ones((3, 3), bool), ("LV", "MYO", "RV"), share=SHARES["majority"])
    most = max(set(said), key=said.count)
    assert mask.item() == (most if said.count(most) >= 2 else 0)
    assert 0 <= sure.item() <= 1


def test_staple_trusts_the_voters_who_agree():
    random = np.random.default_rng(0)
    truth = random.random((6, 20, 20)) < 0.4
    flip = [0.05, 0.05, 0.45, 0.45, 0.45]  # two good voters, three that hardly know
    said = np.stack([truth ^ (random.random(truth.shape) < share) for share in flip])
    found = staple(said) > 0.5
    assert (found == truth).mean() > 0.93 > (said.mean(0) > 0.5).mean() + (truth != truth).mean()
    alike = np.stack([truth] * 3)
    np.testing.assert_array_equal(staple(alike), truth.astype(float))


def test_an_oracle_errs_as_it_is_told(phantoms):
    cohort = read_cohort(phantoms)
    row = cohort.row(0, named=True)
    scan = open_scan(row)
    truth = np.stack([open_labels(row, scan)[t] for t in range(scan.shape[0])])
    found = {
        kind: np.stack([m.mask for m in open_teacher(f"oracle:{kind}", cohort=cohort).label(scan)])
        for kind in ("clean", "random", "systematic", "random,1")
    }
    np.testing.assert_array_equal(found["clean"], truth)
    assert (found["random"] != found["random,1"]).any()
    scores = {kind: dice(mask > 0, truth > 0) for kind, mask in found.items()}
    assert 0.4 < scores["random"] < 0.95
    assert 0.6 < scores["systematic"] < 0.95
    missed = [(t > 0) & (m == 0) for t, m in zip(truth, found["systematic"])]
    right = [np.flatnonzero(m.any((0, 1))).min() for m in missed]
    assert max(right) - min(right) <= 3, "the same side in every frame"
    again = np.stack([m.mask for m in open_teacher("oracle:random", cohort=cohort).label(scan)])
    np.testing.assert_array_equal(again, found["random"])


def test_spoiling_leaves_an_empty_mask_empty():
    empty = np.zeros(SHAPE, np.uint8)
    assert not spoil_at_random(empty, (8.0, 1.5, 1.5), np.random.default_rng(0)).any()
    assert not miss_a_side(empty).any()


def test_a_card_is_read_from_yaml(tmp_path):
    (tmp_path / "card.yaml").write_text(
        "name: x\nlabels: totalsegmentator\nmodality: CT\ntrained_on: MMWHS\n"
    )
    card = read_card(tmp_path / "card.yaml")
    assert card.structures == ("LV", "MYO", "RV", "LA", "RA", "AO", "PA")
    assert card.trained_on == ("MMWHS",)
    assert outside(None).provenance.labeled == {}
