"""More than one process: batches made ahead, and one network trained by two."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.sample import Batch
from fewbeats.training.loop import fit
from fewbeats.training.rundir import RunDir
from fewbeats.training.workers import with_workers
from tiny_training import FULL, batches, short
from two_processes import PLAIN, SELF_SUPERVISED, Pointwise, self_supervised

# Workers


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches_in_the_same_order(workers):
    with with_workers(batches, workers) as ahead:
        for step in (3, 4, 5, 6, 7, 2, 9):  # in order, and where a run is timed or resumed not
            clock = Clock(step, 10, rank=1, world=2)
            mine, theirs = batches(clock), ahead(clock)
            assert torch.equal(mine.views["image"], theirs.views["image"])
            assert torch.equal(mine.target, theirs.target)


def strided(clock: Clock) -> Batch:
    """Tensors of every kind that a batch may hold."""
    image = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(clock.step))
    target = torch.tensor([[0, 255], [3, 256 if clock.step else 7]])
    return Batch(
        views={"image": image.contiguous(memory_format=torch.channels_last), "turned": image.transpose(1, 3)},
        target=target,
        place=image[1:, :2],
        labeled=torch.tensor([True, False]),
        weight=torch.empty(0),
    )


@pytest.mark.parametrize("step", [0, 1])
def test_what_a_worker_sends_is_the_same_to_the_bit_and_in_memory(step):
    clock = Clock(step, 2)
    with with_workers(strided, 1) as ahead:
        mine, theirs = strided(clock), ahead(clock)
    assert theirs.views["image"].is_contiguous(memory_format=torch.channels_last)
    pairs = [(mine.views[n], theirs.views[n]) for n in mine.views]
    pairs += [(getattr(mine, n), getattr(theirs, n)) for n in ("target", "place", "labeled", "weight")]
    for sent, come in pairs:
        assert sent.dtype == come.dtype
        assert torch.equal(sent, come)


@dataclass
class Failing:
    """Batches that cannot be made."""

    error: Exception

    def __call__(self, clock: Clock) -> Batch:
        raise self.error


@pytest.mark.parametrize(("error", "told"), [
    (InputError("scan.nii: damaged"), r"^scan.nii: damaged$"),
    (RuntimeError("a defect"), "a defect"),
])  # fmt: skip
def test_what_fails_in_a_worker_is_told_here(error, told):
    with pytest.raises(type(error), match=told) as caught, with_workers(Failing(error), 1) as ahead:
        ahead(Clock(0, 1))
    assert "in __call__" in str(caught.value.__cause__)  # the traceback of the worker


def test_fewer_than_no_workers_are_refused():
    with pytest.raises(InputError, match="--workers -1"), with_workers(batches, -1):
        pass


# Two processes


@pytest.mark.slow
def test_two_processes_are_one_with_the_larger_batch(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, Path(__file__).with_name("two_processes.py"), tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    saved = {}
    for name in ("pointwise", "norm", *SELF_SUPERVISED):
        (steps, saved[name]), (other_steps, other) = (torch.load(tmp_path / f"{name}{i}.pt") for i in (0, 1))
        assert steps == other_steps
        assert all(torch.equal(value, other[key]) for key, value in saved[name].items())
    assert [row["step"] for row in RunDir(tmp_path / "pointwise").read_metrics()] == [2, 4, 6, 8, 9]

    alone = Pointwise()
    settings = short(optim=FULL)
    fit(alone, lambda clock: batches(clock, size=4), settings=settings, run=RunDir(tmp_path / "alone"))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(saved["pointwise"][name], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(alone.network[0].weight, Pointwise().network[0].weight)
    for name in SELF_SUPERVISED:
        (alone, source), settings = self_supervised(name, size=4), short(steps=4, optim=PLAIN)
        fit(alone, source, settings=settings, run=RunDir(tmp_path / f"{name}-alone"))
        whole, start = alone.state_dict(), self_supervised(name)[0].state_dict()
        moved = {key for key, value in whole.items() if not torch.equal(value, start[key])}
        assert any(key.startswith(("encoder.", "student.encoder.")) for key in moved)
        for key, value in whole.items():
            torch.testing.assert_close(saved[name][key], value, atol=1e-5, rtol=1e-3, msg=f"{name}: {key}")


def test_workers_do_not_outlive_a_killed_process():
    code = (
        "import time\n"
        "from functools import partial\n"
        "from fewbeats.clock import Clock\n"
        "from fewbeats.training.workers import with_workers\n"
        "from tiny_training import batches\n"
        "if __name__ == '__main__':\n"
        "    with with_workers(batches, 1) as ahead:\n"
        "        ahead(Clock(0, 9))\n"
        "        print(*ahead.pool._processes, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    worker = int(parent.stdout.readline())
    assert runs(worker)
    parent.kill()
    parent.wait()
    begun = time.monotonic()
    while runs(worker):
        assert time.monotonic() - begun < 30
        time.sleep(0.1)


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
