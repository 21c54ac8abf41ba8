"""A training step beside another program, and alone, by how threads wait for work.

    python benchmarks/busy.py [--pairs 5] [--steps 6]

Each process trains the default network (16 slices of 128 x 128, two threads) on made-up slices for a few
steps and tells the median; "as delivered" is what `fewbeats.entry` sets, "torch's own" is the default of its
OpenMP. The other program is one process that computes without pause. Processes take turns; ratios are medians
over pairs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from fewbeats.entry import SPINS

STEPS = """
import sys, time
import torch
from fewbeats.losses import dice_ce_loss
from fewbeats.models.network import NetworkSettings, build_network
torch.set_num_threads(2)
network = build_network(NetworkSettings(), classes=4).to(memory_format=torch.channels_last).train()
image = torch.randn(16, network_in, 128, 128).contiguous(memory_format=torch.channels_last)
target = torch.randint(0, 4, (16, 128, 128))
taken = []
for _ in range(int(sys.argv[1]) + 2):
    begun = time.perf_counter()
    network.zero_grad()
    dice_ce_loss(network(image), target).backward()
    taken.append(time.perf_counter() - begun)
print(sorted(taken[2:])[len(taken[2:]) // 2])
""".replace("network_in", "NetworkSettings().in_channels")
WAITING = {"as delivered": {"GOMP_SPINCOUNT": SPINS}, "torch's own": {}}


def seconds(waiting: str, steps: int, *, busy: bool) -> float:
    """Median seconds of a step in a process of its own."""
    spared = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    env = {n: v for n, v in os.environ.items() if n not in spared} | WAITING[waiting]
    other = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, str(steps)], env=env, capture_output=True, text=True, check=True
        )
    finally:
        if other:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    given = parser.parse_args()
    taken: dict[tuple[str, bool], list[float]] = {(w, b): [] for w in WAITING for b in (False, True)}
    for _ in range(given.pairs):
        for (waiting, busy), found in taken.items():
            found.append(seconds(waiting, given.steps, busy=busy))
    for (waiting, busy), found in taken.items():
        where = "beside another program" if busy else "alone"
        print(f"{waiting}, {where}: {median(found):.2f} s a step ({min(found):.2f} to {max(found):.2f})")
    quiet, own = taken["as delivered", False], taken["torch's own", False]
    beside, own_beside = taken["as delivered", True], taken["torch's own", True]
    for words, a, b in (
        ("alone, delivered / torch's own", quiet, own),
        ("delivered, beside / alone", beside, quiet),
        ("torch's own, beside / alone", own_beside, own),
    ):
        ratios = sorted(x / y for x, y in zip(a, b))
        print(f"{words}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
