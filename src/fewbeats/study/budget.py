"""How many labels an arm has."""

from __future__ import annotations

ALL = 1_000_000
"""As a number of labeled subjects: all that there are. Written `all`."""
COUNTED, OF_EACH = "labeled subjects", "labeled subjects of each class"
"""What a budget counts, the other where classes are learned."""


def name_budget(labeled: int) -> str:
    """As it is written."""
    return "all" if labeled == ALL else str(labeled)


def tell_budget(labeled: int, budgeted: str = COUNTED) -> str:
    """In words.

    >>> tell_budget(1), tell_budget(2, OF_EACH)
    ('1 labeled subject', '2 labeled subjects of each class')
    """
    return f"{name_budget(labeled)} {budgeted if labeled != 1 else budgeted.replace('subjects', 'subject')}"
