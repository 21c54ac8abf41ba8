"""Train a segmentation network on the labels of a few subjects, and the localizer that goes before it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings
from fewbeats.ranges import as_described, check_ranges
from fewbeats.recipes.run import Length
from fewbeats.recipes.segmenter import Localizer, train_localizer_alone, train_segmenter
from fewbeats.recipes.starts import Start, default_start, find_ancestors, start_network
from fewbeats.training.loop import check_length

PLACES = ("cohort", "out", "cache", "init", "localizer")
"""Where files lie does not decide an outcome; what is in them does."""
MAY_DIFFER = ("init_parts", "phase", "steps", "optim", "freeze_encoder")
"""What arms of a comparison may differ in, beside their start; all else is the protocol."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train on a cohort's labeled subjects; the run folder is all that prediction needs."""

    cohort: tyro.conf.Positional[Path]
    """Cohort table (CSV or Parquet) from `fewbeats index`."""
    out: Path
    """Run folder. An unfinished run in it is resumed."""
    task: Literal["segmentation", "localization"] = "segmentation"
    """What is learned; localization: only where the heart is, for other runs to take with --localizer."""
    labeled: int | None = None
    """Number of labeled subjects to use, drawn by the seed; all by default."""
    labeled_subjects: str | None = None
    """File that names the labeled subjects: one a line, a CSV, or FILE.csv:COLUMN for a 0/1 column."""
    phase: Literal["ED", "ES"] | None = None
    """Learn from labels of this phase alone."""
    structures: tuple[str, ...] = ()
    """Structures to segment; by default all that the labels speak of."""
    init: str = "natural"
    """scratch, natural (weights from photographs), a run folder, or a .safetensors file."""
    init_parts: Literal["all", "encoder"] = "all"
    """Of a run's weights, take all that fit, or the encoder alone."""
    steps: int | None = None
    """Training steps of the segmentation network."""
    minutes: float | None = None
    """Wall-clock budget of the whole command instead, turned into steps by timing."""
    seed: int = 0
    """Draw of the labeled subjects, start of the weights, order of the samples."""
    select: Literal["last", "best"] = "last"
    """best: hold back a quarter of the labeled subjects to choose the checkpoint by their Dice."""
    localizer_steps: int = 150
    """Training steps of the network that finds the heart; 0 looks at the image's center instead."""
    localizer: Path | None = None
    """Run folder whose localizer is taken instead of training one: networks that are compared share it."""
    cache: Path | None = None
    """Folder of preprocessed samples; `sample-cache` beside the run by default."""
    model: Annotated[SegmentationSettings, tyro.conf.arg(name="")] = field(
        default_factory=SegmentationSettings
    )
    """Network, field of view, augmentation, optimizer."""

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
            run = train_segmenter(
                self.out, pools, self.model,
                start=Start(init=self.init, encoder_only=self.init_parts == "encoder"), length=length,
                localizer=Localizer(steps=self.localizer_steps, run=self.localizer),
                about={"cohort": self.cohort, "select": self.select}, **own,
            )  # fmt: skip
        print(f"{run.path}: trained on {', '.join(pools.labeled_subjects)}")
        return run.path

    def choose(self):
        """The `Pools` this command learns from.

        Raises:
            InputError: a budget or labels that cannot be used, or a held-out subject among them.
        """
        from fewbeats.recipes.pools import Labels, choose_pools

        self.check_budget()
        labels = Labels(
            budget=self.labeled, subjects=self.labeled_subjects, seed=self.seed,
            structures=self.structures, hold_back=self.select == "best",
        )  # fmt: skip
        return choose_pools(
            self.cohort,
            labels=labels,
            ancestors=find_ancestors(self.init, localizer=self.localizer),
            out=self.out,
            cache=self.cache,
        )

    def check_budget(self) -> None:
        """Refuse a length that is none.

        Raises:
            InputError: a budget that is missing, given twice, out of range, or none of the task's.
        """
        check_ranges(self, "", not_negative=("localizer_steps",), seeds=("seed",))
        if self.task == "localization":
            if self.steps or self.minutes or self.localizer or self.localizer_steps < 1:
                raise InputError("--task localization: takes --localizer-steps as its only budget")
            return
        check_length(self.steps, self.minutes)

    def describe(self) -> dict[str, Any]:
        """What decides the outcome, but for the content of files."""
        return {name: value for name, value in as_described(self).items() if name not in PLACES}

    @property
    def pretrained_network(self) -> NetworkSettings:
        """The network that takes the weights of `init`."""
        return self.model.network

    def protocol(self) -> dict[str, Any]:
        """What arms that are compared must share."""
        settings = self.describe()
        settings |= settings.pop("model")
        return {name: value for name, value in settings.items() if name not in MAY_DIFFER}

    def localization(self) -> Finetune | None:
        """The run that trains its localizer alone, from photographs where it can: it is not compared."""
        if not self.localizer_steps:
            return None
        default = SegmentationSettings()  # what arms may differ in is no part of it
        model = replace(self.model, optim=default.optim, freeze_encoder=default.freeze_encoder)
        init = default_start(model.network)
        return replace(self, task="localization", steps=None, model=model, init_parts="all", init=init)

    def preflight(self) -> None:
        """Choose the labels and build the start, quietly, to see that both can be used.

        Raises:
            InputError: they cannot.
        """
        with contextlib.redirect_stdout(None):  # the run will say it
            pools = self.choose()
        classes, label = len(pools.structures) + 1, f"start '{self.init}' fits"
        start_network(self.model.network, classes, self.init, seed=0, label=label)
