"""Peak memory is that of the process that asks, whoever started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fewbeats.memory import STATUS, peak_memory_mb


def test_what_a_process_took_is_told():
    before = peak_memory_mb()
    block = np.ones(int(before + 200) * 2**17)  # MB of 8 bytes
    assert peak_memory_mb() - before > 150
    del block
    assert peak_memory_mb() - before > 150  # the most so far, not what is held now


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux keeps it by process")
def test_a_process_does_not_inherit_its_parents_peak():
    block = np.ones(400 * 2**17)
    ask = "from fewbeats.memory import peak_memory_mb; print(peak_memory_mb())"
    told = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert float(told) < 200 < block.nbytes / 2**20
