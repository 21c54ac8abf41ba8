"""What file names say of subjects, frames and masks, and what is told of files that fit nowhere."""

from __future__ import annotations

import os
import shutil
import unicodedata

import nibabel as nib
import numpy as np
import pytest

from fewbeats.cli import main
from fewbeats.data.index import index
from fewbeats.errors import InputError
from small_nifti import AFFINE, image, label, rows_of, save

HEART = np.zeros((4, 24, 24), np.uint8)
HEART[1:3, 6:16, 8:18], HEART[1:3, 8:14, 10:16], HEART[1:3, 6:16, 2:8] = 2, 1, 3  # MYO around LV, RV beside


def told(folder, **options) -> tuple[dict, str]:
    notes: list[str] = []
    cohort = index(folder, tell=notes.append, **{"layout": "folder", "convention": "mnms", **options})
    return rows_of(cohort), "; ".join(notes)


@pytest.mark.parametrize(
    ("name", "subject", "plane"),
    [
        ("sub-01_ses-2_cine", "sub-01", None),
        ("001_SA_CINE", "001", "SAX"),
        ("001_LA_ED", "001", None),
        ("p7_4ch_frame03", "p7", "4CH"),
        ("patient001_4d", "patient001", None),
        ("SA_ED", "SA", None),
    ],
)
def test_subject_and_plane_of_a_name(tmp_path, name, subject, plane):
    image(tmp_path / f"{name}.nii.gz")
    rows, _ = told(tmp_path)
    assert (rows[name]["subject"], rows[name]["view"]) == (subject, plane)


def test_folders_that_all_files_lie_in_are_no_subject(tmp_path):
    for patient in ("001", "002"):
        image(tmp_path / "dataset" / patient / f"{patient}_SA_ED.nii.gz")
    rows, _ = told(tmp_path)
    assert {row["subject"] for row in rows.values()} == {"001", "002"}


@pytest.mark.parametrize(
    "ending", ["_truth", "_dseg", "_seg", "-label", ".mask", "_manual", "_annotation", "_GT"]
)
def test_a_mask_by_any_usual_ending_is_its_images_label(tmp_path, ending):
    image(tmp_path / "p1_cine.nii.gz")
    label(tmp_path / f"p1_cine{ending}.nii.gz")
    rows, notes = told(tmp_path)
    assert list(rows) == ["p1_cine"]
    assert rows["p1_cine"]["label"]
    assert not notes


@pytest.mark.parametrize("name", ["labels", "masks", "Segmentations"])
@pytest.mark.parametrize("images", ["images", "."])
def test_a_folder_of_masks_by_any_usual_name(tmp_path, name, images):
    image(tmp_path / images / "p1.nii.gz")
    label(tmp_path / name.lower() / "p1.nii.gz")
    rows, _ = told(tmp_path)
    assert [bool(row["label"]) for row in rows.values()] == [True]


def test_what_looks_like_a_mask_is_no_image(tmp_path):
    image(tmp_path / "p1.nii.gz")
    label(tmp_path / "outlines_by_hand.nii.gz")
    rows, notes = told(tmp_path)
    assert list(rows) == ["p1"]
    assert "left out, as they look like masks: outlines_by_hand" in notes


def test_masks_of_single_structures_and_other_formats_are_named(tmp_path):
    image(tmp_path / "s1" / "ct.nii.gz")
    label(tmp_path / "s1" / "segmentations" / "heart_myocardium.nii.gz", values=(1,))
    (tmp_path / "s1" / "p0.seg.nrrd").write_bytes(b"NRRD0004")
    rows, notes = told(tmp_path)
    assert list(rows) == ["s1_ct"] or list(rows) == ["ct"]
    assert "in no row: heart_myocardium.nii.gz" in notes
    assert "not read: p0.seg.nrrd; save what is wanted of these as .nii.gz" in notes


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_letter_written_in_two_ways_is_one_name(tmp_path, forms):
    one, other = (unicodedata.normalize(form, "Müller_ED.nii.gz") for form in forms)
    image(tmp_path / "images" / one)
    label(tmp_path / "labels" / other)
    (tmp_path / "split.csv").write_text(f"subject,split\n{unicodedata.normalize(forms[1], 'Müller')},dev\n")
    rows, _ = told(tmp_path, split_file=tmp_path / "split.csv")
    assert [(bool(row["label"]), row["split"]) for row in rows.values()] == [(True, "dev")]


def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path, capfd):
    image(tmp_path / "x.nii.gz")
    shutil.move(tmp_path / "x.nii.gz", os.fsencode(tmp_path) + b"/M\xfcller.nii.gz")
    assert main(["index", str(tmp_path), "--layout=folder", f"--out={tmp_path / 'c.csv'}"]) == 2
    said = capfd.readouterr().err
    assert "its name is not UTF-8; rename it" in said
    assert said.count("\n") == 1


