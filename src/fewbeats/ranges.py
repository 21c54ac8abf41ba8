"""Settings: their ranges, checked as they are made, and what of them decides the outcome of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from typing import Any

from fewbeats.errors import InputError

SEEDS = 2**32
"""How many seeds there are: what every random number generator here takes."""
RANGES = {
    "positive": (lambda v: 0 < v < math.inf, "must be positive"),
    "not_negative": (lambda v: 0 <= v < math.inf, "must not be negative"),
    "counts": (lambda v: v >= 1, "give at least 1"),
    "several": (lambda v: v >= 2, "give at least 2"),
    "seeds": (lambda v: 0 <= v < SEEDS, f"give a number from 0 to {SEEDS - 1}"),
    "shares": (lambda v: 0 <= v <= 1, "must be between 0 and 1"),
}


def later(default: Any) -> Any:
    """A setting that did not exist from the start: where it has its default it is as if it were not there.

    Digests and requests of runs made before it stay what they were (`as_described`).
    """
    return field(default=default, metadata={"later": True})


def as_described(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as nested dictionaries, later settings at their defaults left out.

    Args:
        settings: dataclass, whose parts are dataclasses.
    """
    described = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        if not one.metadata.get("later") or value != one.default:
            described[one.name] = as_described(value) if is_dataclass(value) else value
    return described


def check_ranges(settings: Any, prefix: str, **names: Sequence[str]) -> None:
    """Refuse values out of range; of a tuple, each one counts.

    Args:
        settings: dataclass with the settings as fields.
        prefix: of its flags, as "optim.".
        names: range (of `RANGES`) -> names of the settings that must lie in it.

    Raises:
        InputError: naming the flag, its value and what would do.
    """
    for kind, flags in names.items():
        fits, demand = RANGES[kind]
        for name in flags:
            value = getattr(settings, name)
            listed = value if isinstance(value, tuple) else (value,)
            if not listed or not all(map(fits, listed)):
                flag = f"--{prefix}{name}".replace("_", "-")
                raise InputError(f"{flag} {' '.join(map(str, listed))}: {demand}")


def check_most(settings: Any, prefix: str, most: Mapping[str, int]) -> None:
    """Refuse sizes that no machine holds, before any memory is taken.

    Args:
        settings: dataclass with the settings as fields.
        prefix: of its flags, as "network.".
        most: setting -> its largest value.

    Raises:
        InputError: naming the flag and its largest value.
    """
    for name, limit in most.items():
        if (value := getattr(settings, name)) > limit:
            flag = f"--{prefix}{name}".replace("_", "-")
            raise InputError(f"{flag} {value}: give at most {limit}")
