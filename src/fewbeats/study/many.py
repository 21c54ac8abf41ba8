"""Several studies in one file, as of nine tasks: what they share is said once, and one page shows all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fewbeats.commands.settings_file import read_yaml
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.pages.page import as_markup, render_page
from fewbeats.study.budget import name_budget
from fewbeats.study.plan import Plan
from fewbeats.study.reading import merged, named, read_content
from fewbeats.study.report import COLORS, draw_budgets
from fewbeats.study.result import Result, arm_of
from fewbeats.study.sentences import tell_p, tell_range

PANEL = (360, 260)
"""Width and height of a study's chart on the page of all."""


def read_plans(path: Path) -> list[Plan]:
    """The study of a file, or the studies under its `studies`, each over what stands beside them.

    There `out` and `rows` are folders, in which each study has its own; pretrainings they share.

    Raises:
        InputError: as `read_plan`; or studies that are none.
    """
    content = read_yaml(path)
    if "studies" not in content:
        return [read_content(content, path, name=path.stem)]
    own = named(content.pop("studies"), "studies", path)
    if not own:
        raise InputError(f"{path}: studies: name one or more")
    return [read_content(_inside(content, name, told, path), path, name=name) for name, told in own.items()]


def _inside(common: Mapping[str, Any], name: str, own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    content = merged(common, own, path)
    if isinstance(content.get("out"), str):
        content = {"pretrained": str(Path(content["out"]) / "pretrained")} | content
    for key, file in (("out", name), ("rows", f"{name}.csv")):
        if isinstance(content.get(key), str):
            content[key] = str(Path(content[key]) / file)
    return content


def write_overview(
    file: Path, results: Sequence[tuple[Plan, Path, Result]], *, left_out: Sequence[Plan] = ()
) -> Path:
    """One page with a panel for each study.

    Args:
        file: HTML file to write.
        results: plan, its own page, and what came out.
        left_out: studies without results.
    """
    sections: dict[str, list[dict[str, Any]]] = {}
    # One color an arm in all panels, whichever of them lack it.
    known = dict.fromkeys(cell.arm for _, _, result in results for cell in result.cells)
    planned = list(dict.fromkeys(arm for plan, _, _ in results for arm in plan.arms))
    arms = [name for arm in planned for name in [n for n in known if arm_of(n) == arm] or [arm]]
    for plan, page, result in results:
        there = {cell.arm for cell in result.cells}
        chart = draw_budgets(result.cells, arms, score=plan.score, size=PANEL, budgeted=plan.budgeted)
        sections.setdefault(plan.section, []).append(
            {
                "title": plan.heading,
                "chart": as_markup(chart),
                "page": quote(Path(relpath(page, file.parent)).as_posix()),
                "sentences": list(result.sentences.values()),
                "gains": result.gains,
                "weights": {cell.arm: cell.weights for cell in result.cells},
                "score": plan.score,
                "seen": {name for name in there if plan.arms[arm_of(name)].is_transductive},
            }
        )
    context = {
        "name": file.stem, "today": date.today().isoformat(), "sections": sections, "arms": arms,
        "left_out": [plan.heading for plan in left_out], "colors": COLORS,
        "name_budget": name_budget, "tell_range": tell_range, "tell_p": tell_p,
    }  # fmt: skip
    with atomic_path(file) as partial:
        partial.write_text(render_page(Path(__file__).with_name("many.html.j2"), context), encoding="utf-8")
    return file