def test_acdc_with_labels_of_another_suffix_and_files_in_folders_of_their_name(tmp_path):
    for patient, suffix in (("patient001", ".nii"), ("patient002", ".nii.gz")):
        folder = tmp_path / patient
        for frame in (1, 9):
            name = f"{patient}_frame{frame:02}"
            image(folder / f"{name}.nii" / f"{name}.nii")
            label(folder / f"{name}_gt{suffix}")
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\n")
    rows = rows_of(index(tmp_path, layout="acdc"))
    assert [bool(row["label"]) for row in rows.values()] == [True] * 4


def test_a_label_of_one_frame_of_a_cine_gets_a_mend_that_works(tmp_path):
    image(tmp_path / "images" / "p1_4d.nii.gz", 3)
    label(tmp_path / "labels" / "p1_frame02.nii.gz")
    with pytest.raises(InputError, match=r"labels one frame of p1_4d\.nii\.gz; save one mask of all frames"):
        told(tmp_path)
    (tmp_path / "labels" / "p1_frame02.nii.gz").unlink()
    label(tmp_path / "labels" / "p1_4d.nii.gz", 3, drawn=[2])
    rows, _ = told(tmp_path)
    assert rows["p1_4d"]["label_frames"] == "2"


def test_all_bad_files_are_named_or_left_out(tmp_path):
    for name, values in (("a", (9,)), ("b", (1,)), ("c", (8,))):
        image(tmp_path / "images" / f"{name}.nii.gz")
        label(tmp_path / "labels" / f"{name}.nii.gz", values=values)
    with pytest.raises(
        InputError, match=r"2 scans cannot be used \(--leave-out .*a\.nii\.gz.* \| .*c\.nii\.gz"
    ):
        told(tmp_path)
    rows, notes = told(tmp_path, leave_out=True)
    assert list(rows) == ["b"]
    assert "left out: " in notes


def test_exchanged_ventricles_are_told(tmp_path):
    for name in ("a", "b"):
        rng = np.random.default_rng(0)
        save(tmp_path / "images" / f"{name}.nii.gz", rng.integers(0, 900, HEART.shape).astype(np.int16))
        save(tmp_path / "labels" / f"{name}.nii.gz", HEART)
    assert "exchanged" not in told(tmp_path)[1]
    assert "RV lies within MYO in 2 of 2 labels; check" in told(tmp_path, convention="acdc")[1]


def test_values_like_those_of_ct_are_told(tmp_path):
    save(tmp_path / "p.nii.gz", np.random.default_rng(0).integers(-1000, 900, (4, 8, 8)).astype(np.int16))
    assert "look like Hounsfield units: p; write CT" in told(tmp_path)[1]
    rows, notes = told(tmp_path, layout="folder")
    assert rows["p"]["modality"] is None
    assert notes


@pytest.mark.parametrize(
    ("pattern", "subjects"),
    [("^heart_[0-9]{2}", {"heart_08", "heart_09"}), ("^heart_([0-9]{2})", {"08", "09"})],
)
def test_a_labs_own_pattern_finds_the_subject(tmp_path, pattern, subjects, capfd):
    for name in ("heart_0800", "heart_0801", "heart_0900"):
        image(tmp_path / f"{name}.nii.gz")
    rows, _ = told(tmp_path, subject=pattern)
    assert {row["subject"] for row in rows.values()} == subjects
    draw = [
        "index",
        str(tmp_path),
        "--layout=folder",
        "--draw",
        "0.5",
        "0.25",
        "0.25",
        f"--out={tmp_path / 'c.csv'}",
    ]
    assert main(draw) == 0
    assert "drawn by 3 names: heart_0800" in capfd.readouterr().out
    assert main([*draw, f"--subject={pattern}"]) == 0
    assert "drawn by" not in capfd.readouterr().out


@pytest.mark.parametrize("pattern", ["(", "^patient"])
def test_a_pattern_that_finds_nothing_is_refused(tmp_path, pattern):
    image(tmp_path / "heart_0800.nii.gz")
    with pytest.raises(InputError, match="--subject"):
        told(tmp_path, subject=pattern)


def test_an_oblique_mask_is_still_the_labels(tmp_path):
    turned = AFFINE @ nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.1), [1, 2, 3])
    image(tmp_path / "p_ED.nii.gz", affine=turned)
    label(tmp_path / "p_ED_truth.nii.gz", affine=turned)
    assert [bool(row["label"]) for row in told(tmp_path)[0].values()] == [True]


# Masks that are not one mask of all, by any name


@pytest.mark.parametrize(
    ("images", "labels"),
    [("Images", "Labels"), ("images", "ground_truth"), ("img", "gt"), ("image", "mask"), (".", "LabelMaps"),
     ("imagesTr", "labelsTr"), ("P01/images", "P01/labels"), ("images/P01", "labels/P01")],
)  # fmt: skip
def test_folders_of_images_and_masks_by_any_usual_names(tmp_path, images, labels):
    image(tmp_path / images / "P01.nii.gz")
    label(tmp_path / labels / "P01.nii.gz")
    rows, notes = told(tmp_path)
    assert [(row["subject"], bool(row["label"])) for row in rows.values()] == [("P01", True)]
    assert not notes


