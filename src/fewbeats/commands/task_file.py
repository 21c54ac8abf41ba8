"""A task's YAML file: what is learned, and the settings that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewbeats.commands.settings_file import read_yaml
from fewbeats.errors import InputError
from fewbeats.finetuning.task import Task, read_task

ENDINGS = (".yaml", ".yml")


def is_task_file(name: str) -> bool:
    """Whether --task names a file, not a kind that needs none."""
    return name.endswith(ENDINGS)


def open_task(file: Path) -> tuple[Task, dict[str, Any]]:
    """A task, and its settings of `fewbeats finetune`.

    Raises:
        InputError: no such file, or an entry that is none of a task's.
    """
    content = read_yaml(file)
    settings = content.pop("settings", None) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{file}: settings is '{settings}'; write them as 'name: value'")
    if "task" in settings:
        raise InputError(f"{file}: settings: task is this file itself; take it out")
    return read_task(content, file=file), settings


def named_task(arguments: Sequence[str]) -> Path | None:
    """The task file that flags name last, None where they name none."""
    words = [part for word in arguments for part in word.split("=", 1)]
    named = [after for word, after in pairwise(words) if word == "--task"]
    return Path(named[-1]) if named and is_task_file(named[-1]) else None
