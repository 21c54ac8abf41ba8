"""The one error a user is meant to read, and its wording."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: it names the file (or option) and says how to mend it.
    The command line prints it without a traceback and exits with code 2.
    """


class PlaceError(InputError):
    """A disk or a folder that takes nothing: whatever comes next would fail there as well."""


def name_some(names: Iterable[str], most: int = 5) -> str:
    """The first few names and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
