"""Whose images are joined, and which stacks, phases and times are no heart's: what headers contradict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pydicom
import pytest

from fewbeats.data.index import index
from fewbeats.errors import InputError
from fewbeats.inference.plausibility import Inspector
from fewbeats.io.dicom import read_dicom
from fewbeats.io.dicom_series import Series
from synthetic_dicom import Grid, assert_truth, only, write_cine, write_color, write_ct
from test_dicom_kinds import edit, place_of, said


def halves(folder, *, first: int = 3, second: int = 3, lost: int = 0, **later) -> None:
    """Two series of slices, the second beginning where the first ends, or `lost` slices later."""
    grid = Grid(slices=first)
    write_cine(folder / "a", grid=grid, frames=2, series_per_slice=False, AcquisitionTime="120000")
    changed = {key: later.pop(key) for key in ("spacing", "orientation") if key in later}
    start = tuple(grid.corner(first + lost))
    next_grid = replace(grid, slices=second, origin=start, **changed)
    frames = later.pop("frames", 2)
    tags = {"SeriesNumber": 30, "SeriesInstanceUID": "1.2.3.6.30", "AcquisitionTime": "120100", **later}
    write_cine(folder / "b", grid=next_grid, frames=frames, series_per_slice=False, **tags)


# People


def test_slices_of_two_people_are_never_joined(tmp_path):
    other = {"PatientID": "p2", "StudyInstanceUID": "1.2.9", "FrameOfReferenceUID": "1.2.10"}
    halves(tmp_path / "A", **other)
    assert [scan.shape[1] for scan in read_dicom(tmp_path / "A")] == [3, 3]
    for scan in read_dicom(tmp_path / "A"):
        assert "lies beside this one, but is of another person (PatientID)" in said(scan)
        assert not scan.source.part
    notes: list[str] = []
    index(tmp_path, layout="dicom", tell=notes.append)
    assert any("files of several people (PatientID) in one folder: A" in note for note in notes)
    assert not any("p1" in note or "p2" in note for note in notes)
    for file in (tmp_path / "A" / "b").iterdir():
        edit(file, PatientID="p1")
    assert only(read_dicom(tmp_path / "A")).shape[1] == 6


@pytest.mark.parametrize("people", [("x", "x", "y"), ("x", "x", "x"), ("x", "y", "z")])
def test_one_person_under_two_names_is_told(tmp_path, people):
    for name, person in zip("ABC", people):
        write_cine(tmp_path / name, frames=1, PatientID=person, AcquisitionTime="120000")
    notes: list[str] = []
    index(tmp_path, layout="dicom", tell=notes.append)
    told = "; ".join(notes)
    assert ("one person by PatientID: A and B;" in told) == (people[2] == "y")
    assert ("all subjects have one PatientID" in told) == (people[2] == "x")


def test_folders_of_views_are_one_subject(tmp_path):
    for number, view in enumerate(("SAX", "4ch")):
        tags = {"SeriesInstanceUID": f"1.2.7.{number}", "FrameOfReferenceUID": f"1.2.8.{number}"}
        write_cine(tmp_path / "exam7" / view, frames=1, series_per_slice=False, **tags)
    assert set(index(tmp_path / "exam7", layout="dicom")["subject"]) == {"exam7"}


# Kinds of images


def test_an_image_without_diffusion_has_no_b_value(tmp_path):
    for file in write_cine(tmp_path, frames=3, series_per_slice=False):
        edit(file, DiffusionBValue=[None, 350.0, 700.0][place_of(file)[1]])
    assert [scan.shape[:2] for scan in read_dicom(tmp_path)] == [(1, 4)] * 3


@pytest.mark.parametrize(("last", "scans"), [(260.0, 3), (180.0, 1)])
def test_an_image_without_preparation_has_no_inversion_time(tmp_path, last, scans):
    """Where the others differ; else a tag was forgotten."""
    for file in write_cine(tmp_path, frames=3, series_per_slice=False):
        edit(file, InversionTime=[None, 180.0, last][place_of(file)[1]])
    assert len(read_dicom(tmp_path)) == scans


@pytest.mark.parametrize("tag", ["FlipAngle", "EchoTime"])
def test_other_flip_angles_are_no_phases(tmp_path, tag):
    for file in write_cine(tmp_path, frames=2, series_per_slice=False):
        edit(file, **{tag: [2.0, 15.0][place_of(file)[1]]})
    assert [scan.shape[0] for scan in read_dicom(tmp_path)] == [1, 1]


def test_an_average_of_all_phases_is_no_phase(tmp_path):
    for file in write_cine(tmp_path, frames=4, series_per_slice=False):
        if place_of(file)[1] == 3:
            edit(file, ImageType=["DERIVED", "SECONDARY", "M"])
    cine, average = read_dicom(tmp_path)
    assert (cine.shape[0], average.shape[0]) == (3, 1)
    assert "processed differently (ImageType)" in said(cine)
    assert cine.frame_times_ms is not None


@pytest.mark.parametrize(
    "slices", [{"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"]}, {"SequenceVariant": ["SK", "SP"]}]
)
def test_slices_that_were_evened_out_otherwise_are_one_stack(tmp_path, slices):
    for file in write_cine(tmp_path, frames=2):
        if place_of(file)[0] < 2:
            edit(file, **slices)
    assert_truth(only(read_dicom(tmp_path)), 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"ContentTime": "120000"}, {"ContentTime": "120800"}),
     ({"AcquisitionDateTime": "20240229120000"}, {"AcquisitionDateTime": "20240229120800"}),
     ({"SeriesDescription": "LGE TI 300 ms"}, {"SeriesDescription": "LGE TI 340 ms"})],
)  # fmt: skip
def test_two_stacks_minutes_or_inversions_apart_are_no_phases(tmp_path, first, second):
    trigger = {} if "SeriesDescription" in first else {"TriggerTime": 603.0}
    for number, tags in ((20, first), (21, second)):
        write_cine(tmp_path / str(number), frames=1, series_per_slice=False, time_tag="InstanceNumber",
                   SeriesNumber=number, SeriesInstanceUID=f"1.2.6.{number}", **trigger, **tags)  # fmt: skip
        trigger = {name: value + 8 for name, value in trigger.items()}
    assert [scan.shape[0] for scan in read_dicom(tmp_path)] == [1, 1]


def test_what_a_description_says_before_a_number_counts():
    def phases(text: str) -> list[float]:
        told = {"description": text, "modality": "CT", "series_number": 3.0, "order": {}, "flaw": ""}
        header = type("Header", (), told)
        found = Series((header(),)).phases
        return [value for (rule, _), value in found.items() if "Description" in rule]

    assert phases("CTA 75% ASIR 30%") == [75.0]
    assert phases("BestDiast 302 ms, TI=300ms") == [302.0]
    assert phases("LGE TI 340 ms") == []
    for text in ("75% CTA", "(75%)", "CTA_75%", "RR75%", "Ph75%", "0.5 CE 75%"):
        assert phases(text) == [75.0], text
    assert phases("0.5 CE 35-75%") == [75.0]
    assert phases("B26f_350ms") == [350.0]


@pytest.mark.parametrize(("seconds", "frames"), [(0, [2]), (40, [1, 1])])
def test_another_bolus_is_no_phase(tmp_path, seconds, frames):
    for file in write_ct(tmp_path, phases=(0.0, 35.0), phase_in="order"):
        edit(file, AcquisitionTime=f"1200{seconds if file.parent.name == 'phase1' else 0:02d}")
    assert [scan.shape[0] for scan in read_dicom(tmp_path)] == frames


# Stacks in pieces


@pytest.mark.parametrize(
    ("later", "why"),
    [
        ({"lost": -2, "first": 4, "second": 4}, "they have 2 positions in common"),
        ({"lost": 1}, "slices between them may be missing"),
        ({"frames": 6}, "they have different numbers of frames"),
        ({"spacing": (1.6, 1.35)}, "their pixels differ in size or number"),
    ],
)
def test_pieces_of_a_heart_say_so(tmp_path, later, why):
    halves(tmp_path, **later)
    scans = read_dicom(tmp_path)
    assert len(scans) == 2
    for scan in scans:
        assert f"seems to continue this one: {why}" in said(scan)
        assert "of a part of the heart" in Inspector(scan, ("LV",)).warnings()[0]


@pytest.mark.parametrize("lost", [-5, -6])
def test_a_stack_that_was_taken_again_is_no_piece(tmp_path, lost):
    """Shifted by a slice, too."""
    halves(tmp_path, first=6, second=6, lost=lost, spacing=(1.6, 1.35))
    assert not any(scan.source.part for scan in read_dicom(tmp_path))


def test_two_versions_of_a_stack_do_not_fill_each_others_gaps(tmp_path):
    """Evened out or not, one series a slice; of one version a slice is missing."""
    for k, word in enumerate(("ND", "DIS2D")):
        for file in write_cine(tmp_path / word, frames=2, ImageType=["ORIGINAL", "PRIMARY", "M", word]):
            z = place_of(file)[0]
            edit(file, SeriesNumber=10 + 2 * z + k, SeriesInstanceUID=f"1.2.5.{10 + 2 * z + k}")
            if word == "ND" and z == 2:
                file.unlink()
    whole, *_ = read_dicom(tmp_path)
    assert whole.shape[:2] == (2, 4)
    assert whole.source.series == (11, 13, 15, 17)


def test_kinds_have_one_order(tmp_path):
    """Numbers of scans in a cohort must mean the same in every process."""
    for file in write_cine(tmp_path, frames=4, series_per_slice=False):
        words = ["ND", "NORM"] if place_of(file)[1] % 2 else ["ND"]
        edit(file, ImageType=["ORIGINAL", "PRIMARY", "M", *words])
    first, second = read_dicom(tmp_path)
    assert first.frame(0).sum() < second.frame(0).sum()  # the even frames first, in every process


def test_a_patient_id_that_was_corrected_parts_no_heart(tmp_path):
    for file in write_cine(tmp_path, frames=2):
        edit(file, PatientID="TEMP12" if place_of(file)[0] < 2 else "p1")
    assert_truth(only(read_dicom(tmp_path)), 2)


def test_a_stack_that_lies_within_another_is_no_piece(tmp_path):
    halves(tmp_path, second=2, lost=-2)
    assert not any(scan.source.part for scan in read_dicom(tmp_path))


def test_series_with_other_numbers_of_phases_are_called_so(tmp_path):
    halves(tmp_path, frames=3)
    with pytest.raises(InputError, match="slices have different numbers of phases"):
        read_dicom(tmp_path)


# Times


def test_tags_that_would_order_frames_otherwise_are_told(tmp_path):
    for file in write_cine(tmp_path, frames=4, series_per_slice=False):
        edit(file, TemporalPositionIdentifier=[1, 3, 2, 4][place_of(file)[1]])
    scan = only(read_dicom(tmp_path))
    assert "TemporalPositionIdentifier would order the frames otherwise; check the cine" in said(scan)


def test_rounded_trigger_times_part_no_cine(tmp_path):
    for file in write_cine(tmp_path, frames=6, series_per_slice=False):
        t = place_of(file)[1]
        edit(file, TriggerTime=40.0 * (t // 2), TemporalPositionIdentifier=t + 1)
    assert_truth(only(read_dicom(tmp_path)), 6)


def test_a_cine_over_midnight_is_one(tmp_path):
    for file in write_cine(tmp_path, frames=4, series_per_slice=False, time_tag="AcquisitionTime"):
        t = place_of(file)[1]
        edit(file, AcquisitionTime=["235959.900", "235959.940", "000000.000", "000000.040"][t])
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 4)
    np.testing.assert_allclose(np.diff(scan.frame_times_ms), [40, 60, 40], atol=0.01)


def test_a_trigger_time_below_zero_is_none(tmp_path):
    for file in write_cine(tmp_path, frames=4, series_per_slice=False):
        t = place_of(file)[1]
        edit(file, InstanceNumber=t + 1, **({"TriggerTime": -1.0} if t == 3 else {}))
    assert_truth(only(read_dicom(tmp_path)), 4)


def test_microseconds_are_no_times_of_a_heart(tmp_path):
    for file in write_cine(tmp_path, frames=6, series_per_slice=False):
        edit(file, TriggerTime=40_000.0 * place_of(file)[1])
    scan = only(read_dicom(tmp_path))
    assert scan.frame_times_ms is None
    assert "are no heartbeat" in said(scan)


@pytest.mark.parametrize("interval", [65535, 1, 0])
def test_a_heartbeat_that_none_has_is_unknown(tmp_path, interval):
    write_cine(tmp_path, frames=2, series_per_slice=False, NominalInterval=interval)
    assert only(read_dicom(tmp_path)).cycle_ms is None


@pytest.mark.parametrize("interval", [900, None])
def test_frames_a_heartbeat_apart_have_no_ejection_fraction(tmp_path, interval):
    """Also where nobody told how long a heartbeat is."""
    late = {"time_tag": "AcquisitionTime", "frame_ms": 900.0}
    for file in write_cine(tmp_path, frames=8, series_per_slice=False, **late):
        edit(file, NominalInterval=interval)
    scan = only(read_dicom(tmp_path))
    assert "frames are as far apart as heartbeats, so they are no cardiac phases" in said(scan)
    assert "they have no ejection fraction" in Inspector(scan, ("LV",)).warnings()[0]


# Beside the images, and beyond them


def test_a_screenshot_under_the_series_own_uid_is_left_out(tmp_path):
    write_cine(tmp_path, frames=2, series_per_slice=False)
    shot = write_color(tmp_path / "shot.dcm")
    edit(shot, SeriesInstanceUID="1.2.3.6.7", SeriesNumber=7)
    scan = only(read_dicom(tmp_path))
    assert_truth(scan, 2)
    assert "left out" in said(scan)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_pixels_outside_of_the_image_are_dark(tmp_path, kind):
    for file in write_cine(tmp_path, frames=1, series_per_slice=False, PhotometricInterpretation=kind):
        data = pydicom.dcmread(file)
        pixels = data.pixel_array.copy()
        pixels[:2] = 65535
        data.PixelData = pixels.tobytes()
        data.add_new("PixelPaddingValue", "US", 65535)
        data.save_as(file)
    frame = only(read_dicom(tmp_path)).frame(0)
    for slice_ in frame:
        borders = (slice_[:2], slice_[-2:], slice_[:, :2], slice_[:, -2:])
        assert any((border == slice_.min()).all() for border in borders)


def test_scans_of_two_visits_are_two_studies(tmp_path):
    """A folder a person, who came twice: what is told of a study is told of a visit."""
    for visit in (1, 2):
        for series in (1, 2):
            uid = {"StudyInstanceUID": f"1.2.{visit}", "SeriesInstanceUID": f"1.2.{visit}.{series}",
                   "FrameOfReferenceUID": f"1.2.{visit}.9", "SeriesNumber": series}  # fmt: skip
            write_cine(tmp_path / "source" / "anna" / f"v{visit}s{series}", **uid)
    write_cine(tmp_path / "source" / "bob")
    cohort = index(tmp_path / "source", layout="dicom").sort("image", "scan")
    anna = cohort.filter(pl.col("subject") == "anna")
    assert len(anna) == 4
    assert anna.group_by("study").len().sort("study").rows() == [("anna_study1", 2), ("anna_study2", 2)]
    assert cohort.filter(pl.col("subject") == "bob")["study"].to_list() == ["bob"]
