"""Pretrain an encoder on scans without labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fewbeats.clock import Clock
from fewbeats.commands.start import STARTS, start_digest, start_network, trace_weights
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings
from fewbeats.pretraining.settings import (
    DinoSettings,
    MimSettings,
    PclSettings,
    SimclrSettings,
    SimmimSettings,
)
from fewbeats.ranges import check_ranges
from fewbeats.training.loop import FitSettings, Validation, check_length
from fewbeats.training.optim import OptimSettings
from fewbeats.training.precision import choose_precision
from fewbeats.training.rundir import RunDir, damaged
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import Views, ViewSettings

if TYPE_CHECKING:
    import polars as pl

    from fewbeats.data.provenance import Provenance
    from fewbeats.data.store import Stacks
    from fewbeats.sample import Batch
    from fewbeats.training.method import Method

COLLAPSED = 0.1  # spread of embeddings below which different slices are all one to the encoder


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Learn an encoder from every frame and slice of a cohort's training subjects; no label is opened."""

    method: tyro.conf.Positional[Literal["simclr", "pcl", "dino", "mim"]]
    """simclr: views of a slice attract; pcl: slices of one height attract; dino: self-distillation;
    mim: blanked patches are painted in."""
    cohort: tyro.conf.Positional[Path]
    """Cohort table (CSV or Parquet) from `fewbeats index`."""
    out: Path
    """Run folder. An unfinished run in it is resumed."""
    steps: int | None = None
    """Training steps."""
    minutes: float | None = None
    """Wall-clock budget of the training instead, turned into steps by timing."""
    pool_subjects: int | None = None
    """Number of subjects to learn from, drawn by the seed and nested; all of split train by default."""
    center: Literal["image", "motion"] = "motion"
    """Middle of the field of view: image, or motion (what changes over the beat)."""
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
    optim: OptimSettings = field(default_factory=OptimSettings)
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    pcl: PclSettings = field(default_factory=PclSettings)
    dino: DinoSettings = field(default_factory=DinoSettings)
    mim: MimSettings = field(default_factory=MimSettings)
    simmim: SimmimSettings = field(default_factory=SimmimSettings)
    """mim as a vision transformer does it."""

    def run(self) -> Path:
        """Train; returns the run folder.

        Raises:
            InputError: the cohort, its scans or the settings cannot be used.
        """
        from fewbeats.data.sampler import Sampler
        from fewbeats.training.loop import fit
        from fewbeats.training.workers import with_workers
        from fewbeats.transforms.views import Viewed

        started = time.perf_counter()
        method, views = build_method(self)  # whatever is wrong with the settings shows before scans are read
        rows, provenance = choose_pool(self)
        pool = read_pool(self, rows)
        run = RunDir(self.out)
        if run.claim(describe_request(self, rows, provenance)):
            if not run.weights().is_file():
                raise damaged(run.weights())
            print(f"{run.path}: already trained with these settings")
            return run.path
        earlier = run.trained_seconds()  # by processes that were stopped
        sampler = Sampler(pool, self.batch_size, self.network.in_channels, seed=self.seed, epochs=False)
        shown = Viewed(sampler, views, self.seed)
        fit_settings = FitSettings(steps=self.steps, minutes=self.minutes, seed=self.seed, optim=self.optim)
        probe = watch_heights(self, pool)
        with with_workers(shown, self.workers) as batches:
            steps = fit(method, batches, settings=fit_settings, run=run, label=self.method, validation=probe)
        provenance.save(run.path)
        seconds = time.perf_counter() - started + earlier
        finish(self, run, method, {"steps": steps, "slices": len(pool), "seconds": seconds})
        report(self, run, method, shown(Clock(0, steps)))
        return run.path

    @property
    def file(self) -> str:
        """Name of the method's file and settings: masked images are another matter for a transformer."""
        return "simmim" if (self.method, self.network.kind) == ("mim", "vit") else self.method

    def describe(self) -> dict[str, Any]:
        """What decides the outcome: all but places, and of the methods the chosen one."""
        aside = {"cohort", "out", "cache", "workers", *METHODS} - {self.file}
        return {name: value for name, value in asdict(self).items() if name not in aside}


METHODS = ("simclr", "pcl", "dino", "mim", "simmim")


