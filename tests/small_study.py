"""A small study's plan, and rows whose true effects are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import yaml

from fewbeats.study.units import COLUMNS
from fewbeats.study.units import NETWORK as MAIN

NETWORK = {"kind": "unet2d", "base-channels": 4, "levels": 4}
GRID = {"size": 64, "spacing-mm": 2.5}


def content(cohort, folder, **changes) -> dict:
    settings = {
        "cohort": str(cohort), "out": str(folder / "study"), "rows": str(folder / "rows" / "rows.csv"),
        "split": "tune", "labeled": [1, 2], "seeds": [0], "baseline": "scratch",
        "primary": {"arm": "mim", "labeled": 1},
        "finetune": {"init": "scratch", "steps": 2, "localizer-steps": 1, "batch-size": 8,
                     "network": NETWORK, "preprocess": GRID},
        "pretrain": {"steps": 2, "batch-size": 8, "network": NETWORK, "preprocess": GRID},
        "pretrainings": {"mim": {"method": "mim"}},
        "arms": {"scratch": {}, "mim": {"init": "mim"}},
    }  # fmt: skip
    return settings | changes


def write(folder, settings) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def made_rows(
    effects: dict[str, float], *, seeds=(0, 1, 2), subjects=20, labeled=3, noise=0.01
) -> pl.DataFrame:
    """Dice of arms whose true effects are known: subjects differ much, arms little."""
    rng, rows = np.random.default_rng(0), []
    base = rng.uniform(0.6, 0.9, subjects)
    for arm, effect in effects.items():
        for seed in seeds:
            for i in range(subjects):
                for phase in ("ED", "ES"):
                    for structure in ("LV", "RV"):
                        value = base[i] + effect + rng.normal(0, noise)
                        rows.append((arm, labeled, seed, "tune", f"s{i}", phase, structure, value))
    names = ["arm", "labeled", "seed", "split", "subject", "phase", "structure", "value"]
    more = {"network": MAIN, "metric": "dice", "misses": 0, "steps": 10, "minutes": 1.0, "commit": "abc",
            "settings": "x", "data": "y"}  # fmt: skip
    frame = pl.DataFrame(rows, schema=names, orient="row")
    rest = [pl.lit(more.get(name), kind).alias(name) for name, kind in COLUMNS.items() if name not in names]
    return frame.with_columns(rest).select(*COLUMNS)
