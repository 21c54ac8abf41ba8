"""Batches made by other processes while the network computes; none is needed, and none changes a batch."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from fewbeats.sample import Batch, Batches

AHEAD = 2  # batches of each process that wait to be taken


def with_workers(batches: Batches, workers: int) -> Batches:
    """The same batches in the same order, made by `workers` processes; here with 0.

    The processes start fresh, and what is sent is plain bytes: forked processes and memory shared with torch
    crashed a process that also predicts. What fails in a worker is raised here.

    Raises:
        InputError: a negative number.
    """
    if workers < 0:
        raise InputError(f"--workers {workers}: give at least 0")
    if not workers:
        return batches

    def stream(start: int, rank: int, world: int) -> Iterator[Batch]:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        pool = ProcessPoolExecutor(workers, get_context("spawn"), _receive, (pickle.dumps(batches),))
        steps = count(start)
        try:
            waiting = deque(pool.submit(_make, next(steps), rank, world) for _ in range(AHEAD * workers))
            while True:
                made = waiting.popleft().result()
                waiting.append(pool.submit(_make, next(steps), rank, world))
                yield pickle.loads(made)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return stream


_BATCHES: list[Batches] = []
"""In a worker, the one thing it was sent."""


def _receive(sent: bytes) -> None:
    import torch

    torch.set_num_threads(1)
    _BATCHES.append(pickle.loads(sent))


def _make(step: int, rank: int, world: int) -> bytes:
    return pickle.dumps(next(_BATCHES[0](step, rank, world)))
