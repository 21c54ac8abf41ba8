"""Run a study and report it: what is already in its rows is not computed again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fewbeats.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.study.plan import Plan
    from fewbeats.study.result import Result
    from fewbeats.study.units import Unit


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare methods over label budgets and seeds, as a YAML file says; goes on where it stopped."""

    config: tyro.conf.Positional[Path]
    """The study's YAML file."""
    jobs: int = 1
    """Runs at a time on this machine; its cores are shared between them."""
    cluster: Literal["slurm", "local"] | None = None
    """Submit the runs with submitit instead; local is to try it."""
    cluster_options: tuple[str, ...] = ()
    """Parameters for submitit as NAME=VALUE: timeout_min=240 slurm_partition=gpu slurm_gres=gpu:1."""
    report_only: bool = False
    """Compute nothing, report the rows there are."""

    def run(self) -> Path:
        """Compute what is missing and report; returns the report's path.

        Raises:
            InputError: the plan, or what it refers to, cannot be used.
        """
        from fewbeats.study.many import read_plans, write_overview

        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: give at least 1")
        if self.cluster_options and not self.cluster:
            raise InputError("--cluster-options: are for --cluster; give it, or take them out")
        from fewbeats.study.units import missing_units

        plans = read_plans(self.config)
        asked = plans
        if self.report_only and len(asked) > 1:
            plans = _leave_out_empty(asked)
        missing = [((), ()) if self.report_only else missing_units(plan) for plan in plans]
        for plan, waves in zip(plans, missing) if not self.report_only else ():
            check_data(plan, *waves)  # whatever is wrong with the last shows before the first is computed
        results = [(plan, *self.carry_out(plan, waves)) for plan, waves in zip(plans, missing)]
        if len(asked) == 1:
            return results[0][1]
        left_out = [plan for plan in asked if plan not in plans]
        file = plans[0].out.parent / f"{self.config.stem}.html"
        overview = write_overview(file, results, left_out=left_out)
        print(f"all of them: {overview}")
        return overview

    def carry_out(self, plan: Plan, waves: Sequence[Sequence[Unit]]) -> tuple[Path, Result]:
        """Compute what one study lacks, wave by wave, and report it; returns its page and what came out."""
        from fewbeats.study.report import write_report

        if not self.report_only:
            executor = _cluster(self.cluster, self.cluster_options, plan) if self.cluster else None
            for wave in waves:
                self._compute(plan, wave, executor)
        report, result = write_report(plan)
        for sentence in result.sentences.values():
            print(sentence)
        print(f"report: {report}")
        return report, result

    def _compute(self, plan: Plan, units: Sequence[Unit], executor: Any) -> None:
        from fewbeats.study.units import run_unit

        for unit in units:
            print(f"to do: {unit}")
        if executor:
            _submit(executor, plan, units)
        elif self.jobs == 1:
            for unit in units:
                run_unit(plan, unit)
        elif units:
            _run_side_by_side(plan, units, self.jobs)


def _leave_out_empty(plans: Sequence[Plan]) -> list[Plan]:
    """The studies with something to report; of none all are kept, for the error that the first one gives."""
    from fewbeats.study.report import is_reportable

    kept = [plan for plan in plans if is_reportable(plan)]
    for plan in plans if kept else ():
        if plan not in kept:
            print(f"{plan.rows}: nothing to report yet; left out")
    return kept or list(plans)


def check_data(plan: Plan, first: Sequence[Unit], arms: Sequence[Unit]) -> None:
    """Look for what would stop a run, before any time is spent on the others.

    Raises:
        InputError: too few labeled subjects for a budget; nobody to judge by; a pool that cannot be used, or
            that holds held-out scans; a start that does not fit, or has seen labels of this cohort; rows
            that cannot be written.
    """
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.recipes.starts import STARTS
    from fewbeats.study.trainers import learned_columns
    from fewbeats.study.units import cohort_of, open_rows, place, pretraining_of, subjects_of

    cohort = read_cohort(plan.cohort)
    judged = cohort if plan.folds else cohort.filter(pl.col("split") == plan.split)
    for arm in plan.arms.values():
        main, *more = learned_columns(arm.trainer)
        own = [main, *(name for name in more if name == "points")]
        if any(name in judged.columns and judged[name].is_not_null().any() for name in own):
            continue
        raise InputError(
            f"{plan.cohort}: no labeled scan of split '{plan.split}' to judge by; set the splits"
        )
    by_start: dict[str, list[Unit]] = {}
    for unit in sorted(arms, key=lambda unit: unit.labeled):
        arm = plan.arms[unit.name]
        by_start.setdefault("scratch" if arm.pretraining else arm.trainer.init, []).append(unit)
    for init, units in by_start.items():
        ends = {unit.labeled: unit for unit in (units[0], units[-1])}  # the narrowest and the widest budget
        for unit in units if plan.folds else ends.values():
            trainer, budget = plan.arms[unit.name].trainer, {"labeled": subjects_of(unit), "seed": unit.seed}
            where = {"cohort": cohort_of(plan, unit.seed), "cache": plan.cache}
            place(trainer, init=init, **where, **budget).preflight()
        if init not in STARTS:
            _refuse_labels(plan, unit.name, init, cohort)
    for unit in first:
        if unit.kind == "pretraining":
            pretraining_of(plan, unit).preflight()
    for name in {plan.arms[unit.name].pretraining for unit in arms} - {None}:
        _refuse_pool(plan, str(name), judged)
    open_rows(plan.rows)


