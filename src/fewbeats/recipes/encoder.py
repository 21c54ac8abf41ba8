"""Pretrain an encoder on slices without labels, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.clock import Clock
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings
from fewbeats.pretraining.methods import Recipe
from fewbeats.recipes.run import Exported, Length, Training, carry_out
from fewbeats.recipes.starts import Start
from fewbeats.training.loop import FitSettings, Validation
from fewbeats.training.optim import OptimSettings
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import Viewed, ViewSettings, weaken

if TYPE_CHECKING:
    import polars as pl
    from torch import nn

    from fewbeats.data.pool import Centering
    from fewbeats.data.store import Stacks
    from fewbeats.recipes.pools import Pools
    from fewbeats.sample import Batch, Batches
    from fewbeats.training.method import Method

COLLAPSED = 0.1  # spread of embeddings below which different slices are all one to the encoder


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Everything that decides what a pretrained encoder becomes, but for its method, data and start."""

    network: NetworkSettings
    preprocess: PreprocessSettings
    spatial: SpatialSettings
    intensity: IntensitySettings
    optim: OptimSettings
    batch_size: int
    """Slices a step and process."""
    center: Centering
    """Middle of the field of view: image or motion."""
    growth: float = 0.0
    """Share of the steps in which views grow from weak to strong."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Source -> how often its slices are drawn against those of others; all slices alike where empty."""

    @property
    def views(self) -> ViewSettings:
        """What a random view is."""
        return ViewSettings(size=self.preprocess.size, spatial=self.spatial, intensity=self.intensity)


def train_encoder(
    out: Path,
    pools: Pools,
    settings: EncoderSettings,
    *,
    recipe: Recipe,
    own: Any,
    start: Start,
    length: Length,
    seed: int,
    workers: int = 0,
    request: Mapping[str, Any],
    about: Mapping[str, Any],
) -> RunDir:
    """A run of pretraining: weights of an encoder (MIM: of all but the last layer), and its page.

    Args:
        out: run folder.
        pools: whose pixels.
        settings: all that methods share.
        recipe: the method's views and how it is built.
        own: the method's own settings.
        start: of the network.
        length: of the training.
        seed: start of the weights, order of the slices.
        workers: processes that make batches.
        request: settings that decide the outcome; the pool is added.
        about: what `run.json` says of the settings.

    Raises:
        InputError: settings that do not fit each other, images that cannot be used, or another run in `out`.
    """

    def build() -> Training:
        method, views = build_method(settings, recipe, own, start=start, seed=seed)
        said = {"task": "pretraining", **about}
        return pretraining(method, views, pools, settings, recipe=recipe, seed=seed, about=said)

    if recipe.positioned:
        request = {**request, "slice order": dict(pools.unlabeled.select("scan", "slice_order").iter_rows())}
    return carry_out(
        out,
        request={**request, **pools.describe()},
        provenance=pools.provenance,
        build=build,
        length=length,
        settings=FitSettings(seed=seed, optim=settings.optim),
        label=recipe.name,
        workers=workers,
    )


@dataclass(frozen=True)
class GrowingViews:
    """Batches seen through random views that are weak at first, where they are to grow."""

    batches: Batches
    views: Callable[..., Batch]
    """(batch, generator, settings=...) -> the batch with the views that a method wants."""
    settings: ViewSettings
    """At full strength."""
    seed: int
    growth: float
    """Share of the steps in which they grow."""

    def __call__(self, clock: Clock) -> Batch:
        """The views of a step."""
        share = min(1.0, clock.progress / self.growth) if self.growth else 1.0
        views = partial(self.views, settings=weaken(self.settings, share))
        return Viewed(self.batches, views, self.seed)(clock)


