"""Index a source: find its scans, open each once, and write down what they are."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbeats.anatomy import CONVENTIONS, OTHER, relabel
from fewbeats.data.cohort import ALLOWED, new_cohort
from fewbeats.data.conventions import absolute_convention, find_convention
from fewbeats.data.files import is_nifti, open_labels, open_scan
from fewbeats.data.layouts import KNOWN_SETS, LAYOUTS, Row
from fewbeats.data.names import bare_label, is_likelihood, list_nifti, plain, stem_of
from fewbeats.data.oddities import find_enclosed, refuse_bad, tell_odd, tell_parts, tell_unused
from fewbeats.data.split import apply_split_file
from fewbeats.disk import files_below
from fewbeats.errors import InputError, name_some
from fewbeats.io.nifti import frame_step_ms, read_nifti
from fewbeats.scan import is_spacing_nominal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import polars as pl

    from fewbeats.scan import Scan

MASK_LEVELS = 12  # an image has more values
MOST_LABELS = 256  # of a mask of all there is
FLAT = 0.75  # share of equal neighbors; of an image of so few values far less
AIR_HU = -500.0  # no MR image has such values, every CT of a chest has
VENTRICLES = ("LV", "MYO", "RV")
READERS = 4  # threads; unpacking releases the interpreter, more than this many wait for the disk


def index(
    source: Path | str,
    *,
    layout: str,
    split_file: Path | str | None = None,
    convention: str | None = None,
    labels: Path | str | None = None,
    subject: str | None = None,
    leave_out: bool = False,
    check_pixels: bool = True,
    tell: Callable[[str], None] = lambda note: None,
) -> pl.DataFrame:
    """Make a cohort of a source.

    Labels are read in full, whatever their number: their grid and values are checked, and the frames that
    are drawn in a 4D label are noted.

    Args:
        source: folder.
        layout: a name in `LAYOUTS`.
        split_file: CSV subject,split; see `apply_split_file`.
        convention: meaning of the label values, where it is not the layout's own.
        labels: folder of masks that add to or replace labels; see `attach_labels`.
        subject: regular expression that finds the subject in a scan's name, its first group where it has one.
        leave_out: leave out what cannot be used, and tell it.
        check_pixels: read every image to its end, so that truncated and empty ones are found now.
        tell: told what is to be known of the table, one sentence each.

    Returns:
        table as in `cohort.COLUMNS`, paths absolute.

    Raises:
        InputError: naming the files that cannot be used.
    """
    source = Path(source).absolute()
    if layout not in LAYOUTS:
        raise InputError(f"layout '{layout}': unknown; choose one of {', '.join(LAYOUTS)}")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; check the path")
    rows = LAYOUTS[layout](source)
    if convention is not None:
        # the values of ACDC and M&Ms are used by others too, and say nothing of how slices were ordered
        known = KNOWN_SETS.get(convention, {}) if layout == "folder" and convention not in LAYOUTS else {}
        rows = [{**known, **row, "convention": absolute_convention(convention)} for row in rows]
    rows = rename_subjects(rows, subject) if subject else rows
    measured, told = _measure_all(rows, leave_out=leave_out, check_pixels=check_pixels, tell=tell)
    if not measured:
        raise InputError(f"{source}: no image of the layout '{layout}' in it; check folder and layout")
    cohort = new_cohort(narrow_conventions(name_visits(measured), tell))
    tell_parts(measured, tell)
    tell_unused(source, cohort, told, tell)
    if labels is not None:
        cohort = attach_labels(cohort, labels)
    return cohort if split_file is None else apply_split_file(cohort, split_file)


def _measure_all(
    rows: list[Row], *, leave_out: bool, check_pixels: bool, tell: Callable[[str], None]
) -> tuple[list[Row], list[Path]]:
    """Rows that can be used, measured, and the files of the others, of which all was said."""
    with ThreadPoolExecutor(READERS) as pool:
        tried = list(pool.map(partial(_try_measure, check_pixels=check_pixels), rows))
    refuse_bad([one for one in tried if isinstance(one, InputError)], leave_out=leave_out, tell=tell)
    measured = [row for found in tried if not isinstance(found, InputError) for row in found]
    kept = tell_odd(measured, tell)
    numbers = {id(row) for row in kept}
    aside = [row for row, found in zip(rows, tried) if isinstance(found, InputError)]
    aside += [row for row in measured if id(row) not in numbers]
    return kept, [Path(row[name]) for row in aside for name in ("image", "label") if row.get(name)]


def name_visits(rows: list[Row]) -> list[Row]:
    """Rows with studies numbered in order of their files, where a subject's DICOM files are of several."""
    visits: dict[str, list[str]] = {}
    for row in rows:
        own = visits.setdefault(row["subject"], [])
        if row.get("_visit") and row["_visit"] not in own:
            own.append(row["_visit"])
    named = []
    for row in rows:
        own, uid = visits[row["subject"]], row.get("_visit")
        if len(own) > 1 and uid and not row.get("study"):
            row = {**row, "study": f"{row['subject']}_study{own.index(uid) + 1}"}
        named.append(row)
    return named


