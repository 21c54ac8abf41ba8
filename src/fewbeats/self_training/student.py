"""What learns from the masks of a round."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fewbeats.data.cohort import new_cohort, write_cohort
from fewbeats.data.split import labeled_subjects
from fewbeats.recipes.pools import Labels, choose_pools
from fewbeats.recipes.run import Length
from fewbeats.recipes.segmenter import Localizer, train_segmenter
from fewbeats.recipes.starts import Start, settle_rate

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance
    from fewbeats.finetuning.segmentation import SegmentationSettings
    from fewbeats.training.rundir import RunDir

LABEL_COLUMNS = ("label", "label_source", "label_frames", "label_confidence", "convention")
"""Of a cohort's row, empty where its label is closed."""
WARM = "warm"
"""A start: the student of the round before; of the first round the usual one."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """How the network of each round is trained."""

    model: SegmentationSettings
    init: str
    """scratch, natural, a run folder, a .safetensors file, or warm."""
    first_init: str
    """What the first one starts from where `init` is warm."""
    steps: int | None
    minutes: float | None
    """Of each round."""
    localizer_steps: int
    seed: int
    labeled: int
    """Subjects whose manual labels stay in every round's training set; those of all others stay closed."""
    workers: int
    request: Mapping[str, Any]
    """What decides the outcome, beside labels and start."""

    def kept(self, cohort: pl.DataFrame) -> list[str]:
        """The labeled subjects, drawn by the seed and nested.

        Raises:
            InputError: split train has fewer.
        """
        return labeled_subjects(cohort, self.labeled, self.seed) if self.labeled else []

    def train(
        self, out: Path, labels: Path, *, before: RunDir | None, teachers: Sequence[Provenance]
    ) -> RunDir:
        """A run on the labels of a round, or the finished one that is there.

        Args:
            out: run folder.
            labels: cohort of `write_labels`.
            before: the student of the round before.
            teachers: what the masks' makers have seen.

        Raises:
            InputError: labels or settings that cannot be used.
        """
        init = self.init if self.init != WARM else str(before.path) if before else self.first_init
        model, cache = settle_rate(self.model, init), out.parent / "sample-cache"
        pools = choose_pools(labels, labels=Labels(made=True), ancestors=teachers, out=out, cache=cache)
        manual = pools.labeled.filter(pl.col("label_source") == "manual")["subject"].unique().sort()
        run = train_segmenter(
            out,
            pools,
            model,
            start=Start(init=init),
            length=Length(steps=self.steps, minutes=self.minutes),
            seed=self.seed,
            localizer=Localizer(steps=self.localizer_steps),
            workers=self.workers,
            request=self.request,
            about={
                "labeled_subjects": manual.to_list(),
                "pseudo_labeled_subjects": sorted(set(pools.labeled_subjects) - set(manual)),
            },
        )
        shutil.rmtree(cache, ignore_errors=True)  # each round has samples of its own
        return run


def write_labels(
    cohort: pl.DataFrame,
    masks: Mapping[str, tuple[Path, Sequence[int]]],
    sure: Mapping[str, Path],
    file: Path,
    *,
    structures: Sequence[str],
    source: str,
    manual: Collection[str],
) -> int:
    """A cohort whose labels are a round's masks; held-out scans stay in it without any, for the leak guard.

    Args:
        cohort: the table.
        masks: scan of split train -> its mask, and the frames that are learned from.
        sure: scan -> file that says how sure its mask is; those that are there weigh voxels.
        file: where it is written.
        structures: that the masks hold.
        source: teacher or pseudo.
        manual: subjects of split train whose manual labels stay, instead of masks.

    Returns:
        number of subjects with a label.
    """
    closed = dict.fromkeys(LABEL_COLUMNS)
    convention, rows = f"fewbeats:{'+'.join(structures)}", []
    for row in cohort.iter_rows(named=True):
        own = row["subject"] in manual and row["split"] == "train" and row["label_source"] == "manual"
        mask, frames = masks.get(row["scan"], (file, ()))
        if own:
            rows.append(row)
        elif frames:
            label = {"label": str(mask.absolute()), "label_source": source, "convention": convention}
            confidence = sure[row["scan"]]
            told = {"label_confidence": str(confidence.absolute()) if confidence.is_file() else None}
            rows.append({**row, **label, **told, "label_frames": ";".join(map(str, frames))})
        else:
            rows.append({**row, **closed})
    write_cohort(new_cohort(rows), file)
    return len({row["subject"] for row in rows if row["label"]})
