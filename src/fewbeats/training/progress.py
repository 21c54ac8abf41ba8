"""How far a long piece of work is, on standard error: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 60.0  # between two lines of a log


@contextmanager
def progress_bar(
    label: str, total: int, done: int = 0, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show progress; yields a function that advances it by one and takes a loss to show beside it."""
    if shown and not sys.stderr.isatty():
        yield _lines(label, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def advance(loss: float | None = None) -> None:
            bar.update(task, advance=1, note="" if loss is None else f"loss {loss:.3f}")

        yield advance


def _lines(label: str, total: int, done: int) -> Callable[..., None]:
    """What a log, a batch job or CI sees: what, how far, time left."""
    begun = told = time.monotonic()
    first = done

    def advance(loss: float | None = None) -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told < LINE_SECONDS or done >= total:
            return
        told = now
        left = (now - begun) / (done - first) * (total - done)
        beside = "" if loss is None else f", loss {loss:.3f}"
        print(f"{label}: {done} of {total}{beside}, {tell_time(left)} left", file=sys.stderr, flush=True)

    return advance


def tell_time(seconds: float) -> str:
    """A duration as people say it.

    >>> [tell_time(s) for s in (8, 100, 3599, 6000)]
    ['8 s', '2 min', '60 min', '1 h 40 min']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
