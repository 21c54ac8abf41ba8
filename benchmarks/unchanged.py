"""Do short runs end with the weights and masks of before? For changes that must change no result.

    python benchmarks/unchanged.py --record benchmarks/rows/unchanged.json      before the change
    python benchmarks/unchanged.py --compare benchmarks/rows/unchanged.json     after it

On phantoms of 64 pixels: fine-tunings of every kind of network and of every way to choose the state, each
pretraining method, a fine-tuning from one of them, predictions, and a study. What is hashed are tensors
and voxels; on one thread, since the order of sums decides their last bits. Another processor or
release of torch gives other hashes: record and compare on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import yaml
from safetensors.numpy import load_file

GRID = ("--preprocess.size=64", "--preprocess.spacing-mm=2.5")
PLAIN = ("--network.kind=unet2d", "--network.base-channels=4", "--network.levels=4")
DEEP = ("--network.kind=unet3d", "--network.base-channels=4", "--network.levels=4", "--slab-slices=4",
        "--batch-size=2")  # fmt: skip
VIT = ("--network.kind=vit", "--network.vit-width=48", "--network.vit-depth=2", "--network.vit-heads=3",
       "--network.vit-patch-px=8", "--network.context=0")  # fmt: skip
SHORT = ("--steps=4", "--localizer-steps=3", "--batch-size=4", *GRID)
FINETUNED = {
    "plain": ("--init=scratch", *PLAIN),
    "photographs": ("--init=natural", "--freeze-encoder=0.5", "--optim.encoder-rate-factor=0.5"),
    "volumes": ("--init=scratch", *DEEP),
    "transformer": ("--init=scratch", *VIT, "--optim.layer-decay=0.7"),
    "best": ("--init=scratch", *PLAIN, "--select=best", "--labeled=3", "--optim.kind=sgd"),
    "of one phase": ("--init=scratch", *PLAIN, "--labeled=2", "--phase=ES", "--structures", "LV", "MYO"),
}
PRETRAINED = {
    "simclr": ("simclr", *PLAIN, "--network.norm=batch"),
    "pcl": ("pcl", "--init=natural"),
    "dino": ("dino", *PLAIN, "--network.norm=batch", "--dino.prototypes=64", "--dino.hidden=64"),
    "dino of a transformer": ("dino", *VIT, "--dino.prototypes=64", "--dino.hidden=64"),
    "mim": ("mim", *PLAIN, "--pool-subjects=2"),
    "mim of a transformer": ("mim", *VIT),
}


def main() -> None:
    """Record the hashes of the checkout this runs in, or compare with those of another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path)
    what.add_argument("--compare", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = dict(run_all(Path(folder)))
    if given.record:
        about = {"processor": platform.processor(), "python": platform.python_version()}
        given.record.write_text(json.dumps({"about": about, "hashes": found}, indent=1) + "\n")
        print(f"{given.record}: {len(found)} hashes")
        return
    known = json.loads(given.compare.read_text())["hashes"]
    other = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    print(f"{len(known)} hashes, {len(other)} differ" + "".join(f"\n  {name}" for name in other))
    sys.exit(bool(other))


def run_all(folder: Path) -> Iterator[tuple[str, str]]:
    """Everything, as name -> hash."""
    split = [f"phantom{n:03d},{s}" for n, s in enumerate(("train", "train", "train", "tune", "dev"))]
    (folder / "split.csv").write_text("\n".join(["subject,split", *split]))
    fewbeats(
        "phantom", folder / "source", "--subjects=5", "--frames=3", "--matrix=64", "--pixel-mm", 2.3, 2.4
    )
    cohort = folder / "cohort.csv"
    fewbeats("index", folder / "source", "--layout=phantom", f"--split={folder / 'split.csv'}",
             f"--out={cohort}")  # fmt: skip
    for name, flags in PRETRAINED.items():
        out = folder / name
        fewbeats(
            "pretrain", flags[0], cohort, f"--out={out}", "--steps=4", "--batch-size=6", *GRID, *flags[1:]
        )
        yield from hash_run(name, out)
    from_pretrained = ("--network.norm=batch", *PLAIN, f"--init={folder / 'simclr'}", "--init-parts=encoder")
    for name, flags in {**FINETUNED, "after simclr": from_pretrained}.items():
        out = folder / name
        fewbeats("finetune", cohort, f"--out={out}", *SHORT, *flags)
        yield from hash_run(name, out)
        if name in ("plain", "volumes"):
            masks = folder / f"{name} predicted"
            fewbeats("predict", out, cohort, "--split=dev", f"--out={masks}", "--runtime=torch")
            yield from hash_masks(name, masks)
    yield from run_study(folder, cohort)


def run_study(folder: Path, cohort: Path) -> Iterator[tuple[str, str]]:
    """Two arms, a pretraining, two budgets."""
    network = {"kind": "unet2d", "base-channels": 4, "levels": 4}
    common = {"steps": 3, "batch-size": 8, "network": network,
              "preprocess": {"size": 64, "spacing-mm": 2.5}}  # fmt: skip
    plan = {
        "cohort": str(cohort), "out": str(folder / "study"), "rows": str(folder / "rows.csv"),
        "split": "tune", "labeled": [1, 2], "seeds": [0], "baseline": "scratch",
        "finetune": {"init": "scratch", "localizer-steps": 2, **common}, "pretrain": common,
        "pretrainings": {"mim": {"method": "mim"}}, "arms": {"scratch": {}, "mim": {"init": "mim"}},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(plan))
    fewbeats("study", folder / "study.yaml")
    yield from hash_run("study", folder / "study")
    masks = folder / "study predicted"  # its own predictions take the runtime that was fastest
    fewbeats("predict", folder / "study" / "arms" / "mim_2_seed0", cohort, "--split=tune", f"--out={masks}",
             "--runtime=torch")  # fmt: skip
    yield from hash_masks("study", masks)


def fewbeats(*words: object) -> None:
    """Run one command on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fewbeats.cli", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def hash_run(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Hashes of all weights in a run folder and below."""
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(file)
        text = "\n".join(f"{key} {digest(value)}" for key, value in sorted(tensors.items()))
        yield f"{name}/{file.relative_to(folder)}", hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_masks(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Hashes of all masks in a folder of predictions."""
    for file in sorted(folder.glob("*.nii.gz")):
        yield f"{name}/masks/{file.name}", digest(np.asarray(nibabel.load(file).dataobj))


def digest(array: np.ndarray) -> str:
    """Hash of an array's type, shape and content."""
    content = f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main()
