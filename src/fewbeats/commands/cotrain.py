"""Train on the labels of a few subjects and on many unlabeled scans at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewbeats.commands.labeled import LearnsFromLabels
from fewbeats.errors import InputError, name_some
from fewbeats.models.network import NetworkSettings
from fewbeats.ranges import check_ranges, later
from fewbeats.recipes.cotrainer import CotrainerSettings, Partner, train_cotrainer
from fewbeats.recipes.cotrainer_checks import check_pair
from fewbeats.recipes.run import Length
from fewbeats.recipes.starts import Start, settle_rate
from fewbeats.semi_supervised.methods import METHODS, find_recipe, part_of
from fewbeats.semi_supervised.settings import (
    BcpSettings,
    MeanTeacherSettings,
    MnSettings,
    UnimatchSettings,
)

if TYPE_CHECKING:
    from fewbeats.recipes.pools import Pool, Pools


@dataclass(frozen=True, kw_only=True)
class Cotrain(LearnsFromLabels):
    """Train on a cohort's labeled subjects and on all scans of split train, whose labels stay closed."""

    method: Literal["mn", "mean-teacher", "bcp", "unimatch"]
    """mn: a 2D network and the run's 3D one teach each other; mean-teacher: agreement with a moving average;
    bcp: images and labels pasted into each other; unimatch: strong views held to what a weak one shows."""
    pool_subjects: int | None = None
    """Number of subjects to learn from without labels, drawn by the seed and nested; all by default."""
    transductive: bool = later(False)
    """Learn from the pixels of held-out scans, too, as for scans that are to be segmented; reports say so."""
    parts: int = later(1)
    """Micro-batches that an update is computed in, where memory is short."""
    flat: NetworkSettings = field(default_factory=NetworkSettings)
    """The 2D network of mn."""
    flat_init: str = "natural"
    """What it starts from: scratch, natural, a run folder, or a .safetensors file."""
    mn: MnSettings = field(default_factory=MnSettings)
    mean_teacher: MeanTeacherSettings = field(default_factory=MeanTeacherSettings)
    bcp: BcpSettings = field(default_factory=BcpSettings)
    unimatch: UnimatchSettings = field(default_factory=UnimatchSettings)

    @classmethod
    def usual(cls, arguments: Sequence[str]) -> list[str]:
        """Flags of a method unless others are given: M&N's network is 3D, its updates are of 5 items."""
        words = [part for word in arguments for part in word.split("=", 1)]
        chosen = [after for word, after in pairwise(words) if word == "--method"]
        if chosen[-1:] != ["mn"]:
            return []
        return ["--network.kind=unet3d", "--init=scratch", "--batch-size=5", "--foreground=0.5"]

    def run(self) -> Path:
        """Train; returns the run folder.

        Raises:
            InputError: the cohort, its labels, its scans or the settings cannot be used.
        """
        length = Length(steps=self.steps, minutes=self.minutes)
        pools, partner = self.choose(), None
        if self.method == "mn":  # it has rates of its own
            model = settle_rate(self.model, self.init)
            partner = Partner(network=self.flat, start=Start(init=self.flat_init))
        else:
            model = settle_rate(self.model, self.init, tell=print)
        settings = CotrainerSettings(
            model=model, method=self.method, own=getattr(self, self.part), partner=partner,
            phase=self.phase, parts=self.parts,
        )  # fmt: skip
        run = train_cotrainer(
            self.out, pools, settings, start=self.start, length=length, seed=self.seed, localizer=self.finder,
            workers=self.workers, request={"settings": self.describe()}, about={"cohort": self.cohort},
        )  # fmt: skip
        subjects = pools.unlabeled["subject"].n_unique()
        print(
            f"{run.path}: trained on labels of {name_some(pools.labeled_subjects)} and images of {subjects} "
            "subjects"
        )
        return run.path

    @property
    def part(self) -> str:
        """Name of the method's settings."""
        return part_of(self.method)

    def choose(
        self, *, pool: Pool | None = None, hold_back: bool = False, others: tuple[str, ...] = ()
    ) -> Pools:
        from fewbeats.recipes.pools import Pool

        pool = pool or Pool(subjects=self.pool_subjects, seed=self.seed, transductive=self.transductive)
        return super().choose(pool=pool, others=(self.flat_init,) if self.method == "mn" else ())

    def check_budget(self) -> None:
        """Refuse a length that is none, and networks that the method cannot train.

        Raises:
            InputError: naming the setting.
        """
        super().check_budget()
        check_ranges(self, "", counts=("parts",))
        size = self.model.batch_size
        if size < 2:
            raise InputError(f"--batch-size {size}: needs a labeled and an unlabeled item")
        most = size if self.method == "mn" else size // 2  # each part of the others has both kinds
        if self.parts > most:
            raise InputError(f"--parts {self.parts}: give at most {most} with --batch-size {size}")
        if self.model.freeze_encoder:
            raise InputError("--freeze-encoder: cotrain trains the encoder from the start; take it out")
        if self.method == "mn":
            check_pair(self.model, self.flat, start=self.flat_init, own=self.mn)
        find_recipe(self.method).check(getattr(self, self.part), self.model.network)

    def describe(self) -> dict[str, Any]:
        """What decides the outcome: all but places, and of the methods the chosen one."""
        aside = {"flat_init", *map(part_of, METHODS)} - {self.part}
        aside |= set() if self.method == "mn" else {"flat"}
        return {name: value for name, value in super().describe().items() if name not in aside}

    def preflight(self) -> None:
        """See that labels, pool and starts can be used; of mn both.

        Raises:
            InputError: they cannot.
        """
        super().preflight()
        if self.method == "mn":
            replace(
                self, method="mean-teacher", init=self.flat_init, model=replace(self.model, network=self.flat)
            ).preflight()
