"""Whose labels and whose pixels a run may see: one choice, one leak guard, one provenance."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.anatomy import FEWBEATS_VALUES, PART_OF, name_structure
from fewbeats.data.cohort import read_cohort
from fewbeats.data.conventions import find_convention
from fewbeats.data.files import check_files, content_digest
from fewbeats.data.points import LANDMARKS, structures_behind, tells_points
from fewbeats.data.provenance import (
    Provenance,
    by_subject,
    digest_hashes,
    find_seen,
    find_twins,
    guard_ancestors,
    guard_training,
    hash_scans,
    load_provenance,
)
from fewbeats.data.split import (
    HELD_OUT,
    draw_order,
    is_manual,
    labeled_subjects,
    name_subjects,
    read_subject_list,
)
from fewbeats.errors import InputError, name_some

HELD_BACK = 0.25  # share of the labeled subjects that choose the checkpoint


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which manual labels are learned from."""

    budget: int | None = None
    """Number of subjects, drawn by the seed; all where not given."""
    subjects: str | None = None
    """File that names them instead (`read_subject_list`)."""
    seed: int = 0
    structures: tuple[str, ...] = ()
    """By default all that the cohort's labels speak of."""
    hold_back: bool = False
    """Keep a quarter of the subjects to choose the checkpoint by."""
    made: bool = False
    """Learn from all labels of split train, those of models, too, which no budget counts."""
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column of the cohort -> what stands there in rows that count; see `finetuning.task.Task`."""
    column: str = ""
    """Column whose entries are learned instead of masks; then a budget counts subjects of each class."""
    classes: tuple[str, ...] = ()
    """The column's entries that are learned."""
    points: tuple[str, ...] = ()
    """Points that are learned instead of masks, of tables or by rules; see `data.points`."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Which scans are learned from without their labels."""

    subjects: int | None = None
    """Number of subjects of split train, drawn by the seed and nested; all where not given."""
    seed: int = 0
    transductive: bool = False
    """Held-out subjects are in it, too: their pixels, never their labels."""
    check: Callable[[pl.DataFrame], None] = lambda rows: None
    """Refuses rows that cannot be used, before any image is read."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """What a run may learn from, and what it will have seen then."""

    provenance: Provenance
    cache: Path
    """Folder of prepared scans."""
    structures: tuple[str, ...] = ()
    """In class order."""
    column: str = ""
    """Column of the cohort that is learned instead of masks."""
    labeled: pl.DataFrame
    """Rows of the cohort whose labels are learned from."""
    held_back: pl.DataFrame
    """Labeled rows that only choose the checkpoint; part of the label budget."""
    unlabeled: pl.DataFrame
    """Rows whose pixels alone are seen."""
    seen: tuple[str, ...] = ()
    """Held-out subjects whose images the starts have seen, without labels: of a transductive run."""

    @property
    def labeled_subjects(self) -> list[str]:
        """Every subject whose labels the run uses."""
        return sorted({*self.labeled["subject"], *self.held_back["subject"]})

    def describe(self) -> dict[str, Any]:
        """What of the pools decides the outcome of a run; no image is read for it that was not changed."""
        rows = pl.concat([self.labeled, self.held_back])
        return {
            "labeled subjects": self.labeled_subjects,
            "labels": [_describe_label(row, self.column) for row in rows.iter_rows(named=True)],
            "pixels": digest_hashes(self.provenance.labeled, self.provenance.unlabeled),
        }


def choose_pools(
    file: Path,
    *,
    labels: Labels | None = None,
    pool: Pool | None = None,
    ancestors: Sequence[Provenance] = (),
    transductive: bool = False,
    out: Path,
    cache: Path | None = None,
) -> Pools:
    """Choose what a run learns from, and refuse held-out subjects in it, under whatever name.

    Args:
        file: cohort table.
        labels: manual labels; none are opened where None, and no start may have seen any then.
        pool: scans without labels.
        ancestors: what the run starts from (`recipes.starts`).
        transductive: they may have seen held-out images, as where the pool is transductive.
        out: run folder, whose name goes into its provenance.
        cache: folder of prepared scans and of hashes of files; `sample-cache` beside the run by default.

    Raises:
        InputError: a cohort that cannot be used, a missing file, too few subjects, a held-out subject in a
            pool or in a start's lineage, or a start that has seen labels where none may be.
    """
    cohort, cache = read_cohort(file), cache or out.parent / "sample-cache"
    structures, chosen, held = _choose_labels(cohort, labels) if labels else ((), cohort.clear(), [])
    unlabeled = _choose_pool(cohort, pool, file, beside=chosen) if pool else cohort.clear()
    if labels is None:
        _refuse_labels(ancestors)
    check_files(chosen)
    held_out = cohort.filter(pl.col("split").is_in(HELD_OUT))
    seen = pl.concat([chosen, unlabeled]).unique("scan", maintain_order=True)
    hashes = hash_scans(pl.concat([seen, held_out]), cache=cache / "hashes.json")
    opened = pool is not None and pool.transductive
    guard_training(cohort, labeled=chosen, unlabeled=unlabeled, hashes=hashes, transductive=opened)
    transductive |= opened
    if labels:
        for names in find_twins(by_subject(pl.concat([seen, held_out]), hashes)):
            print(f"{file}: {' and '.join(names)} are one heart: frames or slices of theirs are equal")
    secret = by_subject(held_out, hashes)
    guard_ancestors(ancestors, secret, transductive=transductive)
    beside = labels is not None and bool(labels.column or labels.points)
    told = chosen if beside else chosen.filter(is_manual())
    return Pools(
        structures=structures,
        column=labels.column if labels else "",
        labeled=chosen.filter(~pl.col("subject").is_in(held)),
        held_back=chosen.filter(pl.col("subject").is_in(held)),
        unlabeled=unlabeled,
        seen=tuple(find_seen((run.unlabeled for start in ancestors for run in start.lineage()), secret)),
        cache=cache,
        provenance=Provenance(
            run=out.resolve().name,
            labeled=by_subject(told, hashes),
            unlabeled=by_subject(pl.concat([unlabeled, chosen.join(told, on="scan", how="anti")]), hashes),
            ancestors=tuple(ancestors),
            transductive=transductive,
        ),
    )


def _describe_label(row: Mapping[str, Any], column: str) -> list[str]:
    """A label's content, which frames it is of, and what its values mean; of a column what stands there."""
    beside = [str(row[column])] if column else []
    beside += [content_digest(row["points"])] if row.get("points") else []
    if row["label"] is None:
        return beside
    meaning, sure = row["convention"], row["label_confidence"]
    frames = [row[name] for name in ("label_frames", "phase", "ed_frame", "es_frame")]
    return [
        *beside,
        content_digest(row["label"]),
        content_digest(meaning) if Path(meaning).is_file() else meaning,
        ";".join("" if value is None else str(value) for value in frames),
        *([content_digest(sure)] if sure else []),
    ]


