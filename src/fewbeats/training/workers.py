"""Batches made by other processes while the network computes; none is needed, and none changes a batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from fewbeats.sample import Batch, Batches


def with_workers(batches: Batches, workers: int) -> Batches:
    """The same batches in the same order, made by `workers` processes; here with 0.

    The processes start fresh and `batches` is sent to them, so it must pickle: a forked process would share
    the threads of whatever runtime is loaded, and crash with it. What fails in a worker is raised here with
    the worker's own traceback.

    Raises:
        InputError: a negative number.
    """
    if workers < 0:
        raise InputError(f"--workers {workers}: give at least 0")
    if not workers:
        return batches

    def stream(start: int, rank: int, world: int) -> Iterator[Batch]:
        steps = _Steps(batches, start, rank, world)
        loader = DataLoader(
            steps, batch_size=None, num_workers=workers, multiprocessing_context="spawn", prefetch_factor=2
        )
        try:
            yield from loader
        except InputError as error:  # the loader wraps what a user reads in a traceback
            raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error

    return stream


class _Steps(IterableDataset):
    """Worker i of n makes steps start + i, start + i + n, ...; the loader takes turns."""

    def __init__(self, batches: Batches, start: int, rank: int, world: int):
        self.batches, self.start, self.rank, self.world = batches, start, rank, world

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is not None  # only a loader's process comes here
        for step in count(self.start + worker.id, worker.num_workers):
            yield next(self.batches(step, self.rank, self.world))
