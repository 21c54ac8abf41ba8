"""A study's YAML file -> what it compares, checked before any training time is spent."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbeats.commands.flags import flags_of, parse, settings_of
from fewbeats.commands.labeled import MAY_DIFFER
from fewbeats.commands.pretrain import Pretrain
from fewbeats.commands.settings_file import read_yaml
from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES, Score
from fewbeats.ranges import SEEDS
from fewbeats.recipes.starts import STARTS
from fewbeats.study.budget import ALL, name_budget
from fewbeats.study.plan import DRAW, OWN, Arm, Plan
from fewbeats.study.trainers import TRAINERS, Trainer, told_scores


def read_plan(path: Path) -> Plan:
    """Read a study's YAML file.

    Raises:
        InputError: an unknown or missing entry, a value of the wrong kind, arms that differ in more than
            they may, or an arm, budget or pretraining that does not exist.
    """
    return read_content(read_yaml(path), path, name=path.stem)


def read_content(content: Mapping[str, Any], path: Path, *, name: str) -> Plan:
    """A study as a file says it.

    Args:
        content: of the file, or of the part of it that is this study's.
        path: named in errors.
        name: of the study.

    Raises:
        InputError: as `read_plan`.
    """
    known = ("title", "section", "cohort", "out", "rows", "split", "folds", "labeled", "seeds", "baseline",
             "primary", "score", "may_differ", "pretrain", *TRAINERS, "pretrainings", "pretrained",
             "arms")  # fmt: skip
    for key in content:
        if key not in known:
            raise InputError(f"{path}: no setting '{key}'; {_nearest(key, known)}")
    for key in ("cohort", "out", "rows", "split", "labeled", "seeds", "baseline", "arms"):
        if key not in content:
            raise InputError(f"{path}: '{key}' is missing; add it")
    if content["split"] not in ("tune", "dev", "test"):
        raise InputError(f"{path}: split: '{content['split']}' is none of tune, dev, test")
    cohort, out = Path(_text(content, "cohort", path)), Path(_text(content, "out", path))
    asked = {
        name: _with_config(merged(content.get("pretrain"), own, path), path)
        for name, own in named(content.get("pretrainings"), "pretrainings", path).items()
    }
    drawn = frozenset(name for name, own in asked.items() if own.get("seed") == DRAW)
    pretrainings = {
        name: _read_pretraining(name, own, cohort, path, drawn=name in drawn) for name, own in asked.items()
    }
    arms = {name: _read_arm(name, own, content, cohort, pretrainings, path)
            for name, own in named(content["arms"], "arms", path).items()}  # fmt: skip
    plan = Plan(
        name=name,
        title=str(content.get("title", "")),
        section=str(content.get("section", "")),
        cohort=cohort,
        out=out,
        rows=Path(_text(content, "rows", path)),
        split=content["split"],
        baseline=_text(content, "baseline", path),
        score=_read_score(content.get("score", "dice"), path),
        may_differ=_read_names(content.get("may_differ", []), "may_differ", path),
        primary=_read_primary(content.get("primary"), path),
        pretrainings=pretrainings,
        drawn=drawn,
        pretrained=Path(_text({"pretrained": str(out / "pretrained")} | dict(content), "pretrained", path)),
        folds=_read_folds(content.get("folds", 0), path),
        arms=arms,
    )
    _check(plan, path)
    return plan


def _with_config(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings over those of the file that their `config` names."""
    file = settings.pop("config", None)
    return merged(read_yaml(Path(str(file))), settings, path) if file else settings


def _read_pretraining(
    name: str, settings: Mapping[str, Any], cohort: Path, path: Path, *, drawn: bool
) -> Pretrain:
    where = f"pretrainings.{name}"
    if name in STARTS:
        raise InputError(f"{path}: {where}: is the name of a start; choose another")
    settings = dict(settings)
    method = settings.pop("method", None)
    if drawn:
        del settings["seed"]
    _refuse_own(settings, where, path, OWN[:2] + OWN[-1:])
    words = [str(method), str(settings.pop("cohort", cohort)), "--out=."]
    command = _parse(Pretrain, words, settings, f"{path}: {where}")
    if not command.steps or command.steps < 1:
        raise InputError(f"{path}: {where}.steps: give at least 1, to it or to 'pretrain' for all")
    return command