def _choose_labels(cohort: pl.DataFrame, labels: Labels) -> tuple[tuple[str, ...], pl.DataFrame, list[str]]:
    """Structures, labeled rows, and the subjects held back to choose the checkpoint."""
    cohort = rows_where(cohort, labels.where)
    structures = tuple(dict.fromkeys(name_structure(s, file="--structures") for s in labels.structures))
    if labels.subjects and labels.budget is not None:
        raise InputError("give either --labeled or --labeled-subjects")
    if labels.column:
        return structures, _choose_classes(cohort, labels), []
    if labels.points:
        return structures, _choose_tables(cohort, labels), []
    if labels.made:
        rows = cohort.filter(pl.col("split") == "train", pl.col("label").is_not_null())
        return structures or spoken_structures(rows, made=True), rows, []
    structures = structures or spoken_structures(cohort)
    if labels.subjects:
        subjects = read_subject_list(labels.subjects, cohort, structures=structures)
    else:
        subjects = labeled_subjects(cohort, labels.budget, labels.seed, structures=structures)
    rows = cohort.filter(pl.col("subject").is_in(subjects), is_manual())
    held: list[str] = []
    if labels.hold_back:
        if len(subjects) < 2:
            raise InputError("--select best: needs a second labeled subject to judge by; take --select last")
        held = subjects[-max(1, math.ceil(HELD_BACK * len(subjects))) :]
        print(f"{len(held)} of the {len(subjects)} labeled subjects choose the checkpoint: {', '.join(held)}")
    return structures, rows, held


