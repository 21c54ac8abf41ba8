"""Batches made by other processes while the network computes; none is needed, and none changes a batch."""

from __future__ import annotations

import io
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    import numpy as np
    import torch

    from fewbeats.clock import Clock
    from fewbeats.sample import Batch, Batches

LOOK_SECONDS = 1.0  # between two looks whether the process that started a worker is there
AHEAD = 2  # batches of each process that wait to be taken


@contextmanager
def with_workers(batches: Batches, workers: int) -> Iterator[Batches]:
    """The same batches, made ahead by `workers` processes while the block lasts; here with 0.

    The processes start fresh, and what is sent is plain bytes: forked processes and memory shared with torch
    crashed a process that also predicts. What fails in a worker is raised here.

    Raises:
        InputError: a negative number.
    """
    if workers < 0:
        raise InputError(f"--workers {workers}: give at least 0")
    if not workers:
        yield batches
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(workers, get_context("spawn"), _receive, (pickle.dumps(batches),))
    try:
        yield _Ahead(pool, AHEAD * workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Ahead:
    """Asks the pool for the batches of the next steps, too: they are asked for in order."""

    def __init__(self, pool: ProcessPoolExecutor, ahead: int):
        self.pool, self.ahead = pool, ahead
        self.waiting: dict[Clock, Future[bytes]] = {}

    def __call__(self, clock: Clock) -> Batch:
        wanted = [
            replace(clock, step=s) for s in range(clock.step, min(clock.step + self.ahead + 1, clock.total))
        ]
        self.waiting = {c: self.waiting.get(c) or self.pool.submit(_make, c) for c in wanted}
        return pickle.loads(self.waiting.pop(clock).result())


def leave_with_parent() -> None:
    """End this process soon after the one that started it is gone, as when that was killed."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


_BATCHES: list[Batches] = []
"""In a worker, the one thing it was sent."""


def _receive(sent: bytes) -> None:
    import torch

    leave_with_parent()
    torch.set_num_threads(1)
    _BATCHES.append(pickle.loads(sent))


def _make(clock: Clock) -> bytes:
    return _pack(_BATCHES[0](clock))


def _pack(batch: Batch) -> bytes:
    """A batch as bytes, its tensors as plain arrays and class indices in a byte each.

    A tensor's own way to be pickled takes several times as long, and a batch of volumes is 100 MB.
    """
    out = io.BytesIO()
    _Packer(out, protocol=5).dump(batch)
    return out.getvalue()


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return NotImplemented
        dense = value.is_contiguous() or (
            value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
        )
        value = value if dense else value.contiguous()
        flat = value.as_strided((value.numel(),), (1,))
        if value.dtype == torch.long and value.numel() and int(value.min()) >= 0 and int(value.max()) < 256:
            flat = flat.byte()
        return _unpack, (flat.numpy(), value.dtype, tuple(value.shape), value.stride())


def _unpack(
    flat: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    import torch

    return torch.from_numpy(flat).to(dtype).as_strided(shape, stride)
