"""The only training loop.

A step's randomness depends on (seed, step, rank) alone, so a run that was stopped and resumed is the run
that never stopped, bit for bit; and a run of M minutes is the run of the N steps it was turned into.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.training.optim import OptimSettings
from fewbeats.training.precision import choose_precision, full_depthwise

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fewbeats.sample import Batch, Batches
    from fewbeats.training.method import Method, Step
    from fewbeats.training.rundir import RunDir

TIMED_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Length and bookkeeping of a training run."""

    steps: int | None = None
    """Optimizer steps; either this or minutes."""
    minutes: float | None = None
    """Wall-clock budget; turned into steps once, after timing 20 spread over the schedule, and written to the
    run's folder."""
    seed: int = 0
    """Start of the weights and of every random draw."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    """Which optimizer, in which arithmetic and clipped to what; the rates are the method's."""
    parts: int = 1
    """Micro-batches an update is computed in, where memory is short. A loss that pools over its batch, as the
    Dice loss does, then pools over each part, and BatchNorm sees a part at a time: an update of parts is a
    mean of updates, not the update of the whole batch."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_seconds: float = 60.0
    """Least time between checkpoints, s."""


def check_length(steps: int | None, minutes: float | None) -> None:
    """Check that a training is given one length, in steps or in minutes.

    Raises:
        InputError: none or two were given, or one that is no length.
    """
    if (steps is None) == (minutes is None):
        raise InputError("give either --steps or --minutes")
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: give at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"--minutes {minutes}: must be positive")


@dataclass(frozen=True, kw_only=True)
class Validation:
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
    validation: Validation | None = None,
) -> int:
    """Train a method in place; goes on from the run's checkpoint when there is one.

    Args:
        method: what is trained.
        batches: see `Batches`.
        settings: length and bookkeeping.
        run: where metrics and checkpoints go.
        label: name on the progress bar.
        validation: what is measured of the method as it learns.

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
    loop = _Loop(method, accelerator, settings=settings, run=run)
    loop.resume()
    with full_depthwise(method):
        if loop.total is None:
            loop.total = settings.steps or loop.steps_for(settings.minutes or 0.0, batches)
        loop.run_to_end(batches, label, validation)
    accelerator.wait_for_everyone()
    return loop.total


