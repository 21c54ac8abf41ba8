"""Progress where nobody looks at a terminal: logs, batch jobs, CI."""

from __future__ import annotations

import pytest

from fewbeats.training import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(capsys, clock):
    with progress.progress_bar("training", 400, 100) as advance:
        for _ in range(299):
            clock[0] += 1.0
            advance(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 160 of 400, loss 0.500, 4 min left",
        "training: 220 of 400, loss 0.500, 3 min left",
        "training: 280 of 400, loss 0.500, 2 min left",
        "training: 340 of 400, loss 0.500, 60 s left",
    ]


def test_short_work_says_nothing(capsys, clock):
    for shown in (True, False):
        with progress.progress_bar("training", 30, shown=shown) as advance:
            for _ in range(30):
                clock[0] += 1.0
                advance()
    assert capsys.readouterr().err == ""
