"""Train a segmentation network on the labels of a few subjects, and the localizer that goes before it."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings, localizer_settings
from fewbeats.training.loop import FitSettings
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.sample import Sample
    from fewbeats.training.loop import Validation

HELD_BACK = 0.25  # share of the labeled subjects that choose the checkpoint with `select: best`
EVALUATIONS = 10  # of the checkpoint during a run with `select: best`


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train on a cohort's labeled subjects; the run folder is all that prediction needs."""

    cohort: tyro.conf.Positional[Path]
    """Cohort table (CSV or Parquet) from `fewbeats index`."""
    out: Path
    """Run folder. An unfinished run in it is resumed."""
    task: Literal["segmentation"] = "segmentation"
    """What is learned."""
    labeled: int | None = None
    """Number of labeled subjects to use, drawn by the seed; all by default."""
    labeled_subjects: str | None = None
    """File that names the labeled subjects: one a line, a CSV, or FILE.csv:COLUMN for a 0/1 column."""
    structures: tuple[str, ...] = ()
    """Structures to segment; by default all that the labels speak of."""
    init: str = "natural"
    """scratch, natural (weights from photographs), a run folder, or a .safetensors file."""
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
        started = time.perf_counter()
        if (self.steps is None) == (self.minutes is None):
            raise InputError("give either --steps or --minutes")
        data = choose_data(self)
        run = RunDir(self.out)
        if run.claim({"command": "finetune", "settings": self, "labeled_subjects": data.labeled_subjects}):
            print(f"{run.path}: already trained with these settings")
            return run.path
        if self.localizer_steps:
            _train_localizer(self, data, RunDir(run.path / "localizer"))
        _train_segmenter(self, data, run, started)
        print(f"{run.path}: trained on {', '.join(data.labeled_subjects)}")
        return run.path


@dataclass(frozen=True)
class TrainingData:
    """What a run may learn from."""

    structures: tuple[str, ...]
    train_rows: list[dict[str, Any]]
    held_back_rows: list[dict[str, Any]]
    """Labeled subjects that only choose the checkpoint; part of the label budget."""
    cache: Path
    provenance: Provenance

    @property
    def labeled_subjects(self) -> list[str]:
        """Every subject whose labels the run uses."""
        return sorted({row["subject"] for row in self.train_rows + self.held_back_rows})


def choose_data(command: Finetune) -> TrainingData:
    """Labeled subjects of the cohort, checked against the splits."""
    import polars as pl

    from fewbeats.data.cohort import check_files, read_cohort
    from fewbeats.data.split import labeled_subjects, read_subject_list

    cohort = read_cohort(command.cohort)
    structures = command.structures or spoken_structures(cohort)
    if command.labeled_subjects:
        subjects = read_subject_list(command.labeled_subjects, cohort, structures=structures)
    else:
        subjects = labeled_subjects(cohort, command.labeled, command.seed, structures=structures)
    rows = cohort.filter(pl.col("subject").is_in(subjects), pl.col("label").is_not_null())
    check_files(rows)
    cache = command.cache or command.out.parent / "sample-cache"
    provenance = trace_data(command, cohort, rows, cache)
    held = []
    if command.select == "best":
        if len(subjects) < 2:
            raise InputError("--select best: needs a second labeled subject to judge by; take --select last")
        held = subjects[-max(1, math.ceil(HELD_BACK * len(subjects))) :]
        print(f"{len(held)} of the {len(subjects)} labeled subjects choose the checkpoint: {', '.join(held)}")
    return TrainingData(
        structures=tuple(structures),
        train_rows=[row for row in rows.iter_rows(named=True) if row["subject"] not in held],
        held_back_rows=[row for row in rows.iter_rows(named=True) if row["subject"] in held],
        cache=cache,
        provenance=provenance,
    )


def trace_data(command: Finetune, cohort: pl.DataFrame, rows: pl.DataFrame, cache: Path) -> Provenance:
    """What this run will have seen, once nothing held out is among it, under whatever name.

    Raises:
        InputError: a held-out scan, or weights that saw one.
    """
    import polars as pl

    from fewbeats.data.provenance import (
        Provenance,
        by_subject,
        guard_ancestors,
        guard_training,
        hash_scans,
        load_provenance,
    )
    from fewbeats.data.split import HELD_OUT

    held_out = cohort.filter(pl.col("split").is_in(HELD_OUT))
    hashes = hash_scans(pl.concat([rows, held_out]), cache=cache / "hashes.json")
    guard_training(cohort, labeled=rows, hashes=hashes)
    started_from = Path(command.init)
    ancestors = [load_provenance(started_from)] if started_from.is_dir() else []
    guard_ancestors(ancestors, by_subject(held_out, hashes))
    return Provenance(
        run=command.out.resolve().name, labeled=by_subject(rows, hashes), ancestors=tuple(ancestors)
    )


