"""Train on labeled frames and on unlabeled scans at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings, memory_format, set_deep_supervision
from fewbeats.recipes.cotrainer_checks import refuse_silent, warn_collapsed
from fewbeats.recipes.run import Length, Training, carry_out
from fewbeats.recipes.segmenter import (
    Localizer,
    describe_segmenter,
    draw_labeled,
    export_segmenter,
    place_localizer,
    read_samples,
    refuse_missing,
)
from fewbeats.recipes.starts import Start, start_digest
from fewbeats.semi_supervised.methods import find_recipe
from fewbeats.training.loop import FitSettings
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.preprocess import middle
from fewbeats.transforms.views import Viewed, as_input

if TYPE_CHECKING:
    from torch import Generator, nn

    from fewbeats.clock import Clock
    from fewbeats.data.foreground import Surveys
    from fewbeats.data.store import Stacks
    from fewbeats.recipes.pools import Pools
    from fewbeats.sample import Batch, Batches, Sample

LOOKS = 4  # frames of a cine that stand for all of them


@dataclass(frozen=True, kw_only=True)
class Partner:
    """The second, 2D network of a co-training."""

    network: NetworkSettings
    start: Start


@dataclass(frozen=True, kw_only=True)
class CotrainerSettings:
    """What is trained, and how."""

    model: SegmentationSettings
    """Network, grid, augmentation, optimizer; of M&N those of the 3D network."""
    method: str
    """mn, mean-teacher, bcp or unimatch."""
    own: Any
    """The method's settings."""
    partner: Partner | None = None
    """Of M&N: its 2D network."""
    phase: str | None = None
    """Learn from labels of ED or ES alone."""
    parts: int = 1
    """Micro-batches of an update."""