def rows_where(cohort: pl.DataFrame, where: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """The rows of a cohort that a task is about.

    Raises:
        InputError: the cohort has no such column, or no such row.
    """
    for column, values in where.items():
        there = cohort[column].cast(pl.String) if column in cohort.columns else pl.Series(dtype=pl.String)
        if not (found := sorted(set(there.drop_nulls()))):
            raise InputError(
                f"cohort: column '{column}', by which the task chooses scans, is empty; fill it in"
            )
        cohort = cohort.filter(there.is_in(list(values)))
        if cohort.is_empty():
            raise InputError(
                f"cohort: no scan has {column} {' or '.join(values)}, which the task is about, but "
                f"{name_some(found)}; mend the table, or the task's where"
            )
    return cohort


def _choose_classes(cohort: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """Rows of split train whose column names a class; a budget takes so many subjects of each."""
    if labels.column not in cohort.columns:
        raise InputError(f"cohort: has no column '{labels.column}', which the task learns; add it")
    if cohort.schema[labels.column] != pl.String:
        raise InputError(f"cohort: column '{labels.column}' holds no names; a task learns one of texts")
    told = pl.col(labels.column)
    named = cohort.filter(pl.col("split") == "train", told.is_not_null())
    rows = named.filter(told.is_in(list(labels.classes)))
    if 0 < len(rows) < len(named):
        others, some = len(named) - len(rows), sorted({*named[labels.column]} - {*labels.classes})
        print(f"{others} of {len(named)} scans of split train are of no class of the task: {name_some(some)}")
    if labels.subjects:
        rows = _of_list(rows, labels.subjects, cohort)
    there = set(rows[labels.column])
    who = (
        f"{labels.subjects}: its subjects of split train have"
        if labels.subjects
        else "cohort: split train has"
    )
    of = f"of {', '.join(labels.classes)}, by column {labels.column}"
    if len(there) < 2:
        found = f"only {next(iter(there))}" if there else "none"
        raise InputError(f"{who} {found} {of}; a task needs two classes")
    if unseen := [name for name in labels.classes if name not in there]:
        raise InputError(
            f"{who} no {', '.join(unseen)} {of}; take what they lack out of the task's classes, or add such "
            "subjects"
        )
    if labels.budget is None or labels.subjects:
        return rows
    chosen = []
    for name in labels.classes:
        own = rows.filter(told == name)
        if len(own):
            kept = _draw(own["subject"].unique(), labels, what=f"of {labels.column} {name}")
            chosen.append(own.filter(pl.col("subject").is_in(kept)))
    return rows.join(pl.concat(chosen).select("scan"), on="scan", how="semi", maintain_order="left")


def _choose_tables(cohort: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """Rows of split train that can tell all points."""
    told = [tells_points(row, labels.points) for row in cohort.iter_rows(named=True)]
    rows = cohort.filter(pl.Series(told, dtype=pl.Boolean), pl.col("split") == "train")
    if rows.is_empty():
        near = {one for name in labels.points if name not in LANDMARKS
                for one in difflib.get_close_matches(name, LANDMARKS, n=1)}  # fmt: skip
        raise InputError(
            f"cohort: no scan of split train tells {', '.join(labels.points)}; name tables in its column "
            f"points, or masks of all of {', '.join(structures_behind(labels.points)) or 'no structure'}"
            + (f"; perhaps {', '.join(sorted(near))} is meant" if near else "")
        )
    if labels.subjects:
        return _of_list(rows, labels.subjects, cohort)
    subjects = _draw(rows["subject"].unique(), labels, what="with points")
    return rows.filter(pl.col("subject").is_in(subjects))


def _of_list(rows: pl.DataFrame, text: str, cohort: pl.DataFrame) -> pl.DataFrame:
    """The rows of the subjects that a file names.

    Raises:
        InputError: it names one that has none.
    """
    names = name_subjects(text, cohort)
    if missing := sorted(set(names) - set(rows["subject"])):
        raise InputError(f"{text}: {name_some(missing)}: nothing to learn from in split train")
    return rows.filter(pl.col("subject").is_in(names))


def _draw(subjects: pl.Series, labels: Labels, *, what: str) -> list[str]:
    """The first subjects of a seeded order.

    Raises:
        InputError: there are not so many.
    """
    budget = len(subjects) if labels.budget is None else labels.budget
    if not 1 <= budget <= len(subjects):
        raise InputError(f"--labeled {budget}: split train has {len(subjects)} subjects {what}")
    return draw_order(subjects, labels.seed)[:budget]


def _choose_pool(cohort: pl.DataFrame, pool: Pool, file: Path, *, beside: pl.DataFrame) -> pl.DataFrame:
    """Rows of the pool; beside labels only of views that labels show, so far as views are known."""
    rows = cohort.filter(pl.col("split") == "train")
    # With one order for both, a small pool would be the labeled subjects first of all.
    subjects = draw_order(rows["subject"].unique(), pool.seed, purpose="pool ")
    if not subjects:
        raise InputError(
            f"{file}: no subject of split train to learn from; write train into its split column"
        )
    if pool.subjects is not None and not 1 <= pool.subjects <= len(subjects):
        raise InputError(f"--pool-subjects {pool.subjects}: split train has {len(subjects)}")
    kept = pl.col("subject").is_in(subjects[: pool.subjects])
    if pool.transductive:
        rows, kept = cohort, kept | pl.col("split").is_in(HELD_OUT)
    rows = _of_views(rows.filter(kept), beside["view"].unique().to_list(), file)
    check_files(rows, labels=False)
    pool.check(rows)
    return rows


def _of_views(rows: pl.DataFrame, views: Sequence[str | None], file: Path) -> pl.DataFrame:
    """Rows of these views or of unknown ones; says what is left out. All where views are not known."""
    if not views or None in views:
        return rows
    fits = pl.col("view").is_null() | pl.col("view").is_in(list(views))
    if len(others := rows.filter(~fits)):
        print(
            f"{file}: {len(others)} scans of the pool show other views than the labels "
            f"({', '.join(sorted(set(others['view'])))}) and are left out"
        )
    return rows.filter(fits)


def _refuse_labels(ancestors: Sequence[Provenance]) -> None:
    """A run that opens no label must not start from one that did."""
    for start in (run for ancestor in ancestors for run in ancestor.lineage() if run.labeled):
        raise InputError(
            f"--init: run '{start.run}' has seen labels, of {name_some(sorted(start.labeled))}; pretraining "
            "sees none: start from weights that have not"
        )


def spoken_structures(cohort: pl.DataFrame, *, made: bool = False) -> tuple[str, ...]:
    """Structures the cohort's manual labels speak of, wholes before parts left out, in the usual order.

    Args:
        cohort: the table.
        made: also those that models made.
    """
    conventions = cohort.filter(pl.lit(made) | is_manual())["convention"].drop_nulls().unique()
    spoken = {s for name in conventions for s in find_convention(name).speaks_of}
    return tuple(s for s in FEWBEATS_VALUES if s in spoken and s not in PART_OF)


def refuse_seen(predictions: Path, cohort: pl.DataFrame, scans: Sequence[str], *, cache: Path | None) -> None:
    """Refuse to judge a run on scans that it, or what it started from, was trained on.

    Of a transductive run, scans whose labels it did not see may be judged.

    Args:
        predictions: folder with the run's provenance.
        cohort: the table.
        scans: those of its scans that are judged.
        cache: file that remembers hashes.

    Raises:
        InputError: naming the subjects.
    """
    rows = cohort.filter(pl.col("scan").is_in(list(scans)))
    seen, run = by_subject(rows, hash_scans(rows, cache=cache)), load_provenance(predictions)
    mend = "predict with --split and judge others"
    guard_ancestors([run], seen, transductive=run.transductive, mend=mend)
