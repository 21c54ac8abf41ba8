"""Axes of charts."""

from __future__ import annotations

import numpy as np
import pytest

from fewbeats.pages.charts import ticks


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-12.3, 40.1), (0.42, 1.0), (0, 271.0)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high
    assert np.ptp(np.diff(found)) < 1e-9
