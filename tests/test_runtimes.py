"""Exported networks: one answer from every runtime."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fewbeats.models.export import export_onnx, open_onnxruntime, open_openvino, open_torch, time_engine
from fewbeats.models.network import build_network, set_deep_supervision
from small_networks import SMALL2D, photograph_lite0

lite0 = pytest.fixture(photograph_lite0, scope="module")


@pytest.fixture(scope="module")
def exported(lite0, tmp_path_factory):
    """(network, ONNX file) of both kinds of 2D network; the batch size is left free."""
    pytest.importorskip("onnxscript")
    plain = build_network(SMALL2D, classes=4).eval()
    set_deep_supervision(plain, False)
    folder = tmp_path_factory.mktemp("onnx")
    out = {}
    for name, network in (("lite0", lite0), ("plain", plain)):
        export_onnx(network, folder / f"{name}.onnx", example_shape=(2, 3, 64, 64))
        out[name] = (network, folder / f"{name}.onnx")
    return out


@pytest.mark.parametrize("kind", ["lite0", "plain"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_agree_with_torch(exported, kind, runtime):
    pytest.importorskip(runtime)
    network, path = exported[kind]
    engine = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[runtime](path)
    reference = open_torch(network)
    for batch in (1, 2, 5):
        image = np.random.default_rng(batch).normal(size=(batch, 3, 64, 64)).astype(np.float32)
        expected, found = reference(image), np.array(engine(image))
        assert found.shape == (batch, 4, 64, 64)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_only_whole_exports_have_a_name(exported, tmp_path, monkeypatch, capfd):
    assert sorted(p.name for p in exported["plain"][1].parent.iterdir()) == ["lite0.onnx", "plain.onnx"]

    def broken(*arguments, **_):
        with open(arguments[2], "wb") as file:
            file.write(b"half")
        raise OSError("no more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(OSError, match="no more"):
        export_onnx(exported["plain"][0], tmp_path / "plain.onnx", example_shape=(2, 3, 32, 32))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_an_engine_is_timed_after_a_first_call():
    calls = []
    seconds = time_engine(lambda batch: calls.append(batch.shape), (2, 3, 4, 4), runs=5)
    assert calls == [(2, 3, 4, 4)] * 6
    assert 0 <= seconds < 0.1


def test_a_signal_after_a_runtime_is_gone_is_no_crash(exported):
    """What Ctrl-C meets while the report of a prediction is written."""
    pytest.importorskip("openvino")
    _, path = exported["plain"]
    code = (
        "import gc, signal, sys\n"
        "import numpy as np\n"
        "from fewbeats.models.export import open_openvino\n"
        "call = open_openvino(sys.argv[1])\n"
        "del call\n"
        "gc.collect()\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('noticed'))\n"
        "signal.raise_signal(signal.SIGALRM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "noticed\n"), done.stderr
