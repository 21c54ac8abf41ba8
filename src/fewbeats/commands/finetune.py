"""Train a network on the labels of a few subjects: masks, classes or points, or where the heart is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewbeats.commands.flags import flags_of, settings_of
from fewbeats.commands.labeled import LearnsFromLabels
from fewbeats.commands.task_file import is_task_file, named_task, open_task
from fewbeats.errors import InputError, name_some
from fewbeats.ranges import as_described, check_ranges
from fewbeats.recipes.run import Length
from fewbeats.recipes.segmenter import train_localizer_alone, train_segmenter
from fewbeats.recipes.starts import settle_rate

if TYPE_CHECKING:
    from fewbeats.finetuning.task import Task
    from fewbeats.recipes.pools import Labels, Pool, Pools

WITHOUT_FILE = ("segmentation", "localization")
"""Tasks that need no file."""


@dataclass(frozen=True, kw_only=True)
class Finetune(LearnsFromLabels):
    """Train on a cohort's labeled subjects; the run folder is all that prediction needs."""

    task: str = "segmentation"
    """What is learned: segmentation; localization: only where the heart is, for other runs to take with
    --localizer; or a task's YAML file, as in configs/tasks."""
    select: Literal["last", "best"] = "last"
    """best: hold back a quarter of the labeled subjects to choose the checkpoint by their Dice."""

    @classmethod
    def usual(cls, arguments: Sequence[str]) -> list[str]:
        """Settings of the task's file unless others are given."""
        file = named_task(arguments)
        return list(flags_of(open_task(file)[1], settings_of(cls), file)) if file else []

    def run(self) -> Path:
        """Train; returns the run folder.

        Raises:
            InputError: the cohort, its labels or the settings cannot be used.
        """
        length, task = Length(steps=self.steps, minutes=self.minutes), self.from_file
        pools, request = self.choose(), {"settings": self.describe()}
        own: dict[str, Any] = {"seed": self.seed, "request": request}
        told: dict[str, Any] = {"cohort": self.cohort}
        if self.transductive:
            told |= {"transductive": True, "unlabeled_subjects": pools.seen}
        about = {**told, "select": self.select, **({"where": task.where} if task else {})}
        if self.task == "localization":
            run = train_localizer_alone(
                self.out, pools, self.model, init=self.init, steps=self.localizer_steps, phase=self.phase,
                **own,
            )  # fmt: skip
        elif task and task.kind != "segmentation":
            from fewbeats.recipes.tasks import train_task

            run = train_task(
                self.out, pools, task, settle_rate(self.model, self.init, tell=print), start=self.start,
                length=length, workers=self.workers, about=told, **own,
            )  # fmt: skip
        else:
            run = train_segmenter(
                self.out, pools, settle_rate(self.model, self.init, tell=print), start=self.start,
                length=length, localizer=self.finder, phase=self.phase, workers=self.workers, about=about,
                **own,
            )  # fmt: skip
        print(f"{run.path}: trained on {name_some(pools.labeled_subjects)}")
        return run.path

    @cached_property
    def from_file(self) -> Task | None:
        """The task as its file says it.

        Raises:
            InputError: neither a file of a task nor a task that needs none.
        """
        if self.task in WITHOUT_FILE:
            return None
        if not is_task_file(self.task):
            raise InputError(f"--task {self.task}: give {', '.join(WITHOUT_FILE)} or a task's YAML file")
        return open_task(Path(self.task))[0]

    def choose(
        self, *, pool: Pool | None = None, hold_back: bool = False, others: tuple[str, ...] = ()
    ) -> Pools:
        return super().choose(pool=pool, hold_back=hold_back or self.select == "best", others=others)

    def name_labels(self, *, hold_back: bool) -> Labels:
        from fewbeats.data.points import structures_behind

        labels, task = super().name_labels(hold_back=hold_back), self.from_file
        if task is None:
            return labels
        needed = task.structures or task.present or structures_behind(task.points)
        return replace(
            labels, structures=self.structures or needed, where=task.where, column=task.column,
            classes=task.classes, points=task.points,
        )  # fmt: skip

    def localization(self) -> dict[str, Any] | None:
        task = self.from_file
        return super().localization() if task is None or task.kind == "segmentation" else None

    def preflight(self) -> None:
        task = self.from_file
        if task is None or task.kind == "segmentation":
            super().preflight()
        else:
            from fewbeats.recipes.tasks import build_task, check_task

            check_task(task, self.model)
            with contextlib.redirect_stdout(None):
                self.choose()
                build_task(task, self.model, start=self.start, seed=0)

    def describe(self) -> dict[str, Any]:
        task = self.from_file
        return super().describe() | ({} if task is None else {"task": as_described(task)})

    def check_budget(self) -> None:
        """Refuse a length that is none, and settings that mean nothing to the task.

        Raises:
            InputError: a budget that is missing, given twice, out of range, or none of the task's; or a
                setting of masks for a task of classes or points.
        """
        task = self.from_file
        if self.task != "localization":
            super().check_budget()
        if task and task.kind != "segmentation":
            usual = {one.name: one.default for one in fields(self)}
            for name in ("phase", "structures", "localizer", "localizer_steps", "select"):
                if getattr(self, name) not in (usual[name], 0):  # without a localizer is as it is
                    flag = name.replace("_", "-")
                    raise InputError(f"--{flag}: is of masks, the task is of {task.kind}; take it out")
        if self.task == "localization":
            check_ranges(self, "", not_negative=("localizer_steps", "workers"), seeds=("seed",))
            if self.steps or self.minutes or self.localizer or self.localizer_steps < 1:
                raise InputError("--task localization: takes --localizer-steps as its only budget")
