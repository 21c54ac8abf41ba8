"""The units of work of a study: pretrainings, localizers, and one run for each arm, budget and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from fewbeats.commands.finetune import Finetune
from fewbeats.commands.pretrain import Pretrain
from fewbeats.disk import append_locked, atomic_path
from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES
from fewbeats.recipes.starts import STARTS, weights_digest
from fewbeats.study.budget import ALL, name_budget
from fewbeats.study.judged import read_scores
from fewbeats.study.plan import Plan
from fewbeats.study.trainers import Trainer
from fewbeats.training.runconfig import RunConfig
from fewbeats.training.rundir import RunDir, machine

KEY = ("arm", "labeled", "seed", "split")
CELL = (*KEY, "network", "subject", "phase", "structure", "metric")
COLUMNS = {
    "arm": pl.String, "labeled": pl.Int64, "seed": pl.Int64, "split": pl.String, "network": pl.String,
    "subject": pl.String, "group": pl.String, "phase": pl.String, "structure": pl.String,
    "metric": pl.String, "value": pl.Float64, "misses": pl.Int64,
    "settings": pl.String, "data": pl.String, "steps": pl.Int64, "minutes": pl.Float64,
    "network_seconds": pl.Float64, "pretraining_steps": pl.Int64, "pretraining_minutes": pl.Float64,
    "weights": pl.String,
    "commit": pl.String, "machine": pl.String, "date": pl.String,
}  # fmt: skip
"""Of the table of rows: one a run's network, subject, phase, structure and score. Phase and structure may be
empty, and so may `network_seconds`, the training time that was spent in networks alone. `weights` is the
digest of those that a run started from, empty of random weights and of photographs."""
NETWORK = "network"
"""The network that a run is known by; others it exports have names of their own."""
EARLIER = ("dice", "hd95_mm")
"""Scores of earlier tables, which had a column for each."""


@dataclass(frozen=True)
class Unit:
    """One run; `kind` is pretraining, localizer or arm."""

    kind: str
    name: str
    labeled: int = 0
    seed: int = 0

    def __str__(self) -> str:
        if self.kind == "pretraining":
            return f"{self.name}, seed {self.seed}" if self.seed else self.name
        return f"{self.name}, {name_budget(self.labeled)} labeled, seed {self.seed}"


def arms_of(plan: Plan) -> list[Unit]:
    """Every run that the plan asks for."""
    return [
        Unit("arm", arm.name, labeled, seed)
        for arm in plan.arms.values()
        for labeled in arm.labeled
        for seed in arm.seeds
    ]


def missing_units(plan: Plan) -> tuple[list[Unit], list[Unit]]:
    """What is still to be computed: what others wait for, and the arms.

    Raises:
        InputError: the rows hold results of other settings, subjects or labels under the name of an arm.
    """
    rows = own_rows(plan)
    if not rows.is_empty() and rows["data"][0] != plan.data:
        raise InputError(
            f"{plan.rows}: has rows of other subjects or labels than {plan.cohort}; name another file for "
            "'rows', or take them out"
        )
    arms = missing_arms(plan, rows)
    first = _pretrainings_for(plan, arms)
    if plan.arms[plan.baseline].trainer.localization():
        takers = [unit for unit in arms if plan.arms[unit.name].trainer.localization()]
        pairs = sorted({(unit.labeled, unit.seed) for unit in takers})
        first += [Unit("localizer", "localizer", labeled, seed) for labeled, seed in pairs]
    return first, arms


def missing_arms(plan: Plan, rows: pl.DataFrame) -> list[Unit]:
    """Runs that the plan asks for and `rows` do not hold."""
    done = set(rows.select("arm", "labeled", "seed").iter_rows())
    return [unit for unit in arms_of(plan) if (unit.name, unit.labeled, unit.seed) not in done]


def run_unit(plan: Plan, unit: Unit) -> None:
    """Compute one unit; what is finished is not computed again.

    Raises:
        InputError: cohort, scans or settings cannot be used.
    """
    if unit.kind == "pretraining":
        pretraining_of(plan, unit).run()
    elif unit.kind == "localizer" and (localizer := localizer_of(plan, unit)):
        localizer.run()
    else:
        _compute_arm(plan, unit)


def _pretrainings_for(plan: Plan, arms: Sequence[Unit]) -> list[Unit]:
    """What these arms start from, in the plan's order: one, or one a draw."""
    found = []
    for name in plan.pretrainings:
        seeds = {unit.seed for unit in arms if plan.arms[unit.name].pretraining == name}
        found += [Unit("pretraining", name, seed=s) for s in sorted(seeds if name in plan.drawn else ())]
        found += [Unit("pretraining", name)] if seeds and name not in plan.drawn else []
    return found


