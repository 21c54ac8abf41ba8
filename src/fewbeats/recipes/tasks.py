"""Train what a task file says of slices and studies: classes, points; masks are `segmenter`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.data.files import open_scan
from fewbeats.data.points import count_points, open_points
from fewbeats.data.pool import prepare_pool
from fewbeats.data.presence import open_presence
from fewbeats.data.sampler import Sampler
from fewbeats.data.store import MARGIN, OneFrame, Stacks
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.finetuning.task import Task, study_truth
from fewbeats.recipes.run import Exported, Length, Training, carry_out
from fewbeats.recipes.starts import Start, start_digest
from fewbeats.sample import UNKNOWN
from fewbeats.training.loop import FitSettings
from fewbeats.transforms.preprocess import lay_grid
from fewbeats.transforms.views import Viewed

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.finetuning.segmentation import SegmentationSettings
    from fewbeats.recipes.pools import Pools
    from fewbeats.sample import Batches
    from fewbeats.training.rundir import RunDir


def train_task(
    out: Path,
    pools: Pools,
    task: Task,
    settings: SegmentationSettings,
    *,
    start: Start,
    length: Length,
    seed: int,
    workers: int = 0,
    request: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> RunDir:
    """A run of a task of classes or points.

    Args:
        out: run folder.
        pools: whose labels.
        task: what is learned.
        settings: network, grid, augmentation, optimizer.
        start: of the network.
        length: of the training.
        seed: start of the weights, order of the slices.
        workers: processes that make batches.
        request: settings that decide the outcome; pools and start are added.
        about: what `run.json` is to say besides.

    Raises:
        InputError: settings or labels that cannot be used, weights that do not fit, or another run in `out`.
    """
    check_task(task, settings)

    def build() -> Training:
        table = read_table(pools, task, settings)
        network = build_task(task, settings, start=start, seed=seed)
        said = {
            "task": task.kind, "target": task, "settings": settings, "classes": task.classes,
            "modalities": sorted({row["modality"] or "MR" for row in pools.labeled.rows(named=True)}),
            "labeled_subjects": pools.labeled_subjects, "init": start.init, **(about or {}),
        }  # fmt: skip
        return supervise_task(network, table, task, settings, seed=seed, about=said)

    return carry_out(
        out,
        request={**request, "task": task, "start": {"init": start_digest(start.init)}, **pools.describe()},
        provenance=pools.provenance,
        build=build,
        length=length,
        settings=FitSettings(seed=seed, optim=settings.optim),
        label=task.kind,
        workers=workers,
    )


def check_task(task: Task, settings: SegmentationSettings) -> None:
    """Refuse networks that a task cannot be learned with.

    Raises:
        InputError: naming the setting.
    """
    network = settings.network
    if network.dims != 2:
        raise InputError(
            f"--network.kind {network.kind}: {task.kind} is learned slice by slice; take a 2D one"
        )
    if settings.preprocess.through_plane_mm:
        raise InputError(f"--preprocess.through-plane-mm: {task.kind} keeps the scan's slices; take it out")
    if settings.batch_size < 2:
        raise InputError(f"--batch-size {settings.batch_size}: {task.kind} needs at least 2")
    if task.kind == "study" and network.context:
        raise InputError("--network.context: slices of a study are looked at one by one; give 0")


def build_task(task: Task, settings: SegmentationSettings, *, start: Start, seed: int) -> nn.Module:
    """The task's network, started as wanted.

    Raises:
        InputError: weights that do not fit.
    """
    import torch

    from fewbeats.finetuning.network import count_maps, put_head

    network = start.build(settings.network, count_maps(task), seed=seed)
    torch.manual_seed(seed)  # of the head
    return put_head(network, task).to(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a task is learned from."""

    stacks: Stacks
    """With `told`."""
    shares: np.ndarray | None = None
    """Of a classification: how often each stack is drawn, so that all classes come alike."""
    study: np.ndarray | None = None
    """(N,) of a study's class: number of the study that each stack is of."""
    classes: np.ndarray | None = None
    """(M,) class of each study."""


def read_table(pools: Pools, task: Task, settings: SegmentationSettings) -> Table:
    """The slices of a pool's labeled rows, with what is known of them.

    Raises:
        InputError: labels that cannot be used, one class alone, or subjects of which nothing is known.
    """
    rows = pools.labeled.rows(named=True)
    stacks = prepare_pool(pools.labeled, settings.preprocess, cache=pools.cache, center="image")
    if task.kind == "landmarks":
        return Table(
            stacks=_labeled_frames(stacks, rows, partial(_tell_points, task=task, settings=settings))
        )
    if task.kind == "study":
        return _by_study(stacks, rows, task)
    if task.present:
        found = _labeled_frames(stacks, rows, lambda row, scan: open_presence(row, scan, task.present))
        return _balanced(found, task)
    told = [np.full((t, z), task.classes.index(row[task.column]))
            for row, t, z in zip(rows, stacks.frames, stacks.slices)]  # fmt: skip
    return _balanced(replace(_apart(stacks), told=told), task)


def _apart(stacks: Stacks) -> Stacks:
    """The same table with an array for each stack, though some are one file."""
    images = [stacks.images[i] for i in stacks.which]
    return replace(stacks, images=images, which=np.arange(len(images)))


Tell = Callable[[Mapping[str, Any], Any], dict[int, Callable[[], np.ndarray]]]