def check_settings(command: Pretrain) -> None:
    """Refuse settings that are out of range, do not fit each other, or look like the method's and are not.

    Raises:
        InputError: naming the setting.
    """
    check_length(command.steps, command.minutes)
    check_ranges(command, "", several=("batch_size",), not_negative=("workers",), seeds=("seed",))
    twin = {"mim": "simmim", "simmim": "mim"}.get(command.file)
    if twin and getattr(command, twin) != type(getattr(command, twin))():
        raise InputError(
            f"--{twin}: with --network.kind {command.network.kind} mim looks at --{command.file} instead"
        )
    if (command.optim.encoder_rate_factor, command.optim.layer_decay) != (1.0, 1.0):
        raise InputError(
            "--optim.encoder-rate-factor, --optim.layer-decay: are for fine-tuning; take them out"
        )
    if command.network.dims != 2:
        raise InputError(f"--network.kind {command.network.kind}: pretraining is for 2D networks")
    if command.method in ("simclr", "pcl") and command.network.kind == "vit":
        raise InputError(f"{command.method}: for U-Nets; a vision transformer learns by dino or mim")
    if command.method in ("simclr", "pcl") and command.batch_size < 4:
        raise InputError(f"--batch-size {command.batch_size}: too few negatives; give at least 4")
    size, stride = command.preprocess.size, command.network.stride
    single = (command.network.kind, command.network.norm) != (
        "unet2d",
        "instance",
    )  # it norms no single point
    least = stride if single else 2 * stride
    if size % stride or size < least:
        raise InputError(f"--preprocess.size {size}: must be a multiple of {stride}, at least {least}")
    small = command.dino.small_px(size)
    if command.method == "dino" and command.dino.small_views and (small % stride or small < least):
        raise InputError(
            f"--dino.small-size {command.dino.small_size}: makes views of {small} pixels; "
            f"must be a multiple of {stride}, at least {least}"
        )


def build_method(command: Pretrain) -> tuple[Method, Views]:
    """The method on its network, and the views it wants.

    Raises:
        InputError: the settings cannot be used, or the start does not fit.
    """
    import torch

    from fewbeats.pretraining import dino, mim, pcl, simclr, simmim

    check_settings(command)
    size = command.preprocess.size
    channels = command.network.in_channels
    network = start_network(command.network, channels, command.init, seed=command.seed)
    network.to(memory_format=torch.channels_last)
    settings, optim = getattr(command, command.file), command.optim
    shown = ViewSettings(size=size, spatial=command.spatial, intensity=command.intensity)
    if command.file == "simmim":
        method: Method = simmim.Simmim(network, settings=settings, optim=optim, size=size)
        views: Callable = simmim.views
    elif command.file == "mim":
        method = mim.Mim(network, settings=settings, optim=optim, size=size)
        views = mim.views
    elif command.method == "dino":
        method, views = dino.Dino(network, settings=settings, optim=optim), partial(dino.views, dino=settings)
    elif command.method == "pcl":
        method, views = pcl.Pcl(network, settings=settings, optim=optim), pcl.views
    else:
        method, views = simclr.Simclr(network, settings=settings, optim=optim), simclr.views
    return method, partial(views, settings=shown)


def choose_pool(command: Pretrain) -> tuple[pl.DataFrame, Provenance]:
    """Scans to learn from, none of a held-out subject under whatever name, and what the run will have seen.

    Raises:
        InputError: no scan, a missing file, a pool too small for the method, a held-out subject in it or in
            the start's lineage, or a start that has seen labels.
    """
    import polars as pl

    from fewbeats.data.cohort import read_cohort
    from fewbeats.data.files import check_files
    from fewbeats.data.provenance import (
        Provenance,
        by_subject,
        guard_ancestors,
        guard_training,
        hash_scans,
    )
    from fewbeats.data.split import HELD_OUT, draw_order, name_some

    cohort = read_cohort(command.cohort)
    rows = cohort.filter(pl.col("split") == "train")
    # With one order for both, a small pool would be the labeled subjects first of all.
    subjects = draw_order(rows["subject"].unique(), command.seed, purpose="pool ")
    if not subjects:
        raise InputError(
            f"{command.cohort}: no subject of split train to learn from; write train into its split column"
        )
    if command.pool_subjects is not None and not 1 <= command.pool_subjects <= len(subjects):
        raise InputError(f"--pool-subjects {command.pool_subjects}: split train has {len(subjects)}")
    rows = rows.filter(pl.col("subject").is_in(subjects[: command.pool_subjects]))
    check_files(rows, labels=False)
    counts = rows.select("frames", "slices")
    if not sum(counts.null_count().row(0)):
        check_pool(command, sum(t * z for t, z in counts.iter_rows()), max(z for _, z in counts.iter_rows()))
    ancestors = [] if command.init in STARTS else [trace_weights(Path(command.init))]
    for start in (run for ancestor in ancestors for run in ancestor.lineage() if run.labeled):
        names = name_some(sorted(start.labeled))
        raise InputError(
            f"--init {command.init}: run '{start.run}' has seen labels, of {names}; pretraining sees none: "
            "start from weights that have not"
        )
    held_out = cohort.filter(pl.col("split").is_in(HELD_OUT))
    hashes = hash_scans(pl.concat([rows, held_out]), cache=_cache(command) / "hashes.json")
    guard_training(cohort, labeled=rows.clear(), unlabeled=rows, hashes=hashes)
    guard_ancestors(ancestors, by_subject(held_out, hashes))
    seen = Provenance(
        run=command.out.resolve().name, unlabeled=by_subject(rows, hashes), ancestors=tuple(ancestors)
    )
    return rows, seen


