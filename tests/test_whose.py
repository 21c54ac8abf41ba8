"""Whose scan a file is, by its folders and its name, as labs write them."""

from __future__ import annotations

import pytest

from small_nifti import image, label
from test_names import told


def subjects_of(folder) -> dict[str, str]:
    rows, _ = told(folder)
    return {scan: row["subject"] for scan, row in rows.items()}


@pytest.mark.parametrize(
    "kinds",
    [("sax", "2ch", "4ch"), ("ED", "ES"), ("train", "test"), ("visit1", "visit2"), ("20190312", "20200312")],
)
@pytest.mark.parametrize("inside", ["images", "."])
def test_folders_of_a_kind_of_scans_are_no_people(tmp_path, kinds, inside):
    for number, kind in enumerate(kinds):
        for person in (1, 2):
            image(tmp_path / inside / kind / f"P0{person}.nii.gz", seed=10 * number + person)
    found = set(subjects_of(tmp_path).values())
    assert found == {"P01", "P02"}


def test_views_and_phases_may_stand_in_folders(tmp_path):
    image(tmp_path / "4ch" / "ES" / "P01.nii.gz")
    image(tmp_path / "short_axis" / "ED" / "P01.nii.gz")
    rows, _ = told(tmp_path)
    assert {(row["view"], row["phase"]) for row in rows.values()} == {("4CH", "ES"), ("SAX", "ED")}


def test_numbers_of_several_sites_are_several_people(tmp_path):
    for site in ("siteA", "siteB"):
        image(tmp_path / site / "P01.nii.gz", seed=len(site))
        image(tmp_path / site / "P02" / "sax.nii.gz")
    assert set(subjects_of(tmp_path).values()) == {"siteA_P01", "siteA_P02", "siteB_P01", "siteB_P02"}


@pytest.mark.parametrize("folder", ["Images", "imagesTr", "nifti", "cohort_7", "."])
def test_people_in_one_folder_are_told_by_their_names(tmp_path, folder):
    for person in ("P01", "P02"):
        image(tmp_path / folder / f"{person}.nii.gz", seed=ord(person[-1]))
    assert set(subjects_of(tmp_path).values()) == {"P01", "P02"}


def test_views_in_one_folder_are_of_one_person(tmp_path):
    for view in ("sax", "2ch"):
        image(tmp_path / "patient7" / f"{view}.nii.gz", seed=len(view))
    assert set(subjects_of(tmp_path).values()) == {"patient7"}


@pytest.mark.parametrize(
    "names",
    [("HCM_S01", "HCM_S02"), ("PID_T001_cine", "PID_T002_cine"), ("HCM_20190012", "HCM_20190013"),
     ("20190012/cine", "20190013/cine"), ("TP001/sax", "TP002/sax"), ("scan001/img", "scan002/img"),
     ("study7/sax", "study8/sax"), ("imagesTr/001", "imagesTr/002")],
)  # fmt: skip
def test_numbers_of_people_are_kept(tmp_path, names):
    for name in names:
        image(tmp_path / f"{name}.nii.gz", seed=len(name) + ord(name[-5]))
    assert len(set(subjects_of(tmp_path).values())) == 2


def test_maps_of_one_person_are_of_one(tmp_path):
    for name in ("T1_map", "T2_map"):
        image(tmp_path / "P01" / f"{name}.nii.gz", seed=ord(name[1]))
    assert set(subjects_of(tmp_path).values()) == {"P01"}


def test_files_of_one_name_in_several_folders_are_all_listed(tmp_path):
    for number, folder in enumerate(("P01/anat", "P01/func", "imagesTr", "imagesTs")):
        image(tmp_path / folder / "001.nii.gz", seed=number)
    rows, _ = told(tmp_path)
    assert len(rows) == 4


def test_the_innermost_folder_says_what_files_are(tmp_path):
    image(tmp_path / "Segmentation" / "Images" / "P01.nii.gz")
    label(tmp_path / "Segmentation" / "Labels" / "P01.nii.gz")
    image(tmp_path / "manual" / "P02_image.nii.gz")
    label(tmp_path / "manual" / "P02_label.nii.gz")
    rows, _ = told(tmp_path)
    assert [bool(row["label"]) for row in rows.values()] == [True, True]


def test_bids_tells_the_person_wherever_it_stands(tmp_path):
    for visit in ("ses-1", "ses-2"):
        name = f"sub-01_{visit}_run-1_cine"
        image(tmp_path / "sub-01" / visit / "anat" / f"{name}.nii.gz", seed=len(visit))
        label(tmp_path / "derivatives" / "manual" / "sub-01" / visit / "anat" / f"{name}_dseg.nii.gz")
    image(tmp_path / "derivatives" / "denoised" / "sub-01" / "sub-01_ses-1_run-1_cine.nii.gz")
    rows, notes = told(tmp_path)
    assert [(row["subject"], bool(row["label"])) for row in rows.values()] == [("sub-01", True)] * 2
    assert "in no row: sub-01_ses-1_run-1_cine.nii.gz" in notes


@pytest.mark.parametrize("name", ["P01_20190312", "P01_followup", "P01_visit2_ED", "P01_stress", "P01_t07"])
def test_visits_and_frames_are_no_people(tmp_path, name):
    image(tmp_path / f"{name}.nii.gz")
    image(tmp_path / "P02.nii.gz", seed=3)
    assert subjects_of(tmp_path)[name] == "P01"
