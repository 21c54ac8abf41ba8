"""Who may be trained on, and whose labels count: always whole subjects, never scans.

Order is drawn by hashing seed and name, so that it depends neither on the order of rows nor on which other
subjects there are: the 3 labeled subjects of a seed are among its 7, and stay so when the cohort grows.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from fewbeats.data.conventions import find_convention
from fewbeats.errors import InputError, name_some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

COMMAS = "separate columns by commas, and write decimals with points"
SPLITS = ("train", "tune", "dev", "test")
"""`train` may be trained on; `tune` is for choices; `dev` is evaluated once a published row; `test` last."""

HELD_OUT = SPLITS[1:]


def check_splits(cohort: pl.DataFrame, *, file: Path | str = "cohort") -> None:
    """Refuse a subject in two splits, or partly in one.

    Raises:
        InputError: naming `file` and the subjects.
    """
    torn = cohort.group_by("subject").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if not torn.is_empty():
        names = name_some(torn["subject"].sort())
        raise InputError(f"{file}: in two splits: {names}; give all scans of a subject the same split")


def apply_split_file(cohort: pl.DataFrame, path: Path | str) -> pl.DataFrame:
    """Give each subject the split that a file names; subjects it does not name keep theirs.

    Args:
        cohort: the table.
        path: CSV with the columns subject,split.

    Raises:
        InputError: unreadable file, a split of another name, a subject twice or not in the cohort.
    """
    given = read_columns(Path(path), "subject", "split").with_columns(pl.col("split").str.to_lowercase())
    unknown = given.filter(~pl.col("split").is_in(SPLITS) | pl.col("split").is_null())
    if not unknown.is_empty():
        raise InputError(f"{path}: split '{unknown['split'][0]}' is none of {', '.join(SPLITS)}")
    given = given.unique(maintain_order=True)
    check_splits(given, file=path)
    refuse_unknown(given["subject"], cohort, file=path)
    named = pl.col("subject").replace_strict(
        dict(given.iter_rows()), default=pl.col("split"), return_dtype=pl.String
    )
    return cohort.with_columns(named.alias("split"))


def draw_splits(cohort: pl.DataFrame, *, fractions: Mapping[str, float], seed: int = 0) -> pl.DataFrame:
    """Draw splits by subject, balanced over the groups.

    Args:
        cohort: the table; splits in it are replaced.
        fractions: split -> part of the subjects; together 1.
        seed: of the draw.

    Raises:
        InputError: fractions that are no parts of a whole, or a split of another name.
    """
    sound = all(name in SPLITS and 0 <= part <= 1 for name, part in fractions.items())
    if not sound or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise InputError(f"fractions {dict(fractions)}: give parts of {', '.join(SPLITS)} that add up to 1")
    groups: dict[str, str] = {
        s: g or "" for s, g in cohort.select("subject", "group").sort("group").iter_rows()
    }
    ordered = sorted(draw_order(groups, seed), key=lambda subject: groups[subject])
    count = dict.fromkeys(fractions, 0)
    drawn = {}
    for i, subject in enumerate(
        ordered, start=1
    ):  # each goes where most is owed, so every stretch is balanced
        split = max(fractions, key=lambda name: fractions[name] * i - count[name])
        count[split] += 1
        drawn[subject] = split
    return cohort.with_columns(pl.col("subject").replace_strict(drawn, return_dtype=pl.String).alias("split"))


def fold_splits(
    cohort: pl.DataFrame,
    *,
    folds: int,
    draw: int,
    held_out: str,
    together: Iterable[tuple[str, ...]] = (),
) -> pl.DataFrame:
    """One of the cuts of repeated cross-validation, by subject, balanced over the groups.

    Args:
        cohort: the table; splits in it are replaced.
        folds: parts that the subjects are cut into.
        draw: which cut: draws 0 to folds - 1 hold out each part of one partition, the next ones of another.
        held_out: split of the part that is held out; the others are `train`.
        together: subjects that are one heart (`provenance.find_twins`), which stay in one part.

    Raises:
        InputError: fewer subjects than folds.
    """
    groups = {s: g or "" for s, g in cohort.select("subject", "group").sort("group").iter_rows()}
    heart = {name: name for name in groups}
    for names in together:  # two groups of twins may share one
        same = {heart[name] for name in names}
        heart |= {name: min(same) for name, own in heart.items() if own in same}
    hearts = set(heart.values())
    if len(hearts) < folds:
        raise InputError(f"folds {folds}: there are {len(hearts)} subjects; ask for fewer folds")
    repeat, fold = divmod(draw, folds)
    ordered = sorted(draw_order(hearts, repeat, purpose="folds "), key=lambda name: groups[name])
    held = set(ordered[fold::folds])  # of each group every K-th one, so that each part has its share
    out = [name for name in groups if heart[name] in held]
    split = pl.when(pl.col("subject").is_in(out)).then(pl.lit(held_out)).otherwise(pl.lit("train"))
    return cohort.with_columns(split=split)


def labeled_subjects(
    cohort: pl.DataFrame, n: int | None, seed: int, *, structures: Sequence[str] | None = None
) -> list[str]:
    """Subjects whose labels a run may use: the first n of a seeded order, so that budgets are nested.

    Args:
        cohort: the table.
        n: how many; None for all.
        seed: of the order.
        structures: only subjects with labels that speak of any of these.

    Returns:
        names in the order drawn.

    Raises:
        InputError: fewer than n, or none, of split train have manual labels of the structures.
    """
    usable = manual_subjects(cohort, structures)
    wanted = f" of {', '.join(structures)}" if structures else ""
    if not usable:
        raise InputError(
            f"cohort: no subject of split train has manual labels{wanted}; label some or set the splits"
        )
    if n is not None and not 1 <= n <= len(usable):
        raise InputError(
            f"labeled {n}: {len(usable)} subjects of split train have manual labels{wanted}; "
            f"ask for 1 to {len(usable)}"
        )
    return draw_order(usable, seed)[:n]


def is_manual() -> pl.Expr:
    """Rows whose label a person drew: the only ones that are trained on by default, and judged by."""
    return pl.col("label").is_not_null() & (pl.col("label_source") == "manual")


def manual_subjects(cohort: pl.DataFrame, structures: Sequence[str] | None = None) -> list[str]:
    """Subjects of split train with a manual label that speaks of any of the structures, sorted."""
    manual = cohort.filter(is_manual(), pl.col("split") == "train")
    if structures is not None:
        speaking = [
            c for c in manual["convention"].unique() if find_convention(c).speaks_of & set(structures)
        ]
        manual = manual.filter(pl.col("convention").is_in(speaking))
    return manual["subject"].unique().sort().to_list()


def read_subject_list(
    text: str, cohort: pl.DataFrame, *, structures: Sequence[str] | None = None
) -> list[str]:
    """Given labeled subjects that have manual masks.

    Args:
        text: path of a text file with one subject a line; of a CSV with a column subject; or
            `FILE.csv:COLUMN` for those with a 1 in that column.
        cohort: the table they come from.
        structures: as in `labeled_subjects`.

    Raises:
        InputError: unreadable or empty list; a subject unknown, outside split train or without such labels.
    """
    subjects = name_subjects(text, cohort)
    if unusable := sorted(set(subjects) - set(manual_subjects(cohort, structures))):
        raise InputError(
            f"{text}: not in split train, or without manual labels: {name_some(unusable)}; take them out"
        )
    return subjects


def name_subjects(text: str, cohort: pl.DataFrame) -> list[str]:
    """Given subjects of a cohort; see `read_subject_list`.

    Raises:
        InputError: unreadable or empty list, or a subject unknown.
    """
    name, _, flag = text.rpartition(":") if ".csv:" in text else (text, "", "")
    path = Path(name)
    if path.suffix.lower() == ".csv":
        table = read_columns(path, "subject", *([flag] if flag else []))
        subjects = table.filter(pl.col(flag) == "1")["subject"] if flag else table["subject"]
    else:
        subjects = pl.Series(
            [line.strip() for line in _read_text(path).splitlines() if line.strip()], dtype=pl.String
        )
    if subjects.is_empty():
        raise InputError(f"{text}: names no subject; write one a line")
    refuse_unknown(subjects, cohort, file=text)
    return subjects.unique(maintain_order=True).to_list()


def draw_order(subjects: Iterable[str], seed: int, *, purpose: str = "") -> list[str]:
    """A seeded permutation that depends on the names alone; each `purpose` has its own."""
    return sorted(subjects, key=lambda name: hashlib.sha256(f"{purpose}{seed}:{name}".encode()).digest())


def refuse_unknown(subjects: pl.Series, cohort: pl.DataFrame, *, file: Path | str) -> None:
    """Check that a cohort holds the subjects that a file names.

    Raises:
        InputError: naming `file`, where it does not.
    """
    unknown = sorted(set(subjects) - set(cohort["subject"]))
    if unknown:
        raise InputError(
            f"{file}: not in the cohort: {name_some(unknown)}; take them out or index their scans"
        )


def is_joined(names: Sequence[str]) -> bool:
    """Whether a header is that of a table with other separators, as programs of other countries write."""
    return any(";" in name or "\t" in name for name in names)


def read_columns(path: Path, *names: str, maybe: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of a CSV as stripped text; those of `maybe` are empty where it has none.

    Raises:
        InputError: unreadable, or a column or cell is missing.
    """
    try:
        table = pl.read_csv(_read_text(path).encode(), infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(f"{path}: not a readable table; write columns {','.join(names)}") from error
    missing = [name for name in names if name not in table.columns]
    if missing:
        near = next((name for name in table.columns if name.strip().lower() == missing[0]), None)
        mend = COMMAS if is_joined(table.columns) else f"it needs {', '.join(names)}"
        mend = mend if near is None else f"rename '{near}' to it"
        raise InputError(f"{path}: has no column '{missing[0]}'; {mend}")
    if twice := [name for name in names if f"{name}_duplicated_0" in table.columns]:
        raise InputError(f"{path}: has the column '{twice[0]}' twice; keep one")
    table = table.with_columns(pl.lit(None, pl.String).alias(n) for n in maybe if n not in table.columns)
    wanted = (*names, *maybe)
    table = table.select(pl.col(n).str.strip_chars().str.normalize("NFC").replace("", None) for n in wanted)
    table = table.filter(~pl.all_horizontal(pl.all().is_null()))
    if "subject" in names and table["subject"].has_nulls():
        raise InputError(f"{path}: a row names no subject; fill it in")
    return table


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: missing or cannot be read; check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: not UTF-8 text; save it as CSV UTF-8") from error
