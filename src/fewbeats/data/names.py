"""What the names of files say: whose scan, which frame and phase, a mask or an image."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.disk import files_below
from fewbeats.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

NIFTI = r"\.nii(\.gz)?$"
LABEL_ENDINGS = (
    r"[_\-.](label|labels|labelmap|seg|dseg|segmentation|mask|gt|truth|ground_?truth|manual|annotation|annot|"
    r"contours?)$"
)
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "gt", "annotations")
"""What a folder of masks is called, in small letters."""
SCAN_ENDINGS = r"[_\-](4d|sax?|lax?|[234]ch|cine|image|frame_?\d+|ed|es)$"
FRAME_NUMBER = re.compile(r"_frame_?(\d+)$", re.IGNORECASE)
BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
PLANES = {"sa": "SAX", "sax": "SAX", "2ch": "2CH", "3ch": "3CH", "4ch": "4CH"}
FOREIGN = (".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".par", ".rec", ".mnc", ".nii.zip", ".img")
"""Formats of images and masks that are not read."""


def plain(text: str) -> str:
    """A name as it is compared: letters with marks are written in two ways, by systems that differ.

    >>> plain("Mu\\u0308ller") == plain("M\\u00fcller")
    True
    """
    return unicodedata.normalize("NFC", text)


def list_nifti(folder: Path) -> list[Path]:
    """NIfTI files in a folder and below, sorted.

    Raises:
        InputError: a name that is no text.
    """
    found = [f for f in files_below(folder) if re.search(NIFTI, f.name, re.IGNORECASE)]
    for file in found:
        refuse_garbled(file)
    return found


def refuse_garbled(file: Path) -> None:
    """Refuse a name that is not UTF-8, which no table can hold.

    Raises:
        InputError: with the name as far as it can be shown.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        shown = str(file).encode(errors="surrogateescape").decode(errors="replace")
        raise InputError(f"{shown}: its name is not UTF-8; rename it") from error


def stem_of(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(NIFTI, "", path.name, flags=re.IGNORECASE)


def subject_of(stem: str) -> str:
    """Subject from a file's stem.

    >>> [subject_of(stem) for stem in ("patient001_frame01", "001_SA_ED", "sub-01_ses-2_cine")]
    ['patient001', '001', 'sub-01']
    """
    if bids := BIDS_SUBJECT.match(stem):
        return bids[1]
    bare = re.sub(SCAN_ENDINGS, "", stem, flags=re.IGNORECASE)
    return stem if not bare else bare if bare == stem else subject_of(bare)


def plane_of(stem: str) -> str | None:
    """Plane that a stem names, as `001_SA_ED` does."""
    for word in re.split(r"[_\-]", stem.lower())[1:]:
        if word in PLANES:
            return PLANES[word]
    return None


def frame_of(stem: str) -> int | None:
    """Frame number in a file's stem, as written there."""
    found = FRAME_NUMBER.search(stem)
    return int(found[1]) if found else None


def bare_label(stem: str) -> str:
    """A label's stem without its ending: `patient001_label` -> `patient001`."""
    return re.sub(LABEL_ENDINGS, "", stem, flags=re.IGNORECASE)


def bare_name(file: Path, folder: Path) -> str:
    """What an image and its label share: the path below `folder` without endings."""
    stem = bare_label(stem_of(file))
    stem = re.sub(r"_(4d|image|cine)$", "", stem, flags=re.IGNORECASE)
    return plain(str(file.relative_to(folder).with_name(stem)))


def is_label_folder(folder: Path) -> bool:
    """Whether a folder is called like one of masks."""
    return folder.name.lower() in LABEL_FOLDERS


def shared_folders(files: Iterable[Path], base: Path) -> int:
    """How many folders below `base` all files lie in: they tell nobody apart."""
    parts = [file.relative_to(base).parts[:-1] for file in files]
    count = 0
    while parts and all(len(own) > count + 1 for own in parts) and len({own[count] for own in parts}) == 1:
        count += 1
    return count
