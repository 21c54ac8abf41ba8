"""Pretrain an encoder on scans without labels."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings
from fewbeats.pretraining import settings as own
from fewbeats.pretraining.methods import FILES, Recipe, file_of, find_recipe, refuse_twin
from fewbeats.ranges import as_described, check_ranges, later
from fewbeats.recipes.encoder import EncoderSettings, build_method, check_pool, check_views, train_encoder
from fewbeats.recipes.run import Length
from fewbeats.recipes.starts import Start, find_ancestors, start_digest
from fewbeats.training.loop import check_length
from fewbeats.training.optim import PRETRAINED_RATE, OptimSettings
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.spatial import SpatialSettings

if TYPE_CHECKING:
    from fewbeats.recipes.pools import Pools


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Learn an encoder from every frame and slice of a cohort's training subjects; no label is opened."""

    method: tyro.conf.Positional[Literal["simclr", "pcl", "dino", "mim", "pix2rep"]]
    """simclr: views of a slice attract; pcl: slices of one height attract; dino: self-distillation;
    mim: blanked patches are painted in; pix2rep: pixels of one place attract."""
    cohort: tyro.conf.Positional[Path]
    """Cohort table (CSV or Parquet) from `fewbeats index`."""
    out: Path
    """Run folder. An unfinished run in it is resumed."""
    steps: int | None = None
    """Training steps."""
    minutes: float | None = None
    """Wall-clock budget of the whole command instead, turned into steps by timing."""
    pool_subjects: int | None = None
    """Number of subjects to learn from, drawn by the seed and nested; all of split train by default."""
    weights: tuple[str, ...] = later(())
    """SOURCE=NUMBER for each entry of the cohort's column source (`fewbeats join`): how often its slices are
    drawn against those of others. By default all slices are drawn alike, and the largest source most."""
    center: Literal["image", "motion"] = "motion"
    """Middle of the field of view: image, or motion (what changes over the beat)."""
    growth: float = later(0.0)
    """Share of the steps in which views grow from weak to strong."""
    init: str = "scratch"
    """scratch, natural (weights from photographs), a run folder, or a .safetensors file."""
    seed: int = 0
    """Draw of the subjects, start of the weights, order of the slices."""
    batch_size: int = 32
    """Slices a step and process."""
    workers: int = 0
    """Processes that make batches while the network computes; they pay where the network runs on a GPU."""
    cache: Path | None = None
    """Folder of preprocessed scans; `sample-cache` beside the run by default."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """As it will be fine-tuned."""
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    optim: OptimSettings = field(default_factory=lambda: OptimSettings(learning_rate=PRETRAINED_RATE))
    simclr: own.SimclrSettings = field(default_factory=own.SimclrSettings)
    pcl: own.PclSettings = field(default_factory=own.PclSettings)
    dino: own.DinoSettings = field(default_factory=own.DinoSettings)
    mim: own.MimSettings = field(default_factory=own.MimSettings)
    simmim: own.SimmimSettings = field(default_factory=own.SimmimSettings)
    """mim as a vision transformer does it."""
    pix2rep: own.Pix2repSettings = field(default_factory=own.Pix2repSettings)

    def run(self) -> Path:
        """Train; returns the run folder.

        Raises:
            InputError: the cohort, its scans or the settings cannot be used.
        """
        length, about = Length(steps=self.steps, minutes=self.minutes), self.describe()
        self.check_settings()
        return train_encoder(
            self.out, self.choose(), self.settings, recipe=self.recipe, own=self.own,
            start=Start(init=self.init), length=length, seed=self.seed, workers=self.workers,
            request={"settings": about | {"init": start_digest(self.init)}}, about=about,
        ).path  # fmt: skip

    def choose(self) -> Pools:
        """The pool this command learns from.

        Raises:
            InputError: too few scans, or a held-out subject among them or in the start's lineage.
        """
        from fewbeats.recipes.pools import Pool, choose_pools

        check = partial(check_pool, recipe=self.recipe, settings=self.settings, cohort=self.cohort)
        pool = Pool(subjects=self.pool_subjects, seed=self.seed, check=check)
        ancestors = find_ancestors(self.init)
        return choose_pools(self.cohort, pool=pool, ancestors=ancestors, out=self.out, cache=self.cache)

    def preflight(self) -> None:
        """Build the method and choose the pool, quietly, to see that both can be used.

        Raises:
            InputError: they cannot.
        """
        self.check_settings()
        with contextlib.redirect_stdout(None):  # the run will say it
            build_method(self.settings, self.recipe, self.own, start=Start(init=self.init), seed=self.seed)
            self.choose()

    @property
    def file(self) -> str:
        """Name of the method's file and settings."""
        return file_of(self.method, self.network)

    @property
    def recipe(self) -> Recipe:
        """How the method is trained."""
        return find_recipe(self.file)

    @property
    def own(self) -> Any:
        """The method's own settings."""
        return getattr(self, self.file)

    @property
    def settings(self) -> EncoderSettings:
        """What all methods share."""
        return EncoderSettings(
            network=self.network, preprocess=self.preprocess, spatial=self.spatial, intensity=self.intensity,
            optim=self.optim, batch_size=self.batch_size, center=self.center, growth=self.growth,
            weights=own.read_weights(self.weights))  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What decides the outcome: all but places, and of the methods the chosen one."""
        aside = {"cohort", "out", "cache", "workers", *FILES} - {self.file}
        return {n: value for n, value in as_described(self).items() if n not in aside}

    def check_settings(self) -> None:
        """Refuse settings that are out of range, do not fit, or look like the method's and are not.

        Raises:
            InputError: naming the setting.
        """
        check_length(self.steps, self.minutes)
        check_ranges(
            self, "", several=("batch_size",), not_negative=("workers",), seeds=("seed",), shares=("growth",)
        )
        refuse_twin(self, self.file, kind=self.network.kind)
        if (self.optim.encoder_rate_factor, self.optim.layer_decay, self.intensity.structures) != (1, 1, 0):
            flags = "--optim.encoder-rate-factor, --optim.layer-decay, --intensity.structures"
            raise InputError(f"{flags}: are for fine-tuning; take them out")
        check_views(self.settings, self.recipe, self.own)