def pretraining_of(plan: Plan, unit: Unit) -> Pretrain:
    """The command of a pretraining, with its places; one a draw, on the study's own cohort, leaves out whom
    that draw holds out."""
    command = plan.pretrainings[unit.name]
    places: dict[str, Any] = {"out": pretrained(plan, unit.name, unit.seed), "cache": plan.cache}
    if unit.name not in plan.drawn:
        return replace(command, **places)
    own = command.cohort if plan.brings_pool(unit.name) else cohort_of(plan, unit.seed)
    return replace(command, **places, cohort=own, seed=unit.seed)


def pretrained(plan: Plan, name: str, seed: int) -> Path:
    """Run folder of a pretraining; of one that is done anew for each draw, that of a draw."""
    folder = plan.pretrained if plan.brings_pool(name) else plan.out / "pretrained"
    return folder / (f"{name}_seed{seed}" if name in plan.drawn else name)


def cohort_of(plan: Plan, seed: int) -> Path:
    """The cohort of a draw: the study's, or one of its cuts into folds, none of which parts one heart.

    Raises:
        InputError: the cohort cannot be used.
    """
    if not plan.folds:
        return plan.cohort
    from fewbeats.data.cohort import read_cohort, write_cohort
    from fewbeats.data.split import fold_splits

    file = plan.out / "folds" / f"draw{seed}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    cohort = read_cohort(plan.cohort)
    cut = fold_splits(cohort, folds=plan.folds, draw=seed, held_out=plan.split, together=plan.twins)
    write_cohort(cut, file)
    return file


def localizer_of(plan: Plan, unit: Unit) -> Finetune | None:
    """One for all arms of a budget and seed, as the baseline asks for it; None where it wants none."""
    first = plan.arms[plan.baseline].trainer.localization()
    if first is None:
        return None
    phases = {arm.trainer.describe().get("phase") for arm in plan.arms.values()}
    return replace(
        Finetune(**first),
        labeled=subjects_of(unit),
        seed=unit.seed,
        cohort=cohort_of(plan, unit.seed),
        phase=phases.pop() if len(phases) == 1 else None,
        out=plan.out / "localizers" / f"{name_budget(unit.labeled)}_seed{unit.seed}",
        cache=plan.cache,
    )


def trainer_of(plan: Plan, unit: Unit) -> Trainer:
    """An arm's command at its budget, with its places."""
    arm = plan.arms[unit.name]
    localizer = localizer_of(plan, unit) if arm.trainer.localization() else None
    return place(
        arm.trainer,
        labeled=subjects_of(unit),
        seed=unit.seed,
        cohort=cohort_of(plan, unit.seed),
        init=str(pretrained(plan, arm.pretraining, unit.seed)) if arm.pretraining else arm.trainer.init,
        localizer=localizer.out if localizer else None,
        out=plan.out / "arms" / f"{unit.name}_{name_budget(unit.labeled)}_seed{unit.seed}",
        cache=plan.cache,
    )


def subjects_of(unit: Unit) -> int | None:
    """Labeled subjects of a run as commands take them; None for all."""
    return None if unit.labeled == ALL else unit.labeled


def place(trainer: Trainer, **given: Any) -> Trainer:
    """A trainer with these fields, so far as it has them."""
    known = {one.name for one in fields(trainer)}
    return replace(trainer, **{name: value for name, value in given.items() if name in known})


