"""Turn other models' masks into a model for one's own scans, without manual labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.ranges import as_described, check_ranges
from fewbeats.self_training.rounds import RoundSettings
from fewbeats.training.loop import check_length

if TYPE_CHECKING:
    from fewbeats.inference.labeler import Labeler
    from fewbeats.models.network import NetworkSettings
    from fewbeats.self_training.student import Student

PLACES = ("cohort", "out", "workers", "jobs", "on")
"""Where files lie, and who labels, does not decide an outcome."""

STACK = 1.99
"""Thickness of slices in pixels from which on scans are stacks, which a 2D network labels."""


@dataclass(frozen=True, kw_only=True)
class SelfTrain:
    """Label every frame with a teacher, train a student on these masks, label anew, and so on."""

    REPEATED: ClassVar = ("--teacher",)
    cohort: tyro.conf.Positional[Path]
    """Cohort table; scans of split train are learned from, all of them where no split is written."""
    teacher: tuple[str, ...]
    """What labels first, as KIND:WHERE; several vote. See `fewbeats audit --help`."""
    out: Path
    """Folder of the rounds; `best` in it is a run folder. An unfinished self-training in it goes on."""
    vote: Literal["majority", "staple"] = "majority"
    """How several teachers vote."""
    plan: Annotated[RoundSettings, tyro.conf.arg(name="")] = field(default_factory=RoundSettings)
    init: str = "natural"
    """What each student starts from: scratch, natural (weights from photographs), a run folder, a
    .safetensors file, or warm: the student of the round before."""
    steps: int | None = None
    """Training steps of each student."""
    minutes: float | None = None
    """Wall-clock budget of each student instead."""
    seed: int = 0
    """Draw of the labeled subjects, start of the weights, order of the samples."""
    labeled: int = 0
    """Subjects of split train, drawn by the seed, whose manual labels stay in every round's training set, as
    for a few frames drawn by hand; labels of all others stay closed."""
    localizer_steps: int = 150
    """Training steps of the network that finds the heart; 0 looks at the image's center instead."""
    workers: int = 0
    """Processes that make batches while the network computes; they pay where the network runs on a GPU."""
    jobs: int = 1
    """Processes of this machine that label scans side by side."""
    on: str = "local"
    """Where scans are labeled: local, or dask: with the address or the scheduler file of a cluster."""
    model: Annotated[SegmentationSettings, tyro.conf.arg(name="")] = field(
        default_factory=SegmentationSettings
    )
    """Network, field of view, augmentation, optimizer of the students."""

    @classmethod
    def usual(cls, arguments: Sequence[str]) -> list[str]:
        """Flags that follow from the scans' spacing unless others are given: volumes are learned in 3D."""
        from fewbeats.data.cohort import read_cohort

        if not arguments or not Path(arguments[0]).is_file():
            return []
        cohort = read_cohort(Path(arguments[0]))
        slices, pixels = cohort["spacing_z_mm"].median(), cohort["spacing_x_mm"].median()
        if slices is None or pixels is None or slices >= STACK * pixels:  # type: ignore[operator]
            return []
        spacing = f"{max(float(pixels), 1.5):.2f}"  # type: ignore[arg-type]
        return [
            "--network.kind=unet3d", "--network.isotropic", "--init=scratch", "--batch-size=4",
            "--slab-slices=32", "--network.levels=4", f"--preprocess.spacing-mm={spacing}",
            f"--preprocess.through-plane-mm={spacing}",
        ]  # fmt: skip

    def run(self) -> Path:
        """Carry out the rounds; returns the run folder of the best student.

        Where none bettered the teacher, that one's folder, or `out` where the teacher is no run.

        Raises:
            InputError: the cohort, the teachers or the settings cannot be used.
        """
        from fewbeats.inference.labeler import RunLabeler
        from fewbeats.recipes.executors import open_executor
        from fewbeats.self_training.report import write_selftrain_report
        from fewbeats.self_training.rounds import self_train

        teacher, executor = self.open_teacher(), open_executor(self.on, self.jobs)
        outcome = self_train(self.out, self.cohort, teacher, self.plan, self.student, executor=executor)
        print(f"{self.out}: {outcome.verdict}")
        best = f"round {outcome.best}: {self.out / 'best'}" if outcome.best else "the teacher itself"
        print(f"best is {best}")
        print(f"report: {write_selftrain_report(self.out)}")
        if outcome.best:
            return self.out / "best"
        return teacher.model.segmenter.run if isinstance(teacher, RunLabeler) else self.out

    def open_teacher(self) -> Labeler:
        """Who labels first.

        Raises:
            InputError: the cohort, the teachers or the settings cannot be used.
        """
        from fewbeats.data.cohort import read_cohort
        from fewbeats.teachers.specs import open_teachers

        check_ranges(self, "", not_negative=("localizer_steps", "workers", "labeled"), seeds=("seed",))
        check_length(self.steps, self.minutes)
        return open_teachers(self.teacher, cohort=read_cohort(self.cohort), rule=self.vote)

    @property
    def student(self) -> Student:
        """How the students are trained."""
        from fewbeats.recipes.starts import default_start
        from fewbeats.self_training.student import Student

        names = ("init", "steps", "minutes", "seed", "labeled", "localizer_steps", "model")
        request: dict[str, Any] = {name: value for name, value in as_described(self).items() if name in names}
        return Student(
            model=self.model, init=self.init, first_init=default_start(self.model.network), steps=self.steps,
            minutes=self.minutes, localizer_steps=self.localizer_steps, seed=self.seed, labeled=self.labeled,
            workers=self.workers, request={"settings": request},
        )  # fmt: skip

    @property
    def pretrained_network(self) -> NetworkSettings:
        """The network that takes the weights of `init`."""
        return self.model.network

    def describe(self) -> dict[str, Any]:
        """What decides the outcome, but for the content of files."""
        return {name: value for name, value in as_described(self).items() if name not in PLACES}

    def protocol(self) -> dict[str, Any]:
        """What arms of a study that are compared must share."""
        grid, shared = as_described(self.model), ("network", "preprocess", "spatial", "intensity")
        return {name: grid[name] for name in shared}

    def localization(self) -> None:
        """Its students find the heart by themselves."""

    def preflight(self) -> None:
        """See that cohort and teachers can be used.

        Raises:
            InputError: they cannot.
        """
        self.open_teacher()
