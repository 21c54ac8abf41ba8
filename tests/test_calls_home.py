"""No command opens a socket that nobody asked for, or writes below the user's home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LISTENER = """
import os, socket
def told(name, real):
    def call(*given, **named):
        with open(os.environ["TOLD"], "a") as file:
            file.write(f"{name} {given[:2]}\\n")
        return real(*given, **named)
    return call
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, told(name, getattr(socket, name)))
class Told(socket.socket):
    def connect(self, address):
        told("connect", lambda *_: None)(address)
        raise OSError("nobody is to be called")
socket.socket = Told
"""


def run_watched(tmp_path, *words: object) -> tuple[str, list[str]]:
    """A command in a process whose sockets are watched and whose home is empty: what it opened and wrote."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(LISTENER)
    aside = {"ORT_DISABLE_TELEMETRY", "OPENVINO_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in aside}
    env |= {"HOME": str(tmp_path / "home"), "TOLD": str(tmp_path / "told.txt")}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "watch"), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fewbeats.cli", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = tmp_path / "told.txt"
    written = sorted(
        str(f.relative_to(tmp_path / "home")) for f in (tmp_path / "home").rglob("*") if f.is_file()
    )
    return told.read_text() if told.is_file() else "", written


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_prediction_opens_no_socket_and_leaves_no_file_at_home(phantoms, small_run, tmp_path, runtime):
    words = [
        "predict",
        small_run,
        phantoms,
        "--split=tune",
        f"--out={tmp_path / 'out'}",
        f"--runtime={runtime}",
    ]
    assert run_watched(tmp_path, *words) == ("", [])


def test_training_opens_no_socket_and_leaves_no_file_at_home(phantoms, tmp_path):
    """Its export times every runtime that is installed."""
    words = ["finetune", phantoms, "--labeled=1", "--steps=1", "--batch-size=2", "--localizer-steps=0",
             "--network.kind=unet2d", "--network.base-channels=2", "--network.levels=3", "--init=scratch",
             "--preprocess.size=64", f"--out={tmp_path / 'run'}"]  # fmt: skip
    assert run_watched(tmp_path, *words) == ("", [])


def test_the_watch_sees_a_socket(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LISTENER)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "TOLD": str(tmp_path / "told.txt")}
    call = "import urllib.request as r\ntry: r.urlopen('http://127.0.0.1:9')\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", call], env=env, check=True)
    assert "127.0.0.1" in (tmp_path / "told.txt").read_text()
