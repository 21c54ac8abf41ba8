"""Make cohorts: index what is there, or write a phantom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.phantom.scan import PhantomSettings

BY_FILE = ("nnunet", "msd", "folder")
"""Layouts that know subjects by the names of files."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """List the scans of a folder in a cohort table, one row a scan."""

    source: tyro.conf.Positional[Path]
    """Folder of scans."""
    layout: Literal["acdc", "mnms", "nnunet", "msd", "folder", "dicom", "phantom"]
    """How the folder is organized."""
    out: Path
    """Table to write, .csv or .parquet."""
    split: Path | None = None
    """CSV subject,split with the split of each subject (train, tune, dev, test)."""
    draw: tuple[float, float, float] | None = None
    """Draw the splits instead: shares of train, tune and dev, by subject, balanced over the groups."""
    seed: int = 0
    """Of the draw."""
    convention: str | None = None
    """Meaning of the label values: acdc, mnms, mmwhs, totalsegmentator, emidec, la2018, fewbeats, a file."""
    labels: Path | None = None
    """Folder of masks named like the scans that add to or replace labels (corrected predictions)."""
    subject: str | None = None
    """Regular expression that finds the subject in a scan's name: "^[A-Z]+_[0-9]{2}"."""
    leave_out: bool = False
    """Leave out scans that cannot be used, and name them, instead of stopping."""

    def run(self) -> Path:
        """Index and write; returns the table's path.

        Raises:
            InputError: a file that cannot be used, two sources of splits, shares that do not add up to 1.
        """
        from fewbeats.data.cohort import encode_cohort, write_cohort
        from fewbeats.data.index import index
        from fewbeats.data.split import SPLITS, draw_splits
        from fewbeats.errors import name_some

        if self.split and self.draw:
            raise InputError("give either --split or --draw")
        cohort = index(
            self.source,
            layout=self.layout,
            split_file=self.split,
            convention=self.convention,
            labels=self.labels,
            subject=self.subject,
            leave_out=self.leave_out,
            tell=print,
        )
        if self.draw and self.layout in BY_FILE and not self.subject:
            names = name_some(cohort["subject"].unique().sort())
            print(f"drawn by {cohort['subject'].n_unique()} names: {names}; where some are one person, "
                  "--subject says so")  # fmt: skip
        if self.draw:
            cohort = draw_splits(cohort, fractions=dict(zip(SPLITS, self.draw)), seed=self.seed)
        if kept := _keep_edited(self.out, encode_cohort(cohort, self.out)):
            print(f"{kept}: the table that was there, which differs")
        write_cohort(cohort, self.out)
        labeled = cohort.filter(cohort["label_source"] == "manual")["subject"].n_unique()
        print(
            f"{self.out}: {len(cohort)} scans of {cohort['subject'].n_unique()} subjects, {labeled} labeled"
        )
        if made := cohort["label_source"].eq("pseudo").sum():
            print(
                f"labels made by a program: {made}; nothing is trained on or judged by them; where a person "
                "has mended one, write manual into label_source"
            )
        first = cohort.filter(cohort["frames"] > 1, cohort["label_frames"] == "0")["scan"]
        if len(first):
            print(
                f"labeled on frame 0 alone: {name_some(first)}; where a mask is of another frame, write it "
                "into label_frames"
            )
        if self.split or self.draw:
            by_split = cohort.group_by("split", maintain_order=True).n_unique().select("split", "subject")
            print(
                ", ".join(
                    f"{split or 'no split'}: {n} subjects" for split, n in by_split.sort("split").iter_rows()
                )
            )
        return self.out


def _keep_edited(table: Path, content: bytes) -> Path | None:
    """A copy of a table about to be overwritten by another content: it may have been edited by hand."""
    before = table.read_bytes() if table.is_file() else content
    if before == content:
        return None
    copy = table.with_name(f"{table.name}.bak")
    with atomic_path(copy) as partial:
        partial.write_bytes(before)
    return copy


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Write a cohort of beating hearts with known truth, as ordinary NIfTI files."""

    out: tyro.conf.Positional[Path]
    """Folder to write; index it with --layout phantom."""
    settings: Annotated[PhantomSettings, tyro.conf.arg(name="")] = field(default_factory=PhantomSettings)
    """Subjects, modality and size."""
    exam: bool = False
    """All scans of an exam instead of one: short- and long-axis cines, late enhancement, T1 and T2 maps."""
    jobs: int = 1
    """Processes that make subjects side by side."""

    def run(self) -> Path:
        """Write the cohort; returns its folder.

        Raises:
            InputError: --jobs is no number of processes.
        """
        from fewbeats.phantom.cohort import write_cohort
        from fewbeats.ranges import check_ranges

        check_ranges(self, "", positive=("jobs",))
        rows = write_cohort(self.out, self.settings, exam=self.exam, jobs=self.jobs)
        print(f"{self.out}: {len(rows)} subjects, {'an exam each' if self.exam else self.settings.modality}")
        return self.out
