"""Layouts of source folders: which files are images and labels, and of whom."""

from __future__ import annotations

import json

import polars as pl
import pytest

from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.data.files import open_labels, open_scan
from fewbeats.data.index import index
from fewbeats.data.split import labeled_subjects
from fewbeats.errors import InputError
from small_nifti import image, label, rows_of


def test_acdc(tmp_path):
    for patient, ed, es in (("patient001", 1, 12), ("patient007", 4, 9)):
        folder = tmp_path / "training" / patient
        for frame in (ed, es):
            image(folder / f"{patient}_frame{frame:02d}.nii.gz", seed=frame)
            label(folder / f"{patient}_frame{frame:02d}_gt.nii.gz")
        text = f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(text)
    image(tmp_path / "training/patient007/patient007_4d.nii.gz", 12)
    cohort = index(tmp_path, layout="acdc")
    assert cohort.height == 5
    row = rows_of(cohort)["patient007_frame09"]
    assert (row["frame"], row["phase"], row["group"], row["height_cm"]) == (8, "ES", "DCM", 184.0)
    assert (row["convention"], row["slice_order"], row["slices"], row["columns"]) == (
        "acdc", "base_first", 4, 12)  # fmt: skip
    cine = rows_of(cohort)["patient007_4d"]
    assert (cine["frame"], cine["label"], cine["frames"], cine["ed_frame"], cine["es_frame"]) == (
        None, None, 12, 3, 8)  # fmt: skip
    assert labeled_subjects(cohort.with_columns(split=pl.lit("train")), 2, 0)


def test_mnms(tmp_path):
    for subject, place in (("A0S9V9", "Training/Labeled"), ("B1", "Training/Unlabeled")):
        image(tmp_path / place / subject / f"{subject}_sa.nii.gz", 6)
        label(tmp_path / place / subject / f"{subject}_sa_gt.nii.gz", 6, drawn=[0, 4])
    (tmp_path / "info.csv").write_text(
        "External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"
        "A0S9V9,Siemens,A,1,0,4,28,HCM,M,176,82\nB1,Siemens,B,1,0,4.0,28,NOR,M,,nan\n"
    )
    rows = rows_of(index(tmp_path, layout="mnms"))
    row = rows["A0S9V9_sa"]
    assert (row["label_frames"], row["group"], row["vendor"], row["ed_frame"]) == ("0;4", "HCM", "A", 0)
    assert open_labels(row, open_scan(row)).keys() == {0, 4}
    assert (rows["B1_sa"]["label"], rows["B1_sa"]["weight_kg"]) == (None, None)
    label(tmp_path / "Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz", 6, drawn=[0])
    with pytest.raises(InputError, match=r"A0S9V9_sa_gt.*empty on one of the frames 0;4"):
        index(tmp_path, layout="mnms")
    table = tmp_path / "info.csv"
    table.write_text(table.read_text().replace("A,1,0,4", "A,1,0,99"))
    with pytest.raises(InputError, match=r"A0S9V9_sa_gt.*frames 0;99, but the image has frames 0 to 5;"):
        index(tmp_path, layout="mnms")
    single = label(tmp_path / "single.nii.gz")
    with pytest.raises(InputError, match=r"single.*label frames 6, but"):
        open_labels({**row, "label": str(single), "label_frames": "6"}, open_scan(row))


def nnunet_source(folder, labels, **more):
    for case in ("patient001_frame01", "patient002_frame07"):
        image(folder / "imagesTr" / f"{case}_0000.nii.gz", seed=1)
        label(folder / "labelsTr" / f"{case}.nii.gz", values=(1, 2))
    image(folder / "imagesTs" / "patient009_frame01_0000.nii.gz", seed=2)
    content = {"channel_names": {"0": "cineMRI"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunet(tmp_path):
    source = nnunet_source(tmp_path, {"background": 0, "RV": 1, "left ventricle": 2})
    rows = rows_of(index(source, layout="nnunet"))
    assert set(rows) == {"patient001_frame01", "patient002_frame07", "patient009_frame01"}
    row = rows["patient001_frame01"]
    assert (row["subject"], row["modality"], row["split"]) == ("patient001", "MR", None)
    assert rows["patient009_frame01"]["split"] == "test"
    write_cohort(index(source, layout="nnunet"), tmp_path / "c.csv")
    assert read_cohort(tmp_path / "c.csv").height == 3
    image(source / "imagesTr/patient001_frame01_0001.nii.gz")
    with pytest.raises(InputError, match=r"_0001.*second channel"):
        index(source, layout="nnunet")


def test_nnunet_labels_of_another_kind(tmp_path):
    source = nnunet_source(tmp_path, {"background": 0, "liver": 1, "spleen": 2})
    with pytest.raises(InputError, match=r"dataset\.json: 'liver' is no structure"):
        index(source, layout="nnunet")
    own = tmp_path / "own.csv"
    own.write_text("value,structure\n1,LV\n2,OTHER\n")
    assert index(source, layout="nnunet", convention=str(own))["convention"].unique().to_list() == [str(own)]
    nnunet_source(tmp_path, {"LV": 1}, file_ending=".png")
    with pytest.raises(InputError, match=r"\.png"):
        index(source, layout="nnunet")


def test_msd(tmp_path):
    image(tmp_path / "imagesTr/la_003.nii.gz")
    label(tmp_path / "labelsTr/la_003.nii.gz", values=(1,))
    image(tmp_path / "imagesTs/la_009.nii.gz")
    dataset = {
        "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left atrium"},
        "training": [{"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"}],
        "test": ["./imagesTs/la_009.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    rows = rows_of(index(tmp_path, layout="msd"))
    assert (rows["la_003"]["modality"], rows["la_009"]["split"]) == ("MR", "test")
    dataset["modality"] = {"0": "T2", "1": "ADC"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(InputError, match=r"several channels \(T2, ADC\)"):
        index(tmp_path, layout="msd")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"training": None}, "'training' is not a list"),
        ({"training": 5}, "'training' is not a list"),
        ({"test": {"image": "a.nii.gz"}}, "'test' is not a list"),
        ({"training": [5]}, "names no file"),
        ({"training": [{"image": "a.nii.gz", "label": 5}]}, "names no file"),
        ({"test": [None]}, "names no file"),
    ],
)
def test_malformed_list_of_a_decathlon_set(tmp_path, entries, complaint):
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=rf"dataset\.json: .*{complaint}"):
        index(tmp_path, layout="msd")


