"""A training from its request to its run folder, whatever the method."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.disk import hold_folder
from fewbeats.memory import peak_memory_mb
from fewbeats.training.loop import FitSettings, Validation, check_length, fit
from fewbeats.training.precision import choose_precision
from fewbeats.training.rundir import RunDir
from fewbeats.training.workers import with_workers

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.sample import Batches
    from fewbeats.training.method import Method


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How a network leaves a training."""

    about: Mapping[str, Any]
    """What its `run.json` says beside what every run says: task, settings, what it was trained on."""
    write: Callable[[nn.Module, RunDir], dict[str, Any]]
    """Writes its weights into the folder; what it returns is added to `run.json`."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `carry_out` trains."""

    method: Method
    batches: Batches
    exports: Mapping[str, Exported]
    """For each of `method.networks()`, in their order."""
    validation: Validation | None = None
    finish: Callable[[RunDir, Method, int], None] = lambda run, method, steps: None
    """What else is done with a finished run: its page."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a training is: either of the two.

    >>> Length(steps=600).left(FitSettings()).steps
    600
    >>> Length(steps=600, minutes=15).check()
    Traceback (most recent call last):
    fewbeats.errors.InputError: give either --steps or --minutes
    """

    steps: int | None = None
    minutes: float | None = None
    """Of wall-clock time from `started` on."""
    started: float = field(default_factory=time.perf_counter)
    """When the clock began; `time.perf_counter()`."""

    def check(self) -> None:
        """Raise where it is none.

        Raises:
            InputError: no length or two, or one out of range.
        """
        check_length(self.steps, self.minutes)

    def left(self, settings: FitSettings) -> FitSettings:
        """Fit settings with what is left of it."""
        minutes = self.minutes
        if minutes is not None:
            minutes = max(0.01, minutes - (time.perf_counter() - self.started) / 60)
        return replace(settings, steps=self.steps, minutes=minutes)


def carry_out(
    out: Path,
    *,
    request: Mapping[str, Any],
    provenance: Provenance,
    build: Callable[[], Training],
    prepare: Callable[[RunDir], None] = lambda run: None,
    length: Length,
    settings: FitSettings,
    label: str = "training",
    workers: int = 0,
    quiet: bool = False,
) -> RunDir:
    """Train and write the run folder, or find it done: asked before anything is built or any image is read.

    Args:
        out: the folder; an unfinished run of the same request in it is resumed.
        request: what decides the outcome.
        provenance: what the run will have seen.
        build: makes the method and its batches; whatever is wrong with the input shows in it.
        prepare: puts into the folder, once it is this request's own, what goes before the training.
        length: of the training.
        settings: seed, optimizer and bookkeeping of the loop.
        label: name on the progress bar.
        workers: processes that make batches.
        quiet: say nothing where the run is done already.

    Returns:
        the folder of the first exported network; others have one of their own in it, under their name.

    Raises:
        InputError: the folder holds another run, or something that `build` or the training met.
    """
    run = RunDir(out)
    if run.is_finished(request):
        if not quiet:
            print(f"{run.path}: already trained with these settings")
        return run
    training = build()
    with hold_folder(out) if _is_first() else nullcontext():
        run.claim(request)
        prepare(run)
        earlier = run.trained_seconds()  # by processes that were stopped
        with with_workers(training.batches, workers) as batches:
            steps = fit(
                training.method,
                batches,
                settings=length.left(settings),
                run=run,
                label=label,
                validation=training.validation,
            )
        seconds = time.perf_counter() - length.started + earlier
        about: dict[str, Any] = {"steps": steps, "seed": settings.seed, "seconds": seconds}
        about |= {"precision": choose_precision(settings.optim.precision), "networks": list(training.exports)}
        _export(run, training, about | {"network_seconds": run.network_seconds()}, provenance)
    return run


def _is_first() -> bool:
    """Whether this is the first of processes that torchrun started; asked before they have met."""
    return os.environ.get("RANK", "0") == "0"


def _export(run: RunDir, training: Training, about: dict[str, Any], provenance: Provenance) -> None:
    """Write all networks, the one that finishes the run last."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    networks = list(training.method.networks().items())
    folders = {name: run if i == 0 else RunDir(run.path / name) for i, (name, _) in enumerate(networks)}
    for name, network in reversed(networks):
        folder, exported = folders[name], training.exports[name]
        folder.path.mkdir(parents=True, exist_ok=True)
        written = exported.write(network, folder)
        provenance.save(folder.path)
        if folder is not run and (run.path / "localizer").is_dir():
            shutil.copytree(run.path / "localizer", folder.path / "localizer", dirs_exist_ok=True)
        memory = {"peak_memory_mb": peak_memory_mb()}
        names = about["networks"] if folder is run else ["network"]
        folder.write_config({**exported.about, **about, **memory, **written, "networks": names})
    run.drop_checkpoint()
    training.finish(run, training.method, about["steps"])
