"""Who does many pieces of work: this process, several of this machine, or a cluster that runs already.

An executor takes a function and its tasks, as many as there are, and gives results as they come. Tasks are
drawn a few ahead. What a lost worker held is given to another; a piece of work that fails is its own result.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fewbeats.errors import InputError

AHEAD = 2  # tasks a worker that wait
TRIES = 3  # losses of workers in a row without a single result, before it is given up
Work = Callable[[Any], Any]
Result = tuple[Any, Any]
"""A task and what came of it, an `InputError` where it failed."""


class Executor(Protocol):
    """Does work."""

    def __call__(self, work: Work, tasks: Iterable[Any]) -> Iterator[Result]:
        """Results in any order.

        Raises:
            InputError: there is nobody to do the work, or all are lost.
        """
        ...


def serial(work: Work, tasks: Iterable[Any]) -> Iterator[Result]:
    """One after the other, here."""
    for task in tasks:
        yield task, _try(work, task)


def _try(work: Work, task: Any) -> Any:
    try:
        return work(task)
    except InputError as error:
        return error


@dataclass(frozen=True)
class Processes:
    """Several processes of this machine, each with its own copy of the work."""

    count: int

    def __call__(self, work: Work, tasks: Iterable[Any]) -> Iterator[Result]:
        waiting, drawn, lost = iter(tasks), list[Any](), 0
        while True:
            running: dict[Future[Any], Any] = {}
            try:
                with _pool(self.count, work) as pool:
                    while True:
                        drawn += islice(waiting, max(0, AHEAD * self.count - len(running) - len(drawn)))
                        while drawn:
                            running[pool.submit(_do, drawn[-1])] = drawn[-1]
                            drawn.pop()
                        if not running:
                            return
                        for done in wait(running, return_when=FIRST_COMPLETED).done:
                            result = done.result()
                            lost = 0
                            yield running.pop(done), result
            except BrokenProcessPool as error:
                lost += 1
                drawn += running.values()
                if lost == TRIES:
                    raise InputError(
                        "processes that label are killed, one after the other, most often for memory; take "
                        "fewer --jobs"
                    ) from error


def _pool(count: int, work: Work) -> Any:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(count, get_context("spawn"), _receive, (pickle.dumps(work),))


_WORK: list[Work] = []  # of a process of `Processes`


def _receive(pickled: bytes) -> None:
    _WORK.append(pickle.loads(pickled))


def _do(task: Any) -> Any:
    return _try(_WORK[-1], task)


@dataclass(frozen=True)
class Dask:
    """A cluster of Dask distributed that runs already."""

    address: str
    """Of its scheduler, tcp://HOST:PORT, or the file that the scheduler wrote."""

    def __call__(self, work: Work, tasks: Iterable[Any]) -> Iterator[Result]:
        with self._connect() as client, client.as_current(), _any_size():
            if not (workers := client.nthreads()):
                raise InputError(f"--on dask:{self.address}: the cluster has no worker; start some")
            # A result and no scattered value: with its last holder, that would be lost for good.
            known = client.submit(pickle.loads, pickle.dumps(work), pure=False)
            waiting, running = iter(tasks), dict[Any, Any]()
            while True:
                room = max(0, AHEAD * sum(workers.values()) - len(running))
                for task in islice(waiting, room):
                    running[client.submit(_try, known, task, pure=False, retries=0)] = task
                if not running:
                    return
                yield from self._collect(client, running)

    def _collect(self, client: Any, running: dict[Any, Any]) -> Iterator[Result]:
        """Results that are there, waiting for one."""
        from distributed import wait as wait_for

        done = None
        while done is None:
            try:
                done = wait_for(list(running), return_when="FIRST_COMPLETED", timeout=PATIENCE).done
            except TimeoutError as error:
                if client.status != "running" or not client.nthreads():
                    raise InputError(
                        f"--on dask:{self.address}: all workers are lost; start others, and the same command"
                    ) from error
        for future in done:
            task, failure = running.pop(future), future.exception()
            yield task, future.result() if failure is None else InputError(_told(failure))

    def _connect(self) -> Any:
        try:
            from distributed import Client
        except ImportError as error:
            raise InputError("--on dask: needs Dask; pip install 'fewbeats[dask]'") from error
        nobody = InputError(f"--on dask:{self.address}: no scheduler answers there; start one")
        where: dict[str, Any] = {"address": self.address}
        if "://" not in self.address:
            where = {"scheduler_file": self.address}
            if not Path(self.address).is_file():  # Dask would wait for it
                raise nobody
        try:
            return Client(**where, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise nobody from error


def _any_size() -> Any:
    """Networks are sent, once; Dask would warn of their size."""
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "16 GiB"})


PATIENCE = 20.0
"""Seconds that a scheduler may take to answer, and between two looks whether anybody still works."""


def _told(error: BaseException) -> str:
    """Why a task was lost, in a line."""
    if type(error).__name__ == "KilledWorker":
        return "the processes that labeled it were killed, several times; most often memory is short"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def open_executor(on: str, jobs: int) -> Executor:
    """Who labels.

    Args:
        on: local, or dask: and the scheduler's address or file.
        jobs: processes of this machine.

    Raises:
        InputError: neither, or no positive number.
    """
    kind, _, where = on.partition(":")
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: give at least 1")
    if kind == "dask" and where:
        if jobs > 1:
            raise InputError(
                "--jobs: goes with processes of this machine; the cluster has workers of its own"
            )
        return Dask(where)
    if on != "local":
        raise InputError(f"--on {on}: write local, or dask:ADDRESS with the scheduler's address or file")
    return serial if jobs == 1 else Processes(jobs)
