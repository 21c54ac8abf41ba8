"""DICOM SEG out and back: equal label maps, true references, and no patient name on the way."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.io.dicom import read_dicom
from fewbeats.io.dicom_headers import is_seg
from fewbeats.io.dicom_seg import CODES, read_seg, seg_frames, write_seg
from synthetic_dicom import PATIENT_NAME, SAGITTAL, Grid, oblique, write_cine, write_ct, write_enhanced

THREE = ["LV", "MYO", "RV"]


def random_masks(shape: tuple[int, ...], values: list[int], *, seed: int = 0) -> np.ndarray:
    """(T, Z, Y, X) label maps without symmetry; frame 1 and slice 0 of frame 0 are empty."""
    masks = np.random.default_rng(seed).choice([0, 0, *values], size=shape).astype(np.uint8)
    masks[0, 0] = 0
    masks[1:2] = 0
    return masks


def write_source(folder, kind: str):
    """A DICOM scan of each kind."""
    if kind == "cine":
        write_cine(folder, grid=Grid(orientation=oblique(40, 25, -70)))
    elif kind == "one series":
        write_cine(folder, grid=Grid(orientation=SAGITTAL), series_per_slice=False)
    elif kind == "ct":
        write_ct(folder, grid=Grid(orientation=SAGITTAL, slices=6, distance=1.5, spacing=(1.0, 1.0)))
    else:
        folder.mkdir()
        write_enhanced(folder / "e.dcm", modality=kind.split()[1])
    (scan,) = read_dicom(folder)
    return scan


@pytest.mark.parametrize("kind", ["cine", "one series", "ct", "enhanced MR", "enhanced CT"])
def test_round_trip(tmp_path, kind):
    scan = write_source(tmp_path / "scan", kind)
    masks = random_masks(scan.shape, [1, 2, 3])
    files = write_seg(iter(masks), scan, tmp_path / "seg", structures=THREE)
    assert [file.name for file in files] == ["seg_000.dcm", "seg_001.dcm", "seg_002.dcm"]
    np.testing.assert_array_equal(read_seg(tmp_path / "seg", scan), masks)
    np.testing.assert_array_equal(read_seg(files[2], scan), masks[2:])
    assert seg_frames(files[2], scan) == (2,)
    assert seg_frames(tmp_path / "seg", scan) == (0, 1, 2)
    assert list((tmp_path / "seg").glob("*.part")) == []


def test_every_structure_and_only_those_asked_for(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    masks = random_masks(scan.shape, list(FEWBEATS_VALUES.values()))
    write_seg(masks, scan, tmp_path / "all", structures=list(FEWBEATS_VALUES))
    np.testing.assert_array_equal(read_seg(tmp_path / "all", scan), masks)
    right = np.where(masks == 3, masks, 0)
    (file, *_) = write_seg(right, scan, tmp_path / "rv", structures=["RV"])
    np.testing.assert_array_equal(read_seg(tmp_path / "rv", scan), right)
    assert [str(s.SegmentLabel) for s in pydicom.dcmread(file).SegmentSequence] == ["RV"]
    with pytest.raises(ValueError, match="other structures"):
        write_seg(masks, scan, tmp_path / "lv", structures=["LV"])
    with pytest.raises(ValueError, match="shape"):
        write_seg(masks[:, 1:], scan, tmp_path / "lv", structures=["LV"])


@pytest.mark.parametrize("kind", ["cine", "ct", "enhanced MR"])
def test_every_frame_refers_to_the_image_beneath_it(tmp_path, kind):
    """Read with pydicom alone: the referenced image lies where the segment's frame lies, at its time."""
    scan = write_source(tmp_path / "scan", kind)
    files = write_seg(np.ones(scan.shape, np.uint8), scan, tmp_path / "seg", structures=["LV"])
    images = {}
    for file in (tmp_path / "scan").rglob("*.dcm"):
        data = pydicom.dcmread(file)
        groups = data.get("PerFrameFunctionalGroupsSequence") or [None]
        for number, group in enumerate(groups, 1):
            where = group.PlanePositionSequence[0] if group is not None else data
            images[data.SOPInstanceUID, number] = (data, np.array(where.ImagePositionPatient, float))
    seen = set()
    for file in files:
        seg = pydicom.dcmread(file)
        for group in seg.PerFrameFunctionalGroupsSequence:
            reference = group.DerivationImageSequence[0].SourceImageSequence[0]
            key = reference.ReferencedSOPInstanceUID, int(reference.get("ReferencedFrameNumber", 1))
            data, position = images[key]
            seen.add(key)
            assert ("ReferencedFrameNumber" in reference) == kind.startswith("enhanced")
            assert reference.ReferencedSOPClassUID == data.SOPClassUID
            np.testing.assert_allclose(
                group.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-4
            )
        listed = {
            (series.SeriesInstanceUID, image.ReferencedSOPInstanceUID)
            for series in seg.ReferencedSeriesSequence
            for image in series.ReferencedInstanceSequence
        }
        assert listed <= {(data.SeriesInstanceUID, data.SOPInstanceUID) for data, _ in images.values()}
    assert seen == set(images)


