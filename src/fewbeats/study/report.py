"""One page and one JSON file that say what a study found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.evaluation.scores import Score
from fewbeats.pages.charts import Chart
from fewbeats.pages.page import as_markup, flatten, render_page
from fewbeats.recipes.starts import STARTS
from fewbeats.study.budget import COUNTED, name_budget
from fewbeats.study.contrast import Cell
from fewbeats.study.plan import Plan
from fewbeats.study.result import MISSED, Result, analyze, arm_of
from fewbeats.study.sentences import (
    ROUGH,
    describe,
    spread_of,
    tell_hinge,
    tell_p,
    tell_pretrainings,
    tell_range,
)
from fewbeats.study.units import by_repeat, missing_arms, own_rows

COLORS = 12  # of the page; further arms share them


def is_reportable(plan: Plan) -> bool:
    """Whether `write_report` has rows to go by."""
    return not by_repeat(own_rows(plan), plan.folds).is_empty()


def write_report(plan: Plan) -> tuple[Path, Result]:
    """Write a page and its numbers, named after the study, into its folder, which studies may share.

    Raises:
        InputError: there is no row of this study's split yet.
    """
    rows = own_rows(plan)
    whole = by_repeat(rows, plan.folds)
    if whole.is_empty():
        what = f"repeat of {plan.folds} folds is complete" if plan.folds else f"row of split '{plan.split}'"
        raise InputError(f"{plan.rows}: no {what} yet; run the study first")
    result = analyze(
        whole,
        list(plan.arms),
        baseline=plan.baseline,
        score=plan.score,
        primary=plan.primary,
        shared=[
            arm.name
            for arm in plan.arms.values()
            if arm.pretraining and arm.pretraining not in plan.drawn and len(arm.seeds) > 1
        ],
        random_starts=plan.random_starts,
        budgeted=plan.budgeted,
    )
    waiting = len(missing_arms(plan, rows))
    page = render_page(Path(__file__).parent / "study.html.j2", _context(plan, rows, result, waiting=waiting))
    for name, text in (
        (f"{plan.name}.html", page),
        (f"{plan.name}.json", json.dumps(result.to_json(), indent=1) + "\n"),
    ):
        with atomic_path(plan.out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    if waiting:
        print(f"{waiting} run{'s are' if waiting > 1 else ' is'} missing: what follows is not final")
    return plan.out / f"{plan.name}.html", result


def _context(plan: Plan, rows: pl.DataFrame, result: Result, *, waiting: int) -> dict[str, Any]:
    arms = list(dict.fromkeys(cell.arm for cell in result.cells))
    base = plan.arms[plan.baseline].trainer
    used = {name for arm in arms if (name := plan.arms[arm_of(arm)].pretraining)}
    starts = {plan.arms[arm_of(arm)].trainer.init for arm in arms} - used
    starts |= {plan.pretrainings[name].init for name in used}
    compared = (*result.contrasts, *result.gains)
    return {
        "today": date.today().isoformat(),
        "plan": plan,
        "arms": {arm: index % COLORS for index, arm in enumerate(arms)},
        "result": result,
        "budgets": sorted(result.sentences),
        "structures": sorted({s for cell in result.cells for s in cell.by_structure}),
        "phases": sorted({p for cell in result.cells for p in cell.by_phase}),
        "subjects": rows["subject"].n_unique(),
        "chart": as_markup(draw_budgets(result.cells, arms, score=plan.score, budgeted=plan.budgeted)),
        "score": plan.score,
        "missed": MISSED,
        "counted": any(cell.judged for cell in result.cells),
        "swapped": any(cell.exchanged is not None for cell in result.cells),
        "rough": sorted({d for c in compared if c.crossed and (d := len(c.draws)) <= ROUGH}),
        "steps": sorted({cell.steps for cell in result.cells}),
        "waiting": waiting,
        "commits": sorted(rows["commit"].drop_nulls().unique()),
        "machines": sorted(rows["machine"].drop_nulls().unique()) if "machine" in rows.columns else [],
        "factors": find_factors(plan, arms),
        "protocol": list(flatten(base.protocol())),
        "pretrainings": {
            name: list(flatten(command.describe()))
            for name, command in plan.pretrainings.items()
            if name in used
        },
        "ran": tell_pretrainings([name for name in plan.pretrainings if name in used], plan.drawn),
        "starts": starts,
        "photographs": (first := base.localization()) is not None and first["init"] == "natural",
        "elsewhere": sorted(starts - set(STARTS)),
        "seen": [arm for arm in arms if plan.arms[arm_of(arm)].is_transductive],
        "level": lambda value: "–" if value is None else plan.score.text(value),
        "describe": describe,
        "name_budget": name_budget,
        "spread_of": spread_of,
        "tell_hinge": tell_hinge,
        "tell_p": tell_p,
        "tell_range": tell_range,
    }


def find_factors(plan: Plan, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Setting -> its value in each arm, of those in which arms differ; a dash where an arm has none."""
    flat = {
        arm: dict(
            flatten(
                {**plan.arms[arm_of(arm)].trainer.describe(), "init": plan.arms[arm_of(arm)].trainer.init}
            )
        )
        for arm in arms
    }
    names = dict.fromkeys(name for arm in arms for name in flat[arm])
    values = {name: {arm: flat[arm].get(name, "–") for arm in arms} for name in names}
    return {name.removeprefix("model."): of for name, of in values.items() if len(set(of.values())) > 1}