def build_method(
    settings: EncoderSettings, recipe: Recipe, own: Any, *, start: Start, seed: int
) -> tuple[Method, Callable[..., Batch]]:
    """The method on its network, and the views it wants, which other `settings` may weaken.

    Raises:
        InputError: the start does not fit, or the method's settings not the views.
    """
    import torch

    network = start.build(settings.network, recipe.outputs(own, settings.network), seed=seed)
    network.to(memory_format=torch.channels_last)
    method = recipe.build(network, own, settings.optim, settings.views.size)
    return method, partial(recipe.views, settings=settings.views, own=own)


def check_views(settings: EncoderSettings, recipe: Recipe, own: Any) -> None:
    """Refuse views of a size that the network cannot take, and networks that cannot learn this way.

    Raises:
        InputError: naming the setting.
    """
    network = settings.network
    if network.dims != 2:
        raise InputError(f"--network.kind {network.kind}: pretraining is for 2D networks")
    size, stride = settings.views.size, network.stride
    norms_a_point = (network.kind, network.norm) == ("unet2d", "instance")  # which it cannot
    least = 2 * stride if norms_a_point else stride
    if size % stride or size < least:
        raise InputError(f"--preprocess.size {size}: must be a multiple of {stride}, at least {least}")
    recipe.check(own, network, settings.batch_size, size)
    for flag, small in recipe.small_px(own, size).items():
        if small % stride or small < least:
            raise InputError(
                f"{flag}: makes views of {small} pixels; must be a multiple of {stride}, at least {least}"
            )


def pretraining(
    method: Method,
    views: Callable[..., Batch],
    pools: Pools,
    settings: EncoderSettings,
    *,
    recipe: Recipe,
    seed: int,
    about: Mapping[str, Any],
) -> Training:
    """A self-supervised training on a pool's slices."""
    from fewbeats.data.pool import prepare_pool
    from fewbeats.data.sampler import Sampler

    stacks = prepare_pool(pools.unlabeled, settings.preprocess, cache=pools.cache, center=settings.center)
    sizes = stacks.frames.tolist(), stacks.slices.tolist()
    check_slices(*sizes, recipe=recipe, batch_size=settings.batch_size, cohort="the pool")
    shares = share_sources(pools.unlabeled, stacks, settings.weights)
    sampler = Sampler(
        stacks, settings.batch_size, settings.network.in_channels, seed=seed, epochs=False, shares=shares
    )
    batches = GrowingViews(sampler, views, settings.views, seed, settings.growth)

    def write(network: nn.Module, folder: RunDir) -> dict[str, Any]:
        from fewbeats.models.network import LAST_LAYERS
        from fewbeats.models.weights import save_weights

        state = network.state_dict()
        with atomic_path(folder.weights()) as file:  # a last layer paints gray values, whatever it may fit
            save_weights({n: value for n, value in state.items() if not n.startswith(LAST_LAYERS)}, file)
        return {"collapsed": last_spread(folder) < COLLAPSED, **method.describe()}

    def finish(run: RunDir, method: Method, steps: int) -> None:
        tell(run, slices=len(stacks))
        write_page(run, method, batches(Clock(0, steps)), channel=settings.network.context, seed=seed)

    return Training(
        method=method,
        batches=batches,
        validation=watch_heights(stacks, settings),
        exports={"network": Exported(about={**about, "slices": len(stacks)}, write=write)},
        finish=finish,
    )


def share_sources(rows: pl.DataFrame, stacks: Stacks, weights: Mapping[str, float]) -> np.ndarray | None:
    """How often each stack is drawn, so that sources come as their weights say, and slices of one alike.

    Args:
        rows: of the pool, one a stack.
        stacks: its slices.
        weights: source -> weight; empty for no shares.

    Raises:
        InputError: as `check_sources`.
    """
    from fewbeats.data.sampler import share_kinds

    if not weights:
        return None
    check_sources(rows, weights)
    return share_kinds(rows["source"].to_list(), stacks.frames * stacks.slices, weights)


