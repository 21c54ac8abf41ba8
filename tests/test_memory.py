"""Peak memory is that of the process that asks, whoever started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fewbeats.memory import STATUS

ASK = "from fewbeats.memory import peak_memory_mb; before = peak_memory_mb()"
TAKE = "block = bytearray(b'1') * 150 * 2**20; del block; print(peak_memory_mb() - before)"


def ask(*lines: str) -> float:
    """What a fresh process prints."""
    command = [sys.executable, "-c", "\n".join((ASK, *lines))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_what_a_process_took_is_told_though_it_is_given_back():
    assert 140 < ask(TAKE) < 170


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux keeps it by process")
def test_a_process_does_not_inherit_its_parents_peak():
    block = np.ones(150 * 2**17)
    assert ask("print(before)") < 100 < block.nbytes / 2**20
