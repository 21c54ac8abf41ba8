"""Options and shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--realdata", default="../shared/data", help="folder with the real scans")


@pytest.fixture(scope="session")
def realdata(request) -> Path:
    """Folder of real scans; the test is skipped where it is absent."""
    folder = Path(request.config.getoption("--realdata"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder} (give --realdata DIR)")
    return folder
