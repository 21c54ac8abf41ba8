"""What the names of files say: whose scan, which frame and phase, a mask or an image."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.anatomy import OTHER, name_structure
from fewbeats.disk import files_below
from fewbeats.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NIFTI = r"\.nii(\.gz)?$"
LABEL_ENDINGS = (
    r"[_\-.](label|labels|labelmap|seg|dseg|segmentation|mask|gt|truth|ground_?truth|manual|annotation|annot|"
    r"contours?)$"
)
PARTS = {"imagestr": "Tr", "labelstr": "Tr", "imagests": "Ts", "labelsts": "Ts"}
"""Folders of nnU-Net, whose files may be numbered alike."""
LABEL_FOLDERS = (
    "labels", "label", "labelmaps", "labelmap", "masks", "mask", "segmentations",
    "segmentation", "segs", "seg", "gt", "gts", "groundtruth", "annotations", "annotation", "contours",
    "manual",
)  # fmt: skip
"""What a folder of masks is called, in small letters and without what joins words."""
IMAGE_FOLDERS = (
    "images", "image", "imgs", "img", "scans", "volumes", "nifti", "niftis", "nii",
    "data", "rawdata", "anat", "func",
)  # fmt: skip
"""What a folder of images is called."""
DAY = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
"""A date, and not the number of somebody that begins with a year."""
SCAN_ENDINGS = (
    r"[_\-](4d|sax?|lax?|[234]ch|short_axis|long_axis|cine|lge|image|rest|stress|ed|es|"
    r"(frame|phase|slice|time|fr|ph|sl)_?\d+|t\d\d|" + DAY + "|"
    r"(ses|session|visit|baseline|follow_?up|fu|tp|timepoint)[_\-]?[a-z]?\d*)$"
)
"""What a name has after whose scan it is: view, sequence, phase, frame, slice, visit, date."""
FRAME_NUMBER = re.compile(r"_(?:(?:frame|phase|time|fr|ph)_?|t(?=\d\d))(\d+)$", re.IGNORECASE)
BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
PLANES = {"sa": "SAX", "sax": "SAX", "shortaxis": "SAX", "2ch": "2CH", "3ch": "3CH", "4ch": "4CH"}
VIEWS = (
    *PLANES, "la", "lax", "longaxis", "lvot", "rvot", "cine", "lge", "t1", "t2",
)  # fmt: skip
"""Folders of one view or sequence, of one person or many."""
KINDS = (
    *VIEWS, "tr", "ts", "ed", "es", "mr", "mri", "cmr", "ct", "train", "training", "test", "testing", "val",
    "valid", "validation", "tune", "dev", "labeled", "unlabeled", "labelled", "unlabelled", "baseline",
    "base", "pre", "post",
)  # fmt: skip
"""Folders of one kind of scans, of many people."""
VISIT = re.compile(rf"(ses|session|visit|timepoint|tp|followup|fu|year|month|week|day)[a-z]?\d{{0,3}}|{DAY}")
SITE = re.compile(r"(site|center|centre|hospital|vendor|scanner|cohort|dataset)[a-z]?\d{0,3}")
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

    >>> [subject_of(stem) for stem in ("patient001_frame01", "001_SA_ED", "sub-01_ses-2_cine", "p_t07")]
    ['patient001', '001', 'sub-01', 'p']
    >>> [subject_of(stem) for stem in ("P01_s12", "HCM_S12", "HCM_20190012", "P01_20190312")]
    ['P01', 'HCM_S12', 'HCM_20190012', 'P01']
    """
    if bids := BIDS_SUBJECT.match(stem):
        return bids[1]
    bare = re.sub(SCAN_ENDINGS, "", stem, flags=re.IGNORECASE)
    if bare == stem:  # a slice, where whose it is is told before
        bare = re.sub(r"(?<=\d)[_\-][stz]\d\d+$", "", stem, flags=re.IGNORECASE)
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
    """What an image and its label share: own folders below `folder`, and the name without endings."""
    stem = bare_label(stem_of(file))
    stem = re.sub(r"_(4d|image|cine)$", "", stem, flags=re.IGNORECASE)
    return plain("/".join((*own_folders(file, folder), stem)))


def own_folders(file: Path, folder: Path) -> list[str]:
    """Folders below `folder` that a file lies in, without those of images or of labels.

    >>> own_folders(Path("in/derivatives/manual/sub-01/anat/a.nii"), Path("in"))
    ['sub-01']
    """
    parts = [PARTS.get(squeezed(part), part) for part in file.relative_to(folder).parts[:-1]]
    aside = (*IMAGE_FOLDERS, *LABEL_FOLDERS, "derivatives")
    return [part for part in parts if squeezed(part) not in aside]


