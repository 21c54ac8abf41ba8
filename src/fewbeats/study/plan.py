"""What a study compares, and what its rows are known by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewbeats.commands.pretrain import Pretrain
from fewbeats.evaluation.scores import Score
from fewbeats.recipes.starts import start_digest
from fewbeats.study.budget import COUNTED, OF_EACH
from fewbeats.study.trainers import Trainer, learned_columns

OWN = ("out", "cache", "seed", "labeled", "labeled_subjects", "localizer", "minutes")
"""Settings of the commands that a study decides itself; budgets are steps, so that machines do not matter."""
DRAW = "draw"
"""As the seed of a pretraining: one for each draw, with the draw's seed."""
DESCRIPTIVE = ("group", "height_cm", "weight_kg", "sequence", "modality", "frame_time_ms")
"""Columns of a cohort that no mask depends on."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, at several budgets."""

    name: str
    trainer: Trainer
    """Without budget, seed and places."""
    pretraining: str | None
    """Name of the pretraining it starts from."""
    labeled: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def is_transductive(self) -> bool:
        """Whether its start may have seen images, not labels, of those who are judged."""
        return bool(getattr(self.trainer, "transductive", False))

    def is_like(self, other: Arm) -> bool:
        """Whether both train one network by one command and for as long, whatever they start from."""
        mine, its = self.trainer, other.trainer
        alike = (mine.steps, mine.pretrained_network) == (its.steps, its.pretrained_network)
        return alike and type(mine) is type(its)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study."""

    name: str
    title: str = ""
    """What readers of its page are told; the name where empty."""
    section: str = ""
    """Of the page that studies of one file share: the heading under which this one stands."""
    cohort: Path
    out: Path
    """Folder for runs, predictions and the report."""
    rows: Path
    """CSV of results, one row a subject, phase, structure and score; kept under version control."""
    split: str
    """Judged on these subjects: tune for choices, dev once a published row."""
    baseline: str
    score: Score
    """What is compared."""
    may_differ: tuple[str, ...] = ()
    """Further settings in which arms differ on purpose, as `network` where 2D and 3D are compared."""
    primary: tuple[str, int] | None
    """Arm and budget of the one contrast to the baseline that was named beforehand."""
    pretrainings: dict[str, Pretrain]
    drawn: frozenset[str] = frozenset()
    """Pretrainings that are done anew for each draw, with its seed."""
    pretrained: Path
    """Folder of the pretrainings, which studies of one file share."""
    folds: int = 0
    """Subjects of all splits are judged by cross-validation in so many parts, each draw one of them; 0: those
    of `split`."""
    arms: dict[str, Arm]

    @property
    def heading(self) -> str:
        """What it is called on pages."""
        return self.title or self.name

    @property
    def budgeted(self) -> str:
        """What a budget counts."""
        main, *_ = learned_columns(self.arms[self.baseline].trainer)
        return COUNTED if main == "label" else OF_EACH

    @property
    def cache(self) -> Path:
        """Preprocessed samples, shared by all runs."""
        return self.out / "sample-cache"

    @cached_property
    def data(self) -> str:
        """Digest of who is trained on and judged, and of their labels, whatever folder they lie in.

        Images are known by name, shape and spacing; labels, which are corrected now and then, by content.

        Raises:
            InputError: the cohort cannot be read, or a label cannot be found.
        """
        import polars as pl

        from fewbeats.data.cohort import PATHS, SCHEMA, read_cohort
        from fewbeats.data.files import content_digest

        cohort, left_out = read_cohort(self.cohort), {*PATHS, *DESCRIPTIVE}
        if self.folds:
            left_out = left_out - {"group"} | {"split"}  # parts are balanced over groups
        else:
            cohort = cohort.filter(pl.col("split").is_in(["train", self.split]))
        cohort = cohort.sort("subject", "scan")
        known = cohort.select(pl.col(name) for name in SCHEMA if name not in left_out)
        labels = cohort["label"].drop_nulls().map_elements(content_digest, pl.String)
        learned = sorted({name for arm in self.arms.values() for name in learned_columns(arm.trainer)})
        beside = [name for name in learned if name in cohort.columns and name not in known.columns]
        known = known.with_columns(cohort[name] for name in beside if name not in PATHS)
        if "points" in beside:
            labels = pl.concat(
                [labels, cohort["points"].drop_nulls().map_elements(content_digest, pl.String)]
            )
        meanings = [content_digest(name) if Path(name).is_file() else name
                    for name in cohort["convention"].drop_nulls()]  # fmt: skip
        parts = [f"folds {self.folds}", *map(str, self.twins)] if self.folds else []
        text = "\n".join([known.write_csv(), *labels, *meanings, *parts])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def twins(self) -> list[tuple[str, ...]]:
        """Subjects of the cohort that are one heart.

        Raises:
            InputError: the cohort cannot be read, or an image of it.
        """
        from fewbeats.data.cohort import read_cohort
        from fewbeats.data.provenance import by_subject, find_twins, hash_scans

        cohort = read_cohort(self.cohort)
        return find_twins(by_subject(cohort, hash_scans(cohort, cache=self.cache / "hashes.json")))

    @property
    def random_starts(self) -> dict[str, str]:
        """Pretrained arm -> the arm that trains its network alike from a random start, where there is one."""
        random = [a for a in self.arms.values() if a.trainer.init == "scratch" and not a.pretraining]
        found = {}
        for arm in (arm for arm in self.arms.values() if arm not in random):
            own = [other.name for other in random if arm.is_like(other)]
            if self.baseline in own or len(own) == 1:
                found[arm.name] = self.baseline if self.baseline in own else own[0]
        return found

    def brings_pool(self, name: str) -> bool:
        """Whether a pretraining learns from a cohort of its own."""
        return self.pretrainings[name].cohort.absolute() != self.cohort.absolute()

    def pool_digest(self, name: str) -> str:
        """Of the scans that a pretraining with a cohort of its own learns from, whatever folder they lie in.

        Raises:
            InputError: the cohort cannot be read.
        """
        import polars as pl

        from fewbeats.data.cohort import PATHS, SCHEMA, read_cohort

        pool = read_cohort(self.pretrainings[name].cohort).filter(pl.col("split") == "train")
        known = [n for n in (*SCHEMA, "source") if n in pool.columns and n not in (*PATHS, *DESCRIPTIVE)]
        text = pool.select(known).sort("subject", "scan").write_csv()
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def digest(self, arm: Arm) -> str:
        """Of the settings that decide an arm's outcome; rows of another digest are not its rows.

        Raises:
            InputError: initial weights cannot be found.
        """
        about = {name: value for name, value in arm.trainer.describe().items() if name not in OWN}
        if (
            about.get("task") == "segmentation"
        ):  # which says no more than digests did before there were others
            del about["task"]
        if arm.pretraining:
            before = self.pretrainings[arm.pretraining]
            about["init"] = before.describe() | {"init": start_digest(before.init)}
            about["init"] |= {"seed": DRAW} if arm.pretraining in self.drawn else {}
            if self.brings_pool(arm.pretraining):
                about["init"] |= {"pool": self.pool_digest(arm.pretraining)}
        else:
            about["init"] = start_digest(arm.trainer.init)
        flat = getattr(arm.trainer, "flat_init", "natural")
        if "flat" in about and flat != "natural":  # of a pair; the usual start keeps the digest it had
            about["flat_init"] = start_digest(flat)
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]
