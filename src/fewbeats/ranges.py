"""Ranges of settings, checked as the settings are made: one clear line instead of a traceback later."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def check_ranges(settings: Any, prefix: str, **names: Sequence[str]) -> None:
    """Refuse values out of range; of a tuple, each one counts.

    Args:
        settings: dataclass with the settings as fields.
        prefix: of its flags, as "optim.".
        names: range (of `RANGES`) -> names of the settings that must lie in it.

    Raises:
        InputError: naming the flag, its value and what would do.
    """
    for kind, fields in names.items():
        fits, demand = RANGES[kind]
        for name in fields:
            value = getattr(settings, name)
            listed = value if isinstance(value, tuple) else (value,)
            if not listed or not all(map(fits, listed)):
                flag = f"--{prefix}{name}".replace("_", "-")
                raise InputError(f"{flag} {' '.join(map(str, listed))}: {demand}")
