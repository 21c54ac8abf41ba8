"""Runtimes of a run's network: each gives the same masks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from predicting import find_cine, masks_of, predict, predict_cine

cine = pytest.fixture(find_cine)
expected = pytest.fixture(predict_cine, scope="module")


def test_runtimes_agree(cine, small_run, tmp_path, expected):
    for runtime in ("torch", "onnxruntime", "openvino"):
        predict(small_run, cine, tmp_path / runtime, f"--runtime={runtime}")
        mask = np.asarray(masks_of(tmp_path / runtime, "phantom004_4d").dataobj)
        assert (mask == expected).mean() > 0.9999
        assert json.loads((tmp_path / runtime / "run.json").read_text())["runtime"] == runtime