def squeezed(name: str) -> str:
    """A folder's name in small letters, without what joins words.

    >>> squeezed("Ground_Truth"), squeezed("ses-02")
    ('groundtruth', 'ses02')
    """
    return re.sub(r"[ _\-.]", "", name.lower())


def is_label_folder(folder: Path) -> bool:
    """Whether a folder is called like one of masks."""
    return squeezed(folder.name) in (*LABEL_FOLDERS, "labelstr", "labelsts")


def is_image_folder(folder: Path) -> bool:
    """Whether a folder is called like one of images."""
    return squeezed(folder.name) in (*IMAGE_FOLDERS, "imagestr", "imagests")


def is_kind(folder: str) -> bool:
    """Whether a folder is called like a kind of scans or a visit, and so is nobody's name.

    >>> [is_kind(name) for name in ("SAX", "visit_2", "P07", "scan001")]
    [True, True, False, False]
    """
    name = squeezed(folder)
    return name in KINDS or bool(VISIT.fullmatch(name))


def is_likelihood(file: Path | None) -> bool:
    """Whether a file is called like a map of probabilities, as networks write it.

    >>> is_likelihood(Path("P01_prob.nii.gz")), is_likelihood(Path("P01.nii.gz"))
    (True, False)
    """
    return file is not None and bool(
        re.search(r"(?i)[_\-](probs?|probabilit(y|ies)|softmax)$", stem_of(file))
    )


def person_of(folders: Iterable[str], stem: str) -> str:
    """Whose scan a file is, by its folders (`own_folders`) and its name.

    A folder is a person unless it is called like a kind of scans or a visit; sites are kept apart, as their
    numbers may be those of other people.

    >>> person_of(["P01", "sax"], "a"), person_of(["ED"], "P01_ED"), person_of(["siteA"], "P01")
    ('P01', 'P01', 'siteA_P01')
    >>> person_of(["sub-01", "ses-1"], "sub-01_ses-1_bold"), person_of(["visit2"], "P07_4d")
    ('sub-01', 'P07')
    >>> person_of(["20190312"], "cine")
    '20190312'
    """
    folders = list(folders)
    if bids := [found for text in (*folders, stem) if (found := BIDS_SUBJECT.match(text))]:
        return bids[0][1]
    telling = [f for f in folders if not is_kind(f)]
    sites = [f for f in telling if SITE.fullmatch(squeezed(f))]
    people = [f for f in telling if f not in sites]
    named = subject_of(stem)
    if not people and not re.search(r"\d", named):  # else folders by day or visit are all there is
        people = [f for f in folders if VISIT.fullmatch(squeezed(f))]
    return "_".join((*sites, people[0] if people else named))


def shared_folders(files: Iterable[Path], base: Path) -> int:
    """How many folders (`own_folders`) all files lie in: they tell nobody apart.

    The last of them is one person's, unless the files' names tell several apart by their numbers.
    """
    listed = list(files)
    parts = [own_folders(file, base) for file in listed]
    count = 0
    while parts and all(len(own) > count for own in parts) and len({own[count] for own in parts}) == 1:
        count += 1
    people = {subject_of(stem_of(file)) for file in listed}
    several = len(people) > 1 and all(re.search(r"\d$", name) and not is_kind(name) for name in people)
    deeper = all(len(own) > count for own in parts)
    return count if several or deeper else max(0, count - 1)


def is_piece(label: Path, images: Mapping[Path, int]) -> bool:
    """Whether a mask without an image of its name is of one structure: by its name, or as its folder's are.

    Args:
        label: the mask.
        images: folder -> how many images lie in it.

    >>> is_piece(Path("a/P01_LV_mask.nii.gz"), {}), is_piece(Path("a/P01_ED_seg.nii.gz"), {})
    (True, False)
    """
    words = re.split(r"[_\-]", bare_label(stem_of(label)))
    if any(_means_structure("".join(words[at:])) or _means_structure(words[at]) for at in range(len(words))):
        return True
    around = images.get(label.parent.parent, 0)
    return around == 1 and is_label_folder(label.parent) and frame_of(stem_of(label)) is None


def _means_structure(word: str) -> bool:
    try:
        return name_structure(word, file="") != OTHER
    except InputError:
        return False
