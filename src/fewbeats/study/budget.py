"""How many labels an arm has."""

from __future__ import annotations

ALL = 1_000_000
"""As a number of labeled subjects: all that there are. Written `all`."""


def name_budget(labeled: int) -> str:
    """As it is written."""
    return "all" if labeled == ALL else str(labeled)
