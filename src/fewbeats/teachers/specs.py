"""Which teacher is meant: KIND:WHERE, as the option --teacher takes it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.errors import InputError
from fewbeats.inference.labeler import Labeler, open_run
from fewbeats.teachers.card import refuse_seen_data
from fewbeats.teachers.outside import Outside
from fewbeats.teachers.vote import Rule, Vote
from fewbeats.training.rundir import SHIPPED

if TYPE_CHECKING:
    import polars as pl

KINDS = {
    "folder": ("folder", "open_folder"),
    "onnx": ("network", "open_onnx"),
    "torchscript": ("network", "open_torchscript"),
    "nnunet": ("nnunet", "open_nnunet"),
    "totalsegmentator": ("program", "open_totalsegmentator"),
    "monai": ("program", "open_monai"),
    "oracle": ("oracle", "open_oracle"),
}
"""Kind -> its file in this package, and the function in it that opens it."""


def open_teachers(
    specs: Sequence[str], *, cohort: pl.DataFrame | None = None, rule: Rule = "majority"
) -> Labeler:
    """The labeler that some specs mean: one, or several that vote.

    Args:
        specs: each KIND:WHERE.
        cohort: whose scans are labeled.
        rule: how several vote.

    Raises:
        InputError: none given, one twice, or one that cannot be used.
    """
    check_specs(specs)
    if rule == "staple" and find_spec("SimpleITK") is None:
        raise InputError("--vote staple: needs SimpleITK; pip install 'fewbeats[staple]'")
    opened = [open_teacher(spec, cohort=cohort) for spec in specs]
    return opened[0] if len(opened) == 1 else Vote(tuple(opened), rule)


def check_specs(specs: Sequence[str]) -> None:
    """Refuse none, and one that is named twice.

    Raises:
        InputError: naming it.
    """
    if not specs:
        raise InputError("--teacher: name one, as run:RUN or folder:DIR")
    if twice := [spec for spec in specs if specs.count(spec) > 1]:
        raise InputError(f"--teacher {twice[0]}: is named twice; name it once")


def open_teacher(spec: str, *, cohort: pl.DataFrame | None = None) -> Labeler:
    """One teacher.

    Args:
        spec: KIND:WHERE, or synthetic.
        cohort: whose scans are labeled.

    Raises:
        InputError: no such kind, or one that cannot be used for this cohort.
    """
    kind, _, where = spec.partition(":")
    if kind == "synthetic":
        if where:
            raise InputError(f"--teacher {spec}: comes with the package; write synthetic alone")
        return open_run(SHIPPED / kind)
    if kind == "run" and where:
        return open_run(Path(where))
    if kind not in KINDS:
        kinds = ", ".join(sorted([*KINDS, "run", "synthetic"]))
        raise InputError(
            f"--teacher {spec}: no such kind; write one of {kinds}, and : with where it is behind it"
        )
    file, function = KINDS[kind]
    opened: Outside = getattr(importlib.import_module(f"fewbeats.teachers.{file}"), function)(
        where, cohort=cohort
    )
    if cohort is not None:
        refuse_seen_data(opened.card, cohort, spec=spec)
    return opened
