"""The command line: finds the command, reads YAML and flags into its dataclass, and runs it."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from fewbeats import __version__
from fewbeats.commands.flags import flags_of, gather, parse, settings_of
from fewbeats.commands.settings_file import read_yaml
from fewbeats.disk import explain_refusal
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
    "join": ("fewbeats.commands.join", "Join", "put cohort tables together, as for a pool of all"),
    "pretrain": ("fewbeats.commands.pretrain", "Pretrain", "learn an encoder from scans without labels"),
    "finetune": ("fewbeats.commands.finetune", "Finetune", "train on the labels of a few subjects"),
    "cotrain": ("fewbeats.commands.cotrain", "Cotrain", "train on few labels and many unlabeled scans"),
    "audit": ("fewbeats.commands.audit", "Audit", "rank other models by the masks they give your scans"),
    "selftrain": (
        "fewbeats.commands.selftrain",
        "SelfTrain",
        "turn other models' masks into a model for your scans, without labels",
    ),
    "study": ("fewbeats.study.command", "Study", "compare methods over label budgets and seeds"),
    "predict": ("fewbeats.commands.predict", "Predict", "label every frame of a scan or a cohort"),
    "encode": ("fewbeats.commands.encode", "Encode", "embeddings of slices, scans or studies"),
    "export": ("fewbeats.commands.export", "Export", "hand weights to nnU-Net"),
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
        read_command(arguments[0], arguments[1:]).run()
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted; nothing half-written was kept, the same command goes on or starts again")
    except OSError as error:
        told = explain_refusal(error)
        if told is None:
            raise
        return _refuse(f"{error.filename or 'output'}: {told}")
    return 0


def read_command(name: str, arguments: list[str]) -> Any:
    """The command's dataclass, filled from YAML (`--config FILE`) and then from flags."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"perhaps you meant '{near[0]}'" if near else "see fewbeats --help"
        raise InputError(f"no command '{name}'; {hint}")
    module, cls, _ = COMMANDS[name]
    command = getattr(importlib.import_module(module), cls)
    arguments, file = _take_config(arguments)
    for flag in getattr(command, "REPEATED", ()):
        arguments = gather(arguments, flag)
    from_file = list(flags_of(read_yaml(file), settings_of(command), file)) if file else []
    # What is worked on comes first, or a list of the file would swallow it; the user's own flags come last.
    first = next((at for at, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    arguments = [*arguments[:first], *from_file, *arguments[first:]]
    return parse(command, arguments, prog=f"fewbeats {name}", file=file, from_file=from_file)


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