def _refuse_pool(plan: Plan, name: str, judged: pl.DataFrame) -> None:
    """A pretraining that sees those who are judged, under whatever name, is for arms that say so."""
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.provenance import by_subject, find_seen, hash_scans
    from fewbeats.errors import name_some

    if not plan.brings_pool(name) and (name in plan.drawn or not plan.folds):
        return  # the splits, or the draw's, keep them apart
    arms = [arm for arm in plan.arms.values() if arm.pretraining == name]
    if all(getattr(arm.trainer, "transductive", False) for arm in arms):
        return
    cache = plan.cache / "hashes.json"
    pool = read_cohort(plan.pretrainings[name].cohort).filter(pl.col("split") == "train")
    known = by_subject(pool, hash_scans(pool, cache=cache))
    if seen := find_seen([known], by_subject(judged, hash_scans(judged, cache=cache))):
        raise InputError(
            f"{plan.name}: pretrainings.{name}: learns from images of those who are judged, "
            f"{name_some(seen)}; take them out of its cohort, or say transductive: true in the arm"
        )


def _refuse_labels(plan: Plan, arm: str, init: str, cohort: pl.DataFrame) -> None:
    """A start that has seen labels of the cohort has more of them than the arm's budget says."""
    import polars as pl

    from fewbeats.data.provenance import by_subject, digests, hash_scans
    from fewbeats.errors import name_some
    from fewbeats.recipes.starts import trace_weights
    from fewbeats.study.trainers import learned_columns

    told = [name for name in learned_columns(plan.arms[arm].trainer) if name in cohort.columns]
    any_told = pl.any_horizontal(pl.col(name).is_not_null() for name in ("label", *told))
    rows = cohort.filter(any_told)
    rows = rows if plan.folds else rows.filter(pl.col("split") == "train")
    owners = by_subject(rows, hash_scans(rows, cache=plan.cache / "hashes.json"))
    for run in trace_weights(Path(init)).lineage():
        known = {h for entries in run.labeled.values() for h in digests(entries)}
        if seen := sorted(name for name, entries in owners.items() if known & set(digests(entries))):
            raise InputError(
                f"{plan.name}: arms.{arm}.init: run '{run.run}' has seen labels of {name_some(seen)}, which "
                "the arm's budgets do not count; start from weights that have not"
            )


def _run_side_by_side(plan: Plan, units: Sequence[Unit], jobs: int) -> None:
    """In processes of their own; the first error stops what has not begun."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from fewbeats.study.units import run_unit

    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=_take_threads,
        initargs=(threads,),
        max_tasks_per_child=1,  # a run leaves caches behind
    )
    with pool:
        running = [pool.submit(run_unit, plan, unit) for unit in units]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_threads(threads: int) -> None:
    import torch

    from fewbeats.training.workers import leave_with_parent

    leave_with_parent()
    torch.set_num_threads(threads)


def _cluster(cluster: str, given: Sequence[str], plan: Plan) -> Any:
    """Where to submit to.

    Raises:
        InputError: no submitit, no such cluster here, or options it does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--cluster: needs submitit; pip install 'fewbeats[cluster]'") from error
    options = dict(_option(text) for text in given)
    try:
        executor = submitit.AutoExecutor(folder=plan.out / "jobs", cluster=cluster)
        executor.update_parameters(name=plan.name, **options)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"--cluster {cluster}: submitit says: {str(error).splitlines()[0]}") from error
    return executor


def _submit(executor: Any, plan: Plan, units: Sequence[Unit]) -> None:
    """To a cluster, and wait: what is submitted next starts from these."""
    from fewbeats.study.units import run_unit

    with executor.batch():
        submitted = [executor.submit(run_unit, plan, unit) for unit in units]
    for job in submitted:
        job.result()


def _option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--cluster-options {text}: write NAME=VALUE")
    return name, int(value) if value.isdigit() else value
