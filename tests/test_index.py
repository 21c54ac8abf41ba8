"""What indexing finds out about files: spacing, slice order, DICOM folders and labels."""

from __future__ import annotations

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest

from fewbeats.cli import main
from fewbeats.data.cohort import new_cohort, read_cohort, write_cohort
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import check_files, open_labels, open_scan
from fewbeats.data.index import attach_labels, index
from fewbeats.data.split import read_subject_list
from fewbeats.errors import InputError
from small_nifti import AFFINE, SHAPE, image, label, rows_of, save


def test_nominal_spacing_is_not_trusted(tmp_path):
    image(tmp_path / "a.nii.gz", affine=np.diag([1.0, 1.0, 10.0, 1.0]))
    image(tmp_path / "b.nii.gz", affine=np.diag([1.2, 1.2, 10.0, 1.0]), seed=1)
    label(tmp_path / "a_gt.nii.gz", affine=np.diag([1.0, 1.0, 10.0, 1.0]))
    rows = rows_of(index(tmp_path, layout="folder", convention="emidec"))
    assert (rows["a"]["spacing_trusted"], rows["b"]["spacing_trusted"]) == (False, True)
    assert (rows["a"]["slice_order"], rows["a"]["sequence"]) == ("apex_first", "lge")
    assert index(tmp_path, layout="folder", convention="acdc")["slice_order"].null_count() == 2


def test_nominal_spacing_in_a_header_without_an_affine(tmp_path):
    bare = nib.Nifti1Image(np.arange(1, 481, dtype=np.int16).reshape(SHAPE).T, None)
    for name, pixel_mm in (("a", 1.0), ("b", 1.2)):
        bare.header.set_zooms((pixel_mm, pixel_mm, 10.0))  # both codes stay 0
        nib.save(bare, tmp_path / f"{name}.nii.gz")
    assert index(tmp_path, layout="folder")["spacing_trusted"].to_list() == [False, True]


def test_slice_order_is_that_of_the_slices_as_read(tmp_path):
    upward = np.array(
        [[0, 1.4, 0, 5], [-1.4, 0, 0, 2], [0, 0, 8.0, 1], [0, 0, 0, 1]]
    )  # read foot-down: turned
    image(tmp_path / "a.nii.gz", affine=upward)
    cohort = index(tmp_path, layout="folder", convention="emidec")
    scan = open_scan(cohort.row(0, named=True))
    assert scan.source.reorientation.flipped[0]
    assert cohort["slice_order"].to_list() == ["base_first"]


# DICOM


