"""The main jobs in minutes, on phantoms: a cohort, a few labels or none, a network, every frame, a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write a phantom cohort, train on four of its subjects or on none, label the others, and report.

    Takes a few minutes on two CPU cores and no network.
    """

    self_training: bool = False
    """Learn from no label: a teacher that errs anew in every frame stands for somebody's model, two students
    follow. Labels of subjects that nobody learns from judge the rounds and choose among them."""

    out: Path = Path("runs/demo")
    """Folder for cohort, run and report."""
    subjects: int = 12
    """Phantom subjects; 4 are trained on, 2 frames of each are labeled, the others are judged."""
    steps: int = 250
    """Training steps."""

    def run(self) -> Path:
        """Do it all; returns the report's path."""
        table = self._write_cohort()
        return self._train_without_labels(table) if self.self_training else self._train_with_few(table)

    def _write_cohort(self) -> Path:
        from fewbeats.commands.cohorts import Index, Phantom
        from fewbeats.phantom.scan import PhantomSettings

        images, table = self.out / "phantom", self.out / "cohort.csv"
        if not (images / "subjects.csv").is_file():
            Phantom(out=images, settings=PhantomSettings(subjects=self.subjects)).run()
        if not table.is_file():
            Index(source=images, layout="phantom", out=table, draw=(0.5, 0.0, 0.5)).run()
            if not self.self_training:
                _keep_two_frames(table)
        return table

    def _train_without_labels(self, table: Path) -> Path:
        from fewbeats.commands.selftrain import SelfTrain
        from fewbeats.self_training.rounds import RoundSettings

        out = self.out / "self-training"
        SelfTrain(
            cohort=table, teacher=("oracle:random",), out=out, steps=self.steps,
            plan=RoundSettings(rounds=2, judge="dev"), localizer_steps=self.steps // 4,
        ).run()  # fmt: skip
        return out / "report.html"

    def _train_with_few(self, table: Path) -> Path:
        from fewbeats.commands.evaluate import Evaluate
        from fewbeats.commands.finetune import Finetune
        from fewbeats.commands.predict import Predict

        trained = self.out / "run"
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
