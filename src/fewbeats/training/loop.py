"""The only training loop.

A step's randomness depends on (seed, step, rank) alone, so a run that was stopped and resumed is the run
that never stopped, bit for bit; and a run of M minutes is the run of the N steps it was turned into.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fewbeats.errors import InputError
from fewbeats.training.optim import OptimSettings
from fewbeats.training.precision import choose_precision, full_depthwise

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fewbeats.sample import Batch, Batches
    from fewbeats.training.method import Method
    from fewbeats.training.rundir import RunDir

TIMED_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Length and bookkeeping of a training run."""

    steps: int | None = None
    """Optimizer steps; either this or minutes."""
    minutes: float | None = None
    """Wall-clock budget; turned into steps once, after timing 20, and written to the run's folder."""
    seed: int = 0
    """Start of the weights and of every random draw."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    """Which optimizer, and in which arithmetic; the rates are the method's."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_seconds: float = 60.0
    """Least time between checkpoints, s."""


def check_length(steps: int | None, minutes: float | None) -> None:
    """Raises:
    InputError: no length of a training or two were given, or one that is none.
    """
    if (steps is None) == (minutes is None):
        raise InputError("give either --steps or --minutes")
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: give at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"--minutes {minutes}: must be positive")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is measured of a method now and then, for the log and, where wanted, to choose the checkpoint."""

    measure: Callable[[Method], dict[str, float]]
    """Figures by name; may use random numbers, which every step draws anew."""
    times: int = 10
    """Measurements, spread evenly over the run; its last step is one of them."""
    best: str | None = None
    """Figure whose highest value marks the state that is kept; the last state without it."""

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure after `step` of `total` steps."""
        return step * self.times // total > (step - 1) * self.times // total


