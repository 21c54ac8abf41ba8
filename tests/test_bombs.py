"""Small files that claim, or unpack to, far more than they hold: refused before memory is taken."""

from __future__ import annotations

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pydicom
import pytest

from fewbeats.commands.settings_file import read_yaml
from fewbeats.errors import InputError
from fewbeats.io.dicom import read_dicom
from fewbeats.io.nifti import read_nifti
from synthetic_dicom import Grid, write_cine

MOST_BYTES = 20_000_000


@pytest.fixture(autouse=True)
def _little_memory():
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES


def claiming(path, *dims: int, two: bool = False):
    """A NIfTI header of such a shape and nothing behind it."""
    header = (nib.Nifti2Header if two else nib.Nifti1Header)()
    header.set_data_dtype(np.uint8)
    header["dim"][: len(dims) + 1] = (len(dims), *dims)
    header["pixdim"][1:5] = 1
    header["magic"] = b"n+2" if two else b"n+1"
    header["vox_offset"] = 544 if two else 352
    header.set_sform(np.eye(4), 1)
    content = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("dims", "two"),
    [
        ((32767, 32767, 32767), False),
        ((16, 16, 5, 32767), False),
        ((4, 4, 1, 2**29), True),
        ((4, 4, 1, 2**62), True),
        ((2**32, 2**32, 1), True),
        ((2**31, 2**32, 1, 1), True),
    ],
)
def test_a_header_that_claims_more_than_its_file(tmp_path, name, dims, two):
    file = claiming(tmp_path / name, *dims, two=two)
    with pytest.raises(InputError) as caught:
        read_nifti(file)
    assert str(file) in str(caught.value)


def test_pixels_that_do_unpack_are_read_no_further_than_the_header_says(tmp_path):
    """Five megabytes of zeros behind one small frame."""
    small = nib.Nifti1Image(np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.eye(4))
    file = tmp_path / "a.nii.gz"
    file.write_bytes(gzip.compress(small.to_bytes() + bytes(5_000_000)))
    assert read_nifti(file).frame(0).max() == 63


@pytest.mark.parametrize(
    "claim", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}, {"NumberOfFrames": -5}]
)
@pytest.mark.parametrize("syntax", [None, pydicom.uid.RLELossless])
def test_dicom_that_claims_more_than_its_file(tmp_path, claim, syntax):
    for file in write_cine(tmp_path, grid=Grid(slices=2), frames=1, syntax=syntax):
        data = pydicom.dcmread(file)
        for tag, value in claim.items():
            setattr(data, tag, value)
        data.save_as(file)
    with pytest.raises(InputError):
        read_dicom(tmp_path)


def test_aliases_of_aliases_are_not_written_out(tmp_path):
    lines = ["structures:", "- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(9)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="its aliases stand for more than"):
        read_yaml(tmp_path / "laughs.yaml")
