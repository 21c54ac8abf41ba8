"""The command line: finds the command, reads YAML and flags into its dataclass, and runs it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fewbeats import __version__
from fewbeats.errors import InputError

COMMANDS = {
    "demo": ("fewbeats.demo", "Demo", "the whole main job on the phantom, in minutes"),
    "info": ("fewbeats.commands.files", "Info", "what a scan is, and what was inferred"),
    "convert": (
        "fewbeats.commands.files",
        "Convert",
        "DICOM to canonical NIfTI, for viewers and label drawing",
    ),
    "phantom": ("fewbeats.commands.cohorts", "Phantom", "write a cohort of beating hearts with known truth"),
    "index": ("fewbeats.commands.cohorts", "Index", "list a folder's scans in a cohort table"),
    "pretrain": ("fewbeats.commands.pretrain", "Pretrain", "learn an encoder from scans without labels"),
    "finetune": ("fewbeats.commands.finetune", "Finetune", "train on the labels of a few subjects"),
    "predict": ("fewbeats.commands.predict", "Predict", "label every frame of a scan or a cohort"),
    "evaluate": ("fewbeats.commands.evaluate", "Evaluate", "judge predictions, write the report"),
}

FULL = "the disk is full; make room and run again"
UNUSABLE = "cannot be used as a folder here; choose another"
REFUSED = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.ENOTDIR: UNUSABLE,
    errno.EEXIST: UNUSABLE,
    errno.EACCES: "no permission; choose another place or change its rights",
    errno.EPERM: "no permission; choose another place or change its rights",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EPIPE: "nobody reads it any more",
}
"""What the operating system may refuse, and the mend."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 something the user gave cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"fewbeats {__version__}")
        return 0
    try:
        _command(arguments[0], arguments[1:]).run()
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted; nothing half-written was kept, the same command goes on or starts again")
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return _refuse(f"{error.filename or 'output'}: {REFUSED[error.errno]}")
    return 0


def _command(name: str, arguments: list[str]) -> Any:
    """The command's dataclass, filled from YAML (`--config FILE`) and then from flags."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"perhaps you meant '{near[0]}'" if near else "see fewbeats --help"
        raise InputError(f"no command '{name}'; {hint}")
    module, cls, _ = COMMANDS[name]
    command = getattr(importlib.import_module(module), cls)
    arguments, file = _take_config(arguments)
    from_file = read_config(file, command) if file else []
    # What is worked on comes first, or a list of the file would swallow it; the user's own flags come last.
    first = next((at for at, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    arguments = [*arguments[:first], *from_file, *arguments[first:]]
    return parse(command, arguments, prog=f"fewbeats {name}", file=file, from_file=from_file)


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


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--config FILE` or `--config=FILE`, and that file."""
    for at, argument in enumerate(arguments):
        name, equals, file = argument.partition("=")
        if name != "--config":
            continue
        if not equals and at + 1 == len(arguments):
            raise InputError("--config: name a YAML file")
        rest = arguments[at + (1 if equals else 2) :]
        return [*arguments[:at], *rest], Path(file if equals else arguments[at + 1])
    return arguments, None


def read_config(path: Path, command: type) -> list[str]:
    """A YAML file as flags of a command, so that its values are checked exactly as they are.

    Raises:
        InputError: no such file, not a mapping, or a setting the command does not have.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings; write them as 'name: value'")
    return list(_flags(content, settings_of(command), path))


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


def _flags(content: dict[str, Any], known: dict[str, Any], file: Path, prefix: str = "") -> Iterator[str]:
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
            yield from _flags(value, inner, file, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield flag if value else f"--{prefix}no-{name}".replace("_", "-")
        elif value is not None:
            yield from (flag, *map(str, value if isinstance(value, list) else [value]))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, _, about) in COMMANDS.items()]
    return "\n".join(
        [
            "fewbeats: cardiac image segmentation when labels are scarce. Research use only.",
            "",
            "usage: fewbeats COMMAND ... [--config FILE.yaml]",
            "",
            *lines,
            "",
            "fewbeats COMMAND --help shows a command's settings.",
        ]
    )


def _refuse(message: str) -> int:
    print(f"fewbeats: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
