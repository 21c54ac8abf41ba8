"""The command line: finds the command, reads YAML and flags into its dataclass, and runs it."""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from pathlib import Path
from typing import Any

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
    "finetune": ("fewbeats.commands.finetune", "Finetune", "train on the labels of a few subjects"),
    "predict": ("fewbeats.commands.predict", "Predict", "label every frame of a scan or a cohort"),
    "evaluate": ("fewbeats.commands.evaluate", "Evaluate", "judge predictions, write the report"),
}


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _refuse(f"{error.filename or 'output'}: the disk is full; make room and run again")
        raise
    return 0


def _command(name: str, arguments: list[str]) -> Any:
    """The command's dataclass, filled from YAML (`--config FILE`) and then from flags."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"perhaps you meant '{near[0]}'" if near else "see fewbeats --help"
        raise InputError(f"no command '{name}'; {hint}")
    import tyro

    module, cls, _ = COMMANDS[name]
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 >= len(arguments):
            raise InputError("--config: name a YAML file")
        from_file = read_config(Path(arguments[at + 1]))
        arguments = [*from_file, *arguments[:at], *arguments[at + 2 :]]
    return tyro.cli(getattr(importlib.import_module(module), cls), prog=f"fewbeats {name}", args=arguments)


def read_config(path: Path) -> list[str]:
    """A YAML file as flags, so that it is checked exactly as they are.

    Raises:
        InputError: no such file, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold settings as 'name: value'")
    return list(_flags(content))


def _flags(content: dict[str, Any], prefix: str = ""):
    for key, value in content.items():
        name = f"{prefix}{str(key).replace('_', '-')}"
        if isinstance(value, dict):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, bool):
            head, _, last = name.rpartition(".")
            yield f"--{name}" if value else f"--{head}{'.' if head else ''}no-{last}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        elif value is not None:
            yield from (f"--{name}", str(value))


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
