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
        command: the dataclass.
        arguments: flags, those of the file first.
        prog: name in the help.
        file: YAML file that some of the flags come from; named where one of them is wrong.
        from_file: those flags.

    Raises:
        InputError: an unknown, missing or unreadable flag, in one line; tyro draws a box.
    """
    import tyro

    box = io.StringIO()
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


def _one_line(box: str) -> str:
    """What tyro says in a box of lines or of dashes: its first part, and the option it thinks was meant."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [" ".join(part.split()) for part in re.split(r"\n[─-]{9,}\n", "\n".join(lines))]
    said, *rest = parts if box.startswith("╭") else parts[1:]  # with dashes, the title is a part
    text = said.partition(" Got errors:")[0].rstrip(".:")
    meant = re.match(r"Perhaps you meant: (\S+)", rest[0]) if rest else None
    return f"{text[:1].lower()}{text[1:]}{f'; perhaps you meant {meant[1]}' if meant else ''}"


MOST_NODES = 100_000  # of a settings file


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        InputError: no such file, not a mapping, or a name that stands there twice or is no text.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if count_nodes(root, {}) > MOST_NODES:
            raise InputError(f"{path}: its aliases stand for more than {MOST_NODES} entries; write fewer")
        _refuse_repeated(root, path)
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings; write them as 'name: value'")
    return content


def count_nodes(node: Any, counted: dict[int, int]) -> int:
    """How many entries a YAML tree has once its aliases are written out; `counted` are those seen before."""
    if id(node) not in counted:
        counted[id(node)] = MOST_NODES  # of a tree that holds itself
        inner = getattr(node, "value", "")
        listed = inner if isinstance(inner, list) else []
        parts = [part for one in listed for part in (one if isinstance(one, tuple) else (one,))]
        counted[id(node)] = 1 + sum(count_nodes(part, counted) for part in parts)
    return counted[id(node)]


def _refuse_repeated(root: Any, path: Path) -> None:
    """YAML itself lets the last of two entries win, unseen.

    Raises:
        InputError: a name that stands twice in one mapping, or that YAML reads as a number, date or the like.
    """
    import yaml

    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for name, value in node.value:
                where = f"{path}: line {name.start_mark.line + 1}"
                if name.tag not in NAMES:
                    raise InputError(f"{where}: a name is read as something else; put it in quotes")
                if name.value in names:
                    raise InputError(f"{where}: '{name.value}' stands there a second time; take one out")
                names.add(name.value)
                waiting.append(value)


NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
"""What YAML calls a text, and the '<<' that takes over another mapping."""


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
