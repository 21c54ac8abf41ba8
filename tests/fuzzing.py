"""Damaged files of every kind, made from sound ones by a seeded generator, and what becomes of them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

import synthetic_dicom
from fewbeats.commands.files import describe
from fewbeats.data.files import read_scans
from fewbeats.errors import InputError
from fewbeats.scan import ArrayPixels, Scan

SECONDS = 5.0  # to read or refuse
WORDS = ["<i2", "<u2", "<i4", "<i8", "<f4", ">i4"]
EXTREMES = (0, 1, -1, 2, 255, 2**15 - 1, -(2**15), 2**29, 2**31 - 1, 2**63 - 1, np.nan, np.inf, 1e38, 1e-38)
VALUES = [None, -1, 0, 1e300, 10**12, "", "x", "antigravity.nothing", [], [1, "a"], {}, {"a": 1}, True, 0.5]
CHANGES = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
    "os.link",
    "os.truncate",
)


class Hang(BaseException):
    """A file took longer than it may."""


def damage(content: bytes, rng: np.random.Generator, *, header: int = 352) -> bytes:
    """A few of the things that happen to files: flipped bits, values out of range, parts lost or doubled."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        end = min(len(data), header) if rng.random() < 0.7 else len(data)
        at, kind = int(rng.integers(0, max(1, end))), rng.integers(6)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
        elif kind in (1, 2):
            word = np.dtype(WORDS[rng.integers(len(WORDS))])
            with np.errstate(all="ignore"):
                value = np.float64(EXTREMES[rng.integers(len(EXTREMES))])
                raw = value.astype(word).tobytes()
            at -= at % word.itemsize
            data[at : at + word.itemsize] = raw
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at : at + 64] = bytes(64)
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
    return bytes(data)