def dicom_series(folder, *, orientation, slices, seed):
    """A series of single-frame MR files, by pydicom."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, rng = generate_uid(), np.random.default_rng(seed)
    normal = np.cross(orientation[:3], orientation[3:])
    for z in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.Modality = "Doe^Jane", "4711", "MR"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = "1.2.3", series, z + 1
        data.FrameOfReferenceUID, data.PixelSpacing = "1.2.4", [1.5, 1.5]
        data.ImageOrientationPatient = list(orientation)
        data.ImagePositionPatient = [float(v) for v in normal * 8.0 * z]
        data.Rows, data.Columns, data.SamplesPerPixel = 10, 12, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PixelData = rng.integers(1, 900, (10, 12)).astype(np.uint16).tobytes()
        data.save_as(folder / f"{seed}_{z}.dcm", enforce_file_format=True)


def test_dicom_folders_are_subjects_and_may_hold_several_scans(tmp_path):
    dicom_series(tmp_path / "src/v1", orientation=(1, 0, 0, 0, 1, 0), slices=3, seed=1)
    dicom_series(tmp_path / "src/v1", orientation=(0, 1, 0, 0, 0, -1), slices=5, seed=2)
    dicom_series(tmp_path / "src/v2", orientation=(1, 0, 0, 0, 1, 0), slices=4, seed=3)
    cohort = index(tmp_path / "src", layout="dicom")
    assert cohort.select("subject", "scan").rows() == [("v1", "v1_1"), ("v1", "v1_2"), ("v2", "v2")]
    assert sorted(cohort["slices"]) == [3, 4, 5]
    assert set(cohort["modality"]) == {"MR"}
    write_cohort(cohort, tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_text()
    assert "src/v1#2" in text
    assert "Doe" not in text
    assert "4711" not in text
    back = read_cohort(tmp_path / "c.csv")
    check_files(back)
    for row in back.iter_rows(named=True):
        assert open_scan(row).shape[1] == row["slices"]
    alone = index(tmp_path / "src/v2", layout="dicom")
    assert alone["subject"].to_list() == ["v2"]
    shutil.rmtree(tmp_path / "src/v1")
    dicom_series(tmp_path / "src/v1", orientation=(1, 0, 0, 0, 1, 0), slices=3, seed=1)
    with pytest.raises(InputError, match="asks for number 2; index it again"):
        open_scan(rows_of(back)["v1_2"])


def mend_in_a_viewer(seg):
    """A person has worked on the first segment of a DICOM SEG."""
    import pydicom

    data = pydicom.dcmread(seg)
    data.SegmentSequence[0].SegmentAlgorithmType = "SEMIAUTOMATIC"
    data.save_as(seg)


def test_a_prediction_in_a_dicom_folder_is_no_manual_label(tmp_path, capsys):
    from fewbeats.io.dicom import read_dicom
    from fewbeats.io.dicom_seg import write_seg
    from synthetic_dicom import write_cine

    for subject in ("v1", "v2"):
        write_cine(tmp_path / "src" / subject)
        (scan,) = read_dicom(tmp_path / "src" / subject)
        mask = np.zeros(scan.shape, np.uint8)
        mask[:, 1, 2:5, 3:6], mask[:, 2, 2:5, 3:6] = 1, 2
        predicted = write_seg(mask, scan, tmp_path / "src" / subject / "seg", structures=["LV", "MYO"])
    assert main(["index", str(tmp_path / "src"), "--layout=dicom", f"--out={tmp_path / 'c.csv'}"]) == 0
    said = capsys.readouterr().out
    assert "2 scans of 2 subjects, 0 labeled" in said
    assert "labels made by a program: 2;" in said
    assert read_cohort(tmp_path / "c.csv")["label_source"].to_list() == ["pseudo", "pseudo"]
    own = tmp_path / "src/v2/own"
    for drawn in write_seg(mask * (mask == 1), scan, own, structures=["LV"]):
        mend_in_a_viewer(drawn)
    rows = rows_of(index(tmp_path / "src", layout="dicom"))
    assert (rows["v2"]["label"], rows["v2"]["label_source"]) == (str(own), "manual")
    assert rows["v2"]["convention"] == "fewbeats:LV"  # the network's MYO is not its background
    assert rows["v1"]["convention"] == "fewbeats:LV+MYO"
    shutil.rmtree(own)
    mend_in_a_viewer(predicted[0])
    row = rows_of(index(tmp_path / "src", layout="dicom"))["v2"]
    assert (row["label"], row["label_frames"]) == (str(predicted[0]), "0")
    shutil.move(tmp_path / "src/v2/seg", tmp_path / "elsewhere")
    (tmp_path / "src/v2/linked").symlink_to(tmp_path / "elsewhere")
    row = rows_of(index(tmp_path / "src", layout="dicom"))["v2"]
    assert row["label"] == str(tmp_path / "src/v2/linked" / predicted[0].name)


def test_a_structure_that_no_label_holds_is_left_out_with_a_word(tmp_path, capsys):
    for name in ("a", "b"):
        image(tmp_path / f"src/{name}.nii.gz")
        label(tmp_path / f"src/{name}_gt.nii.gz", values=(2, 3))
    words = ["index", str(tmp_path / "src"), "--layout=folder", "--convention=acdc"]
    assert main([*words, f"--out={tmp_path / 'c.csv'}"]) == 0
    assert "no label holds RV, so none is trained or judged" in capsys.readouterr().out
    cohort = read_cohort(tmp_path / "c.csv")
    assert cohort["convention"].unique().to_list() == ["acdc:MYO+LV"]
    assert find_convention("acdc:MYO+LV").speaks_of == {"LV", "MYO"}
    label(tmp_path / "src/b_gt.nii.gz", values=(1,))  # one of them holds it
    assert index(tmp_path / "src", layout="folder", convention="acdc")["convention"][0] == "acdc"


def test_masks_of_dicom_scans_come_by_name(tmp_path):
    from fewbeats.io.nifti import write_like

    dicom_series(tmp_path / "src/v2", orientation=(0, 1, 0, 0, 0, -1), slices=4, seed=3)
    scan = open_scan(index(tmp_path / "src", layout="dicom").row(0, named=True))
    mask = np.zeros(scan.shape[1:], np.uint8)
    mask[1, 2:5, 3:6] = 3
    write_like(tmp_path / "fixed/v2.nii.gz", [mask], scan=scan)
    row = index(tmp_path / "src", layout="dicom", labels=tmp_path / "fixed").row(0, named=True)
    assert row["convention"] == "fewbeats:RV"
    assert np.array_equal(open_labels(row, scan)[0], mask)


# Labels


def test_corrected_predictions_come_back_as_manual_labels(tmp_path):
    for name in ("a", "b", "c"):
        image(tmp_path / f"src/{name}.nii.gz")
    label(tmp_path / "src/a_gt.nii.gz")
    label(tmp_path / "fixed/a.nii.gz", values=(1, 2))
    label(tmp_path / "fixed/b_label.nii.gz", values=(1,))
    rows = rows_of(index(tmp_path / "src", layout="folder", convention="acdc", labels=tmp_path / "fixed"))
    assert rows["a"]["label"] == str(tmp_path / "fixed/a.nii.gz")
    assert rows["a"]["label_source"] == rows["b"]["label_source"] == "manual"
    assert rows["a"]["convention"] == rows["b"]["convention"] == "fewbeats:LV+MYO"  # silent about RV
    assert rows["c"]["label"] is None
    label(tmp_path / "fixed/stranger.nii.gz")
    with pytest.raises(InputError, match=r"called like stranger\.nii\.gz"):
        index(tmp_path / "src", layout="folder", convention="acdc", labels=tmp_path / "fixed")
    with pytest.raises(InputError, match="no mask"):
        attach_labels(new_cohort(rows.values()), tmp_path / "nothing")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"shape": (4, 10, 11)}, r"shape \(4, 10, 11\) is not the image's \(4, 10, 12\)"),
        ({"affine": AFFINE + np.outer([3, 0, 0, 0], [0, 0, 0, 1])}, "lies up to 3.0 mm off"),
        ({"affine": AFFINE * [1, 1, 1.05, 1]}, "mm off the image's grid"),
        ({"values": (1, 7)}, r"\[7\] are unknown to the convention 'acdc'"),
        ({"values": ()}, "the label is empty"),
        ({"frames": 3}, "3 frames for 1 of the image"),
    ],
)
def test_broken_label_is_found_by_indexing(tmp_path, broken, complaint):
    image(tmp_path / "a.nii.gz")
    label(tmp_path / "a_gt.nii.gz", **broken)
    with pytest.raises(InputError, match=complaint) as caught:
        index(tmp_path, layout="folder", convention="acdc")
    assert str(tmp_path / "a_gt.nii.gz") in str(caught.value)


def test_rounded_affine_of_a_viewer_is_accepted(tmp_path):
    turned = AFFINE.copy()
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * [1.4, 1.4, 8.0]
    image(tmp_path / "a.nii.gz", affine=turned)
    label(tmp_path / "a_gt.nii.gz", affine=turned + 1e-4 * np.sign(turned))
    assert index(tmp_path, layout="folder", convention="acdc")["label"].null_count() == 0


def test_a_mask_of_one_frame_of_a_cine_is_never_taken_in_silence(tmp_path, capsys):

    image(tmp_path / "src/c_4d.nii.gz", 3)
    mask = label(tmp_path / "src/c_label.nii.gz")
    table = tmp_path / "c.csv"
    flags = ["--layout=folder", "--convention=acdc", f"--out={table}"]
    assert main(["index", str(tmp_path / "src"), *flags]) == 0
    assert "labeled on frame 0 alone: c_4d; where a mask is of another frame" in capsys.readouterr().out
    row = read_cohort(table).row(0, named=True)
    assert open_labels({**row, "label_frames": "2"}, open_scan(row)).keys() == {2}
    with pytest.raises(InputError, match=r"c_label.*1 frames for 3 of the image.*label_frames"):
        open_labels({**row, "label_frames": None}, open_scan(row))
    (tmp_path / "fixed").mkdir()
    shutil.move(mask, tmp_path / "fixed/c_4d.nii.gz")
    with pytest.raises(InputError, match="save a mask of all"):
        index(tmp_path / "src", layout="folder", labels=tmp_path / "fixed")


def test_label_without_convention_or_image(tmp_path):
    image(tmp_path / "a.nii.gz")
    label(tmp_path / "a_gt.nii.gz")
    with pytest.raises(InputError, match="what do its values mean"):
        index(tmp_path, layout="folder")
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(InputError, match="a label without an image"):
        index(tmp_path, layout="folder", convention="acdc")


def test_broken_images_are_found_by_indexing(tmp_path):
    file = image(tmp_path / "a.nii.gz", 3)
    whole = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(whole)[:-600])
    with pytest.raises(InputError, match=r"a\.nii\.gz: truncated"):
        index(tmp_path, layout="folder")
    save(file, np.full(SHAPE, 7, np.int16))
    with pytest.raises(InputError, match=r"a\.nii\.gz: frame 0 is empty"):
        index(tmp_path, layout="folder")
    save(file, np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        index(tmp_path, layout="folder")
    assert index(tmp_path, layout="folder", check_pixels=False).height == 1
    file.write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        index(tmp_path, layout="folder")


def test_unusable_sources(tmp_path):
    with pytest.raises(InputError, match="unknown; choose one of acdc"):
        index(tmp_path, layout="ACDC")
    with pytest.raises(InputError, match="no such folder"):
        index(tmp_path / "none", layout="acdc")
    for layout in ("acdc", "folder"):
        with pytest.raises(InputError, match=f"no image of the layout '{layout}'"):
            index(tmp_path, layout=layout)
    for layout in ("nnunet", "msd"):
        with pytest.raises(InputError, match=r"dataset\.json: missing"):
            index(tmp_path, layout=layout)


def test_an_image_that_changed_since_is_refused(tmp_path):
    file = image(tmp_path / "a.nii.gz")
    row = index(tmp_path, layout="folder").row(0, named=True)
    assert open_scan(row).shape == (1, *SHAPE)
    image(file, 2)
    with pytest.raises(InputError, match="index it again"):
        open_scan(row)


def test_the_table_tells_the_modality_where_the_file_does_not(tmp_path):
    row = index(image(tmp_path / "a.nii.gz").parent, layout="folder").row(0, named=True)
    assert open_scan(row).modality == ""
    assert open_scan({**row, "modality": "CT"}).modality == "CT"
    dicom_series(tmp_path / "src/v1", orientation=(1, 0, 0, 0, 1, 0), slices=3, seed=1)
    row = index(tmp_path / "src", layout="dicom").row(0, named=True)
    assert open_scan({**row, "modality": "CT"}).modality == "MR"  # the header knows


# Real scans


@pytest.mark.realdata
def test_acdc_study(realdata, tmp_path):
    cohort = index(realdata / "acdc", layout="acdc", split_file=realdata / "splits/acdc_study.csv")
    assert cohort.height == 160
    people = dict(cohort.unique("subject").group_by("split").len().iter_rows())
    assert people == {"train": 45, "tune": 10, "dev": 25}
    assert cohort["label"].null_count() == 0
    assert cohort["phase"].value_counts().sort("phase").rows() == [("ED", 80), ("ES", 80)]
    write_cohort(cohort, tmp_path / "acdc.csv")
    assert read_cohort(tmp_path / "acdc.csv").equals(cohort)
    printed = index(realdata / "acdc", layout="acdc", split_file=realdata / "splits/acdc.csv")
    three = read_subject_list(f"{realdata / 'splits/acdc_print.csv'}:labeled_3", printed)
    assert three == ["patient038", "patient050", "patient099"]


@pytest.mark.realdata
def test_other_real_folders(realdata, tmp_path):
    emidec = index(
        realdata / "emidec", layout="folder", convention="emidec", split_file=realdata / "splits/emidec.csv"
    )
    assert emidec.height == 80
    assert not emidec["spacing_trusted"].any()
    assert emidec["slice_order"].unique().to_list() == ["apex_first"]
    atria = index(
        realdata / "la2018", layout="folder", convention="la2018", split_file=realdata / "splits/la2018.csv"
    )
    assert (atria.height, atria["spacing_trusted"].all()) == (50, True)
    own = tmp_path / "own.csv"
    own.write_text("value,structure\n1,MYO\n2,LV\n3,RV\n4,MYO\n5,MYO\n")
    cines = index(realdata / "cine4d", layout="folder", convention=str(own))
    assert cines.select("frames", "label_frames").rows() == [(17, "0"), (17, "0")]


@pytest.mark.realdata
def test_real_dicom_folder_with_segmentations(realdata, tmp_path):
    from fewbeats.io.dicom import read_dicom
    from fewbeats.io.dicom_seg import write_seg

    folder = tmp_path / "volunteer"
    shutil.copytree(realdata / "cine_dicom", folder)
    plain = index(tmp_path, layout="dicom", check_pixels=False).row(0, named=True)
    assert (plain["subject"], plain["frames"], plain["slices"], plain["label"]) == ("volunteer", 32, 14, None)
    scan = read_dicom(folder)[0]
    mask = np.zeros(scan.shape, np.uint8)
    mask[3, 5:7, 100:120, 90:130] = 1
    files = write_seg(mask, scan, folder / "seg", structures=["LV"])
    row = index(tmp_path, layout="dicom", check_pixels=False).row(0, named=True)
    assert (row["label_frames"], row["label_source"]) == ("3", "pseudo")
    for file in files:
        mend_in_a_viewer(file)
    row = index(tmp_path, layout="dicom", check_pixels=False).row(0, named=True)
    assert (row["label_frames"], row["convention"], row["label_source"]) == ("3", "fewbeats:LV", "manual")
    assert np.array_equal(open_labels(row, open_scan(row))[3], mask[3])