def _try_measure(row: Row, *, check_pixels: bool) -> list[Row] | InputError:
    try:
        return measure(row, check_pixels=check_pixels)
    except InputError as error:
        return error


def rename_subjects(rows: list[Row], pattern: str) -> list[Row]:
    """Rows with the subject that a lab's own pattern finds in the scan's name.

    Raises:
        InputError: no regular expression, or a name in which it finds nothing.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"--subject '{pattern}': no regular expression ({error}); mend it") from error
    names = {}
    for row in rows:
        match = search(row["scan"])
        groups = match.groups() or (match[0],) if match else ()
        names[row["scan"]] = next((group for group in groups if group), "")
    if missed := [scan for scan, name in names.items() if not name]:
        raise InputError(f"--subject '{pattern}': finds no subject in {name_some(missed)}; widen it")
    return [{**row, "subject": names[row["scan"]]} for row in rows]


def attach_labels(cohort: pl.DataFrame, folder: Path | str, *, convention: str = "fewbeats") -> pl.DataFrame:
    """Take masks named like scans (`SCAN.nii.gz`, `SCAN_label.nii.gz`) as their manual labels.

    This is how a corrected prediction comes back: put the corrected masks, and only those, in a folder.
    In the `fewbeats` convention they speak of the structures that any of them holds.

    Args:
        cohort: the table.
        folder: with the masks, on the images' grids.
        convention: meaning of their values.

    Raises:
        InputError: no mask, a mask without a scan, on another grid, empty or with unknown values.
    """
    masks = list_nifti(Path(folder).absolute())
    if not masks:
        raise InputError(f"{folder}: no mask (.nii.gz) in it; check the path")
    rows = {row["scan"]: row for row in cohort.iter_rows(named=True)}
    named = {mask: stem if (stem := plain(stem_of(mask))) in rows else bare_label(stem) for mask in masks}
    strangers = [mask.name for mask, scan in named.items() if scan not in rows]
    if strangers:
        raise InputError(
            f"{folder}: no scan of the cohort is called like {name_some(strangers)}; rename them"
        )
    new = {"label_source": "manual", "label_frames": None, "convention": absolute_convention(convention)}
    labeled = [{**rows[scan], **new, "label": str(mask)} for mask, scan in named.items()]
    if len({row["scan"] for row in labeled}) < len(labeled):
        raise InputError(f"{folder}: two masks of one scan; keep one of them")
    with ThreadPoolExecutor(READERS) as pool:
        labeled = list(pool.map(lambda row: measure_label(row, open_scan(row)), labeled))
    rows.update((row["scan"], row) for row in narrow_conventions(labeled))
    return new_cohort(rows.values())


def measure(row: Row, *, check_pixels: bool) -> list[Row]:
    """Open what a layout found and fill in geometry and labels; a DICOM folder may hold several scans.

    Raises:
        InputError: naming the file that cannot be used.
    """
    path = Path(row["image"])
    found = [(row, read_nifti(path))] if is_nifti(path) else scans_in_dicom(row, path)
    done = []
    for one, scan in found:
        if check_pixels:
            one = {**one, **refuse_empty(scan)}
        if scan.modality not in ("", *ALLOWED["modality"]):
            raise InputError(f"{scan.source.path}: modality {scan.modality}; only MR and CT can be used")
        one = {**one, **_geometry(scan), "modality": scan.modality or one.get("modality")}
        one["_people"], one["_visit"] = scan.source.people, scan.source.study
        one["slice_order"] = _slice_order(one.get("slice_order"), scan)
        if one.get("label"):
            one = measure_label({"label_frames": _frame_of_single(one["label"], scan), **one}, scan)
        done.append(one)
    return done


def _frame_of_single(label: str, scan: Scan) -> str | None:
    """A mask of one frame beside a cine is taken as that of its first; `fewbeats index` says so."""
    single = is_nifti(Path(label)) and scan.shape[0] > 1 and read_nifti(label).shape[0] == 1
    return "0" if single else None


def measure_label(row: Row, scan: Scan) -> Row:
    """The row with the frames that its label covers and, under `_values`, the values found.

    Raises:
        InputError: another grid, an empty label, values unknown to the convention, or no convention.
    """
    file = row["label"]
    if not row.get("convention"):
        raise InputError(f"{file}: what do its values mean? name a convention or an own file")
    convention = find_convention(row["convention"])
    labels = open_labels({"label_frames": None, **row}, scan)
    found: dict[int, set[int]] = {}
    for t, frame in labels.items():
        relabel(frame, convention, (), file=f"{file}, frame {t}")
        found[t] = {int(value) for value in np.unique(frame)} - {0}
    drawn = [t for t, values in found.items() if values]
    named = row.get("label_frames")
    if not drawn or (named and len(drawn) < len(labels)):
        where = f" on one of the frames {named}" if named else ""
        raise InputError(f"{file}: the label is empty{where}; draw it, or move the file away")
    frames = None if len(drawn) == scan.shape[0] else ";".join(map(str, drawn))
    enclosed = find_enclosed(relabel(labels[drawn[0]], convention, VENTRICLES, file=file))
    return {
        **row, "label_frames": frames, "_values": set().union(*found.values()), "_enclosed": enclosed
    }  # fmt: skip


def narrow_conventions(rows: Iterable[Row], tell: Callable[[str], None] = lambda note: None) -> list[Row]:
    """Let labels speak only of what is found in any of them.

    The nine structures of `fewbeats` are seldom all drawn, and background must not be trained as "no left
    atrium" where nobody drew one; of other conventions it is told. Takes away the columns of `measure` that
    begin with `_`.
    """
    listed = list(rows)
    labeled = [row for row in listed if row.get("label") and row.get("convention") in CONVENTIONS]
    found: dict[tuple[str, bool], set[int]] = {}  # a network draws what a person did not
    for row in labeled:
        found.setdefault((row["convention"], _is_manual(row)), set()).update(row["_values"])
    for (name, manual), values in found.items():
        known = CONVENTIONS[name].values
        there = {known[value] for value in values} | {OTHER}
        missing = sorted(set(known.values()) - there)
        if not missing:
            continue
        if name != "fewbeats":
            tell(f"no label holds {', '.join(missing)}, so none is trained or judged; check the convention")
        drawn = "+".join(dict.fromkeys(s for v, s in known.items() if v in values))
        for row in labeled:
            if (row["convention"], _is_manual(row)) == (name, manual):
                row["convention"] = f"{name}:{drawn}"
    return [{name: cell for name, cell in row.items() if not name.startswith("_")} for row in listed]


def _is_manual(row: Row) -> bool:
    return (row.get("label_source") or "manual") == "manual"


def refuse_empty(scan: Scan) -> Row:
    """Read every frame, and refuse one that holds nothing.

    Returns:
        under `_mask` whether it looks like a mask, under `_hu` whether like Hounsfield units.

    Raises:
        InputError: also what reading itself finds (truncated file, infinite values).
    """
    low, high, levels = np.inf, -np.inf, set[float]()
    for t in range(scan.shape[0]):
        frame = scan.shown(t)
        low, high = min(low, float(frame.min())), max(high, float(frame.max()))
        if len(levels) <= MOST_LABELS:
            levels |= set(np.unique(frame).tolist())
    whole = all(value == int(value) and value >= 0 for value in levels)
    few = len(levels) <= MASK_LEVELS
    flat = whole and not few and len(levels) <= MOST_LABELS and is_flat(scan.frame(0))
    likely = is_likelihood(scan.source.path) and low >= 0 and high <= 1
    return {"_mask": (whole and few) or likely, "_flat": flat, "_hu": low <= AIR_HU}


def is_flat(frame: np.ndarray) -> bool:
    """Whether neighbors are nearly all equal but for the commonest value, as in a mask of many structures."""
    values, counts = np.unique(frame, return_counts=True)
    common = values[counts.argmax()]
    for one, other in ((frame[..., 1:], frame[..., :-1]), (frame[..., 1:, :], frame[..., :-1, :])):
        inside = (one != common) & (other != common)
        if not inside.any() or float((one == other)[inside].mean()) <= FLAT:
            return False
    return True


def scans_in_dicom(row: Row, path: Path) -> list[tuple[Row, Scan]]:
    """One row for each scan in a DICOM folder, with the segmentations (SEG) that lie in it.

    Raises:
        InputError: no scan; a segmentation of other images; those of one scan scattered over folders.
    """
    from fewbeats.io.dicom import read_dicom
    from fewbeats.io.dicom_headers import CONTOUR_CLASS, SEG_CLASSES, sop_class

    scans = read_dicom(path)
    kinds = {f: sop_class(f) for f in files_below(path)}
    segs = [f for f, kind in kinds.items() if kind in SEG_CLASSES]
    row = {**row, "_contours": CONTOUR_CLASS in kinds.values()}
    found = []
    for number, scan in enumerate(scans, start=1):
        one = (
            row
            if len(scans) == 1
            else {**row, "image": f"{path}#{number}", "scan": f"{row['scan']}_{number}"}
        )
        mine = [f for f in segs if _refers_to(f, scan, only=len(scans) == 1)]
        drawn = [f for f in mine if not _is_automatic(f)]  # what a person drew goes before what a network did
        if mine:
            label = str(_one_place(drawn or mine, segs))
            source = "manual" if drawn else "pseudo"
            one = {**one, "label": label, "convention": "fewbeats", "label_source": source}
        found.append((one, scan))
    return found


def _refers_to(seg: Path, scan: Scan, *, only: bool) -> bool:
    from fewbeats.io.dicom_seg import seg_frames

    try:
        return bool(seg_frames(seg, scan))
    except InputError:
        if only:
            raise
        return False


def _is_automatic(seg: Path) -> bool:
    """Whether a program made all of its segments, and nobody has mended one; `predict` writes such files."""
    import pydicom

    data = pydicom.dcmread(seg, stop_before_pixels=True, specific_tags=["SegmentSequence"])
    return all(segment.get("SegmentAlgorithmType") == "AUTOMATIC" for segment in data.SegmentSequence)


def _one_place(mine: list[Path], all_of_them: list[Path]) -> Path:
    """The file, or the folder that holds these segmentations and no other."""
    if len(mine) == 1:
        return mine[0]
    folder = mine[0].parent
    if mine != [f for f in all_of_them if f.parent == folder]:
        raise InputError(f"{folder}: put the segmentations of each scan, and no others, in one folder")
    return folder


def _slice_order(stored: str | None, scan: Scan) -> str | None:
    """Order of the slices as read, from their order in the file; a volume has none."""
    if stored is None or not scan.is_stack:
        return None
    ends = ("base_first", "apex_first")
    return ends[1 - ends.index(stored)] if scan.source.reorientation.flipped[0] else stored


def _geometry(scan: Scan) -> Row:
    t, z, y, x = scan.shape
    spacing = [round(mm, 7) for mm in scan.spacing_mm]
    step_ms = frame_step_ms(scan)
    return {
        "frames": t, "slices": z, "rows": y, "columns": x,
        "spacing_z_mm": spacing[0], "spacing_y_mm": spacing[1], "spacing_x_mm": spacing[2],
        "spacing_trusted": not is_spacing_nominal(scan),
        "frame_time_ms": None if step_ms is None else round(step_ms, 6),
    }  # fmt: skip
