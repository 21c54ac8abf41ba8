"""What commands that learn from labels share: whose labels, start and localizer, their part in a study."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings
from fewbeats.ranges import as_described, check_ranges, later
from fewbeats.recipes.segmenter import Localizer
from fewbeats.recipes.starts import Start, default_start, find_ancestors, settle_rate, start_network
from fewbeats.training.loop import check_length

if TYPE_CHECKING:
    from fewbeats.recipes.pools import Labels, Pool, Pools

PLACES = ("cohort", "out", "cache", "init", "localizer", "workers")
"""Where files lie, and who makes the batches, does not decide an outcome; what is in the files does."""
MAY_DIFFER = ("init_parts", "phase", "steps", "optim", "freeze_encoder")
"""What arms of a comparison may differ in, beside their start; all else is the protocol."""


@dataclass(frozen=True, kw_only=True)
class LearnsFromLabels(ABC):
    """Fields and choices of a training on a cohort's labeled subjects."""

    cohort: tyro.conf.Positional[Path]
    """Cohort table (CSV or Parquet) from `fewbeats index`."""
    out: Path
    """Run folder. An unfinished run in it is resumed."""
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
    transductive: bool = later(False)
    """The weights it starts from may have seen images, not labels, of held-out subjects; reports say so."""
    steps: int | None = None
    """Training steps of the segmentation network."""
    minutes: float | None = None
    """Wall-clock budget of the whole command instead, turned into steps by timing."""
    seed: int = 0
    """Draw of the labeled subjects, start of the weights, order of the samples."""
    localizer_steps: int = 150
    """Training steps of the network that finds the heart; 0 looks at the image's center instead."""
    localizer: Path | None = None
    """Run folder whose localizer is taken instead of training one: networks that are compared share it."""
    workers: int = 0
    """Processes that make batches while the network computes; they pay where the network runs on a GPU."""
    cache: Path | None = None
    """Folder of preprocessed samples; `sample-cache` beside the run by default."""
    model: Annotated[SegmentationSettings, tyro.conf.arg(name="")] = field(
        default_factory=SegmentationSettings
    )
    """Network, field of view, augmentation, optimizer."""

    @abstractmethod
    def run(self) -> Path:
        """Train; returns the run folder."""

    @property
    def start(self) -> Start:
        """Of the network."""
        return Start(init=self.init, encoder_only=self.init_parts == "encoder")

    @property
    def finder(self) -> Localizer:
        """Where the localizer comes from."""
        return Localizer(steps=self.localizer_steps, run=self.localizer)

    def check_budget(self) -> None:
        """Refuse a length that is none.

        Raises:
            InputError: a budget that is missing, given twice or out of range.
        """
        check_ranges(self, "", not_negative=("localizer_steps", "workers"), seeds=("seed",))
        check_length(self.steps, self.minutes)

    def choose(
        self, *, pool: Pool | None = None, hold_back: bool = False, others: tuple[str, ...] = ()
    ) -> Pools:
        """What this command learns from.

        Args:
            pool: scans without labels.
            hold_back: keep labeled subjects to choose the checkpoint by.
            others: further starts, of other networks.

        Raises:
            InputError: a budget or labels that cannot be used, or a held-out subject among them.
        """
        from fewbeats.recipes.pools import choose_pools

        self.check_budget()
        ancestors = find_ancestors(self.init, localizer=self.localizer)
        ancestors += [run for init in others for run in find_ancestors(init)]
        own: dict[str, Any] = {"transductive": self.transductive, "out": self.out, "cache": self.cache}
        labels = self.name_labels(hold_back=hold_back)
        return choose_pools(self.cohort, labels=labels, pool=pool, ancestors=ancestors, **own)

    def name_labels(self, *, hold_back: bool) -> Labels:
        """Whose labels, and of what."""
        from fewbeats.recipes.pools import Labels

        given: dict[str, Any] = {"seed": self.seed, "structures": self.structures, "hold_back": hold_back}
        return Labels(budget=self.labeled, subjects=self.labeled_subjects, **given)

    def describe(self) -> dict[str, Any]:
        """What decides the outcome, but for the content of files."""
        settled = replace(self, model=settle_rate(self.model, self.init))
        return {name: value for name, value in as_described(settled).items() if name not in PLACES}

    @property
    def pretrained_network(self) -> NetworkSettings:
        """The network that takes the weights of `init`."""
        return self.model.network

    def protocol(self) -> dict[str, Any]:
        """What arms that are compared must share."""
        settings = self.describe()
        settings |= settings.pop("model")
        return {name: value for name, value in settings.items() if name not in MAY_DIFFER}

    def preflight(self) -> None:
        """Choose the labels and build the start, quietly, to see that both can be used.

        Raises:
            InputError: they cannot.
        """
        with contextlib.redirect_stdout(None):  # the run will say it
            pools = self.choose()
        classes, label = len(pools.structures) + 1, f"start '{self.init}' fits"
        start_network(self.model.network, classes, self.init, seed=0, label=label)

    def localization(self) -> dict[str, Any] | None:
        """Fields of the `Finetune` that trains its localizer alone, None where it wants none: from
        photographs where it can, with the default optimizer, as it is not what is compared."""
        if not self.localizer_steps:
            return None
        default = SegmentationSettings()
        model = replace(self.model, optim=default.optim, freeze_encoder=default.freeze_encoder)
        shared = {one.name: getattr(self, one.name) for one in fields(LearnsFromLabels)}
        changed = {"steps": None, "minutes": None, "model": model, "init_parts": "all", "transductive": False}
        return shared | changed | {"init": default_start(model.network), "task": "localization"}