def test_folder_with_labels_apart_beside_and_in_subfolders(tmp_path):
    apart, beside, nested = (tmp_path / n for n in ("apart", "beside", "nested"))
    image(apart / "images/a_ED.nii.gz")
    label(apart / "labels/a_ED.nii.gz")
    image(apart / "images/b_4d.nii.gz", 3)
    label(apart / "labels/b_4d.nii.gz", 3, drawn=[1, 2])
    rows = rows_of(index(apart, layout="folder", convention="mnms"))
    assert (rows["a_ED"]["subject"], rows["a_ED"]["phase"]) == ("a", "ED")
    assert (rows["b_4d"]["subject"], rows["b_4d"]["label_frames"]) == ("b", "1;2")
    image(beside / "c_4d.nii.gz", 3)
    label(beside / "c_label.nii")
    (beside / "._c_label.nii").write_text("a Mac was here")
    image(beside / "d_frame05.nii.gz")
    rows = rows_of(index(beside, layout="folder", convention="mnms"))
    assert rows["c_4d"]["label_frames"] == "0"
    assert (rows["d_frame05"]["subject"], rows["d_frame05"]["frame"], rows["d_frame05"]["label"]) == (
        "d", 5, None)  # fmt: skip
    for subject in ("p", "q"):
        image(nested / f"images/{subject}/sax.nii.gz")
        label(nested / f"labels/{subject}/sax_seg.nii.gz")
    cohort = index(nested, layout="folder", convention="mnms")
    assert cohort.select("subject", "scan").rows() == [("p", "p_sax"), ("q", "q_sax")]
    assert cohort["label"].null_count() == 0


def test_phases_are_read_from_names_however_they_are_written(tmp_path):
    for name in ("a_ED", "a_es", "b-ed", "c_red"):
        image(tmp_path / f"{name}.nii.gz")
    found = index(tmp_path, layout="folder").sort("scan").select("subject", "phase").rows()
    assert found == [("a", "ED"), ("a", "ES"), ("b", "ED"), ("c_red", None)]


def test_links_to_folders_are_followed_once(tmp_path):
    elsewhere, src = tmp_path / "elsewhere", tmp_path / "src"
    for patient in ("patient001", "patient002"):
        image(elsewhere / patient / f"{patient}_frame01.nii.gz")
        (elsewhere / patient / "Info.cfg").write_text("ED: 1\nES: 2\n")
        (elsewhere / patient / "up").symlink_to(src)
        src.mkdir(exist_ok=True)
        (src / patient).symlink_to(elsewhere / patient)
    for layout in ("acdc", "folder"):
        cohort = index(src, layout=layout)
        assert sorted(cohort["subject"]) == ["patient001", "patient002"]


def test_phantom(tmp_path):
    from fewbeats.phantom.cohort import write_cohort as write_phantom
    from fewbeats.phantom.scan import PhantomSettings

    write_phantom(tmp_path, PhantomSettings(subjects=2, frames=2, matrix=32, pixel_mm=(6.0, 7.0)))
    cohort = index(tmp_path, layout="phantom")
    assert cohort["convention"].unique().to_list() == ["fewbeats:LV+MYO+RV"]
    assert cohort["frames"].to_list() == [2, 2]
    truth = pl.read_csv(tmp_path / "subjects.csv")
    for name in ("subject", "group", "height_cm", "weight_kg", "ed_frame", "es_frame"):
        assert cohort[name].to_list() == truth[name].to_list()