def spoken_structures(cohort: pl.DataFrame) -> tuple[str, ...]:
    """Structures the cohort's labels speak of, wholes before parts left out, in the usual order."""
    from fewbeats.anatomy import FEWBEATS_VALUES, PART_OF, find_convention

    conventions = cohort.filter(cohort["label"].is_not_null())["convention"].drop_nulls().unique()
    spoken = {s for name in conventions for s in find_convention(name).speaks_of}
    return tuple(s for s in FEWBEATS_VALUES if s in spoken and s not in PART_OF)


def _train_localizer(command: Finetune, data: TrainingData, run: RunDir) -> None:
    """A network of the same kind and start that finds "heart" in whole slices at low resolution."""
    from fewbeats.data.samples import as_heart, image_center, prepare_labeled

    if (run.path / "run.json").is_file():
        return
    settings = localizer_settings(command.model.network)
    samples = prepare_labeled(
        data.train_rows,
        settings.preprocess,
        structures=data.structures,
        cache=data.cache,
        center=image_center,
    )
    init = command.init if command.init in ("scratch", "natural") else "natural"
    fit_settings = FitSettings(steps=command.localizer_steps, seed=command.seed)
    network, _ = _train(
        as_heart(samples), settings, fit_settings, run, classes=2, init=init, label="localizer"
    )
    _finish(run, network, settings, {"task": "localizer", "structures": ["heart"], "init": init})


def _train_segmenter(command: Finetune, data: TrainingData, run: RunDir, started: float) -> None:
    from fewbeats.data.samples import prepare_labeled
    from fewbeats.inference.plausibility import take_fingerprint

    settings = command.model
    samples, held = (
        prepare_labeled(rows, settings.preprocess, structures=data.structures, cache=data.cache)
        for rows in (data.train_rows, data.held_back_rows)
    )
    if not samples:
        raise InputError(f"{command.cohort}: the labeled subjects have no labeled frame; label some")
    minutes = None if command.minutes is None else command.minutes - (time.perf_counter() - started) / 60
    fit_settings = FitSettings(steps=command.steps, minutes=minutes, seed=command.seed)
    network, steps = _train(
        samples, settings, fit_settings, run, classes=len(data.structures) + 1, init=command.init, held=held
    )
    about = {
        "task": command.task,
        "structures": data.structures,
        "init": command.init,
        "cohort": command.cohort,
        "labeled_subjects": data.labeled_subjects,
        "select": command.select,
        "steps": steps,
        "seed": command.seed,
        "seconds": time.perf_counter() - started,
        "fingerprint": take_fingerprint(samples, settings.preprocess, data.structures),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    data.provenance.save(run.path)
    _finish(run, network, settings, about)


def _train(
    samples: Sequence[Sample],
    settings: SegmentationSettings,
    fit_settings: FitSettings,
    run: RunDir,
    *,
    classes: int,
    init: str,
    held: Sequence[Sample] = (),
    label: str = "training",
) -> tuple[nn.Module, int]:
    """Start a network as asked and train it."""
    import torch

    from fewbeats.data.dataset import SliceSampler
    from fewbeats.finetuning.segmentation import train_segmentation
    from fewbeats.models.network import build_network

    torch.manual_seed(fit_settings.seed)
    network = build_network(settings.network, classes=classes)
    print(f"{label}: {start_network(network, settings, init)}")
    batches = SliceSampler(
        samples, settings.batch_size, settings.depth, slab=settings.network.dims == 3, seed=fit_settings.seed
    )
    return train_segmentation(
        network,
        batches,
        settings=settings,
        fit_settings=fit_settings,
        run=run,
        label=label,
        validation=_validation(held, settings, fit_settings) if held else None,
    )


def start_network(network: nn.Module, settings: SegmentationSettings, init: str) -> str:
    """Put the wanted start into a network; returns one line that says what was loaded.

    Raises:
        InputError: the weights do not exist or do not fit.
    """
    from fewbeats.models.pretrained2d import load_natural
    from fewbeats.models.weights import read_weights, transfer_weights

    if init == "scratch":
        return "random start"
    if init == "natural":
        return f"encoder from {load_natural(network, settings.network)}"
    path = Path(init)
    if path.is_dir():
        RunDir(path).read_config()
        path = RunDir(path).weights()
    return f"from {init}: {transfer_weights(network, read_weights(path), source=init)}"


def _validation(
    held: Sequence[Sample], settings: SegmentationSettings, fit_settings: FitSettings
) -> Validation:
    """Mean Dice over the held back subjects, on the network's grid."""
    from fewbeats.finetuning.segmentation import score_samples, validate_with

    steps = fit_settings.steps or 1000
    return validate_with(
        lambda network: score_samples(network, held, settings), every=max(1, steps // EVALUATIONS)
    )


def _finish(run: RunDir, network: nn.Module, settings: SegmentationSettings, about: dict[str, Any]) -> None:
    """Export weights, and ONNX where it can be written, time the runtimes, and mark the run finished."""
    from fewbeats.inference.engine import export_network
    from fewbeats.models.weights import save_weights

    save_weights(network.state_dict(), run.weights())
    engines = export_network(run.path, network, settings)
    run.write_config({**about, "settings": settings, "engines_seconds": engines})
    run.drop_checkpoint()
