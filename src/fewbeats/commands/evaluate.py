"""Judge predictions against manual labels and write the report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare predictions with a cohort's manual labels: subjects.csv, summary.json, report.html."""

    predictions: tyro.conf.Positional[Path]
    """Folder of `fewbeats predict`."""
    cohort: tyro.conf.Positional[Path]
    """Cohort table with the manual labels."""
    out: Path
    """Folder for the report."""

    def run(self) -> dict:
        """Evaluate; returns the summary.

        Raises:
            InputError: files do not fit each other, or the run has seen the scans it is judged on.
        """
        from fewbeats.data.cohort import read_cohort
        from fewbeats.evaluation.answers import is_of_task, judged_scans
        from fewbeats.evaluation.evaluate import evaluate
        from fewbeats.evaluation.predictions import read_predictions
        from fewbeats.recipes.pools import refuse_seen

        cohort, of_task = read_cohort(self.cohort), is_of_task(self.predictions)
        writable = os.access(self.predictions, os.W_OK)  # an archive may be closed; the cache only saves time
        if of_task:
            scans = judged_scans(self.predictions, cohort)
        else:
            scans = [scan.scan for scan in read_predictions(self.predictions)[0]]
        cache = self.predictions / "hashes.json" if writable else None
        refuse_seen(self.predictions, cohort, scans, cache=cache)
        if of_task:
            return self._judge_task(cohort)
        summary = evaluate(self.predictions, cohort, self.out)
        dice = summary["dice"]
        parts = ", ".join(
            f"{s} {v:.3f}" for s, v in dice.items() if s not in ("mean", "ci95") and v is not None
        )
        interval = "no interval from one subject"
        if dice["ci95"]:
            interval = "95% interval {:.3f} to {:.3f}".format(*dice["ci95"])
        print(f"Dice {dice['mean']:.3f} ({interval}) over {summary['subjects']} subjects: {parts}")
        if count := summary["exchanged_scans"]:
            print(
                f"ventricles look exchanged between prediction and labels, in {count} scans; check convention"
            )
        print(f"report: {self.out / 'report.html'}")
        return summary

    def _judge_task(self, cohort: pl.DataFrame) -> dict:
        """The same of classes or points; returns the summary."""
        from fewbeats.evaluation.tasks import evaluate_task

        summary = evaluate_task(self.predictions, cohort, self.out)
        if away := summary.get("scans_not_in_cohort"):
            print(f"{away} of the scans that were predicted are not in the cohort")
        if others := summary.get("unknown_classes"):
            told = ", ".join(f"{name} ({count})" for name, count in others.items())
            print(f"not judged, as the network does not know the class: {told}")
        if "points" in summary:
            of_all = summary["points"]["mean"]
            print(f"{of_all['mean_mm']:.1f} mm on average over {of_all['subjects']} subjects")
        for level in ("study", "scan", "slice"):
            if level in summary:
                own = summary[level]
                area = own["macro_auc"]["value"]
                told = "" if area is None else f", area under ROC {area:.3f}"
                print(f"{own['items']} of {level}: balanced accuracy "
                      f"{own['balanced_accuracy']['value']:.3f}{told}")  # fmt: skip
        print(f"report: {self.out / 'report.html'}")
        return summary
