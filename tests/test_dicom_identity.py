"""Odd but real values of patient and study: a SEG is written of them, and no message quotes them."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest

from fewbeats.io.dicom import read_dicom
from fewbeats.io.dicom_seg import read_seg, write_seg
from synthetic_dicom import PATIENT_NAME, only, write_cine

ODD = [
    ("PatientBirthDate", "19470000", ""),
    ("PatientBirthDate", "00000000", ""),
    ("PatientBirthDate", "1947", ""),
    ("PatientBirthDate", "ANON", ""),
    ("StudyDate", "2019-07-18", "20190718"),
    ("StudyTime", "12:13:14", "121314"),
    ("StudyTime", "25:00:00", ""),
    ("PatientSex", "female", "F"),
    ("PatientSex", "unknown", ""),
    ("PatientAge", "sixty", None),
]


def write_odd(folder, **tags):
    for file in write_cine(folder, frames=1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(file)
            for tag, value in tags.items():
                if tag == "PatientName":
                    data.PatientName = value
                    continue
                data[tag] = pydicom.DataElement(
                    tag, pydicom.datadict.dictionary_VR(tag), value, already_converted=True
                )
            data.save_as(file)
    return only(read_dicom(folder))


@pytest.mark.parametrize(("tag", "value", "written"), ODD)
def test_an_odd_value_is_repaired_or_left_out(tmp_path, tag, value, written, capfd):
    scan = write_odd(tmp_path / "in", **{tag: value})
    mask = np.zeros(scan.shape[1:], np.uint8)
    mask[1, 2:5, 3:6] = 1
    [file] = write_seg([mask], scan, tmp_path / "out", structures=["LV"])
    assert pydicom.dcmread(file).get(tag) == written
    assert np.array_equal(read_seg(file, scan)[0], mask)
    said = "".join(capfd.readouterr())
    assert value not in said
    assert PATIENT_NAME not in said


@pytest.mark.parametrize("charset", ["UTF-8", "GB2312", "ISO 8859-1", "no such set"])
def test_an_odd_character_set_still_gives_a_segmentation(tmp_path, charset):
    scan = write_odd(tmp_path / "in", SpecificCharacterSet=charset)
    [file] = write_seg([np.ones(scan.shape[1:], np.uint8)], scan, tmp_path / "out", structures=["LV"])
    written = pydicom.dcmread(file)
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert str(written.PatientName) == PATIENT_NAME


def test_a_name_in_another_alphabet_stays_readable(tmp_path):
    scan = write_odd(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen")
    [file] = write_seg([np.ones(scan.shape[1:], np.uint8)], scan, tmp_path / "out", structures=["LV"])
    assert str(pydicom.dcmread(file).PatientName) == "Müller^Jürgen"


def test_a_modality_in_small_letters_is_one(tmp_path):
    assert write_odd(tmp_path, Modality="mr").modality == "MR"
