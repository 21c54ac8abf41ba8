"""What is odd about a source, in words: files that cannot be used, masks among images, swapped ventricles."""

from __future__ import annotations

import re
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.data.files import is_nifti
from fewbeats.data.names import FOREIGN, NIFTI, is_piece
from fewbeats.disk import files_below
from fewbeats.errors import InputError, name_some
from fewbeats.io.dicom import CONTOURS
from fewbeats.io.nifti_parts import find_parts, read_parts, say_parts
from fewbeats.metrics import enclosed_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import polars as pl

Row = dict[str, Any]
MOST_NAMES = 3  # that one person has; a PatientID of more is what an anonymizer wrote
MOST_NAMED = 10  # files of which all is said
ENCLOSED = 0.6  # share of a ventricle's outline that borders on myocardium: nearly all of the left one's


def refuse_bad(errors: list[InputError], *, leave_out: bool, tell: Callable[[str], None]) -> None:
    """Name all files that cannot be used.

    Raises:
        InputError: there are any, and they are not to be left out.
    """
    if not errors:
        return
    said = list(dict.fromkeys(map(str, errors)))  # a faulty table is named once, not for each scan
    told = " | ".join(said[:MOST_NAMED])
    more = f" | and {len(said) - MOST_NAMED} more" if len(said) > MOST_NAMED else ""
    if leave_out:
        tell(f"left out: {told}{more}")
    elif len(said) == 1:
        raise errors[0]
    else:
        raise InputError(
            f"{len(errors)} scans cannot be used (--leave-out goes on without them): {told}{more}"
        )


def tell_odd(rows: list[Row], tell: Callable[[str], None]) -> list[Row]:
    """Rows without what looks like a mask; what is odd about the others is told."""
    masks = [row["scan"] for row in rows if row.get("_mask") and not row.get("label")]
    if masks:
        tell(f"left out, as they look like masks: {name_some(masks)}; name a mask like its image and _label")
    rows = [row for row in rows if row["scan"] not in masks]
    flat = [row["scan"] for row in rows if row.get("_flat") and not row.get("label")]
    if flat:
        tell(f"look like masks of many structures: {name_some(flat)}; take them out where they are")
    units = [row["scan"] for row in rows if row.get("_hu") and not row.get("modality")]
    if units:
        tell(
            f"gray values look like Hounsfield units: {name_some(units)}; write CT into the column modality, "
            "else they are taken as MR"
        )
    drawn = [row["scan"] for row in rows if row.get("_contours") and not row.get("label")]
    if drawn:
        tell(f"contours (RTSTRUCT) are not read as labels: {name_some(drawn)}; {CONTOURS}")
    _tell_people(rows, tell)
    judged = [row["_enclosed"] for row in rows if row.get("_enclosed") is not None]
    for pair, count in Counter(judged).items():
        if pair != ("LV", "MYO") and count > len(judged) / 2:
            tell(
                f"ventricles look exchanged: what is called {pair[0]} lies within {pair[1]} in {count} of "
                f"{len(judged)} labels; check the convention"
            )
    return rows


def _tell_people(rows: list[Row], tell: Callable[[str], None]) -> None:
    """Say where one subject's files are of two people, and where two subjects' are of one, by PatientID."""
    people: dict[str, set[str]] = {}
    for row in rows:
        people.setdefault(row["subject"], set()).update(row.get("_people") or ())
    several = sorted(subject for subject, found in people.items() if len(found) > 1)
    if several:
        tell(f"files of several people (PatientID) in one folder: {name_some(several)}; give each a folder")
    subjects: dict[str, list[str]] = {}
    for subject, found in people.items():
        for person in found:
            subjects.setdefault(person, []).append(subject)
    shared = [sorted(names) for names in subjects.values() if 1 < len(names) <= MOST_NAMES]
    if shared and len(shared[0]) < len(people):  # more names have an anonymizer's
        told = "; ".join(" and ".join(names) for names in sorted(shared)[:MOST_NAMED])
        tell(f"one person by PatientID: {told}; --subject, or folders, can say so")
    elif 1 < len(people) == max(map(len, subjects.values()), default=0):
        tell(
            "all subjects have one PatientID: where they are one person, they must have one name "
            "(--subject), or a split would part them"
        )


def tell_parts(rows: list[Row], tell: Callable[[str], None]) -> None:
    """Name folders whose files are frames or slices of one heart, as one file a scan is indexed."""
    for folder in sorted({Path(row["image"]).parent for row in rows if is_nifti(Path(row["image"]))}):
        try:
            files = find_parts(folder)
            note = read_parts(files).source.notes[0] if files and say_parts(files) else ""
        except InputError:
            continue
        if note:
            tell(f"{note}: one scan in pieces; join them (fewbeats convert {folder} OUT) and index that")


def tell_unused(
    source: Path, cohort: pl.DataFrame, told: Iterable[Path], tell: Callable[[str], None]
) -> None:
    """Name files below the source that are in no row, and such as are of formats that nobody reads.

    Args:
        source: the folder.
        cohort: what was made of it.
        told: files of which was said already why they are in no row.
        tell: told what is found.
    """
    used = {Path(text) for name in ("image", "label") for text in cohort[name].drop_nulls()} | set(told)
    files = files_below(source)
    foreign = [f.name for f in files if f.name.lower().endswith(FOREIGN)]
    if foreign:
        tell(f"not read: {name_some(foreign)}; save what is wanted of these as .nii.gz")
    folders = {f for f in used if f.is_dir()}
    spare = [
        f for f in files
        if re.search(NIFTI, f.name, re.IGNORECASE) and f not in used and not folders & set(f.parents)
    ]  # fmt: skip
    around = Counter(f.parent for f in used)
    pieces = {f for f in spare if is_piece(f, around)}
    if pieces:
        named = name_some([f.name for f in spare if f in pieces])
        tell(
            f"in no row: {named}; masks of single structures are to be joined to one of all, called like the "
            "image"
        )
    if others := [f.name for f in spare if f not in pieces]:
        tell(f"in no row: {name_some(others)}")


def find_enclosed(mask: np.ndarray) -> tuple[str, str] | None:
    """Which of LV, MYO and RV lies within which other: of a heart LV within MYO.

    Args:
        mask: (Z, Y, X), 1 where LV, 2 where MYO, 3 where RV.

    Returns:
        None where not all three are there, or none lies within another.
    """
    parts = {name: mask == value for value, name in enumerate(("LV", "MYO", "RV"), 1)}
    if not all(part.any() for part in parts.values()):
        return None
    shares = {pair: enclosed_share(parts[pair[0]], parts[pair[1]]) for pair in permutations(parts, 2)}
    found = max(shares, key=lambda pair: shares[pair])
    return (found[0], found[1]) if shares[found] > ENCLOSED else None