def train_cotrainer(
    out: Path,
    pools: Pools,
    settings: CotrainerSettings,
    *,
    start: Start,
    length: Length,
    seed: int,
    localizer: Localizer,
    workers: int = 0,
    request: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> RunDir:
    """A run of segmentation that learns from labels and from a pool without them.

    Args:
        out: run folder.
        pools: whose labels, and whose pixels.
        settings: what is trained, and how.
        start: of the network.
        length: of the training.
        seed: start of the weights, order of the samples.
        localizer: where it comes from.
        workers: processes that make batches.
        request: settings that decide the outcome; pools and starts are added.
        about: what `run.json` is to say besides.

    Raises:
        InputError: labels or images that cannot be used, weights that do not fit, or another run in `out`.
    """
    model, starts = settings.model, {"init": start_digest(start.init), "localizer": localizer.describe()}
    if settings.partner:
        starts["partner"] = start_digest(settings.partner.start.init)
    place = partial(place_localizer, pools=pools, settings=model, localizer=localizer, init=start.init,
                    seed=seed, phase=settings.phase)  # fmt: skip
    run = carry_out(
        out,
        request={**request, "start": starts, **pools.describe()},
        provenance=pools.provenance,
        build=lambda: _build(out, pools, settings, start=start, seed=seed, about=about or {}),
        prepare=place,
        length=length,
        settings=FitSettings(seed=seed, optim=model.optim, parts=settings.parts),
        label=settings.method,
        workers=workers,
    )
    warn_collapsed(run, longer=find_recipe(settings.method).longer)
    return run


def _build(
    out: Path, pools: Pools, settings: CotrainerSettings, *, start: Start, seed: int, about: Mapping[str, Any]
) -> Training:
    from fewbeats.data.foreground import Surveys

    model, method, partner = settings.model, settings.method, settings.partner
    samples = read_samples(pools, model.preprocess, phase=settings.phase)
    refuse_missing(pools, samples, phase=settings.phase)
    if find_recipe(method).judges_all:
        refuse_silent(samples, pools.structures)
    networks = _start(pools, settings, start=start, seed=seed)  # what does not fit shows before the pool
    surveys, pool = Surveys(out / "foreground"), read_pool(pools, model)
    batches = mix(samples, pool, model, method=method, own=settings.own, seed=seed, surveys=surveys)
    unlabeled = sorted(set(pools.unlabeled["subject"]))
    said = {"init": start.init, "method": method, "unlabeled_subjects": unlabeled, **about}
    said |= {"transductive": pools.provenance.transductive}
    told = describe_segmenter(pools, samples, model) | said
    exports = {"network": export_segmenter(batches, model, about=told)}
    if not partner:
        build = find_recipe(method).build
        assert build is not None
        built = build(networks["network"], settings.own, model.optim, model.ema_decay)
        return Training(method=built, batches=batches, exports=exports)
    from fewbeats.semi_supervised.co_training import CoTraining, Folded

    look = partial(_survey, pool=pool, settings=model, surveys=surveys)
    forces = model.foreground > 0 and pool.slices.max() > model.depth
    beside, told = replace(model, network=partner.network), told | {"init": partner.start.init}
    exports["flat"] = export_segmenter(Folded(batches), beside, about=told)
    return Training(
        method=CoTraining(
            networks["flat"], networks["network"], settings=settings.own, look=look if forces else None
        ),
        batches=batches,
        exports=exports,
        finish=lambda *_: surveys.clear(),
    )


def _start(pools: Pools, settings: CotrainerSettings, *, start: Start, seed: int) -> dict[str, nn.Module]:
    """The network, of M&N both."""
    from fewbeats.models.adapters import limit_encoder

    model, partner, classes = settings.model, settings.partner, len(pools.structures) + 1
    label = "3D network" if partner else "training"
    networks = {"network": start.build(model.network, classes, seed=seed, label=label)}
    networks["network"].to(memory_format=memory_format(model.network.dims))
    if partner:
        flat = partner.start.build(partner.network, classes, seed=seed, label="2D network")
        flat.to(memory_format=memory_format(2))
        limit_encoder(flat, settings.own.flat_learns, rank=settings.own.rank)
        networks["flat"] = flat
        for network in networks.values():
            set_deep_supervision(network, False)
    return networks


def mix(
    samples: list[Sample],
    pool: Stacks,
    settings: SegmentationSettings,
    *,
    method: str,
    own: Any,
    seed: int,
    surveys: Surveys,
) -> Batches:
    """Labeled and unlabeled slices, or slabs, through the method's views; `surveys` place unlabeled slabs."""
    from fewbeats.data.mixture import Mixture
    from fewbeats.data.sampler import Sampler

    recipe, size = find_recipe(method), settings.batch_size
    labeled = draw_labeled(samples, settings, seed=seed)
    if (items := len(samples) if labeled.slab else int(labeled.stacks.slices.sum())) < size:
        print(f"{items} labeled items for batches of {size}: some stand in a batch more than once")
    unlabeled = Sampler(pool, size, settings.depth, slab=labeled.slab, seed=seed, forced=settings.foreground,
                        extents=surveys)  # fmt: skip
    mixture = Mixture(labeled, unlabeled, size, partial(_count, recipe.labels, own=own, size=size))
    return Viewed(mixture, partial(_view, recipe.views, settings=settings, own=own), seed)


def read_pool(pools: Pools, settings: SegmentationSettings) -> Stacks:
    """The scans without labels, of more than one slice for a 3D network; says what is left aside.

    Raises:
        InputError: none is left.
    """
    from fewbeats.data.pool import prepare_pool

    rows = pools.unlabeled
    if settings.network.dims == 3:
        rows = rows.filter(rows["slices"].fill_null(2) > 1)  # what the table does not tell is read and seen
        if aside := len(pools.unlabeled) - len(rows):
            print(f"{aside} scans of the pool are single slices and left out: the network is 3D")
    if closed := int(rows["label"].is_not_null().sum()):
        print(f"labels of {closed} scans of the pool stay closed")
    if set(rows["subject"]) <= set(pools.labeled_subjects):
        print("every subject of the pool is labeled: it adds frames of theirs, and nobody else")
    return prepare_pool(rows, settings.preprocess, cache=pools.cache)


def _count(labels: Any, clock: Clock, *, own: Any, size: int) -> int:
    return labels(clock, own, size)


def _view(
    views: Any, batch: Batch, generator: Generator, *, settings: SegmentationSettings, own: Any
) -> Batch:
    cut = views(batch, generator, settings=settings.views, own=own)
    return as_input(cut, dims=settings.network.dims)


def _survey(
    step: int, network: nn.Module, *, pool: Stacks, settings: SegmentationSettings, surveys: Surveys
) -> None:
    """Keep where in the frames of the pool's thick stacks a 3D network finds foreground.

    Of a cine a few frames are looked at, and the others are taken to be like the nearest of them.
    """
    import numpy as np
    import torch

    from fewbeats.data.foreground import find_extent, list_frames
    from fewbeats.models.answering import answering

    extents, device = np.zeros((int(pool.frames.sum()), 2), int), next(network.parameters()).device
    looked: dict[tuple[int, int], tuple[int, int]] = {}
    with answering(network) as ask:
        for at, (stack, t) in enumerate(list_frames(pool)):
            if pool.slices[stack] <= settings.depth:
                continue
            t = nearest_look(t, int(pool.frames[stack]))
            if (stack, t) in looked:
                extents[at] = looked[stack, t]
                continue
            side = middle(pool.images[pool.which[stack]].shape[-1], settings.preprocess.size)
            image = pool.read(stack, t, slice(None))[:, side, side].astype(np.float32)
            cut = settings.cut(image)
            mask = ask(torch.from_numpy(cut).to(device))[0].argmax(0).cpu().numpy()
            extents[at] = looked[stack, t] = find_extent(mask[(len(mask) - len(image)) // 2 :][: len(image)])
    surveys.write(step, extents)


def nearest_look(t: int, frames: int) -> int:
    """The nearest of a few frames, spread over a cine, that stand for all of them.

    >>> [nearest_look(t, 9) for t in range(9)], nearest_look(0, 1)
    ([0, 0, 3, 3, 3, 5, 5, 8, 8], 0)
    """
    looks = [round(i * (frames - 1) / (LOOKS - 1)) for i in range(LOOKS)]
    return min(looks, key=lambda look: abs(look - t))