def _compute_arm(plan: Plan, unit: Unit) -> None:
    """Train, label and judge; rows of all networks that the run exports are added together."""
    from fewbeats.commands.evaluate import Evaluate
    from fewbeats.commands.predict import Predict

    trainer, reports = trainer_of(plan, unit), dict[str, Path]()
    run, home = trainer.run(), Path(trainer.out)  # what is judged may lie elsewhere: a teacher
    cohort = cohort_of(plan, unit.seed)
    names = RunDir(run).read_config().networks
    for network in (*names, "mean") if len(names) > 1 else names:
        found = predicted(plan, home, network)
        Predict(model=run, network=network, input=cohort, split=plan.split, out=found).run()
        Evaluate(predictions=found, cohort=cohort, out=found / "report").run()
        reports[network] = found / "report"
    append_rows(plan, unit, run, reports)


def predicted(plan: Plan, home: Path, network: str = NETWORK) -> Path:
    """Folder of what a network of the run at `home` says of those who are judged."""
    of = "" if network == NETWORK else f"_{network}"
    return home.with_name(f"{home.name}{of}_{plan.split}")


def append_rows(plan: Plan, unit: Unit, run: Path, reports: Mapping[str, Path]) -> None:
    """Add an evaluated run to the study's rows.

    Args:
        plan: the study.
        unit: what was run.
        run: its run folder.
        reports: network -> folder of its evaluation.
    """
    arm, about = plan.arms[unit.name], RunDir(run).read_config()
    start = pretrained(plan, arm.pretraining, unit.seed) if arm.pretraining else None
    before = RunDir(start).read_config() if start else None
    init = str(start or arm.trainer.init)
    tags = {
        "arm": unit.name, "labeled": unit.labeled, "seed": unit.seed, "split": plan.split,
        "settings": plan.digest(arm), "data": plan.data, "steps": about.steps,
        "minutes": _minutes(about), "network_seconds": about.network_seconds,
        "pretraining_steps": before.steps if before else None,
        "pretraining_minutes": _minutes(before) if before else None,
        "weights": None if init in STARTS else weights_digest(Path(init)),
        "commit": about.record.get("git_commit"), "machine": machine(), "date": date.today().isoformat(),
    }  # fmt: skip
    tables = []
    for network, report in reports.items():
        own = tags | {"network": network}
        rows, scores = read_scores(report)
        tables.append(
            lengthen(rows, scores).select(
                pl.lit(own[name], COLUMNS[name]).alias(name) if name in own else name for name in COLUMNS
            )
        )
    append_locked(plan.rows, pl.concat(tables).write_csv())


def _minutes(config: RunConfig) -> float:
    return round((config.seconds or 0.0) / 60, 2)


def own_rows(plan: Plan) -> pl.DataFrame:
    """The rows so far of the runs that this plan asks for; needs no scan, and no cohort but those that
    pretrainings have of their own.

    Raises:
        InputError: some of them were made with other settings than the plan's, or with different data; or
            some of a run are missing, or all of the plan's score.
    """
    digests = {arm.name: plan.digest(arm) for arm in plan.arms.values()}
    wanted = [(u.name, u.labeled, u.seed, plan.split, digests[u.name]) for u in arms_of(plan)]
    keys = pl.DataFrame(wanted, schema=[*KEY, "asked"], orient="row")
    rows = read_rows(plan.rows).join(keys, on=KEY, how="inner", maintain_order="left")
    if not (other := rows.filter(pl.col("settings") != pl.col("asked"))).is_empty():
        raise InputError(
            f"{plan.rows}: has rows of '{other['arm'][0]}' with other settings; rename the arm, or take them "
            "out"
        )
    if rows["data"].n_unique() > 1:
        raise InputError(f"{plan.rows}: has rows of different subjects or labels; take out those of one")
    for (arm, labeled), own in rows.group_by("arm", "labeled", maintain_order=True):
        counts = own.group_by("seed").agg((pl.col("metric") == plan.score.name).sum())["metric"]
        if counts.n_unique() > 1 and not plan.folds:
            raise InputError(
                f"{plan.rows}: lacks rows of a seed of '{arm}', {name_budget(labeled)} labeled; take out its "
                "others"
            )
        if not counts[0]:
            raise InputError(
                f"{plan.rows}: has no {plan.score.name} of '{arm}', {name_budget(labeled)} labeled; name "
                "another score"
            )
    return rows.drop("asked")