def test_highdicom_sees_the_same_volume(tmp_path):
    """An independent reader: geometry of the stack, and codes every viewer knows."""
    import highdicom

    grid = Grid(orientation=oblique(10, 20, 30))
    write_cine(tmp_path / "scan", grid=grid, frames=1)
    (scan,) = read_dicom(tmp_path / "scan")
    masks = np.random.default_rng(1).integers(1, 3, scan.shape).astype(np.uint8)
    (file,) = write_seg(masks, scan, tmp_path / "seg", structures=["LV", "MYO"])
    seg = highdicom.seg.segread(file)
    volume = seg.get_volume(combine_segments=True)
    np.testing.assert_allclose(volume.spacing, (8.0, 1.5, 1.25), atol=1e-6)
    corners = {tuple(np.round(volume.affine[:3, 3] + z * volume.affine[:3, 0], 4)) for z in range(4)}
    assert corners == {tuple(np.round(grid.corner(z), 4)) for z in range(4)}
    stored = scan.source.reorientation.invert(masks[0])
    first = np.allclose(volume.affine[:3, 3], grid.corner(0), atol=1e-4)
    np.testing.assert_array_equal(volume.array, stored if first else stored[::-1])
    myo = seg.get_segment_description(2).segmented_property_type
    assert (myo.value, myo.scheme_designator) == CODES["MYO"][:2] == ("74281007", "SCT")


def test_segmentations_are_no_scans(tmp_path):
    scan = write_source(tmp_path, "cine")
    files = write_seg(random_masks(scan.shape, [1]), scan, tmp_path / "seg", structures=["LV"])
    assert all(is_seg(file) for file in files)
    assert not is_seg(scan.source.instances[0][0][0])
    (tmp_path / "text.txt").write_text("short")
    assert not is_seg(tmp_path / "text.txt")
    (again,) = read_dicom(tmp_path)
    assert again.shape == scan.shape


def test_no_word_of_the_patient(tmp_path, capfd, recwarn):
    scan = write_source(tmp_path / "scan", "cine")
    files = write_seg(np.ones(scan.shape, np.uint8), scan, tmp_path / "seg", structures=["LV"])
    read_seg(files[0], scan)
    captured = capfd.readouterr()
    said = captured.out + captured.err + " ".join(str(w.message) for w in recwarn) + " ".join(map(str, files))
    assert not any(part in said for part in PATIENT_NAME.split("^"))
    assert pydicom.dcmread(files[0]).PatientName == PATIENT_NAME  # the archive must file it with its patient