def describe_request(command: Pretrain, rows: pl.DataFrame, seen: Provenance) -> dict[str, Any]:
    """What decides the outcome of a run; an unfinished one is resumed only by the same."""
    request = {
        "settings": command.describe() | {"init": start_digest(command.init)},
        "images": seen.unlabeled,
    }
    if command.method == "pcl":
        request["slice order"] = dict(rows.select("scan", "slice_order").iter_rows())
    return request


def read_pool(command: Pretrain, rows: pl.DataFrame) -> Stacks:
    """Raises:
    InputError: a scan cannot be read, or the pool is too small for the method.
    """
    from fewbeats.data.pool import prepare_pool

    pool = prepare_pool(rows, command.preprocess, cache=_cache(command), center=command.center)
    check_pool(command, len(pool), pool.slices.max())
    return pool


def check_pool(command: Pretrain, slices: int, deepest: int) -> None:
    """Refuse a pool of too few slices, or for PCL one whose deepest stack has a single slice.

    Raises:
        InputError: naming the cohort.
    """
    from accelerate import PartialState

    if command.method == "pcl" and deepest < 2:
        raise InputError(
            f"{command.cohort}: scans of one slice have no neighbors; take simclr instead of pcl"
        )
    if slices < (wanted := command.batch_size * PartialState().num_processes):
        processes = f" of {PartialState().num_processes} processes" if wanted > command.batch_size else ""
        raise InputError(
            f"{command.cohort}: {slices} slices are fewer than --batch-size {command.batch_size}{processes}; "
            "lower it"
        )


def watch_heights(command: Pretrain, pool: Stacks) -> Validation | None:
    """A probe of the encoder ten times a run; None where too few stacks say which end is the base."""
    import torch

    from fewbeats.data.pool import sample_slices
    from fewbeats.pretraining.probe import MOST, height_probe

    images, heights, subjects = sample_slices(
        pool, MOST, size=command.preprocess.size, context=command.network.context
    )
    if not len(images):
        return None
    shown = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return Validation(measure=height_probe(shown, heights, subjects))


def _cache(command: Pretrain) -> Path:
    return command.cache or command.out.parent / "sample-cache"


def finish(command: Pretrain, run: RunDir, method: Method, about: dict[str, Any]) -> None:
    """Export the weights, mark the run finished, and say so where it learned nothing."""
    from accelerate import PartialState

    from fewbeats.disk import atomic_path
    from fewbeats.models.network import LAST_LAYERS
    from fewbeats.models.weights import save_weights

    if not PartialState().is_main_process:
        return
    collapsed = last_spread(run) < COLLAPSED
    state = method.networks()["network"].state_dict()
    with atomic_path(run.weights()) as file:  # a last layer paints gray values, whatever its shape may fit
        save_weights({n: value for n, value in state.items() if not n.startswith(LAST_LAYERS)}, file)
    about |= {"collapsed": collapsed, "precision": choose_precision(command.optim.precision)}
    run.write_config({"task": "pretraining", **command.describe(), **about})
    run.drop_checkpoint()
    print(f"{run.path}: {command.method} saw {about['slices']} slices in {about['steps']} steps")
    if collapsed:
        print(
            f"{run.path}: collapsed, to the encoder all slices are one; lower --optim.learning-rate, or make "
            "views more alike (--spatial, --intensity)"
        )


def report(command: Pretrain, run: RunDir, method: Method, batch: Batch) -> None:
    """Write the run's `report.html`: curves, and what the method was shown."""
    import torch
    from accelerate import PartialState

    from fewbeats.disk import atomic_path
    from fewbeats.pages.training import SHOWN, render_training

    if not PartialState().is_main_process:
        return
    torch.manual_seed(command.seed)
    few = replace(batch, views={name: view[:SHOWN] for name, view in batch.views.items()})
    views = method.eval().show(few.to(next(method.parameters()).device))
    middle = command.network.context
    pictures = {name: view[:, middle].cpu().numpy() for name, view in views.items()}
    page = render_training(run.read_config(), run.read_metrics(), pictures)
    with atomic_path(run.path / "report.html") as file:
        file.write_text(page, encoding="utf-8")
    print(f"report: {run.path / 'report.html'}")


def last_spread(run: RunDir) -> float:
    """Mean spread of the embeddings over the last tenth of the log; infinite where the method has none."""
    values = [row["spread"] for row in run.read_metrics() if "spread" in row]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else float("inf")
