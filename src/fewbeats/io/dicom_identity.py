"""Patient and study of a source image as the standard allows them in an image made of it.

What scanners, archives and anonymizers write into these tags is often not what the standard says. Values that
have one reading get it, others are left out, and all text becomes UTF-8; no message quotes any of them.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

REQUIRED_BUT_MAY_BE_EMPTY = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName",
]  # fmt: skip
DATES = ("StudyDate", "PatientBirthDate")
TEXTS = (
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "StudyDescription",
)
OTHERS = ("PatientSize", "PatientWeight", "LossyImageCompression", "LossyImageCompressionRatio",
          "LossyImageCompressionMethod")  # fmt: skip
UIDS = ("StudyInstanceUID", "FrameOfReferenceUID")
IDENTITY = ["SpecificCharacterSet", "StudyTime", "PatientSex", "PatientAge", "PositionReferenceIndicator"]
IDENTITY += [*DATES, *TEXTS, *OTHERS, *UIDS]
SEXES = {"M": "M", "F": "F", "O": "O", "MALE": "M", "FEMALE": "F", "OTHER": "O", "W": "F"}
ENCODINGS = {"utf8": "ISO_IR 192", "gb2312": "GBK", "gbk": "GBK", "gb18030": "GB18030", "ascii": "ISO_IR 6",
             "iso88591": "ISO_IR 100", "latin1": "ISO_IR 100"}  # fmt: skip
"""What character sets are called by writers that do not know DICOM's names."""


def read_identity(file: Path) -> Dataset:
    """Patient and study of an image, repaired."""
    import pydicom
    from pydicom.uid import generate_uid

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=IDENTITY, force=True)
        _name_encoding(found)
        identity = pydicom.Dataset()
        identity.SpecificCharacterSet = "ISO_IR 192"
        for name in REQUIRED_BUT_MAY_BE_EMPTY:
            setattr(identity, name, "")
        for name in TEXTS:
            with suppress(Exception):  # a value that cannot be decoded is left out
                setattr(identity, name, str(found.get(name) or ""))
        for name in DATES:
            setattr(identity, name, repair_date(_text(found, name)))
        identity.StudyTime = repair_time(_text(found, "StudyTime"))
        identity.PatientSex = SEXES.get(_text(found, "PatientSex").upper(), "")
        if re.fullmatch(r"\d{3}[DWMY]", age := _text(found, "PatientAge")):
            identity.PatientAge = age
        for name in OTHERS:
            with suppress(Exception):
                if (value := found.get(name)) not in (None, ""):
                    setattr(identity, name, value)
        for name in UIDS:
            setattr(identity, name, _text(found, name) or generate_uid(prefix=None))
        identity.PositionReferenceIndicator = _text(found, "PositionReferenceIndicator")
    return identity


def repair_date(text: str) -> str:
    """A date as DICOM writes it; empty where there is none in it.

    >>> repair_date("2019-07-18"), repair_date("19470000"), repair_date("ANON")
    ('20190718', '', '')
    """
    digits = re.sub(r"[-./:\s]", "", text)
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return ""
    return digits if len(digits) == 8 else ""


def repair_time(text: str) -> str:
    """A time as DICOM writes it; empty where there is none in it.

    >>> repair_time("12:13:14"), repair_time("121314.5"), repair_time("noon")
    ('121314', '121314.5', '')
    """
    digits = re.sub(r"[:\s]", "", text)
    hour = r"([01]\d|2[0-3])"
    return digits if re.fullmatch(rf"{hour}([0-5]\d([0-5]\d(\.\d{{1,6}})?)?)?", digits) else ""


def _text(found: Dataset, name: str) -> str:
    try:
        return str(found.get(name) or "").strip()
    except Exception:  # as it is decoded
        return ""


def _name_encoding(found: Dataset) -> None:
    """Call the character set by DICOM's name, before any text is decoded by it."""
    given = found.get("SpecificCharacterSet")
    names = [given] if isinstance(given, str) else list(given or ())
    known = [ENCODINGS.get(re.sub(r"[^a-z0-9]", "", str(name).lower()), str(name)) for name in names]
    if "ISO_IR 192" in known:
        known = ["ISO_IR 192"]
    if known != names:
        found.SpecificCharacterSet = known[0] if len(known) == 1 else known
