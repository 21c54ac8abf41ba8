"""Settings from YAML and from flags into a command's dataclass: one way, one strictness."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fewbeats.errors import InputError


def parse(
    command: type, arguments: list[str], *, prog: str, file: Path | None = None, from_file: Sequence[str] = ()
) -> Any:
    """Flags -> dataclass; later flags win.

    Args:
        command: the dataclass; where it has a `usual(arguments)`, these flags come before all others.
        arguments: flags, those of the file first.
        prog: name in the help.
        file: YAML file that some of the flags come from; named where one of them is wrong.
        from_file: those flags.

    Raises:
        InputError: an unknown, missing or unreadable flag, in one line; tyro draws a box.
    """
    import tyro

    box = io.StringIO()
    if hasattr(command, "usual"):
        first = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
        arguments = [*arguments[:first], *command.usual(arguments), *arguments[first:]]
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(command, prog=prog, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
    message = _one_line(box.getvalue())
    wrong = re.search(r"--[\w.-]+", message)
    where = f"{file}: " if wrong and wrong[0] in from_file else ""
    raise InputError(f"{where}{message}; see {prog} --help")


def gather(arguments: Sequence[str], flag: str) -> list[str]:
    """Arguments in which a flag that stands there several times stands once, with all values.

    >>> gather(["c.csv", "--teacher", "a", "--out", "x", "--teacher=b"], "--teacher")
    ['c.csv', '--out', 'x', '--teacher', 'a', 'b']
    """
    rest, values, taken = list[str](), list[str](), False
    for word in arguments:
        name, equals, value = word.partition("=")
        if name == flag:
            taken = not equals
            values += [value] if equals else []
        elif taken and not word.startswith("-"):
            values.append(word)
        else:
            taken = False
            rest.append(word)
    return [*rest, flag, *values] if values else rest


def _one_line(box: str) -> str:
    """What tyro says in a box of lines or of dashes: its first part, and the option it thinks was meant."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [" ".join(part.split()) for part in re.split(r"\n[─-]{9,}\n", "\n".join(lines))]
    said, *rest = parts if box.startswith("╭") else parts[1:]  # with dashes, the title is a part
    text = said.partition(" Got errors:")[0].rstrip(".:")
    meant = re.match(r"Perhaps you meant: (\S+)", rest[0]) if rest else None
    return f"{text[:1].lower()}{text[1:]}{f'; perhaps you meant {meant[1]}' if meant else ''}"


def settings_of(command: type) -> dict[str, Any]:
    """Names of a command's settings as in YAML; a part (a nested dataclass) leads to those of its own."""
    import tyro

    hints = get_type_hints(command, include_extras=True)
    named: dict[str, Any] = {}
    for field in fields(command):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        hint = get_args(hint)[0] if marks else hint
        inner = settings_of(hint) if isinstance(hint, type) and is_dataclass(hint) else None
        if any(getattr(mark, "name", None) == "" for mark in marks):  # a part whose settings need no prefix
            named |= inner or {}
        elif tyro.conf.Positional not in marks:
            named[field.name] = inner
    return named


def flags_of(
    content: dict[str, Any], known: dict[str, Any], file: Path | str, prefix: str = ""
) -> Iterator[str]:
    """Settings of a file as flags of a command, so that their values are checked exactly as flags are.

    Args:
        content: what the file says.
        known: see `settings_of`.
        file: named in errors.
        prefix: of the part that `content` belongs to.

    Raises:
        InputError: a setting the command does not have.
    """
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"perhaps you meant '{prefix}{near[0]}'" if near else f"there are {', '.join(known)}"
            raise InputError(f"{file}: no setting '{prefix}{key}'; {hint}")
        inner, flag = known[name], f"--{prefix}{name}".replace("_", "-")
        if (inner is not None) != isinstance(value, dict):
            what = f"has settings of its own: {', '.join(inner)}" if inner else "takes a value"
            raise InputError(f"{file}: '{prefix}{key}' {what}; mend the indentation")
        if inner is not None:
            yield from flags_of(value, inner, file, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield flag if value else f"--{prefix}no-{name}".replace("_", "-")
        elif value is not None:
            yield from (flag, *map(str, value if isinstance(value, list) else [value]))