def _read_arm(
    name: str,
    own: Mapping[str, Any],
    content: Mapping[str, Any],
    cohort: Path,
    pretrainings: Mapping[str, Pretrain],
    path: Path,
) -> Arm:
    where = f"arms.{name}"
    own = dict(own)
    labeled = _numbers(_budgets(own.pop("labeled", content["labeled"])), f"{where}.labeled", path)
    seeds = _numbers(own.pop("seeds", content["seeds"]), f"{where}.seeds", path)
    if max(seeds) >= SEEDS:
        raise InputError(f"{path}: {where}.seeds: give numbers below {SEEDS}")
    command = own.pop("command", next(iter(TRAINERS)))
    if command not in TRAINERS:
        raise InputError(f"{path}: {where}.command: '{command}' is none; {_nearest(command, TRAINERS)}")
    if ALL in labeled and command == "selftrain":
        raise InputError(f"{path}: {where}.labeled: selftrain keeps a number of manual labels; give numbers")
    settings = merged(content.get(command), own, path)
    _refuse_own(settings, where, path, OWN)
    trainer: Trainer = _parse(TRAINERS[command], [str(cohort), "--out=."], settings, f"{path}: {where}")
    pretraining = trainer.init if trainer.init in pretrainings else None
    if not pretraining and trainer.init not in STARTS and not Path(trainer.init).exists():
        choices = (*STARTS, *pretrainings)
        raise InputError(
            f"{path}: {where}.init: '{trainer.init}' is no start; {_nearest(trainer.init, choices)}"
        )
    if not trainer.steps or trainer.steps < 1:
        raise InputError(f"{path}: {where}.steps: give at least 1, to each arm or to '{command}' for all")
    return Arm(name=name, trainer=trainer, pretraining=pretraining, labeled=labeled, seeds=seeds)


def _read_folds(given: Any, path: Path) -> int:
    if type(given) is not int or given < 0 or given == 1:
        raise InputError(f"{path}: folds: '{given}'; give 2 or more, or 0 for none")
    return given


def _read_score(given: Any, path: Path) -> Score:
    if str(given) not in SCORES:
        raise InputError(f"{path}: score: '{given}' is none; {_nearest(str(given), SCORES)}")
    return SCORES[str(given)]


def _read_names(given: Any, where: str, path: Path) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{path}: {where}: give a list of settings")
    return tuple(name.replace("-", "_") for name in given)


def _read_primary(given: Any, path: Path) -> tuple[str, int] | None:
    if given is None:
        return None
    labeled = _budgets(given.get("labeled"))[0] if isinstance(given, dict) else None
    if not isinstance(given, dict) or set(given) != {"arm", "labeled"} or type(labeled) is not int:
        raise InputError(f"{path}: primary: name its arm and labeled, as {{arm: mim, labeled: 3}}")
    return str(given["arm"]), labeled


