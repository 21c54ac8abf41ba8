"""Where known kinds of folders keep images, labels and facts: one function a layout.

Each takes the source folder and gives rows as far as names and side files tell them, columns as in
`cohort.COLUMNS`; `index` opens the files and adds the rest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fewbeats.data.names import (
    FRAME_NUMBER,
    LABEL_ENDINGS,
    NIFTI,
    PLANES,
    VIEWS,
    bare_label,
    bare_name,
    frame_of,
    is_image_folder,
    is_label_folder,
    is_piece,
    list_nifti,
    own_folders,
    person_of,
    plain,
    plane_of,
    shared_folders,
    squeezed,
    stem_of,
    subject_of,
)
from fewbeats.data.split import read_columns
from fewbeats.disk import files_below
from fewbeats.errors import InputError, name_some
from fewbeats.io.nifti import read_nifti

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Row = dict[str, Any]

KNOWN_SETS: dict[str, Row] = {
    "acdc": {"modality": "MR", "sequence": "cine", "view": "SAX", "slice_order": "base_first"},
    "mnms": {"modality": "MR", "sequence": "cine", "view": "SAX"},
    "emidec": {"modality": "MR", "sequence": "lge", "view": "SAX", "slice_order": "apex_first"},
    "la2018": {"modality": "MR", "sequence": "lge"},
}
"""What the files of a public data set do not say of themselves; by layout, or by convention in `folder`.
The order of slices is that of the file."""


def acdc(source: Path) -> list[Row]:
    """ACDC: `patientNNN/patientNNN_frameFF.nii.gz`, `..._gt.nii.gz`, `Info.cfg`; the cine without label."""
    rows = []
    for info_file in (f for f in files_below(source) if f.name == "Info.cfg"):
        info = _read_info(info_file)
        subject = info_file.parent.name
        ed, es = _whole(info, "ED", info_file), _whole(info, "ES", info_file)
        phases = {ed: "ED", es: "ES"}
        person = {
            "subject": subject, "group": info.get("Group"), "convention": "acdc", **KNOWN_SETS["acdc"],
            "height_cm": _number(info, "Height", info_file), "weight_kg": _number(info, "Weight", info_file),
        }  # fmt: skip
        files = {stem_of(file): file for file in list_nifti(info_file.parent)}
        for stem, image in files.items():
            label = files.get(f"{stem}_gt")
            numbered = FRAME_NUMBER.search(stem)
            if numbered:  # ACDC counts frames from 1
                number = int(numbered[1])
                place = {"frame": number - 1, "phase": phases.get(number), "label": label and str(label)}
            elif stem.endswith("_4d"):
                place = {"ed_frame": ed - 1, "es_frame": es - 1}
            else:
                continue
            rows.append({**person, **place, "scan": stem, "image": str(image)})
    return rows


def mnms(source: Path) -> list[Row]:
    """M&Ms: `ID/ID_sa.nii.gz`, `ID_sa_gt.nii.gz` labeled on two frames, and one table of the subjects."""
    table = _mnms_table(source)
    rows = []
    for image in (i for i in list_nifti(source) if stem_of(i).endswith("_sa")):
        subject = image.parent.name
        if subject not in table:
            raise InputError(f"{image}: its subject is not in the table of subjects; take it out or add it")
        person, file = table[subject], Path(f"the row of {subject}")
        ed, es = _whole(person, "ED", file), _whole(person, "ES", file)
        label = None if "Unlabeled" in image.parts else _beside(image, "_gt")
        rows.append({
            "subject": subject, "scan": stem_of(image), "image": str(image), "convention": "mnms",
            "label": label, "label_frames": f"{ed};{es}" if label else None, "ed_frame": ed, "es_frame": es,
            "group": person.get("Pathology"), "height_cm": _number(person, "Height", file),
            "weight_kg": _number(person, "Weight", file), "vendor": person.get("Vendor"),
            **KNOWN_SETS["mnms"],
        })  # fmt: skip
    return rows


def nnunet(source: Path) -> list[Row]:
    """nnU-Net raw: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `imagesTs`, `dataset.json`."""
    dataset = _read_json(source / "dataset.json")
    ending = str(dataset.get("file_ending", ".nii.gz"))
    if not re.search(NIFTI, ending):
        raise InputError(f"{source / 'dataset.json'}: file_ending '{ending}'; convert the files to .nii.gz")
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    rows = []
    for part, split in (("Tr", None), ("Ts", "test")):
        images = list_nifti(source / f"images{part}")
        _refuse_channels([i for i in images if not stem_of(i).endswith("_0000")])
        for image in images:
            case = stem_of(image).removesuffix("_0000")
            label = source / f"labels{part}" / f"{case}{ending}"
            rows.append({
                "subject": subject_of(case), "scan": case, "image": str(image), "split": split,
                "label": str(label) if label.exists() or part == "Tr" else None,
                "convention": str(source / "dataset.json"), "modality": _modality(channels),
                "frame": frame_of(case),
            })  # fmt: skip
    return rows


def msd(source: Path) -> list[Row]:
    """Medical Segmentation Decathlon: `dataset.json` lists image and label of each case."""
    file = source / "dataset.json"
    dataset = _read_json(file)
    channels = dataset.get("modality", {})
    if isinstance(channels, dict) and len(channels) > 1:
        raise InputError(f"{file}: several channels ({', '.join(map(str, channels.values()))}) per image; "
                         "keep one, fewbeats reads a fourth dimension as time")  # fmt: skip
    cases: list[tuple[Any, str | None]] = [(entry, None) for entry in _listed(dataset, "training", file)]
    cases += [({"image": image}, "test") for image in _listed(dataset, "test", file)]
    rows = []
    for entry, split in cases:
        found = entry if isinstance(entry, dict) else {}
        image, label = found.get("image"), found.get("label")
        if not isinstance(image, str) or not isinstance(label, str | None):
            raise InputError(
                f"{file}: an entry of 'training' or 'test' names no file; write image and label of each"
            )
        stem = stem_of(source / image)
        rows.append({
            "subject": subject_of(stem), "scan": stem, "image": str(source / image), "split": split,
            "label": str(source / label) if label else None, "convention": str(file),
            "modality": _modality(channels), "frame": frame_of(stem),
        })  # fmt: skip
    return rows


def folder(source: Path) -> list[Row]:
    """A plain folder: `images/NAME.nii.gz` and `labels/NAME.nii.gz`, or both in one place.

    A label has the image's name, or that name (without `_4d`, `_image`, `_cine`) and `_label`, `_gt` or
    the like (`names.LABEL_ENDINGS`); their folder may be called `masks` or the like. Whose scan it is, its
    folders and its name tell (`names.person_of`), without `_4d`, `_sa`, `_cine`, `_ED`, `_ES`, `_frameNN`,
    where frames are counted from 0.
    """
    files = list_nifti(source)
    labels = [f for f in files if _is_label(f, source)]
    images = [f for f in sorted({*files} - {*labels}) if not _is_derived(f, source)]
    by_name, around = _by_name(images, source), Counter(image.parent for image in images)
    found: dict[Path, Path] = {}
    for label in labels:
        image = by_name.get(bare_name(label, source))
        if image is None:
            if is_piece(label, around):  # `tell_unused` names it
                continue
            raise InputError(f"{label}: {_mend_lone_label(label, by_name, source)}")
        if image in found:
            raise InputError(f"{label}: a second label of {image.name}; keep one of them")
        found[image] = label
    rows, shared = [], shared_folders(images, source)
    named = {image: [*own_folders(image, source)[shared:], stem_of(image)] for image in images}
    called = Counter(map("_".join, named.values()))
    for image, told in named.items():
        *inside, stem = told
        phase = re.search(r"(?:^|[_\-])(ED|ES)$", stem, re.IGNORECASE)
        phases = [*([phase[1]] if phase else []), *(f for f in inside if f.upper() in ("ED", "ES"))]
        if called["_".join(told)] > 1:
            told = [*image.relative_to(source).parts[:-1], stem]
        planes = [plane for text in told if (plane := PLANES.get(squeezed(text)) or plane_of(text))]
        rows.append({
            "subject": person_of(inside, stem), "scan": "_".join(told),
            "image": str(image), "label": str(found[image]) if image in found else None,
            "frame": frame_of(stem), "phase": phases[0].upper() if phases else None,
            **({"view": planes[0]} if planes else {}),
        })  # fmt: skip
    return rows


def _is_label(file: Path, source: Path) -> bool:
    """By its name, else by the innermost folder that is called like images or masks."""
    stem = stem_of(file)
    if re.search(LABEL_ENDINGS, stem, re.IGNORECASE):
        return True
    telling = (f for f in file.relative_to(source).parents if is_label_folder(f) or is_image_folder(f))
    folder = next(telling, None)
    return folder is not None and is_label_folder(folder) and not stem.lower().endswith("_image")


def _is_derived(file: Path, source: Path) -> bool:
    """Whether a file lies in the `derivatives` of BIDS: what was made of images, and is none of them."""
    return "derivatives" in file.relative_to(source).parts


def _mend_lone_label(label: Path, by_name: dict[str, Path], source: Path) -> str:
    stem, inside = stem_of(label), own_folders(label, source)
    bare = bare_label(stem)
    names = (FRAME_NUMBER.sub("", bare), subject_of(bare))
    cine = next((c for name in names if (c := by_name.get(plain("/".join((*inside, name)))))), None)
    if bare != names[1] and cine is not None:
        return (
            f"labels one frame of {cine.name}; save one mask of all frames under that name, with the others "
            f"empty, or cut the frame out of the image as {bare}{cine.name[len(stem_of(cine)) :]}"
        )
    return "a label without an image of that name; rename it like its image"


def phantom(source: Path) -> list[Row]:
    """What `fewbeats phantom` writes: `images/`, `labels/` and `subjects.csv`."""
    people = read_columns(source / "subjects.csv", "subject", "group", "height_cm", "weight_kg",
                          "ed_frame", "es_frame")  # fmt: skip
    known = {row["subject"]: row for row in people.iter_rows(named=True)}
    file, scans = source / "subjects.csv", _phantom_scans(source)
    rows = []
    for row in folder(source):
        if scans:
            row |= scans.get(stem_of(Path(row["image"])), {})
        person = known.get(row["subject"])
        if person is None:
            raise InputError(f"{file}: has no row for {row['subject']}; write the phantom again")
        heart = {name: _whole(person, name, file) for name in ("ed_frame", "es_frame")}
        body = {name: _number(person, name, file) for name in ("height_cm", "weight_kg")}
        scanner = KNOWN_SETS["acdc"] if read_nifti(row["image"]).is_stack else {"modality": "CT"}
        if scans:  # they tell sequence and view; heights and phases are of stacks of cines alone
            scanner = {"modality": "MR"} | ({"slice_order": "base_first"} if row["view"] == "SAX" else {})
            heart = heart if row["sequence"] == "cine" else {}
        rows.append({**row, **heart, **body, "group": person["group"], "convention": "fewbeats", **scanner})
    return rows


def _phantom_scans(source: Path) -> dict[str, Row]:
    """Name of an exam's scan -> what it is; empty where the phantoms are one scan each."""
    if not (source / "scans.csv").is_file():
        return {}
    table = read_columns(source / "scans.csv", "scan", "subject", "sequence", "view")
    return {row["scan"]: row for row in table.iter_rows(named=True)}


