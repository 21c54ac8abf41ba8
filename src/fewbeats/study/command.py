"""Run a study and report it: what is already in its rows is not computed again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from fewbeats.study.plan import Plan
    from fewbeats.study.units import Unit


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare methods over label budgets and seeds, as a YAML file says; goes on where it stopped."""

    config: tyro.conf.Positional[Path]
    """The study's YAML file."""
    jobs: int = 1
    """Runs at a time on this machine; its cores are shared between them."""
    cluster: str | None = None
    """Submit the runs with submitit instead: slurm, or local to try it."""
    cluster_options: tuple[str, ...] = ()
    """Parameters for submitit as NAME=VALUE: timeout_min=240 slurm_partition=gpu slurm_gres=gpu:1."""
    report_only: bool = False
    """Compute nothing, report the rows there are."""

    def run(self) -> Path:
        """Compute what is missing and report; returns the report's path.

        Raises:
            InputError: the plan, or what it refers to, cannot be used.
        """
        from fewbeats.study.plan import read_plan
        from fewbeats.study.report import write_report
        from fewbeats.study.units import missing_units

        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: give at least 1")
        plan = read_plan(self.config)
        if not self.report_only:
            waves = missing_units(plan)
            check_data(plan, waves[0])
            for wave in waves:
                self._compute(plan, wave)
        report, result = write_report(plan)
        for sentence in result.sentences.values():
            print(sentence)
        print(f"report: {report}")
        return report

    def _compute(self, plan: Plan, units: Sequence[Unit]) -> None:
        from fewbeats.study.units import run_unit

        for unit in units:
            print(f"to do: {unit}")
        if self.cluster:
            _submit(self, plan, units)
        elif self.jobs == 1:
            for unit in units:
                run_unit(plan, unit)
        elif units:
            _run_side_by_side(plan, units, self.jobs)


def check_data(plan: Plan, first: Sequence[Unit]) -> None:
    """Look for what would stop a run, before any time is spent on the others.

    Raises:
        InputError: too few labeled subjects for a budget; nobody to judge by; a pool that cannot be used, or
            that holds held-out scans.
    """
    import polars as pl

    from fewbeats.anatomy import name_structure
    from fewbeats.commands.finetune import spoken_structures
    from fewbeats.commands.pretrain import build_method, choose_pool
    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.split import labeled_subjects
    from fewbeats.study.units import pretraining_of

    cohort = read_cohort(plan.cohort)
    if cohort.filter(pl.col("split") == plan.split, pl.col("label").is_not_null()).is_empty():
        raise InputError(
            f"{plan.cohort}: no labeled scan of split '{plan.split}' to judge by; set the splits"
        )
    for arm in plan.arms.values():
        named = [name_structure(s, file="structures") for s in arm.finetune.structures]
        structures = named or spoken_structures(cohort)
        labeled_subjects(cohort, max(arm.labeled), 0, structures=structures)
    for unit in first:
        if unit.kind == "pretraining":
            command = pretraining_of(plan, unit.name)
            build_method(command)
            choose_pool(command)


def _run_side_by_side(plan: Plan, units: Sequence[Unit], jobs: int) -> None:
    """In processes of their own; the first error stops what has not begun."""
    from concurrent.futures import ProcessPoolExecutor
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
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _submit(command: Study, plan: Plan, units: Sequence[Unit]) -> None:
    """To a cluster, and wait: what is submitted next starts from these."""
    from fewbeats.study.units import run_unit

    try:
        import submitit
    except ImportError as error:
        raise InputError("--cluster: needs submitit; pip install 'fewbeats[cluster]'") from error
    executor = submitit.AutoExecutor(folder=plan.out / "jobs", cluster=command.cluster)
    executor.update_parameters(name=plan.name, **dict(_option(text) for text in command.cluster_options))
    with executor.batch():
        submitted = [executor.submit(run_unit, plan, unit) for unit in units]
    for job in submitted:
        job.result()


def _option(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--cluster-options {text}: write NAME=VALUE")
    return name, int(value) if value.isdigit() else value
