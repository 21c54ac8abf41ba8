"""A progress bar with the time left, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    label: str, total: int, done: int = 0, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar; yields a function that advances it by one and takes a loss to show beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not shown or not console.is_terminal) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")

        def advance(loss: float | None = None) -> None:
            bar.update(task, advance=1, note="" if loss is None else f"loss {loss:.3f}")

        yield advance
