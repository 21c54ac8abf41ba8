"""Whole cine, read to written: 30 frames x 10 slices x 256 x 256, plain and gzipped.

    python benchmarks/cine.py RUN --repeats 7

Compares, in turn within one process, `predict` of a 4D file (localizer included) with the bare network on the
same crops in the same runtime; then the cold command; then peak memory at 10 and 100 frames, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fewbeats.inference.segment import SLAB, find_region, load_model, segment_frames
from fewbeats.io.nifti import read_nifti, write_frames, write_like
from fewbeats.memory import peak_memory_mb
from fewbeats.phantom.scan import PhantomSettings, make_scan
from fewbeats.phantom.subject import make_subject

SHAPE = (30, 10, 256, 256)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of finetune")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(peak_of_predicting(given.run, given.memory_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given.run, Path(folder), given.repeats), indent=1))


def measure(run: Path, folder: Path, repeats: int) -> dict:
    """All figures."""
    model = load_model(run)
    result: dict = {"runtime": model.segmenter.runtime}
    side, depth = model.segmenter.settings.preprocess.size, model.segmenter.settings.depth
    crops = np.random.default_rng(0).standard_normal((SHAPE[1], depth, side, side)).astype(np.float32)
    for ending in ("nii", "nii.gz"):
        file = write_cine(folder / f"cine.{ending}", SHAPE[0])
        whole, bare = [], []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            predict_file(file, model, folder / f"mask.{ending}")
            middle = time.perf_counter()
            for _ in range(SHAPE[0]):
                for first in range(0, len(crops), SLAB):
                    model.segmenter.call(crops[first : first + SLAB])
            whole.append(middle - begun)
            bare.append(time.perf_counter() - middle)
        ratio = np.array(whole[1:]) / np.array(bare[1:])
        result[ending] = {
            "seconds": float(np.median(whole[1:])),
            "bare_network_seconds": float(np.median(bare[1:])),
            "ratio": float(np.median(ratio)),
            "ratio_range": [float(ratio.min()), float(ratio.max())],
        }
    result["cold_command_seconds"] = cold_seconds(run, folder / "cine.nii.gz", folder)
    peaks = {n: memory_in_own_process(run, write_cine(folder / f"long{n}.nii.gz", n)) for n in (10, 100)}
    return result | {"peak_memory_mb": peaks, "growth_mb": peaks[100] - peaks[10]}


def write_cine(path: Path, frames: int) -> Path:
    """A phantom's frames, repeated to the length wanted, on the full matrix."""
    settings = PhantomSettings(subjects=1, frames=4, matrix=SHAPE[2], pixel_mm=(1.4, 1.4))
    scan, _ = make_scan(make_subject(0), settings)
    slices = np.resize(np.arange(scan.shape[1]), SHAPE[1])
    beat = [scan.frame(t)[np.sort(slices)] for t in range(scan.shape[0])]
    shape = (frames, *SHAPE[1:])
    write_frames(
        path, (beat[t % len(beat)] for t in range(frames)), affine=scan.affine, shape=shape, dtype=np.int16
    )
    return path


def predict_file(file: Path, model, out: Path) -> None:
    """Read to written."""
    scan = read_nifti(file)
    masks = (mask for mask, _ in segment_frames(scan, model, find_region(scan, model)))
    write_like(out, masks, scan=scan)


def cold_seconds(run: Path, file: Path, folder: Path) -> float:
    """Median wall seconds of the command in a fresh process, imports and report included."""
    seconds = []
    for i in range(3):
        begun = time.perf_counter()
        words = ["predict", run, file, "--out", folder / f"cold{i}"]
        subprocess.run(
            [sys.executable, "-m", "fewbeats.cli", *map(str, words)], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def memory_in_own_process(run: Path, file: Path) -> float:
    """Peak resident memory of a process that predicts one file, MB."""
    words = [sys.executable, __file__, str(run), "--memory-of", str(file)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def peak_of_predicting(run: Path, file: Path) -> float:
    """Predict, then ask the system."""
    predict_file(file, load_model(run), file.with_name("memory_mask.nii.gz"))
    return peak_memory_mb()


if __name__ == "__main__":
    main()