class _Loop:
    """State of one `fit`: the method, its optimizer, and where the run stands."""

    def __init__(self, method: Method, accelerator: Accelerator, *, settings: FitSettings, run: RunDir):
        from fewbeats.training.optim import build_optimizer, gather_networks

        self.method, self.accelerator, self.settings, self.run = method, accelerator, settings, run
        self.groups = method.parameter_groups()
        self.optimizer = build_optimizer(self.groups, settings.optim)
        self.networks = gather_networks(method)
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
        """Time `TIMED_STEPS` steps, put the start back, and return the steps that fit into the rest.

        They are spread over the whole schedule: a warm-up is not the price of what follows it.
        """
        from copy import deepcopy

        started = time.perf_counter()
        state = deepcopy(self.method.state_dict())
        seconds = []
        for step in range(TIMED_STEPS):
            begun = time.perf_counter()
            clock = self._clock(step, TIMED_STEPS)
            self._update(batches(clock), clock)
            seconds.append(time.perf_counter() - begun)
        self.method.load_state_dict(state)
        self.optimizer.state.clear()
        left = minutes * 60 - (time.perf_counter() - started)
        steps = max(TIMED_STEPS, int(left / (sum(sorted(seconds)[2:-2]) / (TIMED_STEPS - 4))))
        if self.accelerator.num_processes > 1:  # every rank must stop at the same step
            from accelerate.utils import broadcast_object_list

            steps = broadcast_object_list([steps])[0]
        return steps

    def _clock(self, step: int, total: int) -> Clock:
        return Clock(step, total, self.accelerator.process_index, self.accelerator.num_processes)

    def _update(self, batch: Batch, clock: Clock) -> tuple[float, dict[str, float]]:
        """One optimizer step; returns the loss and the method's figures."""
        import torch

        from fewbeats.training.optim import set_rates

        # The 1 tells it from the views' seed: what a method blanks must not follow how a slice is turned.
        torch.manual_seed(hash((self.settings.seed, clock.step, clock.rank, 1)) % 2**31)
        self.method.train()
        set_rates(self.optimizer, self.groups, clock)
        self.optimizer.zero_grad(set_to_none=True)
        results = [self._backward(part, clock, share) for part, share in batch.split(self.settings.parts)]
        loss = sum(share * float(step.loss.detach()) for step, share in results)
        self._refuse_infinite("loss", loss, clock.step + 1)
        self._drop_idle(results[-1][0])
        if self.settings.optim.clip_norm:
            for parameters in self.networks.values():
                norm = self.accelerator.clip_grad_norm_(parameters, self.settings.optim.clip_norm)
                self._refuse_infinite("gradient", float(norm), clock.step + 1)
        self.prepared.step()
        self.method.after_update(clock)
        return loss, _mean_logs(results)

    def _backward(self, part: Batch, clock: Clock, share: float) -> tuple[Step, float]:
        """Add the gradient of a part of the batch, `share` of its items."""
        import torch

        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            result = self.wrapped(part.to(self.accelerator.device), clock)
        self.accelerator.backward(result.loss if share == 1 else share * result.loss)
        return result, share

    def _refuse_infinite(self, what: str, value: float, step: int) -> None:
        """Stop before weights are moved by it, and saved."""
        if not math.isfinite(value):
            raise InputError(
                f"{self.run.path}: {what} {value} at step {step}; lower {self.method.rate_flags}"
            )

    def _drop_idle(self, result: Step) -> None:
        """Take the gradient from groups that this step does not update."""
        for group in self.groups:
            if result.active is not None and group.name not in result.active:
                for parameter in group.parameters:
                    parameter.grad = None

    def run_to_end(self, batches: Batches, label: str, validation: Validation | None) -> None:
        from fewbeats.training.progress import progress_bar

        assert self.total is not None
        saved = time.perf_counter()
        with progress_bar(label, self.total, self.step, shown=self.accelerator.is_main_process) as advance:
            while self.step < self.total:
                begun, clock = time.perf_counter(), self._clock(self.step, self.total)
                batch = batches(clock)
                fetched = time.perf_counter()
                loss, logs = self._update(batch, clock)
                self.method.survey(clock)
                self.data_seconds += fetched - begun
                self.step_seconds += time.perf_counter() - begun
                self.timed += 1
                self.step += 1
                if self.step % self.settings.log_every == 0 or self.step == self.total:
                    self._log(loss, logs)
                if validation and validation.is_due(self.step, self.total):
                    self._validate(validation)
                if time.perf_counter() - saved > self.settings.checkpoint_seconds or self.step == self.total:
                    self.save()
                    saved = time.perf_counter()
                advance(loss)
        if validation and validation.best:
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

    def _validate(self, validation: Validation) -> None:
        from fewbeats.training.checkpoint import write_best

        figures = validation.measure(self.method)
        score = figures[validation.best] if validation.best else None
        if self.accelerator.is_main_process:
            self.run.append_metrics({"step": self.step, **figures})
            if score is not None and (self.best is None or score > self.best):
                write_best(self.run.checkpoint, self.method)
        if score is not None:
            self.best = score if self.best is None else max(self.best, score)


def _mean_logs(results: Sequence[tuple[Step, float]]) -> dict[str, float]:
    """A method's figures over the parts of a batch, each over those that have it."""
    told: dict[str, list[tuple[float, float]]] = {}
    for step, share in results:
        for name, value in step.logs.items():
            told.setdefault(name, []).append((value, share))
    return {
        name: sum(share * value for value, share in parts) / sum(share for _, share in parts)
        for name, parts in told.items()
    }
