"""What a network is to learn of a scan: a task is one YAML file.

title: Which view a cine shows
kind: classification
column: view                    # of the cohort
classes: [SAX, 2CH, 3CH, 4CH]
where: {sequence: [cine]}       # of which scans
settings: {steps: 400}          # of `fewbeats finetune`, where no flag says otherwise
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from fewbeats.anatomy import FEWBEATS_VALUES, name_structure
from fewbeats.errors import InputError

Kind = Literal["segmentation", "classification", "landmarks", "study"]
TABLES: dict[str, str] = {
    "classification": "classes.csv", "study": "classes.csv", "landmarks": "points.csv",
}  # fmt: skip
"""Kinds of tasks whose answers are no masks -> the file in which a folder of answers holds them."""
ABSENT, PRESENT = "absent", "present"
"""Classes of a slice in a task that asks whether a structure is in it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    title: str
    """What a reader of its page is told."""
    kind: Kind
    """segmentation: a mask; classification: the class of a slice; landmarks: points of a slice; study: the
    class of all scans of a visit, of which every slice may tell something."""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of the cohort -> what stands there in scans that the task is about; all scans where empty."""
    column: str = ""
    """Column of the cohort that tells the class."""
    classes: tuple[str, ...] = ()
    """Names of the classes; other names in the column are not learned from."""
    present: tuple[str, ...] = ()
    """Structures: a slice is of class `present` where its mask holds any of them. Of a study beside the
    class of the whole."""
    points: tuple[str, ...] = ()
    """Of `data.points.LANDMARKS`, or of tables in the cohort's column points."""
    slices: int = 16
    """Slices of a study that are looked at together in training; all of them in prediction."""
    structures: tuple[str, ...] = ()
    """Of a segmentation; all that the labels speak of where empty."""

    @property
    def slice_classes(self) -> tuple[str, ...]:
        """What a slice can be."""
        return (ABSENT, PRESENT) if self.present else self.classes


def read_task(content: Mapping[str, Any], *, file: object) -> Task:
    """A task as its file says it.

    Args:
        content: the file's entries but `settings`.
        file: named in errors.

    Raises:
        InputError: an entry that is unknown, missing, of another form, or that does not go with the kind.
    """
    known = {one.name for one in fields(Task)}
    if unknown := sorted(set(content) - known):
        raise InputError(f"{file}: '{unknown[0]}' says nothing of a task; it has {', '.join(sorted(known))}")
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((one for one in kinds if one == content.get("kind")), None)
    title = content.get("title")
    if kind is None:
        raise InputError(f"{file}: kind is '{content.get('kind')}'; give one of {', '.join(kinds)}")
    if not isinstance(title, str):
        raise InputError(f"{file}: has no title; say in a few words what the task is")
    where = content.get("where", {})
    if not isinstance(where, Mapping):
        raise InputError(f"{file}: where is '{where}'; write columns and what stands in them")
    lists = {name: _words(content.get(name, ()), name, file) for name in _LISTS}
    for name in ("present", "structures"):
        lists[name] = tuple(name_structure(one, file=f"{file}: {name}") for one in lists[name])
    task = Task(
        title=title,
        kind=kind,
        where={str(column): _words(values, f"where: {column}", file) for column, values in where.items()},
        column=str(content.get("column", "")),
        slices=_count(content.get("slices", Task.slices), file),
        **lists,
    )
    _check(task, file)
    return task


_LISTS = ("classes", "present", "points", "structures")


def _words(values: Any, name: str, file: object) -> tuple[str, ...]:
    """A list of texts; one text stands for a list of one."""
    listed = (values,) if isinstance(values, str) else values
    if not isinstance(listed, Sequence) or not all(type(v) in (str, int) for v in listed):
        raise InputError(f"{file}: {name} is '{values}'; write a list of names, yes and no in quotes")
    words = tuple(str(v) for v in listed)
    if len(set(words)) < len(words):
        raise InputError(f"{file}: {name} names something twice; take one out")
    return words


def _count(value: Any, file: object) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{file}: slices is '{value}'; give how many slices of a study are looked at")
    return value


def _check(task: Task, file: object) -> None:
    """What each kind needs, and what it does not look at."""
    needs = {
        "segmentation": ((), ("column", "classes", "present", "points")),
        "classification": ((), ("points", "structures")),
        "landmarks": (("points",), ("column", "classes", "present", "structures")),
        "study": (("column", "classes"), ("points", "structures")),
    }
    needed, idle = needs[task.kind]
    for name in needed:
        if not getattr(task, name):
            raise InputError(f"{file}: a task of kind {task.kind} needs {name}")
    for name in idle:
        if getattr(task, name):
            raise InputError(f"{file}: a task of kind {task.kind} does not look at {name}; take it out")
    if task.kind == "classification" and bool(task.present) == bool(task.column):
        raise InputError(f"{file}: a classification needs either column, with classes, or present")
    if task.column and len(task.classes) < 2:
        raise InputError(f"{file}: one class leaves nothing to learn; name two or more")
    if task.present and task.kind == "classification" and task.classes:
        raise InputError(f"{file}: classes of present are {ABSENT} and {PRESENT}; take yours out")
    assert all(name in FEWBEATS_VALUES for name in (*task.present, *task.structures))


def study_truth(task: Task, rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """(subject, study) -> class, of the scans that a task is about.

    Raises:
        InputError: a study of two classes.
    """
    truth: dict[tuple[str, str], str] = {}
    for row in rows:
        about = all(str(row.get(column)) in values for column, values in task.where.items())
        if not about or row.get(task.column) is None:
            continue
        told = str(row[task.column])
        if truth.setdefault((row["subject"], row["study"]), told) != told and task.kind == "study":
            raise InputError(
                f"study {row['study']} is of two classes; give all its scans the same {task.column}"
            )
    return truth
