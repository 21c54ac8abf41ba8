"""The cohort table: one row a scan, as CSV or Parquet, editable by hand and strictly checked on reading.

`COLUMNS` is the format. Only subject and image are required; what else is missing is empty or derived.
Columns of one's own are kept as text. Checks work on whole columns, so that a biobank's 300,000 rows are
read in seconds; for the same reason files are not touched before they are needed (`data/files.py`).
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fewbeats.anatomy import CONVENTIONS
from fewbeats.data.conventions import find_convention
from fewbeats.data.split import COMMAS, SPLITS, check_splits, is_joined
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COLUMNS: dict[str, tuple[Any, str]] = {
    "subject": (pl.String, "the person; splits, budgets and statistics go by it"),
    "study": (pl.String, "the visit; the subject where not given"),
    "scan": (pl.String, "unique name of the row; predictions are filed under it; from the image's name"),
    "frame": (pl.Int64, "which frame of its cine a single-frame image is, counted from 0; empty for 4D"),
    "phase": (pl.String, "ED or ES, for a single-frame image"),
    "view": (pl.String, "SAX, 2CH, 3CH, 4CH, AX, SAG or COR"),
    "modality": (pl.String, "MR or CT"),
    "sequence": (pl.String, "cine, lge, ..."),
    "image": (pl.String, "NIfTI file, DICOM file or folder; FOLDER#2 is the second scan in a DICOM folder"),
    "label": (pl.String, "NIfTI mask on the image's grid; DICOM SEG file, or folder of them"),
    "label_source": (pl.String, "manual, teacher or pseudo"),
    "label_frames": (pl.String, "frames of a 4D image that are labeled, as 0;12; empty: all"),
    "label_confidence": (
        pl.String,
        "NIfTI file on the image's grid: how sure each voxel's label is, 0 to 255; weighs it in training",
    ),
    "points": (pl.String, "CSV of points in the image: point, x_mm, y_mm, z_mm (RAS) and, of a cine, frame"),
    "convention": (pl.String, "meaning of the label values: a name, or an own file"),
    "split": (pl.String, "train, tune, dev or test"),
    "group": (pl.String, "diagnosis"),
    "height_cm": (pl.Float64, "body height"),
    "weight_kg": (pl.Float64, "body weight"),
    "frames": (pl.Int64, "T, as read (canonical orientation), as are the next three"),
    "slices": (pl.Int64, "Z"),
    "rows": (pl.Int64, "Y"),
    "columns": (pl.Int64, "X"),
    "spacing_z_mm": (pl.Float64, "between slice centers"),
    "spacing_y_mm": (pl.Float64, "in plane"),
    "spacing_x_mm": (pl.Float64, "in plane"),
    "spacing_trusted": (pl.Boolean, "false where the true spacing is lost: no mm, no mL"),
    "slice_order": (pl.String, "base_first or apex_first, as read"),
    "frame_time_ms": (pl.Float64, "between frames"),
    "ed_frame": (pl.Int64, "end-diastole in a 4D image, counted from 0"),
    "es_frame": (pl.Int64, "end-systole in a 4D image, counted from 0"),
}
"""Column -> its type and meaning, in the order written."""

SCHEMA = {name: kind for name, (kind, _) in COLUMNS.items()}
ALLOWED = {
    "phase": ("ED", "ES"),
    "view": ("SAX", "2CH", "3CH", "4CH", "AX", "SAG", "COR"),
    "modality": ("MR", "CT"),
    "label_source": ("manual", "teacher", "pseudo"),
    "split": SPLITS,
    "slice_order": ("base_first", "apex_first"),
}
FROM_ZERO = ("frame", "ed_frame", "es_frame")
POSITIVE = ("height_cm", "weight_kg", "frames", "slices", "rows", "columns", "frame_time_ms",
            "spacing_z_mm", "spacing_y_mm", "spacing_x_mm")  # fmt: skip
SMALLEST_CM = 20  # the smallest newborns are above
PATHS = ("image", "label", "label_confidence", "points", "convention")
ABSOLUTE = r"^(/|[A-Za-z]:[\\/])"
FILE_NAME = r"^[^/\\\x00-\x1f]+$"
BEYOND = "goes beyond the frames of the image; they are counted from 0"
KIND_NAMES = {pl.Int64: "a whole number", pl.Float64: "a number", pl.Boolean: "true or false"}


def read_cohort(path: Path | str) -> pl.DataFrame:
    """Read and check a cohort table; paths in it come back absolute, or relative to the working folder.

    Args:
        path: `.csv` or `.parquet`.

    Raises:
        InputError: naming the file, and where there is one the row (as a spreadsheet counts, the header
            being row 1) and the column.
    """
    path = Path(path)
    raw = _read_text_columns(path)
    _check_header(raw.columns, path)
    rows = raw.with_row_index("_row", offset=2).with_columns(
        pl.col(name).str.strip_chars().replace("", None) for name in raw.columns
    )
    rows = rows.filter(~pl.all_horizontal(pl.all().exclude("_row").is_null()))  # blank lines
    if rows.is_empty():
        raise InputError(f"{path}: no rows; run `fewbeats index` again")
    rows = _cast(rows, path)
    rows = rows.with_columns(_resolved(name, path.parent) for name in PATHS)
    rows = _derive(rows)
    _check(rows, path)
    return rows.drop("_row")


def write_cohort(cohort: pl.DataFrame, path: Path | str) -> None:
    """Write a cohort table as `encode_cohort` has it.

    Raises:
        InputError: another suffix, or a folder that cannot be written.
    """
    content = encode_cohort(cohort, path)
    with atomic_path(Path(path)) as partial:
        partial.write_bytes(content)


def encode_cohort(cohort: pl.DataFrame, path: Path | str) -> bytes:
    """What a table file holds, CSV or Parquet by suffix; paths below the table's folder become relative.

    Raises:
        InputError: another suffix.
    """
    path = Path(path)
    below = f"{path.parent.absolute()}/"
    extra = [name for name in cohort.columns if name not in SCHEMA]
    table = cohort.select(*(name for name in SCHEMA if name in cohort.columns), *extra)
    table = table.with_columns(
        _resolved(name, Path.cwd()).str.strip_prefix(below) for name in PATHS if name in table.columns
    )
    if path.suffix.lower() == ".csv":
        return table.write_csv().encode()
    if path.suffix.lower() == ".parquet":
        table.write_parquet(whole := io.BytesIO())
        return whole.getvalue()
    raise InputError(f"{path}: a cohort is written as .csv or .parquet; choose one")


def new_cohort(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """A table in the order and types of `COLUMNS` from rows that may lack columns; own columns are kept.

    Raises:
        InputError: the rows do not make a cohort (see `read_cohort`).
    """
    listed = list(rows)
    extra = {name: pl.String for row in listed for name in row if name not in SCHEMA}
    table = pl.DataFrame(listed, schema={**SCHEMA, **extra}, strict=False)
    table = _derive(table.with_row_index("_row", offset=2))
    _check(table, Path("cohort"))
    return table.drop("_row")


def join_cohorts(tables: Mapping[str, pl.DataFrame], *, apart: bool = False) -> pl.DataFrame:
    """Several tables as one.

    Args:
        tables: name of a source -> its table.
        apart: put the source before names of subjects, studies and scans.

    Returns:
        all rows, with a column `source`, unless a table has one already; what one table has no column for is
        empty.

    Raises:
        InputError: a scan that stands in two tables, or a subject in two splits.
    """
    parts = []
    for source, table in tables.items():
        if apart:
            table = table.with_columns(
                pl.concat_str(pl.lit(f"{source}-"), name).alias(name) for name in ("subject", "study", "scan")
            )
        parts.append(table if "source" in table.columns else table.with_columns(source=pl.lit(source)))
    joined = pl.concat(parts, how="diagonal")
    if twice := joined.filter(pl.col("scan").is_duplicated())["scan"].to_list():
        raise InputError(
            f"scan '{twice[0]}' stands in two tables; take it out of one, or give --apart where they are "
            "different persons'"
        )
    check_splits(joined, file="tables")
    return joined


def _read_text_columns(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such table; write one with `fewbeats index`")
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path).cast(pl.String)
        if path.suffix.lower() == ".csv":
            content = path.read_bytes()
            if b"\0" in content:  # UTF-16, which polars reads as odd names
                raise InputError(f"{path}: not UTF-8 text; save it as CSV UTF-8")
            return pl.read_csv(content, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise InputError(f"{path}: {_why_unreadable(path)}") from error
    raise InputError(f"{path}: a cohort is a .csv or .parquet file; rename or convert it")


def _why_unreadable(path: Path) -> str:
    """What is wrong with a table that polars refuses, and the mend; it does not tell the row itself."""
    if path.suffix.lower() == ".csv":
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
        except UnicodeDecodeError:
            return "not UTF-8 text; save it as CSV UTF-8"
        except (OSError, csv.Error):
            lines = []
        if lines and is_joined(lines[0]):
            return COMMAS
        for number, cells in enumerate(lines, start=1):
            if len(cells) > len(lines[0]):
                return (
                    f"row {number} has {len(cells)} cells for {len(lines[0])} columns; quote text with commas"
                )
    return "not a readable table; write it anew with `fewbeats index`"


def _check_header(names: list[str], path: Path) -> None:
    """Required columns are there, and none is a known one misspelled: it would be ignored in silence."""
    for name in ("subject", "image"):
        if name not in names:
            raise InputError(f"{path}: has no column '{name}'; {COMMAS if is_joined(names) else 'add it'}")
    absent = [name for name in SCHEMA if name not in names]
    for name in names:
        once = re.sub(r"_duplicated_\d+$", "", name)  # polars renames the second
        if once != name and once in names:
            raise InputError(f"{path}: column '{once}' stands twice; take one out")
        near = difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=0.8)
        if name not in SCHEMA and (near or name.startswith("_")):
            raise InputError(f"{path}: unknown column '{name}'; rename it{f' to {near[0]}' if near else ''}")


def _cast(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    rows = rows.with_columns(pl.lit(None, pl.String).alias(n) for n in SCHEMA if n not in rows.columns)
    for name, kind in SCHEMA.items():
        if kind == pl.Boolean:
            truth = {"true": True, "1": True, "false": False, "0": False}
            cast = rows[name].str.to_lowercase().replace_strict(truth, default=None, return_dtype=pl.Boolean)
        else:
            text = rows[name].str.replace(r"\.0+$", "") if kind == pl.Int64 else rows[name]  # pandas: 12.0
            cast = text.cast(kind, strict=False)
        _refuse(rows, cast.is_null() & rows[name].is_not_null(), name, path, f"is not {KIND_NAMES.get(kind)}")
        rows = rows.with_columns(cast.alias(name))
    extra = [name for name in rows.columns if name not in SCHEMA and name != "_row"]
    return rows.select("_row", *SCHEMA, *extra)


def _resolved(name: str, folder: Path) -> pl.Expr:
    """Paths relative to the table's folder; a convention's name is no path."""
    text = pl.col(name)
    keep = text.str.contains(ABSOLUTE)
    if name == "convention":
        keep |= text.str.replace(":.*", "").is_in(list(CONVENTIONS))
    return pl.when(keep).then(text).otherwise(f"{folder.absolute()}/" + text).alias(name)


def _derive(rows: pl.DataFrame) -> pl.DataFrame:
    """Fill what is empty and follows from the rest."""
    stem = pl.col("image").str.extract(r"([^/\\]+)$").str.replace(r"(?i)\.(nii\.gz|nii|dcm)$", "")
    own = pl.when(stem.is_unique()).then(stem).otherwise(pl.col("subject") + "_" + stem)
    labeled = pl.col("label").is_not_null()
    names = (pl.col(name).str.normalize("NFC") for name in ("subject", "study", "scan"))  # as in names.plain
    return rows.with_columns(*names).with_columns(
        pl.col("study").fill_null(pl.col("subject")),
        pl.col("scan").fill_null(own.str.normalize("NFC")),
        pl.when(labeled)
        .then(pl.col("label_source").fill_null("manual"))
        .otherwise("label_source")
        .alias("label_source"),
        pl.col("spacing_trusted").fill_null(True),
    )


def _check(rows: pl.DataFrame, path: Path) -> None:
    for name in ("subject", "image", "scan"):
        _refuse(rows, rows[name].is_null(), name, path, "is empty; fill it in")
    for name in ("subject", "scan"):
        _refuse(rows, ~rows[name].str.contains(FILE_NAME), name, path, "cannot be part of a file's name")
    _refuse(rows, ~rows["scan"].is_first_distinct(), "scan", path, "stands twice; make it unique")
    for name, allowed in ALLOWED.items():
        _refuse(rows, ~rows[name].is_in(allowed), name, path, f"is none of {', '.join(allowed)}")
    for name in POSITIVE:
        _refuse(rows, ~((rows[name] > 0) & (rows[name] < 1e9)), name, path, "is not a positive number")
    _refuse(rows, rows["height_cm"] < SMALLEST_CM, "height_cm", path, "is too small; write centimeters")
    for name in FROM_ZERO:
        _refuse(rows, rows[name] < 0, name, path, "is negative; frames are counted from 0")
    for name in ("ed_frame", "es_frame"):
        _refuse(rows, rows[name] >= rows["frames"], name, path, BEYOND)
    _check_labels(rows, path)
    check_splits(rows, file=path)


def _check_labels(rows: pl.DataFrame, path: Path) -> None:
    unlabeled = rows["label"].is_null()
    for name in ("label_source", "label_frames", "label_confidence"):
        _refuse(
            rows,
            unlabeled & rows[name].is_not_null(),
            name,
            path,
            "is given without a label; fill in the label",
        )
    _refuse(rows, ~unlabeled & rows["convention"].is_null(), "convention", path,
            f"is needed for a label; name one of {', '.join(CONVENTIONS)} or an own file")  # fmt: skip
    named = rows["label_frames"]
    _refuse(rows, ~named.str.contains(r"^\d{1,9}(;\d{1,9})*$"), "label_frames", path, "is not like 0;12")
    numbers = named.str.split(";").cast(pl.List(pl.Int64), strict=False).list
    _refuse(rows, numbers.max() >= rows["frames"], "label_frames", path, BEYOND)
    _refuse(rows, numbers.n_unique() < numbers.len(), "label_frames", path, "names a frame twice")
    for text in rows["convention"].drop_nulls().unique(maintain_order=True):
        try:
            find_convention(text)
        except InputError as error:
            _refuse(rows, rows["convention"] == text, "convention", path, f"cannot be used: {error}")


def _refuse(rows: pl.DataFrame, bad: pl.Series, column: str, path: Path, why: str) -> None:
    """Raise for the first row where `bad` is true (null counts as fine)."""
    hits = bad.fill_null(False).arg_true()
    if len(hits):
        line, value = rows["_row"][hits[0]], rows[column][hits[0]]
        shown = "" if value is None else f" {value!r}"
        raise InputError(f"{path}: row {line}, column '{column}':{shown} {why}")