def draw_budgets(
    cells: Sequence[Cell],
    arms: Sequence[str],
    *,
    score: Score,
    size: tuple[int, int] = (1040, 400),
    budgeted: str = COUNTED,
) -> str:
    """A score against the number of what is budgeted, a line an arm, with intervals over subjects."""
    budgets = sorted({cell.labeled for cell in cells})
    ends = [end for cell in cells for end in (cell.ci95 or (cell.mean, cell.mean))]
    low, high = min(ends), max(ends)
    room = max(2 / score.scale, 0.08 * (high - low))
    y = (max(score.limits[0], low - room), min(score.limits[1], high + room))
    chart = Chart((-0.5, len(budgets) - 0.5), y, width=size[0], height=size[1])
    chart.y_axis(score.axis)
    for at, labeled in enumerate(budgets):
        chart.text(chart.x(at), chart.bottom + 16, name_budget(labeled))
    chart.text((chart.left + chart.right) / 2, chart.height - 4, budgeted, kind="axis-title")
    beside = {labeled: [arm for arm in arms if any((c.arm, c.labeled) == (arm, labeled) for c in cells)]
              for labeled in budgets}  # fmt: skip
    for index, arm in enumerate(arms):
        kind = f"arm{index % COLORS}"
        own = sorted((cell for cell in cells if cell.arm == arm), key=lambda cell: cell.labeled)
        places = []
        for at, there in ((budgets.index(cell.labeled), beside[cell.labeled]) for cell in own):
            step = min(0.08, 0.5 / max(1, len(there) - 1))
            places.append(at + (there.index(arm) - (len(there) - 1) / 2) * step)
        if len(own) > 1:
            chart.curve(places, [cell.mean for cell in own], kind=f"curve {kind}")
        for x, cell in zip(places, own):
            interval = ""
            if cell.ci95:
                chart.line(x, cell.ci95[0], x, cell.ci95[1], kind=f"whisker {kind}")
                interval = f" ({score.text(cell.ci95[0])} to {score.text(cell.ci95[1])})"
            says = f"{arm}, {name_budget(cell.labeled)} labeled: {score.text(cell.mean)}{interval}"
            chart.dot(x, cell.mean, kind=f"dot {kind}", says=says)
    return chart.svg(f"{score.title} against {budgeted}")
