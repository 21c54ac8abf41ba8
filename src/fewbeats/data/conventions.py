"""Label conventions by name, or read from somebody's own file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewbeats.anatomy import CONVENTIONS, Convention, name_structure
from fewbeats.errors import InputError


def find_convention(text: str) -> Convention:
    """The convention that a cohort's column or an option names.

    Args:
        text: a name in `CONVENTIONS` or the path of an own file (see `read_convention`); after it, where the
            labels hold only some of its structures, a colon and those: `fewbeats:LV+MYO+RV`.

    Raises:
        InputError: no such name, file or structure.
    """
    name, colon, only = text.partition(":") if text.split(":")[0] in CONVENTIONS else (text, "", "")
    convention = CONVENTIONS.get(name)
    if convention is None and Path(name).suffix in CONVENTION_READERS:
        return read_convention(Path(name))
    if convention is None:
        raise InputError(f"convention '{text}': unknown; name one of {sorted(CONVENTIONS)} or an own file")
    if not colon:
        return convention
    drawn = {name_structure(s, file=f"convention '{text}'") for s in only.split("+")}
    missing = sorted(drawn - set(convention.values.values()))
    if missing:
        raise InputError(f"convention '{text}': '{name}' has no {', '.join(missing)}; leave it out")
    return replace(convention, name=text, silent_about=frozenset(set(convention.values.values()) - drawn))


def absolute_convention(text: str) -> str:
    """The same, with the path of an own file made absolute."""
    return str(Path(text).absolute()) if Path(text).suffix in CONVENTION_READERS else text


def read_convention(path: Path) -> Convention:
    """Read an own convention.

    Args:
        path: CSV with the columns value,structure; YAML with `values: {1: LV, 2: MYO}` and, where wanted,
            `silent_about: [RV]`; or the `dataset.json` of nnU-Net or the Medical Segmentation Decathlon.
            Structures by the names of `FEWBEATS_VALUES`, other usual names of them, or OTHER.

    Raises:
        InputError: missing or unreadable file, a value that is no whole number, an unknown structure.
    """
    try:
        pairs, silent = CONVENTION_READERS[path.suffix](path.read_text(encoding="utf-8-sig"))
        named = [(int(value), str(name)) for value, name in pairs]
        silent = [str(name) for name in silent]
    except _Unsupported as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except KeyError as error:
        raise InputError(f"{path}: has no entry {error.args[0]!r}; write value,structure") from error
    except Exception as error:  # the three parsers raise whatever they meet in a foreign file
        raise InputError(
            f"{path}: not a list of label values and structures; write value,structure"
        ) from error
    values: dict[int, str] = {}
    for value, name in named:
        if value == 0 and name.strip().lower() == "background":
            continue
        if value == 0 or value in values:
            what = "0 is always background" if value == 0 else f"{value} stands twice"
            raise InputError(f"{path}: {what}; give each value other than 0 one structure")
        values[value] = name_structure(name, file=path)
    if not values:
        raise InputError(f"{path}: names no structure; write value,structure")
    unlabeled = frozenset(name_structure(name, file=path) for name in silent)
    return Convention(name=str(path), values=values, silent_about=unlabeled)


class _Unsupported(Exception):
    """Sound, but of a kind that is not taken; its text says which and what to do."""


Pairs = tuple["list[tuple[Any, Any]]", "list[Any]"]


def _pairs_of_csv(text: str) -> Pairs:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True, strict=True)
    return [(row["value"], row["structure"].strip()) for row in rows], []


def _pairs_of_yaml(text: str) -> Pairs:
    import yaml

    content = yaml.safe_load(text)
    return list(content["values"].items()), list(content.get("silent_about", []))


def _pairs_of_json(text: str) -> Pairs:
    labels = json.loads(text)["labels"]
    if "ignore" in labels:
        raise _Unsupported("has nnU-Net's ignore label: frames that are annotated in part are not supported; "
                           "annotate them whole, or take them out")  # fmt: skip
    if any(isinstance(value, list) for value in labels.values()):
        raise _Unsupported("has region-based labels, several values a structure; name a --convention of the "
                           "values in the files")  # fmt: skip
    named = all(isinstance(value, int) for value in labels.values())  # nnU-Net: name -> value
    return [(value, name) if named else (name, value) for name, value in labels.items()], []


CONVENTION_READERS = {
    ".csv": _pairs_of_csv,
    ".yaml": _pairs_of_yaml,
    ".yml": _pairs_of_yaml,
    ".json": _pairs_of_json,
}
