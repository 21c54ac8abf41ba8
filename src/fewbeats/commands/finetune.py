"""Train a segmentation network on the labels of a few subjects, and the localizer that goes before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewbeats.commands.labeled import LearnsFromLabels
from fewbeats.errors import InputError, name_some
from fewbeats.ranges import check_ranges
from fewbeats.recipes.run import Length
from fewbeats.recipes.segmenter import train_localizer_alone, train_segmenter
from fewbeats.recipes.starts import settle_rate

if TYPE_CHECKING:
    from fewbeats.recipes.pools import Pool, Pools


@dataclass(frozen=True, kw_only=True)
class Finetune(LearnsFromLabels):
    """Train on a cohort's labeled subjects; the run folder is all that prediction needs."""

    task: Literal["segmentation", "localization"] = "segmentation"
    """What is learned; localization: only where the heart is, for other runs to take with --localizer."""
    select: Literal["last", "best"] = "last"
    """best: hold back a quarter of the labeled subjects to choose the checkpoint by their Dice."""

    def run(self) -> Path:
        """Train; returns the run folder.

        Raises:
            InputError: the cohort, its labels or the settings cannot be used.
        """
        length = Length(steps=self.steps, minutes=self.minutes)
        pools, request = self.choose(), {"settings": self.describe()}
        own: dict[str, Any] = {"seed": self.seed, "phase": self.phase, "request": request}
        if self.task == "localization":
            run = train_localizer_alone(
                self.out, pools, self.model, init=self.init, steps=self.localizer_steps, **own
            )
        else:
            model = settle_rate(self.model, self.init, tell=print)
            run = train_segmenter(
                self.out, pools, model, start=self.start, length=length, localizer=self.finder,
                workers=self.workers, about={"cohort": self.cohort, "select": self.select}, **own,
            )  # fmt: skip
        print(f"{run.path}: trained on {name_some(pools.labeled_subjects)}")
        return run.path

    def choose(
        self, *, pool: Pool | None = None, hold_back: bool = False, others: tuple[str, ...] = ()
    ) -> Pools:
        return super().choose(pool=pool, hold_back=hold_back or self.select == "best", others=others)

    def check_budget(self) -> None:
        """Refuse a length that is none.

        Raises:
            InputError: a budget that is missing, given twice, out of range, or none of the task's.
        """
        if self.task == "segmentation":
            return super().check_budget()
        check_ranges(self, "", not_negative=("localizer_steps", "workers"), seeds=("seed",))
        if self.steps or self.minutes or self.localizer or self.localizer_steps < 1:
            raise InputError("--task localization: takes --localizer-steps as its only budget")
        return None
