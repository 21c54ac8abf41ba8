"""Train a segmentation network on the labels of a few subjects, and the localizer that goes before it."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewbeats.commands.start import (
    STARTS,
    copy_localizer,
    find_localizer,
    start_digest,
    start_network,
    trace_weights,
    weights_digest,
)
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings, localizer_settings
from fewbeats.ranges import check_ranges
from fewbeats.training.loop import FitSettings, check_length
from fewbeats.training.precision import choose_precision
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from torch import nn

    from fewbeats.data.provenance import Provenance
    from fewbeats.sample import Sample

HELD_BACK = 0.25  # share of the labeled subjects that choose the checkpoint with `select: best`


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
        started = time.perf_counter()
        self.check_budget()
        data, run = choose_data(self), RunDir(self.out)
        samples = read_samples(self, data)  # whatever is wrong with the input shows before the folder is made
        request = describe_request(self, data, samples)
        if (run.path / "request.json").is_file() and run.claim(request):
            print(f"{run.path}: already trained with these settings")
            return run.path
        network = None
        if self.task == "segmentation":
            network = start_network(
                self.model.network,
                len(data.structures) + 1,
                self.init,
                seed=self.seed,
                encoder_only=self.init_parts == "encoder",
            )
        run.claim(request)
        earlier = run.trained_seconds()  # by processes that were stopped
        if self.localizer:
            copy_localizer(self.localizer, run)
        elif samples.localizer:
            earlier += RunDir(run.path / "localizer").trained_seconds()
            _train_localizer(self, data, samples.localizer, RunDir(run.path / "localizer"))
        if network is None:
            data.provenance.save(run.path)
            run.write_config({"task": self.task, "labeled_subjects": data.labeled_subjects})
        else:
            _train_segmenter(self, data, samples, network, run, started, earlier)
        print(f"{run.path}: trained on {', '.join(data.labeled_subjects)}")
        return run.path

    def check_budget(self) -> None:
        """Raises:
        InputError: a budget that is missing, given twice, out of range, or none of the task's.
        """
        check_ranges(self, "", not_negative=("localizer_steps",), seeds=("seed",))
        if self.task == "localization":
            if self.steps or self.minutes or self.localizer or self.localizer_steps < 1:
                raise InputError("--task localization: takes --localizer-steps as its only budget")
            return
        check_length(self.steps, self.minutes)


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

    from fewbeats.anatomy import name_structure
    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.files import check_files
    from fewbeats.data.split import labeled_subjects, read_subject_list

    cohort = read_cohort(command.cohort)
    structures = tuple(dict.fromkeys(name_structure(s, file="--structures") for s in command.structures))
    structures = structures or spoken_structures(cohort)
    if command.labeled_subjects and command.labeled is not None:
        raise InputError("give either --labeled or --labeled-subjects")
    if command.labeled_subjects:
        subjects = read_subject_list(command.labeled_subjects, cohort, structures=structures)
    else:
        subjects = labeled_subjects(cohort, command.labeled, command.seed, structures=structures)
    manual = pl.col("label").is_not_null() & (pl.col("label_source") == "manual")
    rows = cohort.filter(pl.col("subject").is_in(subjects), manual)
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
        structures=structures,
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
        find_twins,
        guard_ancestors,
        guard_training,
        hash_scans,
        load_provenance,
    )
    from fewbeats.data.split import HELD_OUT

    held_out = cohort.filter(pl.col("split").is_in(HELD_OUT))
    opened = pl.concat([rows, held_out])
    hashes = hash_scans(opened, cache=cache / "hashes.json")
    guard_training(cohort, labeled=rows, hashes=hashes)
    for names in find_twins(by_subject(opened, hashes)):
        print(f"{command.cohort}: {' and '.join(names)} are one heart: frames of theirs are equal")
    ancestors = [] if command.init in STARTS else [trace_weights(Path(command.init))]
    if command.localizer:
        ancestors.append(load_provenance(find_localizer(command.localizer)))
    guard_ancestors(ancestors, by_subject(held_out, hashes))
    return Provenance(
        run=command.out.resolve().name, labeled=by_subject(rows, hashes), ancestors=tuple(ancestors)
    )


def spoken_structures(cohort: pl.DataFrame) -> tuple[str, ...]:
    """Structures the cohort's labels speak of, wholes before parts left out, in the usual order."""
    from fewbeats.anatomy import FEWBEATS_VALUES, PART_OF, find_convention

    manual = cohort.filter(cohort["label"].is_not_null(), cohort["label_source"] == "manual")
    conventions = manual["convention"].drop_nulls().unique()
    spoken = {s for name in conventions for s in find_convention(name).speaks_of}
    return tuple(s for s in FEWBEATS_VALUES if s in spoken and s not in PART_OF)


@dataclass(frozen=True)
class TrainingSamples:
    """The labeled frames, prepared for each network of a run."""

    train: list[Sample]
    held_back: list[Sample]
    localizer: list[Sample]
    """Whole slices with one class, the heart; empty where no localizer is wanted."""


