"""What can be an arm of a study: a command that trains on a label budget and ends in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from fewbeats.commands.cotrain import Cotrain
from fewbeats.commands.finetune import Finetune
from fewbeats.commands.selftrain import SelfTrain
from fewbeats.finetuning.task import Task
from fewbeats.models.network import NetworkSettings
from fewbeats.study.judged import OF_FILE


class Trainer(Protocol):
    """A way to train: a dataclass with, besides, the fields labeled, seed and out.

    These a study sets, and cache and localizer where it has them, which is why they say nothing of an arm.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """Its folder."""

    @property
    def init(self) -> str:
        """What it starts from, perhaps the name of one of the study's pretrainings."""

    @property
    def steps(self) -> int | None:
        """Its length; budgets are steps, so that machines do not matter."""

    @property
    def pretrained_network(self) -> NetworkSettings:
        """The network that takes the weights of `init`."""

    def describe(self) -> dict[str, Any]:
        """What decides the outcome, but for the content of files."""

    def protocol(self) -> dict[str, Any]:
        """What arms that are compared must share: grid, augmentation, localizer."""

    def localization(self) -> dict[str, Any] | None:
        """Fields of the `Finetune` whose localizer it takes over, None where it wants none."""

    def preflight(self) -> None:
        """Look for what would stop `run`, before time is spent on others.

        Raises:
            InputError: a budget, labels, a pool or a start that cannot be used.
        """

    def run(self) -> Path:
        """Train; returns the run folder."""


TRAINERS: dict[str, type[Trainer]] = {"finetune": Finetune, "cotrain": Cotrain, "selftrain": SelfTrain}
"""By the command's name: an arm says which with `command`, the first by default."""


def learned_columns(trainer: Trainer) -> tuple[str, ...]:
    """Columns of a cohort that tell what a trainer learns, that one first, and of which scans."""
    task = _task_of(trainer)
    if task is None:
        return ("label",)
    own = (task.column,) if task.column else ("label", *(["points"] if task.points else []))
    return (*own, *task.where)


def told_scores(trainer: Trainer) -> tuple[str, ...]:
    """Names of the scores by which what a trainer learns can be judged."""
    task = _task_of(trainer)
    if task is None or task.kind == "segmentation":
        return OF_FILE
    return ("error_mm",) if task.kind == "landmarks" else ("accuracy",)


def _task_of(trainer: Trainer) -> Task | None:
    """The task of a file that a trainer learns, None where it learns masks without one."""
    return trainer.from_file if isinstance(trainer, Finetune) else None