def dicom(source: Path) -> list[Row]:
    """DICOM: one folder a subject (or files of one subject), named by the folder and never by the header.

    Folders called like views are of one subject, that of the folder they lie in. Gives one row a
    folder; `index` makes one of each scan in it.
    """
    folders = sorted(f for f in source.iterdir() if f.is_dir() and not f.name.startswith("."))
    loose = any(f.is_file() and _looks_like_dicom(f) for f in source.iterdir())
    one = loose or all(squeezed(f.name) in VIEWS for f in folders)
    chosen = [source] if one else folders
    return [{"subject": f.absolute().name, "scan": f.absolute().name, "image": str(f)} for f in chosen]


LAYOUTS: dict[str, Callable[[Path], list[Row]]] = {
    "acdc": acdc, "mnms": mnms, "nnunet": nnunet, "msd": msd, "folder": folder, "dicom": dicom,
    "phantom": phantom,
}  # fmt: skip
"""Name of a layout -> its function."""


def _looks_like_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        marked = opened.read(132)[128:] == b"DICM"
    return file.name != "DICOMDIR" and (marked or file.suffix.lower() in (".dcm", ".ima"))


def _by_name(images: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Images by what they share with their labels; such as share it with each other are in by no name.

    Raises:
        InputError: two of one folder differ by the ending alone.
    """
    by_name: dict[str, Path] = {}
    shared = set()
    for image in images:
        name = bare_name(image, folder)
        other = by_name.setdefault(name, image)
        if other != image and other.parent == image.parent:
            raise InputError(f"{image}: its name differs from {other.name} by the ending alone; rename one")
        if other != image:
            shared.add(name)
    return {name: image for name, image in by_name.items() if name not in shared}


def _beside(image: Path, ending: str) -> str | None:
    """The label beside an image, None where there is none."""
    suffix = image.name[len(stem_of(image)) :]
    label = image.with_name(f"{stem_of(image)}{ending}{suffix}")
    return str(label) if label.exists() else None


def _refuse_channels(extra: list[Path]) -> None:
    numbered = [f for f in extra if re.search(r"_\d{4}$", stem_of(f))]
    if numbered:
        raise InputError(f"{numbered[0]}: a second channel; fewbeats takes images of one, keep _0000 alone")
    if extra:
        raise InputError(f"{extra[0]}: the name does not end in _0000; rename it as nnU-Net wants")


def _modality(channels: Any) -> str | None:
    text = str(next(iter(channels.values()), "") if isinstance(channels, dict) else channels).upper()
    return "CT" if "CT" in text else "MR" if "MR" in text or "CINE" in text else None


def _read_info(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable text file; copy it again") from error
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: missing; is the folder of this layout?") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON; mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a JSON object; mend it")
    return content


def _listed(dataset: dict[str, Any], key: str, file: Path) -> list[Any]:
    entries = dataset.get(key, [])
    if not isinstance(entries, list):
        raise InputError(f"{file}: '{key}' is not a list; mend it")
    return entries


def _mnms_table(source: Path) -> dict[str, Row]:
    needed = ("External code", "ED", "ES")
    for file in sorted({*source.glob("*.csv"), *source.parent.glob("*.csv"), *source.rglob("*.csv")}):
        try:
            table = pl.read_csv(file, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError):
            continue
        if set(needed) <= set(table.columns):
            return {row["External code"]: row for row in table.iter_rows(named=True)}
    raise InputError(f"{source}: no table with the columns {name_some(needed)}; put the M&Ms table beside it")


def _whole(info: Row, key: str, file: Path) -> int:
    text = str(info.get(key) or "").strip()
    if not re.fullmatch(r"\d{1,6}(\.0*)?", text):
        raise InputError(f"{file}: {key} is '{text}', not a whole number; mend it")
    return int(float(text))


def _number(info: Row, key: str, file: Path) -> float | None:
    """A positive number; None where it is not given (empty, 0 or not available)."""
    text = str(info.get(key) or "").strip()
    if text.lower() in ("", "nan", "na", "n/a"):
        return None
    try:
        return float(text) if float(text) > 0 else None
    except ValueError as error:
        raise InputError(f"{file}: {key} is '{text}', not a number; mend it") from error
