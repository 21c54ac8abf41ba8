"""Train on labeled frames and on unlabeled scans at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.models.network import NetworkSettings, memory_format, set_deep_supervision
from fewbeats.recipes.run import Length, Training, carry_out
from fewbeats.recipes.segmenter import (
    Localizer,
    describe_segmenter,
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

COLLAPSED = 1e-4  # share of pseudo-labeled pixels of other classes than one: below, nothing is there to learn


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
    )
    warn_collapsed(run)
    return run


def _build(
    out: Path, pools: Pools, settings: CotrainerSettings, *, start: Start, seed: int, about: Mapping[str, Any]
) -> Training:
    from fewbeats.data.foreground import Surveys

    model, method = settings.model, settings.method
    samples = read_samples(pools, model.preprocess, phase=settings.phase)
    refuse_missing(pools, samples, phase=settings.phase)
    unlabeled = sorted(set(pools.unlabeled["subject"]))
    said = {"init": start.init, "method": method, "unlabeled_subjects": unlabeled, **about}
    said |= {"transductive": pools.provenance.transductive}
    surveys = Surveys(out / "foreground")
    batches = mix(samples, pools, model, method=method, own=settings.own, seed=seed, surveys=surveys)
    given: dict[str, Any] = {
        "own": settings.own, "start": start, "pools": pools, "seed": seed,
        "about": describe_segmenter(pools, samples, model) | said,
    }  # fmt: skip
    if settings.partner:
        return _co_training(batches, model, partner=settings.partner, surveys=surveys, **given)
    return _one_network(batches, model, method=method, **given)


def mix(
    samples: list[Sample],
    pools: Pools,
    settings: SegmentationSettings,
    *,
    method: str,
    own: Any,
    seed: int,
    surveys: Surveys,
) -> Batches:
    """Labeled and unlabeled slices, or slabs, through the method's views; `surveys` place unlabeled slabs."""
    from fewbeats.data.foreground import labeled_extents
    from fewbeats.data.mixture import Mixture
    from fewbeats.data.sampler import Sampler
    from fewbeats.data.store import stack_samples

    recipe, size, dims = find_recipe(method), settings.batch_size, settings.network.dims
    refuse_silent(samples, pools.structures, method=method)
    known, pool, forced = stack_samples(samples), _prepare(pools, settings), recipe.forced(own)
    draw = partial(Sampler, batch_size=size, depth=settings.depth, slab=dims == 3, seed=seed)
    if dims == 3 and forced and known.slices.max() > settings.depth:
        labeled = draw(known, forced=forced, extents=labeled_extents(known))
    else:
        labeled = draw(known)
    labels = partial(_count, recipe.labels, own=own, size=size)
    mixture = Mixture(labeled, draw(pool, forced=forced, extents=surveys), size, labels)
    return Viewed(mixture, partial(_view, recipe.views, settings=settings, own=own), seed)


def _prepare(pools: Pools, settings: SegmentationSettings) -> Stacks:
    from fewbeats.data.pool import prepare_pool

    return prepare_pool(pools.unlabeled, settings.preprocess, cache=pools.cache)


def _count(labels: Any, clock: Clock, *, own: Any, size: int) -> int:
    return labels(clock, own, size)


def _view(
    views: Any, batch: Batch, generator: Generator, *, settings: SegmentationSettings, own: Any
) -> Batch:
    cut = views(batch, generator, settings=settings.views, own=own)
    return as_input(cut, dims=settings.network.dims)


def refuse_silent(samples: list[Sample], structures: tuple[str, ...], *, method: str) -> None:
    """M&N's loss judges every class in every voxel, so all labels must speak of all structures.

    Raises:
        InputError: naming a subject whose labels do not.
    """
    for sample in samples if method == "mn" else ():
        if not all(sample.annotated):
            silent = [s for s, speaks in zip(structures, sample.annotated) if not speaks]
            raise InputError(
                f"{sample.subject}: its labels are silent about {', '.join(silent)}; name --structures that "
                "all labels speak of, or take another --method"
            )


def _one_network(
    batches: Batches,
    settings: SegmentationSettings,
    *,
    method: str,
    own: Any,
    start: Start,
    pools: Pools,
    seed: int,
    about: Mapping[str, Any],
) -> Training:
    network = start.build(settings.network, len(pools.structures) + 1, seed=seed)
    network.to(memory_format=memory_format(settings.network.dims))
    build = find_recipe(method).build
    assert build is not None
    built = build(network, own, settings.optim, settings.ema_decay)
    exported = export_segmenter(batches, settings, about=about)
    return Training(method=built, batches=batches, exports={"network": exported})


def _co_training(
    batches: Batches,
    settings: SegmentationSettings,
    *,
    partner: Partner,
    own: Any,
    start: Start,
    pools: Pools,
    seed: int,
    about: Mapping[str, Any],
    surveys: Surveys,
) -> Training:
    from fewbeats.models.adapters import limit_encoder
    from fewbeats.semi_supervised.co_training import CoTraining, Folded

    classes = len(pools.structures) + 1
    deep = start.build(settings.network, classes, seed=seed, label="3D network")
    flat = partner.start.build(partner.network, classes, seed=seed, label="2D network")
    for network, dims in ((deep, 3), (flat, 2)):
        network.to(memory_format=memory_format(dims))
        set_deep_supervision(network, False)
    limit_encoder(flat, own.flat_learns, rank=own.rank)
    beside, pool = replace(settings, network=partner.network), _prepare(pools, settings)
    survey = partial(_survey, pool=pool, settings=settings, surveys=surveys)
    forces = own.foreground > 0 and pool.slices.max() > settings.depth
    return Training(
        method=CoTraining(flat, deep, settings=own, survey=survey if forces else None),
        batches=batches,
        exports={
            "network": export_segmenter(batches, settings, about=about),
            "flat": export_segmenter(Folded(batches), beside, about={**about, "init": partner.start.init}),
        },
        finish=lambda *_: surveys.clear(),
    )


def _survey(
    step: int, network: nn.Module, *, pool: Stacks, settings: SegmentationSettings, surveys: Surveys
) -> None:
    """Keep where in every frame of the pool a 3D network finds foreground."""
    import numpy as np
    import torch

    from fewbeats.data.foreground import find_extent, list_frames
    from fewbeats.models.answering import answering

    found, device = [], next(network.parameters()).device
    with answering(network) as ask:
        for stack, t in list_frames(pool):
            side = middle(pool.images[pool.which[stack]].shape[-1], settings.preprocess.size)
            image = pool.read(stack, t, slice(None))[:, side, side].astype(np.float32)
            cut = settings.cut(image)
            mask = ask(torch.from_numpy(cut).to(device))[0].argmax(0).cpu().numpy()
            found.append(find_extent(mask[(len(mask) - len(image)) // 2 :][: len(image)]))
    surveys.write(step, np.array(found))


def warn_collapsed(run: RunDir) -> None:
    """Say where what was learned from without labels was background, or another class, alone in the end."""
    told = [row for row in run.read_metrics() if "pseudo_largest" in row]
    last = told[-max(1, len(told) // 10) :]
    if last and sum(row["pseudo_largest"] for row in last) / len(last) > 1 - COLLAPSED:
        what = "background" if last[-1]["pseudo_foreground"] < 0.5 else "one structure"
        print(
            f"{run.path}: collapsed, pseudo-labels are {what} alone; train longer on labels first "
            "(--mn.warmup, --bcp.pretraining, --unimatch.pretraining), or give more of them"
        )
