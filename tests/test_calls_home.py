"""No command opens a socket that nobody asked for, or writes below the user's home."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the kernel's filter of system calls is Linux's",
)

# Python imports this first. From then on the kernel ends the process, and what it starts, at socket(AF_INET
# or AF_INET6, ...), whoever calls: Python, or a library of its own accord, which asks for names without it.
NO_NETWORK = """
import ctypes, platform, struct
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
LOAD, EQUAL, ANSWER = 0x20, 0x15, 0x06
KILL, ALLOW = 0x80000000, 0x7FFF0000
program = [  # code, lines to skip where equal, lines to skip where not, value
    (LOAD, 0, 0, 0), (EQUAL, 0, 4, SOCKET),  # which call
    (LOAD, 0, 0, 16), (EQUAL, 1, 0, 2), (EQUAL, 0, 1, 10),  # its first argument: AF_INET, AF_INET6
    (ANSWER, 0, 0, KILL), (ANSWER, 0, 0, ALLOW),
]
lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
filter = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(lines)))
libc = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
assert libc.prctl(SECCOMP, FILTER, ctypes.c_void_p(ctypes.addressof(filter)), 0, 0) == 0
"""


def run_alone(tmp_path, *words: object) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, without a network and with an empty home."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "alone" / "sitecustomize.py").write_text(NO_NETWORK)
    aside = {"ORT_DISABLE_TELEMETRY", "OPENVINO_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in aside}
    env["HOME"] = str(tmp_path / "home")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "alone"), env.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def check_quiet(tmp_path, *words: object) -> None:
    """A command ends well without a network, and leaves nothing at home."""
    done = run_alone(tmp_path, "-m", "fewbeats.cli", *words)
    assert done.returncode == 0, done.stderr or signal.Signals(-done.returncode).name
    assert [f for f in (tmp_path / "home").rglob("*") if f.is_file()] == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_prediction_opens_no_socket_and_leaves_no_file_at_home(phantoms, small_run, tmp_path, runtime):
    check_quiet(
        tmp_path,
        "predict", small_run, phantoms, "--split=tune", f"--out={tmp_path / 'out'}", f"--runtime={runtime}",
    )  # fmt: skip


def test_training_opens_no_socket_and_leaves_no_file_at_home(phantoms, tmp_path):
    """Its export times every runtime that is installed."""
    check_quiet(
        tmp_path,
        "finetune", phantoms, "--labeled=1", "--steps=1", "--batch-size=2", "--localizer-steps=0",
        "--network.kind=unet2d", "--network.base-channels=2", "--network.levels=3", "--init=scratch",
        "--preprocess.size=64", f"--out={tmp_path / 'run'}",
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "socket.socket(socket.AF_INET)",
        "socket.getaddrinfo('example.org', 80)",
        "ctypes.CDLL(None).socket(10, 1, 0)",
        "subprocess.run([sys.executable, '-S', '-c', 'import socket; socket.socket()'], check=True)",
    ],
)
def test_a_socket_is_the_end(tmp_path, call):
    done = run_alone(tmp_path, "-c", f"import ctypes, socket, subprocess, sys; {call}")
    if "subprocess.run" in call:
        assert "SIGSYS" in done.stderr
    else:
        assert done.returncode == -signal.SIGSYS