def fit(
    method: Method,
    batches: Batches,
    *,
    settings: FitSettings,
    run: RunDir,
    label: str = "training",
    watch: Watch | None = None,
) -> int:
    """Train a method in place; goes on from the run's checkpoint when there is one.

    Args:
        method: what is trained.
        batches: see `Batches`.
        settings: length and bookkeeping.
        run: where metrics and checkpoints go.
        label: name on the progress bar.
        watch: what is measured of the method as it learns.

    Returns:
        the number of steps of the finished run.

    Raises:
        InputError: no budget or two were given, the loss stopped being finite, or the disk is full.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    check_length(settings.steps, settings.minutes)
    set_seed(settings.seed)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    run.path.mkdir(parents=True, exist_ok=True)
    loop = _Loop(method, accelerator, settings, run)
    loop.resume()
    with full_depthwise(method):
        if loop.total is None:
            loop.total = settings.steps or loop.steps_for(settings.minutes or 0.0, batches)
        loop.run_to_end(batches, label, watch)
    accelerator.wait_for_everyone()
    return loop.total


class _Loop:
    """State of one `fit`: the method, its optimizer, and where the run stands."""

    def __init__(self, method: Method, accelerator: Accelerator, settings: FitSettings, run: RunDir):
        from fewbeats.training.optim import build_optimizer

        self.method, self.accelerator, self.settings, self.run = method, accelerator, settings, run
        self.groups = method.parameter_groups()
        self.optimizer = build_optimizer(self.groups, settings.optim.kind)
        self.wrapped, self.prepared = accelerator.prepare(method, self.optimizer)
        self.bf16 = choose_precision(settings.optim.precision) == "bf16"
        self.step, self.total = 0, None  # type: int, int | None
        self.best: float | None = None
        self.data_seconds = self.step_seconds = 0.0  # since the last line of the metrics
        self.timed = 0

    def resume(self) -> None:
        from fewbeats.training.checkpoint import read_checkpoint

        state = read_checkpoint(self.run.checkpoint, self.method, self.optimizer)
        if state is not None:
            self.step, self.total, self.best = state["step"], state["total"], state["best"]
        if self.accelerator.is_main_process:
            self.run.cut_metrics(self.step)

    def save(self) -> None:
        from fewbeats.training.checkpoint import write_checkpoint

        if self.accelerator.is_main_process:
            state = {"step": self.step, "total": self.total, "best": self.best}
            write_checkpoint(self.run.checkpoint, self.method, self.optimizer, state=state)

    def steps_for(self, minutes: float, batches: Batches) -> int:
        """Time `TIMED_STEPS` steps, put the start back, and return the steps that fit into the rest."""
        from copy import deepcopy

        started = time.perf_counter()
        state = deepcopy(self.method.state_dict())
        stream, seconds = self._stream(batches), []
        for step in range(TIMED_STEPS):
            begun = time.perf_counter()
            self._update(next(stream), step, progress=0.0)
            seconds.append(time.perf_counter() - begun)
        self.method.load_state_dict(state)
        self.optimizer.state.clear()
        left = minutes * 60 - (time.perf_counter() - started)
        steps = max(TIMED_STEPS, int(left / (sum(sorted(seconds)[2:-2]) / (TIMED_STEPS - 4))))
        if self.accelerator.num_processes > 1:  # every rank must stop at the same step
            from accelerate.utils import broadcast_object_list

            steps = broadcast_object_list([steps])[0]
        return steps

    def _stream(self, batches: Batches) -> Iterator[Batch]:
        return batches(self.step, self.accelerator.process_index, self.accelerator.num_processes)

    def _update(self, batch: Batch, step: int, *, progress: float) -> tuple[float, dict[str, float]]:
        """One optimizer step; returns the loss and the method's figures."""
        import torch

        from fewbeats.training.optim import set_rates

        # The 1 tells it from the views' seed: what a method blanks must not follow how a slice is turned.
        torch.manual_seed(hash((self.settings.seed, step, self.accelerator.process_index, 1)) % 2**31)
        self.method.train()
        set_rates(self.optimizer, self.groups, progress)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            result = self.wrapped(batch.to(self.accelerator.device), progress)
        self.accelerator.backward(result.loss)
        if result.active is not None:
            for group in self.groups:
                if group.name not in result.active:
                    for parameter in group.parameters:
                        parameter.grad = None
        self.accelerator.clip_grad_norm_(self.method.parameters(), self.settings.clip_norm)
        self.prepared.step()
        self.method.after_update(progress)
        return float(result.loss.detach()), result.logs

    def run_to_end(self, batches: Batches, label: str, watch: Watch | None) -> None:
        from fewbeats.training.progress import progress_bar

        assert self.total is not None
        stream, saved = self._stream(batches), time.perf_counter()
        with progress_bar(label, self.total, self.step, shown=self.accelerator.is_main_process) as advance:
            while self.step < self.total:
                begun = time.perf_counter()
                batch = next(stream)
                fetched = time.perf_counter()
                loss, logs = self._update(batch, self.step, progress=self.step / self.total)
                self.data_seconds += fetched - begun
                self.step_seconds += time.perf_counter() - begun
                self.timed += 1
                self.step += 1
                if not math.isfinite(loss):  # before it is saved
                    raise InputError(
                        f"{self.run.path}: loss {loss} at step {self.step}; lower --optim.learning-rate"
                    )
                if self.step % self.settings.log_every == 0 or self.step == self.total:
                    self._log(loss, logs)
                if watch and watch.is_due(self.step, self.total):
                    self._look(watch)
                if time.perf_counter() - saved > self.settings.checkpoint_seconds or self.step == self.total:
                    self.save()
                    saved = time.perf_counter()
                advance(loss)
        if watch and watch.best:
            from fewbeats.training.checkpoint import read_best

            self.accelerator.wait_for_everyone()  # the first process may still be writing it
            read_best(self.run.checkpoint, self.method)

    def _log(self, loss: float, logs: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            rates = {f"rate_{g['name']}": g["lr"] for g in self.optimizer.param_groups}
            seconds = self.step_seconds / self.timed
            share = self.data_seconds / max(self.step_seconds, 1e-9)
            self.run.append_metrics(
                {
                    "step": self.step,
                    "loss": loss,
                    **logs,
                    **rates,
                    "step_seconds": seconds,
                    "data_share": share,
                }
            )
        self.data_seconds = self.step_seconds = 0.0
        self.timed = 0

    def _look(self, watch: Watch) -> None:
        from fewbeats.training.checkpoint import write_best

        figures = watch.measure(self.method)
        score = figures[watch.best] if watch.best else None
        if self.accelerator.is_main_process:
            self.run.append_metrics({"step": self.step, **figures})
            if score is not None and (self.best is None or score > self.best):
                write_best(self.run.checkpoint, self.method)
        if score is not None:
            self.best = score if self.best is None else max(self.best, score)
