"""What `run.json` says, with types: whoever reads a run folder reads it through here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fewbeats.errors import InputError

Settings = TypeVar("Settings")

FORMATS = (1, 2)
"""Formats of run folders that are read; the last one is written. 2 names its networks."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _names_scans(value: Any) -> bool:
    return isinstance(value, dict) and all(_are_texts(told) for told in value.values())


def _known(check: Callable[[Any], bool], **default: Any) -> Any:
    return field(metadata={"check": check}, **default)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What of `run.json` other parts act on, checked; all else in it is a record for people."""

    task: str = _known(_is_text)
    """segmentation, localizer, localization (a folder with a localizer alone) or pretraining."""
    networks: tuple[str, ...] = _known(_are_texts, default=("network",))
    """Exported networks, the folder's own first; each other one is a run folder below, under its name."""
    settings: Mapping[str, Any] = _known(_is_mapping, default_factory=dict)
    """Of a segmentation network; see `restore_settings`."""
    network: Mapping[str, Any] = _known(_is_mapping, default_factory=dict)
    """Kind and size of the network, where it has no other settings."""
    structures: tuple[str, ...] = _known(_are_texts, default=())
    """In class order."""
    modalities: tuple[str, ...] = _known(_are_texts, default=("MR",))
    where: Mapping[str, Sequence[str]] = _known(_names_scans, default_factory=dict)
    """Column of a cohort -> what stands there: the scans that a task of masks is about."""
    labeled_subjects: tuple[str, ...] = _known(_are_texts, default=())
    fingerprint: Mapping[str, Any] = _known(_is_mapping, default_factory=dict)
    """See `inference/fingerprint.py`."""
    engines_seconds: Mapping[str, float] = _known(_are_numbers, default_factory=dict)
    """Runtime -> least seconds of a batch on the machine of the training."""
    files: Mapping[str, str] = _known(_are_named_texts, default_factory=dict)
    """File in the folder -> its SHA-256, of what must be as the run wrote it."""
    seed: int = _known(_is_count, default=0)
    steps: int | None = _known(_is_count, default=None)
    seconds: float | None = _known(_is_number, default=None)
    network_seconds: float | None = _known(_is_number, default=None)
    """Of these, in the networks alone."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """All that the file holds."""

    @property
    def origin(self) -> dict[str, Any]:
        """By what software, where and in which format the run was made."""
        return {name: self.record.get(name) for name in ("format", "versions", "git_commit", "machine")}

    @property
    def network_settings(self) -> Mapping[str, Any] | None:
        """Kind and size of the network, None where the folder has none of its own."""
        return self.network or self.settings.get("network")


def read_config(content: Mapping[str, Any], *, file: Path | str) -> RunConfig:
    """The typed part of a `run.json`.

    Args:
        content: as JSON gives it.
        file: named in errors.

    Raises:
        InputError: a field is missing or of another type, or the folder is of another format.
    """
    if "labeler" in content:
        raise InputError(
            f"{Path(file).parent}: holds what a run predicted; give the run, {content.get('model')}"
        )
    if (found := content.get("format")) not in FORMATS:
        raise InputError(
            f"{file}: run folder of format {found}, this version reads {' and '.join(map(str, FORMATS))}; "
            "use the version named in it or train again"
        )
    values: dict[str, Any] = {"record": content}
    for one in fields(RunConfig):
        if "check" not in one.metadata:
            continue
        value = content.get(one.name)
        if value is None and (one.name in content or one.default is one.default_factory is MISSING):
            optional = one.default is None
            if not optional:
                raise InputError(
                    f"{file}: damaged: '{one.name}' is missing; restore the run folder from a copy"
                )
        if value is None:
            continue
        if not one.metadata["check"](value):
            raise InputError(
                f"{file}: damaged: '{one.name}' is not what a run writes; restore the run folder from a copy"
            )
        values[one.name] = tuple(value) if isinstance(value, list) else value
    return RunConfig(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value as JSON gives it is of a setting's type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in inner
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        hints = inner[:1] * len(value) if Ellipsis in inner else inner
        return len(value) == len(hints) and all(map(_fits, value, hints))
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if isinstance(hint, type) else object)


def restore_settings(cls: type[Settings], content: Any) -> Settings:
    """A settings dataclass from what `write_json` made of it.

    Raises:
        InputError: a field is unknown, so the run is of another version, or of another type; or these are no
            settings.
    """
    if not isinstance(content, dict):
        raise InputError(f"settings of a run are '{content}': damaged; restore its run.json from a copy")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in hints:
            raise InputError(f"setting '{name}' is unknown to this version; use the one named in run.json")
        if is_dataclass(hints[name]) and isinstance(hints[name], type):
            value = restore_settings(hints[name], value)
        elif not _fits(value, hints[name]):
            raise InputError(f"damaged: setting '{name}' is {value!r:.40}; restore run.json from a copy")
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
