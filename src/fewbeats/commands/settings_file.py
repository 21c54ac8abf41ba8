"""A YAML file of settings, read strictly: nothing twice, nothing misread, nothing that has no end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbeats.errors import InputError

NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
"""What YAML calls a text, and the '<<' that takes over another mapping."""
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
        counted[id(node)] = 1  # of a tree that holds itself, until all of it is counted
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
