"""Options and shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)  # time says nothing where cores are shared
settings.load_profile("shared-machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose by threads; before torch is imported


def pytest_addoption(parser):
    parser.addoption("--realdata", default="../shared/data", help="folder with the real scans")


@pytest.fixture(scope="session")
def realdata(request) -> Path:
    """Folder of real scans; the test is skipped where it is absent."""
    folder = Path(request.config.getoption("--realdata"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder} (give --realdata DIR)")
    return folder


TINY = (
    "--init=scratch", "--network.kind=unet2d", "--network.base-channels=8", "--network.levels=4",
    "--batch-size=8", "--preprocess.size=64", "--preprocess.spacing-mm=2.5", "--optim.learning-rate=0.01",
    "--ema-decay=0.95", "--spatial.rotation-degrees=15", "--spatial.turned=0",
    "--spatial.scale", "0.9", "1.1", "--spatial.shift-px=4", "--spatial.elastic-probability=0",
    "--spatial.crop-probability=0", "--intensity.probability=0",
)  # fmt: skip
"""Flags of a network that learns phantoms of 64 pixels in seconds."""
SPLITS = ("train", "train", "train", "tune", "dev", "dev")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Cohort table of six phantom cines of 64 x 64 pixels and 3 frames, split as `SPLITS`."""
    from fewbeats.cli import main

    folder = tmp_path_factory.mktemp("phantoms")
    rows = [f"phantom{number:03d},{split}" for number, split in enumerate(SPLITS)]
    (folder / "split.csv").write_text("\n".join(["subject,split", *rows]))
    made = ["--subjects=6", "--frames=3", "--matrix=64", "--pixel-mm", "2.3", "2.4"]
    assert main(["phantom", str(folder / "source"), *made]) == 0
    index = ["--layout=phantom", f"--split={folder / 'split.csv'}", f"--out={folder / 'cohort.csv'}"]
    assert main(["index", str(folder / "source"), *index]) == 0
    return folder / "cohort.csv"


@pytest.fixture(scope="session")
def small_run(phantoms) -> Path:
    """Run folder of a tiny U-Net and its localizer, trained on the three training phantoms."""
    from fewbeats.cli import main

    out = phantoms.parent / "run"
    steps = ["--steps=150", "--localizer-steps=20"]
    assert main(["finetune", str(phantoms), f"--out={out}", *steps, *TINY]) == 0
    return out


@pytest.fixture
def no_onnx(monkeypatch, tmp_path_factory):
    """As where the packages for ONNX are not installed, here and in processes; writing it takes seconds."""
    monkeypatch.setattr("fewbeats.inference.engine.can_export", lambda: False)
    folder = tmp_path_factory.mktemp("no_onnx")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['onnxscript'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
