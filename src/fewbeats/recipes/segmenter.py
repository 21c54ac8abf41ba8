"""Train a segmentation network on labeled frames, and the localizer that goes before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings, localizer_settings
from fewbeats.recipes.run import Exported, Length, Training, carry_out
from fewbeats.recipes.starts import (
    STARTS,
    Start,
    copy_localizer,
    default_start,
    find_localizer,
    start_digest,
    weights_digest,
)
from fewbeats.training.loop import FitSettings
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.data.sampler import Sampler
    from fewbeats.data.store import Stacks
    from fewbeats.recipes.pools import Pools
    from fewbeats.sample import Batches, Sample


@dataclass(frozen=True, kw_only=True)
class Localizer:
    """Where the network that finds the heart comes from."""

    steps: int = 150
    """Training steps; 0 for none: then the image's center is looked at."""
    run: Path | None = None
    """Run whose localizer is taken over instead."""

    def describe(self) -> str | None:
        """Content of the weights that are taken over, None where they are trained."""
        return weights_digest(find_localizer(self.run)) if self.run else None


def train_segmenter(
    out: Path,
    pools: Pools,
    settings: SegmentationSettings,
    *,
    start: Start,
    length: Length,
    seed: int,
    localizer: Localizer,
    phase: str | None = None,
    workers: int = 0,
    request: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> RunDir:
    """A run of segmentation: its localizer first, then the network, with all that prediction needs.

    Args:
        out: run folder.
        pools: whose labels.
        settings: network, grid, augmentation, optimizer.
        start: of the network.
        length: of the training.
        seed: start of the weights, order of the samples.
        localizer: where it comes from.
        phase: learn from frames of ED or ES alone.
        workers: processes that make batches.
        request: settings that decide the outcome; pools and starts are added.
        about: what `run.json` is to say besides.

    Raises:
        InputError: labels or images that cannot be used, weights that do not fit, or another run in `out`.
    """
    read = partial(read_samples, pools, phase=phase)
    starts = {"init": start_digest(start.init), "localizer": localizer.describe()}

    def build() -> Training:
        samples, held_back = read(settings.preprocess), read(settings.preprocess, held_back=True)
        refuse_missing(pools, [*samples, *held_back], phase=phase)
        network = start.build(settings.network, len(pools.structures) + 1, seed=seed)
        trained = describe_segmenter(pools, samples, settings) | {"init": start.init, **(about or {})}
        return segmentation(network, samples, settings, seed=seed, held_back=held_back, about=trained)

    return carry_out(
        out,
        request={**request, "start": starts, **pools.describe()},
        provenance=pools.provenance,
        build=build,
        prepare=partial(
            place_localizer,
            pools=pools,
            settings=settings,
            localizer=localizer,
            init=start.init,
            seed=seed,
            phase=phase,
        ),
        length=length,
        settings=FitSettings(seed=seed, optim=settings.optim),
        workers=workers,
    )


def place_localizer(
    run: RunDir,
    *,
    pools: Pools,
    settings: SegmentationSettings,
    localizer: Localizer,
    init: str,
    seed: int,
    phase: str | None = None,
) -> None:
    """Give a run its localizer: taken over, trained, or none; see `train_localizer`."""
    if localizer.run:
        copy_localizer(localizer.run, run)
    elif localizer.steps:
        folder, steps = run.path / "localizer", localizer.steps
        train_localizer(folder, pools, settings, init=init, steps=steps, seed=seed, phase=phase)


def train_localizer(
    out: Path,
    pools: Pools,
    settings: SegmentationSettings,
    *,
    init: str,
    steps: int,
    seed: int,
    phase: str | None = None,
) -> RunDir:
    """A network of the same kind and start that finds "heart" in whole slices at low resolution.

    Args:
        out: its run folder.
        pools: whose labels; all that is labeled is the heart.
        settings: of the segmentation network it goes before.
        init: start of that network; a run's weights have learned another task, and are not taken.
        steps: of training.
        seed: start of the weights, order of the samples.
        phase: learn from frames of ED or ES alone.

    Raises:
        InputError: labels or images that cannot be used, or another run in `out`.
    """
    own = localizer_settings(settings)
    start = Start(init=init if init in STARTS else default_start(own.network))

    def build() -> Training:
        from fewbeats.data.samples import image_center
        from fewbeats.data.store import as_heart

        samples = as_heart(read_samples(pools, own.preprocess, phase=phase, center=image_center))
        network = start.build(own.network, 2, seed=seed, label="localizer")
        about = {"task": "localizer", "structures": ["heart"], "init": start.init}
        return segmentation(network, samples, own, seed=seed, about=about)

    return carry_out(
        out,
        request={
            "settings": own,
            "start": start.init,
            "steps": steps,
            "seed": seed,
            "phase": phase,
            **pools.describe(),
        },
        provenance=pools.provenance,
        build=build,
        length=Length(steps=steps),
        settings=FitSettings(seed=seed, optim=own.optim),
        label="localizer",
        quiet=True,
    )


def train_localizer_alone(
    out: Path,
    pools: Pools,
    settings: SegmentationSettings,
    *,
    init: str,
    steps: int,
    seed: int,
    phase: str | None,
    request: Mapping[str, Any],
) -> RunDir:
    """A run that holds nothing but a localizer, for other runs to take over; see `train_localizer`."""
    from accelerate import PartialState

    run = RunDir(out)
    asked = {**request, "start": {"init": start_digest(init), "localizer": None}, **pools.describe()}
    if run.is_finished(asked, weights=False) and (run.path / "localizer" / "run.json").is_file():
        print(f"{run.path}: already trained with these settings")
        return run
    samples = read_samples(pools, settings.preprocess, phase=phase)  # whatever is wrong shows beforehand
    refuse_missing(pools, samples, phase=phase)
    run.claim(asked)
    train_localizer(out / "localizer", pools, settings, init=init, steps=steps, seed=seed, phase=phase)
    if PartialState().is_main_process:
        pools.provenance.save(run.path)
        run.write_config({"task": "localization", "labeled_subjects": pools.labeled_subjects})
    return run


def segmentation(
    network: nn.Module,
    samples: Sequence[Sample],
    settings: SegmentationSettings,
    *,
    seed: int,
    held_back: Sequence[Sample] = (),
    about: Mapping[str, Any],
) -> Training:
    """Supervised training of a network on samples.

    Args:
        network: started as wanted; changed in place.
        samples: what is learned from.
        settings: all but data and start.
        seed: order and augmentation of the samples.
        held_back: choose the best state; the last one is taken without them.
        about: what `run.json` says.
    """
    from fewbeats.finetuning.segmentation import supervise

    sampler = draw_labeled(samples, settings, seed=seed)
    method, batches, validation = supervise(network, sampler, settings, seed=seed, held_back=held_back)

    exported = export_segmenter(batches, settings, about=about)
    return Training(method=method, batches=batches, validation=validation, exports={"network": exported})


def draw_labeled(samples: Sequence[Sample], settings: SegmentationSettings, *, seed: int) -> Sampler:
    """Draws of labeled slices or, for a 3D network, of slabs, a share of them moved onto foreground.

    Where people and models made the labels, those of people are half of what is drawn: a few would be lost
    among many.

    Raises:
        InputError: the samples are single slices, and the network is 3D.
    """
    from fewbeats.data.foreground import labeled_extents
    from fewbeats.data.sampler import Sampler
    from fewbeats.data.store import stack_samples

    stacks, slab = stack_samples(samples), settings.network.dims == 3
    shares = share_manual(stacks, slab=slab)
    sampler = Sampler(stacks, settings.batch_size, settings.depth, slab=slab, seed=seed, shares=shares)
    if not slab:
        return sampler
    if stacks.slices.max() == 1:
        raise InputError(
            f"--network.kind {settings.network.kind}: the labeled images are single slices; take a 2D network"
        )
    if thin := int((stacks.slices < settings.depth).sum()):
        print(
            f"{thin} of {len(stacks.slices)} labeled stacks are thinner than --slab-slices {settings.depth}: "
            "filled up with empty slices"
        )
    if settings.foreground and stacks.slices.max() > settings.depth:
        return replace(sampler, forced=settings.foreground, extents=labeled_extents(stacks))
    return sampler


def share_manual(stacks: Stacks, *, slab: bool) -> np.ndarray | None:
    """How often each stack is drawn: manual ones half of the time; None where all labels are of one kind."""
    from fewbeats.data.sampler import share_kinds

    manual = stacks.source == "manual"
    if np.all(manual) or not np.any(manual):
        return None
    items = stacks.frames * (1 if slab else stacks.slices)
    return share_kinds(np.where(manual, "manual", "made").tolist(), items)


def export_segmenter(
    batches: Batches, settings: SegmentationSettings, *, about: Mapping[str, Any]
) -> Exported:
    """How a segmentation network leaves a training, whatever the method: weights, ONNX, timed runtimes.

    Args:
        batches: what it was trained on, for BatchNorm's statistics.
        settings: of the network.
        about: what `run.json` says.
    """

    def write(network: nn.Module, folder: RunDir) -> dict[str, Any]:
        from fewbeats.inference.engine import ONNX, digest_of, export_network
        from fewbeats.models.finish import finish_network
        from fewbeats.models.weights import save_weights

        ready = finish_network(network, batches)
        with atomic_path(folder.weights()) as partial:
            save_weights(ready.state_dict(), partial)
        seconds = export_network(folder.path, ready, settings)
        onnx = folder.path / ONNX
        files = {ONNX: digest_of(onnx)} if onnx.is_file() else {}
        return {"engines_seconds": seconds, "files": files}

    return Exported(about={**about, "settings": settings}, write=write)


def read_samples(pools: Pools, grid: Any, *, held_back: bool = False, **where: Any) -> list[Sample]:
    """The labeled frames of a pool on a network's grid.

    Args:
        pools: whose.
        grid: `PreprocessSettings` of the network.
        held_back: those that choose the checkpoint.
        where: `phase` and `center` of `prepare_labeled`.

    Raises:
        InputError: an image or label cannot be used.
    """
    from fewbeats.data.samples import prepare_labeled

    rows = pools.held_back if held_back else pools.labeled
    return prepare_labeled(
        rows.iter_rows(named=True), grid, structures=pools.structures, cache=pools.cache, **where
    )


def refuse_missing(pools: Pools, samples: Iterable[Sample], *, phase: str | None) -> None:
    """Every labeled subject must bring a frame.

    Raises:
        InputError: naming the subjects that have none.
    """
    missing = set(pools.labeled_subjects) - {sample.subject for sample in samples}
    if phase and missing:
        raise InputError(
            f"{', '.join(sorted(missing))} have no labeled frame of {phase}; label one, or name the labeled "
            "subjects"
        )
    if missing:
        raise InputError(f"{', '.join(sorted(missing))} have no labeled frame; label some")


def describe_segmenter(
    pools: Pools, samples: Sequence[Sample], settings: SegmentationSettings
) -> dict[str, Any]:
    """What `run.json` says of the data a segmentation network was trained on."""
    from fewbeats.data.files import open_scan
    from fewbeats.inference.fingerprint import take_fingerprint

    rows = pools.labeled.rows(named=True)
    return {
        "task": "segmentation",
        "structures": pools.structures,
        "modalities": sorted({row["modality"] or "MR" for row in rows}),
        "labeled_subjects": pools.labeled_subjects,
        "fingerprint": take_fingerprint(
            samples,
            settings.preprocess,
            pools.structures,
            scans=map(open_scan, rows),
            short_axis=all(row["view"] == "SAX" for row in rows),
        ),
    }