def _check(plan: Plan, path: Path) -> None:
    """Refuse names that lead nowhere, and arms that cannot be compared.

    Raises:
        InputError: naming them.
    """
    if plan.baseline not in plan.arms:
        raise InputError(f"{path}: baseline: no arm '{plan.baseline}'; {_nearest(plan.baseline, plan.arms)}")
    base = plan.arms[plan.baseline]
    if plan.score.name not in (told := told_scores(base.trainer)):
        raise InputError(f"{path}: score: these arms have no {plan.score.name}; name {' or '.join(told)}")
    if plan.primary:
        name, labeled = plan.primary
        if name not in plan.arms or name == plan.baseline:
            raise InputError(
                f"{path}: primary: '{name}' is no arm beside the baseline; {_nearest(name, plan.arms)}"
            )
        if labeled not in plan.arms[name].labeled or labeled not in base.labeled:
            raise InputError(
                f"{path}: primary: {name_budget(labeled)} labeled is no budget of both '{name}' and "
                f"'{plan.baseline}'"
            )
    for arm in plan.arms.values():
        if plan.folds and set(arm.seeds) != _whole_repeats(arm.seeds, plan.folds):
            raise InputError(
                f"{path}: arm '{arm.name}': seeds {list(arm.seeds)} are no whole repeats of {plan.folds} "
                f"folds; 0 to {plan.folds - 1} are one, the next {plan.folds} another"
            )
        found = _differences(base.trainer.protocol(), arm.trainer.protocol())
        if other := [name for name in found if name.split(".")[0] not in plan.may_differ]:
            raise InputError(
                f"{path}: arms '{base.name}' and '{arm.name}' differ in {other[0]}; arms that are compared "
                f"share all but init, {', '.join(MAY_DIFFER)} and what 'may_differ' names"
            )
        if arm.pretraining and plan.pretrainings[arm.pretraining].network != arm.trainer.pretrained_network:
            raise InputError(
                f"{path}: '{arm.pretraining}' pretrains another network than arm '{arm.name}' fine-tunes; "
                "give both the same"
            )


def _whole_repeats(seeds: tuple[int, ...], folds: int) -> set[int]:
    """All draws of the repeats of a cross-validation that these draws are of."""
    return {seed - seed % folds + fold for seed in seeds for fold in range(folds)}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in a.items():
        if name not in b:  # a command of another kind may lack it
            continue
        if isinstance(value, dict):
            found += _differences(value, b[name], f"{prefix}{name}.")
        elif value != b[name]:
            found.append(prefix + name)
    return found


def _parse(command: type, words: list[str], settings: Mapping[str, Any], where: str) -> Any:
    flags = list(flags_of(dict(settings), settings_of(command), where))
    try:
        return parse(command, [*words, *flags], prog=f"fewbeats {command.__name__.lower()}")
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def merged(common: Any, own: Any, path: Path) -> dict[str, Any]:
    """`own` over `common`, part by part."""
    whole = dict(_mapping(common, "finetune, pretrain", path))
    for name, value in _mapping(own, "an arm or pretraining", path).items():
        both = isinstance(value, dict) and isinstance(whole.get(name), dict)
        whole[name] = merged(whole[name], value, path) if both else value
    return whole


def _refuse_own(settings: Mapping[str, Any], where: str, path: Path, names: tuple[str, ...]) -> None:
    for name in settings:
        if str(name).replace("-", "_") in names:
            raise InputError(f"{path}: {where}.{name}: the study decides it; take it out")


def named(value: Any, where: str, path: Path) -> dict[str, dict[str, Any]]:
    """Arms or pretrainings, whose names become those of folders."""
    entries = _mapping(value, where, path)
    for name in entries:
        if not re.fullmatch(r"[\w][\w.+-]*", name):
            raise InputError(
                f"{path}: {where}: '{name}' is no name for a folder; use letters, digits, '-', '_', '.'"
            )
    return {name: _mapping(own, f"{where}.{name}", path) for name, own in entries.items()}


def _mapping(value: Any, name: str, path: Path) -> dict[str, Any]:
    """`value`, or no settings where there is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name}: holds no settings; write them as 'name: value'")
    return value


def _numbers(value: Any, name: str, path: Path) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    sound = listed and all(type(v) is int and v >= 0 for v in listed)
    if not sound or len(set(listed)) < len(listed):
        raise InputError(f"{path}: {name}: give different whole numbers from 0 on")
    return tuple(listed)


def _budgets(value: Any) -> Any:
    """With `all` as the number that stands for it."""
    return [ALL if one == "all" else one for one in (value if isinstance(value, list) else [value])]


def _text(content: Mapping[str, Any], key: str, path: Path) -> str:
    if not isinstance(content[key], str) or not content[key]:
        raise InputError(f"{path}: {key}: give a name")
    return content[key]


def _nearest(name: str, choices: Any) -> str:
    near = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"perhaps you meant '{near[0]}'" if near else f"there are {', '.join(choices)}"