def check_sources(rows: pl.DataFrame, weights: Mapping[str, float]) -> None:
    """Refuse weights of other sources than a pool's.

    Raises:
        InputError: no column source, a row without, or another set of sources.
    """
    if "source" not in rows.columns or rows["source"].has_nulls():
        raise InputError("--weights: some scans have no entry in a column source; `fewbeats join` writes it")
    if other := set(map(str, rows["source"])) ^ set(weights):
        name = min(other)
        what = f"there is no '{name}'" if name in weights else f"'{name}' has none"
        raise InputError(f"--weights: {what}; give one for each entry of the cohort's column source")


def check_pool(
    rows: pl.DataFrame,
    *,
    recipe: Recipe,
    settings: EncoderSettings,
    cohort: Path,
) -> None:
    """Refuse a pool of too few slices, or for heights one whose deepest stack has a single slice.

    Args:
        rows: of the cohort, whose sizes are judged where it has them.
        recipe: of the method.
        settings: slices a step and process, and weights of sources.
        cohort: named in errors.

    Raises:
        InputError: naming the cohort.
    """
    if settings.weights:
        check_sources(rows, settings.weights)
    counts = rows.select("frames", "slices").drop_nulls()
    if len(counts) == len(rows):  # else nobody knows before they are read
        check_slices(*counts, recipe=recipe, batch_size=settings.batch_size, cohort=cohort)


def check_slices(
    frames: Iterable[int], slices: Iterable[int], *, recipe: Recipe, batch_size: int, cohort: Path | str
) -> None:
    """Refuse stacks of these frames and slices; see `check_pool`.

    Raises:
        InputError: naming the cohort.
    """
    from accelerate import PartialState

    sizes = list(zip(frames, slices))
    if recipe.positioned and max(z for _, z in sizes) < 2:
        raise InputError(
            f"{cohort}: scans of one slice have no neighbors; take simclr instead of {recipe.name}"
        )
    total = sum(t * z for t, z in sizes)
    if total < (wanted := batch_size * PartialState().num_processes):
        processes = f" of {PartialState().num_processes} processes" if wanted > batch_size else ""
        raise InputError(
            f"{cohort}: {total} slices are fewer than --batch-size {batch_size}{processes}; lower it"
        )


def watch_heights(stacks: Stacks, settings: EncoderSettings) -> Validation | None:
    """A probe of the encoder ten times a run; None where too few stacks say which end is the base."""
    import torch

    from fewbeats.data.pool import sample_slices
    from fewbeats.pretraining.probe import MOST, height_probe

    images, heights, subjects = sample_slices(
        stacks, MOST, size=settings.views.size, context=settings.network.context
    )
    if not len(images):
        return None
    shown = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return Validation(measure=height_probe(shown, heights, subjects))


def tell(run: RunDir, *, slices: int) -> None:
    """Say what was done, and where it learned nothing."""
    config = run.read_config().record
    print(f"{run.path}: {config['method']} saw {slices} slices in {config['steps']} steps")
    if config["collapsed"]:
        print(
            f"{run.path}: collapsed, to the encoder all slices are one; lower --optim.learning-rate, or make "
            "views more alike (--spatial, --intensity)"
        )


def write_page(run: RunDir, method: Method, batch: Batch, *, channel: int, seed: int) -> None:
    """Write the run's `report.html`: curves, and what the method was shown."""
    import torch

    from fewbeats.pages.training import SHOWN, render_training

    torch.manual_seed(seed)
    few = replace(batch, views={name: view[:SHOWN] for name, view in batch.views.items()})
    shown = method.eval().show(few.to(next(method.parameters()).device))
    pictures = {name: view[:, channel].cpu().numpy() for name, view in shown.items()}
    page = render_training(run.read_config().record, run.read_metrics(), pictures)
    with atomic_path(run.path / "report.html") as file:
        file.write_text(page, encoding="utf-8")
    print(f"report: {run.path / 'report.html'}")


def last_spread(run: RunDir) -> float:
    """Mean spread of the embeddings over the last tenth of the log; infinite where the method has none."""
    values = [row["spread"] for row in run.read_metrics() if "spread" in row]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else float("inf")
