"""The whole main job in minutes, on phantoms: a cohort, a few labels, a network, every frame, a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write a phantom cohort, train on four of its subjects, label the others, and report.

    Takes a few minutes on two CPU cores and no network.
    """

    out: Path = Path("runs/demo")
    """Folder for cohort, run and report."""
    subjects: int = 12
    """Phantom subjects; 4 are trained on, 2 frames of each are labeled, the others are judged."""
    steps: int = 250
    """Training steps."""

    def run(self) -> Path:
        """Do it all; returns the report's path."""
        from fewbeats.commands.cohorts import Index, Phantom
        from fewbeats.commands.evaluate import Evaluate
        from fewbeats.commands.finetune import Finetune
        from fewbeats.commands.predict import Predict
        from fewbeats.phantom.scan import PhantomSettings

        images, table, trained = self.out / "phantom", self.out / "cohort.csv", self.out / "run"
        if not (images / "subjects.csv").is_file():
            Phantom(out=images, settings=PhantomSettings(subjects=self.subjects)).run()
        if not table.is_file():
            Index(source=images, layout="phantom", out=table, draw=(0.5, 0.0, 0.5)).run()
            _keep_two_frames(table)
        Finetune(
            cohort=table, out=trained, labeled=4, steps=self.steps, localizer_steps=self.steps // 4
        ).run()
        Predict(model=trained, input=table, split="dev", out=self.out / "predictions").run()
        Evaluate(predictions=self.out / "predictions", cohort=table, out=self.out / "report").run()
        return self.out / "report" / "report.html"


def _keep_two_frames(table: Path) -> None:
    """Of the subjects that are trained on, only ED and ES count as drawn, as a lab would draw them."""
    from fewbeats.data.cohort import read_cohort, write_cohort

    cohort = read_cohort(table)
    drawn = pl.concat_str([pl.col("ed_frame"), pl.col("es_frame")], separator=";")
    kept = pl.when(pl.col("split") == "train").then(drawn).otherwise(pl.col("label_frames"))
    write_cohort(cohort.with_columns(kept.alias("label_frames")), table)
