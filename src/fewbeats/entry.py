"""The command `fewbeats`, before anything else is imported: how threads wait, and Ctrl-C at any time."""

from __future__ import annotations

import os
import sys

SPINS = "1000"
"""Of a thread that waits for work (libgomp, Linux). By default it turns for milliseconds; where another
program wants the core it turns on, a training step took five to eight times as long (benchmarks/busy.py)."""


def main() -> int:
    """Run the command line; returns the exit code."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch loads
    try:
        from fewbeats.cli import main as run

        return run()
    except KeyboardInterrupt:  # while it was still importing
        print("fewbeats: interrupted before it began", file=sys.stderr)
        return 2