def by_repeat(rows: pl.DataFrame, folds: int) -> pl.DataFrame:
    """Rows of a cross-validation with its repeats as draws, in each of which every subject is judged once.

    Args:
        rows: of one study.
        folds: of it; 0 where it is none, and rows stay as they are.

    Returns:
        those of repeats that are complete.

    Raises:
        InputError: rows of other folds.
    """
    if not folds:
        return rows
    cut = rows.with_columns(repeat=pl.col("seed") // folds)
    whole = pl.col("seed").n_unique().over("arm", "labeled", "repeat") == folds
    twice = pl.col("seed").n_unique().over("arm", "labeled", "repeat", "subject") > 1
    if not (bad := cut.filter(twice)).is_empty():
        raise InputError(
            f"rows judge {bad['subject'][0]} twice in one repeat of {folds} folds; take them out"
        )
    return cut.filter(whole).with_columns(seed="repeat").drop("repeat")


def read_rows(file: Path) -> pl.DataFrame:
    """The rows so far; of earlier studies, which had a column a score or no weights, as those of today.

    Raises:
        InputError: not such a table.
    """
    if not file.is_file():
        return pl.DataFrame(schema=COLUMNS)
    try:
        rows = pl.read_csv(file, schema_overrides=COLUMNS | dict.fromkeys(EARLIER, pl.Float64))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file}: not a readable table of rows; name another file for 'rows'") from error
    if set(EARLIER) <= set(rows.columns):
        rows = lengthen(rows, EARLIER)
    if "weights" not in rows.columns:
        rows = rows.with_columns(weights=pl.lit(None, pl.String))
    if other := set(rows.columns) ^ set(COLUMNS):
        raise InputError(
            f"{file}: column '{min(other)}' is missing or none of a study's; name another file for 'rows'"
        )
    rows = rows.select(*COLUMNS)
    always = (*KEY, "network", "subject", "metric", "value", "settings", "data", "steps", "minutes")
    if empty := [name for name in always if rows[name].null_count()]:
        raise InputError(f"{file}: has rows without '{empty[0]}'; mend or remove them")
    if other := set(rows["metric"]) - set(SCORES):
        raise InputError(f"{file}: has rows of '{min(other)}', which is no score; mend or remove them")
    for score in SCORES.values():
        low, high = score.limits
        values = rows.filter(pl.col("metric") == score.name)["value"]
        if not (values.is_between(low, high) & values.is_finite()).all():
            raise InputError(
                f"{file}: has a {score.title} that is not between {low:g} and {high:g}; mend or remove its "
                "row"
            )
    if (twice := rows.select(CELL).is_duplicated()).any():
        arm, labeled, seed, split = rows.filter(twice).select(KEY).row(0)
        raise InputError(
            f"{file}: has rows of '{arm}', {name_budget(labeled)} labeled, seed {seed}, {split} twice; take "
            "out one"
        )
    return rows


def lengthen(rows: pl.DataFrame, scores: Sequence[str]) -> pl.DataFrame:
    """Rows with a column for each score -> one row a score; a value that is not known is left out."""
    rest = [name for name in rows.columns if name not in scores]
    long = rows.unpivot(scores, index=rest, variable_name="metric", value_name="value").drop_nulls("value")
    seconds = pl.lit(None, pl.Float64)
    return long.with_columns(network=pl.lit(NETWORK), network_seconds=seconds)


def open_rows(file: Path) -> None:
    """Make sure that rows can be added; a table of earlier studies becomes one of today.

    Raises:
        InputError: not such a table, or it cannot be written.
    """
    if file.is_file() and file.read_text(encoding="utf-8").partition("\n")[0].split(",") != list(COLUMNS):
        rows = read_rows(file)
        with atomic_path(file) as partial:
            rows.write_csv(partial)
    append_locked(file, pl.DataFrame(schema=COLUMNS).write_csv())