def drawn_in_a_viewer(scan, folder, *, frame: int, **changes):
    """A SEG as viewers write it: other labels, and as told by `changes`."""
    masks = random_masks(scan.shape, [1, 2], seed=5)
    file = write_seg(masks, scan, folder, structures=["LV", "MYO"])[frame]
    data = pydicom.dcmread(file)
    for i, label in enumerate(changes.get("labels", ())):
        data.SegmentSequence[i].SegmentLabel = label
    if changes.get("without_references"):
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    data.SOPInstanceUID = generate_uid()
    data.save_as(file)
    return file, masks[frame : frame + 1]


@pytest.mark.parametrize("labels", [("lv", "myo"), ("Left Ventricular Cavity", "Segment 2"), ("a", "b")])
def test_segments_are_known_by_label_or_code(tmp_path, labels):
    scan = write_source(tmp_path / "scan", "cine")
    file, mask = drawn_in_a_viewer(scan, tmp_path / "seg", frame=2, labels=labels)
    np.testing.assert_array_equal(read_seg(file, scan), mask)


def test_a_mask_without_references_is_placed_by_position(tmp_path):
    write_cine(tmp_path / "still", frames=1)
    (still,) = read_dicom(tmp_path / "still")
    file, mask = drawn_in_a_viewer(still, tmp_path / "seg", frame=0, without_references=True)
    np.testing.assert_array_equal(read_seg(file, still), mask)
    cine = write_source(tmp_path / "cine", "cine")
    file, _ = drawn_in_a_viewer(cine, tmp_path / "seg4d", frame=2, without_references=True)
    with pytest.raises(InputError, match="does not say which frame"):
        read_seg(file, cine)


def test_refusals(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    other = write_source(tmp_path / "other", "ct")
    file, _ = drawn_in_a_viewer(scan, tmp_path / "seg", frame=0)
    with pytest.raises(InputError, match="not in this scan"):
        read_seg(file, other)
    with pytest.raises(InputError, match="no DICOM segmentation"):
        read_seg(tmp_path / "scan", scan)
    data = pydicom.dcmread(file)
    data.SegmentSequence[0].SegmentLabel = "liver"
    data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"
    data.save_as(tmp_path / "liver.dcm")
    with pytest.raises(InputError, match=r"liver\.dcm: segment 1 is no structure"):
        read_seg(tmp_path / "liver.dcm", scan)
    data = pydicom.dcmread(file)
    facing = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    facing.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    data.save_as(tmp_path / "turned.dcm")
    with pytest.raises(InputError, match="another grid"):
        read_seg(tmp_path / "turned.dcm", scan)
    whole = file.read_bytes()
    for length in (500, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.dcm"):
            read_seg(tmp_path / "cut.dcm", scan)


def test_nothing_half_written(tmp_path):
    scan = write_source(tmp_path / "scan", "cine")
    masks = random_masks(scan.shape, [1])
    masks[2, 0, 0, 0] = 3  # found out after two frames are done
    with pytest.raises(ValueError, match="frame 2 holds other structures"):
        write_seg(masks, scan, tmp_path / "seg", structures=["LV"])
    assert list((tmp_path / "seg").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_seg(masks, scan, tmp_path / "file", structures=["LV", "RV"])


@pytest.mark.realdata
def test_round_trip_of_the_volunteer(realdata, tmp_path):
    (scan,) = read_dicom(realdata / "cine_dicom")
    masks = random_masks((2, *scan.shape[1:]), [1, 2, 3])
    masks = np.concatenate([masks, np.zeros((scan.shape[0] - 2, *scan.shape[1:]), np.uint8)])
    masks[30, 5, 40:80, 60:90] = 2
    files = write_seg(iter(masks), scan, tmp_path, structures=THREE)
    np.testing.assert_array_equal(read_seg(files[0], scan)[0], masks[0])
    np.testing.assert_array_equal(read_seg(files[30], scan)[0], masks[30])
    assert len(pydicom.dcmread(files[0]).ReferencedSeriesSequence) == 14