@pytest.mark.parametrize("name", ["labels/P01_LV", "labels/P01_MYO", "P01_rv_mask", "labels/P01/LV"])
def test_a_mask_of_one_structure_is_to_be_joined(tmp_path, name):
    image(tmp_path / "images" / "P01.nii.gz")
    label(tmp_path / f"{name}.nii.gz", values=(1,))
    rows, notes = told(tmp_path)
    assert [row["label"] for row in rows.values()] == [None]
    assert "masks of single structures are to be joined to one of all, called like the image" in notes


@pytest.mark.parametrize("name", ["P01_ED_seg", "P01_t03_seg", "labels/P01_phase3"])
def test_a_label_of_one_phase_of_a_cine_gets_a_mend_that_works(tmp_path, name):
    image(tmp_path / "P01_4d.nii.gz", 4)
    label(tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match=r"labels one frame of P01_4d\.nii\.gz; save one mask of all frames"):
        told(tmp_path)


def test_what_was_left_out_is_not_said_twice(tmp_path):
    image(tmp_path / "P01.nii.gz")
    label(tmp_path / "drawn.nii.gz")
    (tmp_path / "P02.nii.gz").write_bytes(b"")
    _, notes = told(tmp_path, leave_out=True)
    assert notes.count("drawn") == notes.count("P02") == 1


def test_a_map_of_probabilities_is_no_image_and_a_mask_of_many_structures_is_told(tmp_path):
    image(tmp_path / "P01.nii.gz")
    many = np.repeat(np.repeat(np.arange(60).reshape(6, 10, 1), 4, 0), 4, 1).repeat(3, 2)
    save(tmp_path / "everything.nii.gz", many.astype(np.uint8))
    save(tmp_path / "P01_prob.nii.gz", np.random.default_rng(0).random((12, 12, 4)).astype(np.float32))
    rows, notes = told(tmp_path)
    assert list(rows) == ["P01", "everything"]
    assert "left out, as they look like masks: P01_prob;" in notes
    assert "look like masks of many structures: everything; take them out where they are" in notes


def test_an_image_of_few_gray_values_is_an_image(tmp_path):
    """As one of 8 bits that was interpolated, or has another border than 0."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (6, 6, 3)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    save(tmp_path / "P01.nii.gz", coarse)
    bordered = np.ones((24, 24, 3), np.uint8)
    bordered[8:16, 8:16] = rng.integers(2, 250, (8, 8, 3))
    save(tmp_path / "P02.nii.gz", bordered)
    rows, notes = told(tmp_path)
    assert (list(rows), notes) == (["P01", "P02"], "")


@pytest.mark.parametrize(
    ("values", "inner", "outer"),
    [((1, 3, 2), "LV", "RV"), ((2, 1, 3), "MYO", "LV"), ((3, 2, 1), "RV", "MYO"), ((2, 3, 1), "MYO", "RV"),
     ((3, 1, 2), "RV", "LV")],
)  # fmt: skip
def test_any_exchange_of_structures_is_told(tmp_path, values, inner, outer):
    """`values`: what LV, MYO and RV of the heart are called."""
    called = np.array([0, *values], np.uint8)
    rng = np.random.default_rng(0)
    save(tmp_path / "images" / "a.nii.gz", rng.integers(0, 900, HEART.shape).astype(np.int16))
    save(tmp_path / "labels" / "a.nii.gz", called[HEART])
    _, notes = told(tmp_path, convention="fewbeats")
    assert f"what is called {inner} lies within {outer} in 1 of 1 labels" in notes


def test_the_first_group_of_a_pattern_that_found_something_counts(tmp_path):
    for name in ("P01_x", "sub-12_y"):
        image(tmp_path / f"{name}.nii.gz", seed=len(name))
    rows, _ = told(tmp_path, subject=r"^(P\d+)|^(sub-\d+)")
    assert {row["subject"] for row in rows.values()} == {"P01", "sub-12"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Subject,split\nP01,dev\n", "has no column 'subject'; rename 'Subject' to it"),
        ("subject,split,split\nP01,dev,train\n", "has the column 'split' twice"),
        ("subject,split\nM\xfcller,dev\n", "not UTF-8 text; save it as CSV UTF-8"),
    ],
)
def test_a_faulty_table_is_called_by_its_fault(tmp_path, text, why):
    image(tmp_path / "P01.nii.gz")
    (tmp_path / "s.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=why):
        told(tmp_path, split_file=tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("subject,split\nP01,Dev\n")
    assert [row["split"] for row in told(tmp_path, split_file=tmp_path / "s.csv")[0].values()] == ["dev"]
