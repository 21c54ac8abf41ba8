"""Many damaged files and many kills: what is read or refused, what is left half-written, and at what cost.

    python benchmarks/fuzz.py RUN [--nifti 10000] [--dicom 5000] [--runs 1000] [--kills 200]

RUN is any run folder of segmentation. Each damaged file is to be read or refused in one line within 5 s and
1 GB. Each command is killed as it begins its n-th change of the disk; then no file of its output may be
half-written, and the same command must finish what is left.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import nibabel as nib
import numpy as np
import polars as pl
from safetensors import safe_open

import fuzzing
from fewbeats.cli import main as fewbeats
from fewbeats.data.cohort import read_cohort
from fewbeats.memory import peak_memory_mb
from fewbeats.training.rundir import RunDir


def whole(file: Path) -> bool:
    """Whether a file under its own name can be read to its end."""
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            np.asarray(nib.load(file).dataobj)
        elif file.suffix == ".json":
            RunDir(file.parent).read_json(file.name)
        elif file.name == "predictions.csv":
            pl.read_csv(file)
        elif file.suffix == ".csv":
            read_cohort(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118 (no mapping)
    except Exception:
        return False
    return True


def kill(words: list[str], out: Path, changes: int, *, sound: Path | None) -> str:
    """Kill a command once, look at what is there, and let the same command finish."""
    if sound:  # an earlier result, which is to be replaced
        shutil.copytree(sound, out)
    if fuzzing.kill_after(words, changes) != 9:
        return "finished"
    if half := [f.name for f in out.parent.rglob("*") if f.is_file() and f.name[0] != "." and not whole(f)]:
        return f"half-written: {half}"
    if fuzzing.kill_after(words, 10**9) != 0:
        return "refused afterwards"
    left = list(out.parent.rglob(".*.partial"))
    return f"left behind: {left}" if left else "killed, then finished"


def kills(run: Path, folder: Path, count: int, *, seed: int) -> Counter[str]:
    """Kills of commands that write, at changes drawn evenly over each command's own."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    source, cohort = folder / "phantoms", folder / "cohort.csv"
    fewbeats(
        [
            "phantom",
            str(source),
            "--subjects",
            "4",
            "--frames",
            "2",
            "--matrix",
            "48",
            "--pixel-mm",
            "3",
            "3.2",
        ]
    )
    fewbeats(
        ["index", str(source), "--layout", "phantom", f"--out={cohort}", "--draw", "0.5", "0.25", "0.25"]
    )
    fewbeats(["predict", str(run), str(cohort), f"--out={folder / 'sound'}", "--runtime=torch"])
    short = ["--steps=2", "--labeled=1", "--localizer-steps=2", "--batch-size=2", "--preprocess.size=64"]
    commands = {
        "phantom": (["phantom", "OUT/p", "--subjects", "2", "--frames", "2", "--matrix", "32"], 16, None),
        "index": (["index", str(source), "--layout", "phantom", "--out=OUT/cohort.csv"], 3, None),
        "predict": (["predict", str(run), str(cohort), "--out=OUT/masks"], 60, None),
        "predict again": (["predict", str(run), str(cohort), "--out=OUT/masks"], 80, folder / "sound"),
        "finetune": (["finetune", str(cohort), "--out=OUT/run", *short], 60, None),
        "convert": (["convert", str(next(source.rglob("*_4d.nii.gz"))), "OUT/converted"], 3, None),
    }  # fmt: skip
    names = list(commands)
    for number in range(count):
        name = names[number % len(names)]
        words, changes, sound = commands[name]
        place = folder / f"kill{number}"
        place.mkdir()
        words = [word.replace("OUT", str(place)) for word in words]
        outcome = kill(words, place / "masks", int(rng.integers(changes)), sound=sound)
        counts[f"{name}: {outcome}"] += 1
        shutil.rmtree(place)
        if (number + 1) % len(names) == 0:
            print(f"{number + 1} of {count} kills: {dict(sorted(counts.items()))}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    for name, count in (("nifti", 10000), ("dicom", 5000), ("runs", 1000), ("kills", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fewbeats-fuzz-"))
    kinds = {
        "NIfTI files": fuzzing.damaged_nifti(folder / "nifti", given.nifti, seed=given.seed),
        "DICOM folders": fuzzing.damaged_dicom(folder / "dicom", given.dicom, seed=given.seed),
        "run folders": fuzzing.damaged_runs(
            given.run.resolve(), folder / "runs", given.runs, seed=given.seed
        ),
    }
    try:
        for kind, cases in kinds.items():
            begun = time.perf_counter()
            counts, bad = fuzzing.count_outcomes(cases)
            peak = peak_memory_mb()
            print(
                f"{kind}: {dict(counts)}, {time.perf_counter() - begun:.0f} s, peak so far {peak:.0f} MB",
                flush=True,
            )
            for text in bad[:5]:
                print(text, flush=True)
        if given.kills:
            for outcome, count in sorted(
                kills(given.run.resolve(), folder, given.kills, seed=given.seed).items()
            ):
                print(f"{outcome}: {count}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