def places(content, path=()):
    """Paths of all entries of nested JSON."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def spoil(content: dict, rng: np.random.Generator) -> dict:
    """Nested JSON with one entry taken away, or of another value."""
    content = json.loads(json.dumps(content))
    listed = [*places(content)]
    *path, key = listed[rng.integers(len(listed))]
    inner = content
    for step in path:
        inner = inner[step]
    if rng.random() < 0.2:
        del inner[key]
    else:
        inner[key] = VALUES[rng.integers(len(VALUES))]
    return content


def judge(work: Callable[[], None]) -> str:
    """read, refused (in one line that names nobody), hang, or the end of a traceback."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        work()
    except InputError as error:
        text = str(error)
        return "refused" if "\n" not in text and synthetic_dicom.PATIENT_NAME not in text else f"told: {text}"
    except Hang:
        return "hang"
    except Exception:
        return "traceback: " + traceback.format_exc()[-600:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "read"


def look(path: Path) -> None:
    """Read all of a file or folder, as `info` and then a labeling would."""
    for scan in read_scans(path):
        describe(scan)
        for t in range(min(scan.shape[0], 3)):
            scan.frame(t)


def damaged_nifti(folder: Path, count: int, *, seed: int = 0) -> Iterator[Callable[[], None]]:
    """What it takes to read each of many damaged NIfTI files."""
    rng, sound = np.random.default_rng(seed), []
    for dtype, shape in (("i2", (8, 7, 5, 3)), ("f4", (6, 6, 4)), ("u1", (9, 9, 1, 2))):
        values = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            sound.append(kind(values, np.diag([1.5, 1.5, 8, 1])).to_bytes())
    folder.mkdir(parents=True)
    for _ in range(count):
        content = sound[rng.integers(len(sound))]
        packed = rng.random() < 0.5
        header = 540 if content[:4] == b"\x1c\x02\0\0" else 352
        if packed and rng.random() < 0.2:
            content = damage(gzip.compress(content, 1), rng, header=20)
        else:
            content = damage(content, rng, header=header)
            content = gzip.compress(content, 1) if packed else content
        file = folder / ("x.nii.gz" if packed else "x.nii")
        file.write_bytes(content)
        yield lambda file=file: look(file)


def damaged_dicom(folder: Path, count: int, *, seed: int = 0) -> Iterator[Callable[[], None]]:
    """What it takes to read each of many DICOM folders with one to three damaged files."""
    rng = np.random.default_rng(seed)
    files = synthetic_dicom.write_cine(folder / "sound", grid=synthetic_dicom.Grid(slices=3), frames=3)
    for number in range(count):
        case = folder / f"case{number}"
        case.mkdir()
        chosen = set(rng.choice(len(files), rng.integers(1, 4), replace=False).tolist())
        for index, file in enumerate(files):
            if index in chosen:
                (case / file.name).write_bytes(damage(file.read_bytes(), rng, header=1200))
            else:
                os.link(file, case / file.name)
        yield lambda case=case: look(case)
        shutil.rmtree(case)


def damaged_runs(run: Path, folder: Path, count: int, *, seed: int = 0) -> Iterator[Callable[[], None]]:
    """What it takes to label a scan with each of many damaged run folders."""
    from fewbeats.inference.engine import load_engine
    from fewbeats.inference.labeler import open_run
    from fewbeats.recipes.starts import trace_weights

    rng, values = np.random.default_rng(seed), np.random.default_rng(1).normal(size=(1, 3, 48, 48))
    scan = Scan(pixels=ArrayPixels(values.astype("f4")), affine=np.diag([2.0, 2.0, 8.0, 1.0]))
    names = [f.relative_to(run) for f in run.rglob("*") if f.is_file()]
    told = [n for n in names if n.suffix in (".json", ".safetensors", ".onnx", ".jsonl")]

    def use(case: Path) -> None:
        labeler = open_run(case)
        trace_weights(case)
        for _ in labeler.label(scan):
            pass

    if count:
        use(run)  # libraries load once, and are not what is timed, torch neither
        load_engine(run, runtime="torch")
    for number in range(count):
        case = folder / f"run{number}"
        chosen = told[rng.integers(len(told))]
        for name in names:
            (case / name).parent.mkdir(parents=True, exist_ok=True)
            if name != chosen:
                os.link(run / name, case / name)
        content = (run / chosen).read_bytes()
        if chosen.suffix == ".json" and rng.random() < 0.8:
            (case / chosen).write_text(json.dumps(spoil(json.loads(content), rng)))
        elif rng.random() < 0.9:  # else it is missing
            (case / chosen).write_bytes(damage(content, rng, header=2000))
        yield lambda case=case: use(case)
        shutil.rmtree(case)


def count_outcomes(cases: Iterator[Callable[[], None]]) -> tuple[Counter[str], list[str]]:
    """How often each outcome was, and the texts of those that must not be."""
    counts: Counter[str] = Counter()
    bad = []
    for case in cases:
        outcome = judge(case)
        counts[outcome.partition(":")[0]] += 1
        if outcome not in ("read", "refused"):
            bad.append(outcome)
    return counts, bad


def die_after(work: Callable[[], object], changes: float) -> int:
    """Do work in a process that dies as it begins its n-th change of the disk; its exit status, 9 if so.

    The process is forked: what is loaded here need not be loaded again.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left, status = changes, 1

    def count(event: str, given: tuple) -> None:
        nonlocal left
        if event in CHANGES and not (event == "open" and "r" in str(given[1])):
            left -= 1
            if left < 0:
                os._exit(9)

    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        sys.addaudithook(count)
        status = int(work() or 0)
    finally:
        os._exit(status)


def kill_after(words: list[str], changes: int) -> int:
    """The same with a command, in a process that starts fresh."""
    code = (
        "import os, sys\n"
        f"left = {changes}\n"
        "def count(event, given):\n"
        "    global left\n"
        f"    if event in {CHANGES} and not (event == 'open' and 'r' in str(given[1])):\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "from fewbeats.cli import main\n"
        "sys.addaudithook(count)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False).returncode