def _labeled_frames(stacks: Stacks, rows: list[dict[str, Any]], tell: Tell) -> Stacks:
    """A stack for each frame of which something is known; `tell` as `open_points`."""
    images, told, which = [], [], []
    for number, row in enumerate(rows):
        for t, find in tell(row, open_scan(row)).items():
            images.append(OneFrame(stacks.images[stacks.which[number]], t))
            told.append(find()[None])
            which.append(number)
    if not images:
        raise InputError("no labeled frame to learn from; label some, or name other subjects")
    if told[0].dtype.kind == "f" and all(np.isnan(found).all() for found in told):
        raise InputError("no labeled frame shows any of the points; name other scans with 'where'")
    at = np.array(which)
    return Stacks(
        images=images,
        which=np.arange(len(images)),
        frames=np.ones(len(images), int),
        slices=stacks.slices[at],
        order=stacks.order[at],
        subject=stacks.subject[at],
        told=told,
    )


def _tell_points(
    row: Mapping[str, Any], scan: Any, *, task: Task, settings: SegmentationSettings
) -> dict[int, Callable[[], np.ndarray]]:
    """Points of a row in pixels of its stored slices."""
    size = int(settings.preprocess.size * MARGIN)
    grid = lay_grid(scan.shape[1:], scan.spacing_mm, settings.preprocess, size=size)
    start, step = np.array(grid.start[1:]), np.array(grid.step[1:])

    def on_grid(find: Callable[[], np.ndarray]) -> np.ndarray:
        return ((find() - start) / step).astype(np.float32)

    return {t: partial(on_grid, find) for t, find in open_points(row, scan, task.points).items()}


def _balanced(stacks: Stacks, task: Task) -> Table:
    """Every class as often as the others, and within one every stack that shows it."""
    assert stacks.told is not None
    counts = np.array([np.bincount(told.ravel(), minlength=len(task.slice_classes)) for told in stacks.told])
    there = counts.sum(0)
    if (there > 0).sum() < 2:
        only = task.slice_classes[int(there.argmax())]
        raise InputError(f"all labeled slices are '{only}'; label some of another class")
    if task.present:  # slices of both classes lie in one stack
        return Table(stacks=stacks)
    return Table(stacks=stacks, shares=(counts > 0) @ (1 / np.maximum(1, (counts > 0).sum(0))))


def _by_study(stacks: Stacks, rows: list[dict[str, Any]], task: Task) -> Table:
    """Studies with their class, and what masks tell of their slices."""
    names = [(row["subject"], row["study"]) for row in rows]
    studies = list(dict.fromkeys(names))
    classes = {name: task.classes.index(told) for name, told in study_truth(task, rows).items()}
    if len(set(classes.values())) < 2:
        raise InputError(f"all labeled studies are '{rows[0][task.column]}'; label some of another class")
    stacks, told = _apart(stacks), []
    for row, frames, slices in zip(rows, stacks.frames, stacks.slices):
        known = np.full((frames, slices), UNKNOWN)
        if task.present and row["label_source"] in (None, "manual"):
            for t, find in open_presence(row, open_scan(row), task.present).items():
                known[t] = find()
        told.append(known)
    seen = {int(value) for known in told for value in np.unique(known)} - {UNKNOWN}
    if task.present and len(seen) < 2:
        only = (
            f"all labeled slices are '{task.slice_classes[seen.pop()]}'" if seen else "no slice has a class"
        )
        raise InputError(
            f"{only} by manual masks of {', '.join(task.present)}; label others, or take present out"
        )
    return Table(
        stacks=replace(stacks, told=told),
        study=np.array([studies.index(name) for name in names]),
        classes=np.array([classes[name] for name in studies]),
    )


def supervise_task(
    network: nn.Module,
    table: Table,
    task: Task,
    settings: SegmentationSettings,
    *,
    seed: int,
    about: Mapping[str, Any],
) -> Training:
    """Supervised training of a task's network.

    Args:
        network: of `build_task`; changed in place.
        table: what is learned from.
        task: what is learned.
        settings: all but data and start.
        seed: order and augmentation of the slices.
        about: what `run.json` says.
    """
    from fewbeats.data.bags import StudySampler
    from fewbeats.finetuning import classification, landmarks
    from fewbeats.finetuning.bags import study_loss
    from fewbeats.finetuning.supervised import Supervised

    draws: Batches
    if task.kind == "study":
        assert table.study is not None
        assert table.classes is not None
        draws = StudySampler(
            table.stacks, table.study, table.classes, settings.batch_size, task.slices, seed=seed
        )
    else:
        draws = Sampler(table.stacks, settings.batch_size, settings.depth, seed=seed, shares=table.shares)
    views = landmarks.views if task.kind == "landmarks" else classification.views
    losses: dict[str, Callable[[Any, Any], Any]] = {
        "classification": classification.class_loss,
        "landmarks": partial(landmarks.heatmap_loss, counts=count_points(task.points)),
        "study": study_loss,
    }
    method = Supervised(
        network, optim=settings.optim, ema_decay=settings.ema_decay, freeze=settings.freeze_encoder,
        loss=losses[task.kind],
    )  # fmt: skip
    batches = Viewed(draws, partial(views, settings=settings), seed)

    def write(network: nn.Module, folder: RunDir) -> dict[str, Any]:
        from fewbeats.models.finish import finish_network
        from fewbeats.models.weights import save_weights

        with atomic_path(folder.weights()) as file:
            save_weights(finish_network(network, batches).state_dict(), file)
        return {}

    return Training(method=method, batches=batches, exports={"network": Exported(about=about, write=write)})
