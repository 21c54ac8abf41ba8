"""Make the network that comes with the package, `fewbeats predict synthetic SCAN`, from phantoms alone.

    python benchmarks/synthetic.py --work runs/synthetic --jobs 2

Phantoms of any contrast and anatomy from a seed, a localizer, the network of `configs/synthetic.yaml`, and
both as half-precision weights in `src/fewbeats/shipped/synthetic`. What is done is kept. About an hour
and a half of one core; the weights depend on the machine in their last digits.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from fewbeats.data.provenance import load_provenance
from fewbeats.models.weights import read_weights, save_weights
from fewbeats.training.rundir import SHIPPED, RunDir
from record import call

PHANTOMS = ["--contrast", "any", "--subjects", "500", "--frames", "3", "--matrix", "176",
            "--pixel-mm", "1.1", "2.1", "--seed", "1"]  # fmt: skip
LOCALIZER = ["--task", "localization", "--localizer-steps", "800", "--init", "scratch",
             "--network.kind", "unet2d", "--network.base-channels", "8", "--network.levels", "5"]  # fmt: skip
TRAINING = ["--config", Path(__file__).parents[1] / "configs" / "synthetic.yaml"]
OF_ITS_MACHINE = (
    "cohort", "git_commit", "files", "engines_seconds", "labeled_subjects", "machine", "versions", "seconds",
    "network_seconds", "peak_memory_mb",
)  # fmt: skip


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    work, jobs = given.work, str(given.jobs)
    scans, table, finder, run = (work / name for name in ("scans", "cohort.csv", "localizer", "run"))
    if not (scans / "subjects.csv").is_file():
        call("phantom", scans, *PHANTOMS, "--jobs", jobs)
    call("index", scans, "--layout", "phantom", "--draw", "1", "0", "0", "--out", table)
    cache = ["--cache", work / "cache"]
    call("finetune", table, "--out", finder, *LOCALIZER, *cache)
    call("finetune", table, "--out", run, *TRAINING, "--localizer", finder, *cache)
    pack(run, SHIPPED / "synthetic")
    pack(run / "localizer", SHIPPED / "synthetic" / "localizer")


def pack(run: Path, to: Path) -> None:
    """What prediction needs of a run folder: half the bits, and nothing of the machine it was made on."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    full = read_weights(RunDir(run).weights())
    save_weights({n: w.half() if w.is_floating_point() else w for n, w in full.items()}, RunDir(to).weights())
    config = {n: v for n, v in RunDir(run).read_json("run.json").items() if n not in OF_ITS_MACHINE}
    RunDir(to).write_json("run.json", {**config, "labeled_subjects": [], "phantoms": " ".join(PHANTOMS)})
    seen = load_provenance(run)
    replace(seen, run=f"synthetic, {len(seen.labeled)} phantoms", labeled={}, ancestors=()).save(to)


if __name__ == "__main__":
    main()