def read_samples(command: Finetune, data: TrainingData) -> TrainingSamples:
    """Read all that is trained on.

    Raises:
        InputError: an image or label cannot be used, or no frame is labeled.
    """
    from fewbeats.data.samples import image_center, prepare_labeled
    from fewbeats.data.store import as_heart

    where: dict[str, Any] = {"structures": data.structures, "cache": data.cache, "phase": command.phase}
    train, held_back = (
        prepare_labeled(rows, command.model.preprocess, **where)
        for rows in (data.train_rows, data.held_back_rows)
    )
    missing = {row["subject"] for row in data.train_rows + data.held_back_rows}
    missing -= {sample.subject for sample in [*train, *held_back]}
    if command.phase and missing:
        raise InputError(
            f"{command.cohort}: {', '.join(sorted(missing))} have no labeled frame of {command.phase}; "
            "label one, or name the labeled subjects"
        )
    if not train:
        of_phase = f" of {command.phase}" if command.phase else ""
        raise InputError(
            f"{command.cohort}: the labeled subjects have no labeled frame{of_phase}; label some"
        )
    whole = []
    if command.localizer_steps and not command.localizer:
        grid = localizer_settings(command.model).preprocess
        whole = as_heart(prepare_labeled(data.train_rows, grid, center=image_center, **where))
    return TrainingSamples(train, held_back, whole)


def describe_request(command: Finetune, data: TrainingData, samples: TrainingSamples) -> dict[str, Any]:
    """What decides the outcome of a run; an unfinished one is resumed only by the same.

    Where files lie does not belong to it, what is in them does: a mask that was corrected since is another
    request.
    """
    places = ("cohort", "out", "cache", "init", "localizer")
    localizer = weights_digest(find_localizer(command.localizer)) if command.localizer else None
    return {
        "settings": {name: value for name, value in asdict(command).items() if name not in places},
        "start": {"init": start_digest(command.init), "localizer": localizer},
        "labeled subjects": data.labeled_subjects,
        "images and labels": [sample.key for sample in samples.train + samples.held_back],
    }


def _train_localizer(command: Finetune, data: TrainingData, samples: Sequence[Sample], run: RunDir) -> None:
    """A network of the same kind and start that finds "heart" in whole slices at low resolution."""
    if (run.path / "run.json").is_file():
        return
    settings, init = localizer_settings(command.model), command.init
    if init not in STARTS:  # a run's weights have learned another task
        init = "natural" if settings.network.kind == "lite0" else "scratch"
    network = start_network(settings.network, 2, init, seed=command.seed, label="localizer")
    fit_settings = FitSettings(steps=command.localizer_steps, seed=command.seed, optim=settings.optim)
    network, _ = _train(network, samples, settings, fit_settings, run, label="localizer")
    data.provenance.save(run.path)
    _finish(run, network, settings, {"task": "localizer", "structures": ["heart"], "init": init})


def _train_segmenter(
    command: Finetune,
    data: TrainingData,
    samples: TrainingSamples,
    network: nn.Module,
    run: RunDir,
    started: float,
    earlier: float,
) -> None:
    from fewbeats.data.files import open_scan
    from fewbeats.inference.plausibility import take_fingerprint

    settings = command.model
    minutes = command.minutes
    if minutes is not None:
        minutes = max(0.01, minutes - (time.perf_counter() - started) / 60)
    fit_settings = FitSettings(steps=command.steps, minutes=minutes, seed=command.seed, optim=settings.optim)
    network, steps = _train(network, samples.train, settings, fit_settings, run, held=samples.held_back)
    about = {
        "task": command.task,
        "structures": data.structures,
        "modalities": sorted({row["modality"] or "MR" for row in data.train_rows}),
        "init": command.init,
        "cohort": command.cohort,
        "labeled_subjects": data.labeled_subjects,
        "select": command.select,
        "steps": steps,
        "seed": command.seed,
        "seconds": time.perf_counter() - started + earlier,
        "fingerprint": take_fingerprint(
            samples.train,
            settings.preprocess,
            data.structures,
            scans=map(open_scan, data.train_rows),
            short_axis=all(row["view"] == "SAX" for row in data.train_rows),
        ),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    data.provenance.save(run.path)
    _finish(run, network, settings, about)


def _train(
    network: nn.Module,
    samples: Sequence[Sample],
    settings: SegmentationSettings,
    fit_settings: FitSettings,
    run: RunDir,
    *,
    held: Sequence[Sample] = (),
    label: str = "training",
) -> tuple[nn.Module, int]:
    """The trained network, and its number of steps."""
    from fewbeats.data.sampler import Sampler
    from fewbeats.data.store import stack_samples
    from fewbeats.finetuning.segmentation import train_segmentation

    batches = Sampler(
        stack_samples(samples),
        settings.batch_size,
        settings.depth,
        slab=settings.network.dims == 3,
        seed=fit_settings.seed,
    )
    return train_segmentation(
        network,
        batches,
        settings=settings,
        fit_settings=fit_settings,
        run=run,
        label=label,
        held_back=held,
    )


def _finish(run: RunDir, network: nn.Module, settings: SegmentationSettings, about: dict[str, Any]) -> None:
    """Export weights, and ONNX where it can be written, time the runtimes, and mark the run finished."""
    from accelerate import PartialState

    from fewbeats.inference.engine import export_network
    from fewbeats.models.weights import save_weights

    if not PartialState().is_main_process:
        return
    with atomic_path(run.weights()) as partial:
        save_weights(network.state_dict(), partial)
    engines = export_network(run.path, network, settings)
    about |= {"precision": choose_precision(settings.optim.precision), "engines_seconds": engines}
    run.write_config({**about, "settings": settings})
    run.drop_checkpoint()
