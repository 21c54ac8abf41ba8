"""Self-training from other models' masks to a model for these scans.

Rickmann et al., Using Foundation Models as Pseudo-Label Generators for Pre-Clinical 4D Cardiac CT
Segmentation, FIMH 2025, https://arxiv.org/abs/2505.09564; how many rounds, what is filtered and when to stop
is not published:

    P_0(x) = clean(teacher(x))                      for every frame x
    for k = 1 .. K:
        M_k = train on P_k-1 of the training subjects, what filters took out aside
        P_k(x) = M_k(x)                             for every frame x
        stop where mean Dice(P_k, P_k-1) > settled, or P_k is worse than P_k-1
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fewbeats.data.cohort import read_cohort, write_cohort
from fewbeats.data.files import check_files, split_fragment
from fewbeats.data.split import draw_order
from fewbeats.disk import hold_folder, staging_folder
from fewbeats.errors import InputError
from fewbeats.evaluation.predictions import read_predictions
from fewbeats.inference.compose import Cleaned, Routed
from fewbeats.inference.labeler import Labeler, open_run
from fewbeats.inference.smooth import Smoothed
from fewbeats.ranges import check_ranges
from fewbeats.recipes.executors import Executor, serial
from fewbeats.recipes.jobs import CohortJobs, Job
from fewbeats.recipes.labeling import label_scans
from fewbeats.self_training.filters import FilterSettings, find_reasons, quality
from fewbeats.self_training.frames import judge, tabulate_frames
from fewbeats.self_training.student import LABEL_COLUMNS, Student, write_labels
from fewbeats.training.rundir import RunDir

if TYPE_CHECKING:
    from fewbeats.data.provenance import Provenance

MOST_FAILED = 0.5
"""Share of the scans that a teacher may fail on."""
LEAST_QUALITY = 0.5
"""Mean plausibility of a teacher's masks from which on they are worth learning from."""
WORSE = {"dice": 0.005, "quality": 0.01}
"""By which a round must fall behind to be worse."""
RECORD, STATE = "round.json", "self_training.json"
FRAMES, JUDGED, LEFT_OUT = "frames.parquet", "judged.parquet", "left_out.csv"
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """How often, and when to stop."""

    rounds: int = 3
    """Students that are trained at most."""
    settled: float = 0.98
    """Stop where masks agree that well with those of the round before, by mean Dice."""
    judge: str | None = None
    """Split whose manual labels judge each round, never learned from; without it plausibility does."""
    smooth: float = 0.0
    """Standard deviation in frames of the Gaussian that smooths masks in time; 0 for none."""
    crossfit: int = 1
    """Students of a round; with more than one, each scan is labeled by one that has not learned from its
    subject, and `best` learns from all masks in the end."""
    filters: FilterSettings = field(default_factory=FilterSettings)

    def __post_init__(self) -> None:
        check_ranges(self, "", counts=("rounds", "crossfit"), shares=("settled",), not_negative=("smooth",))
        if self.judge == "train":
            raise InputError("--judge train: those labels are learned from or closed; name tune or dev")


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came out of a round."""

    number: int
    quality: float
    """Mean plausibility of the masks of the training scans, 0 to 1; see `filters.quality`."""
    agreement: float | None
    """Mean Dice with the masks of the round before."""
    dice: float | None
    """With the manual labels of the split that judges."""
    frames: int
    """Of the training scans."""
    kept: int
    """Of these, what the next student learns from."""
    failed: dict[str, str]
    """Scan -> why it has no mask."""
    seconds: dict[str, float]
    """training, labeling, and the rest."""

    @property
    def score(self) -> tuple[str, float]:
        """What rounds are compared by."""
        return ("dice", self.dice) if self.dice is not None else ("quality", self.quality)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What self-training came to."""

    rounds: tuple[Round, ...]
    verdict: str
    best: int
    """Round whose masks are the best; 0 is the teacher."""


def self_train(
    out: Path,
    file: Path,
    teacher: Labeler,
    settings: RoundSettings,
    student: Student,
    *,
    executor: Executor = serial,
    tell: Tell = print,
) -> Outcome:
    """Label, learn, and label again; what was finished before is left as it is.

    Args:
        out: folder of the rounds; `best` in it is the best student's run folder.
        file: cohort table. Scans of split train are learned from, all where it has no splits.
        teacher: labels the first round.
        settings: how often, and what is learned from.
        student: how networks are trained.
        executor: who labels.
        tell: is given one line a step.

    Raises:
        InputError: inputs that cannot be used, a teacher that fails on most scans, or another self-training
            in `out`.
    """
    cohort = with_splits(read_cohort(file))
    jobs = find_jobs(cohort, "train")
    judged = find_jobs(cohort, settings.judge) if settings.judge else []
    if settings.judge and not judged:
        raise InputError(f"--judge {settings.judge}: {file} has no scan of this split; name another")
    subjects = {job.subject for job in jobs}
    if not 1 <= settings.crossfit <= max(1, len(subjects) - 1):
        raise InputError(f"--crossfit {settings.crossfit}: {file} has {len(subjects)} subjects to learn from")
    student.kept(cohort)  # or there are not so many
    request = _plain({"settings": asdict(settings), "student": student.request, "teacher": teacher.key})
    with hold_folder(out):
        _claim(out, request)
        rounds = _Rounds(out, cohort, jobs, judged, settings, student, executor, tell)
        outcome = rounds.carry_out(Cleaned(teacher))
        RunDir(out).write_json(STATE, {"request": request, "finished": True, **asdict(outcome)})
    return outcome


@dataclass(frozen=True)
class _Rounds:
    """The loop, with what does not change in it."""

    out: Path
    cohort: pl.DataFrame
    jobs: Sequence[Job]
    judged: Sequence[Job]
    settings: RoundSettings
    student: Student
    executor: Executor
    tell: Tell

    def carry_out(self, teacher: Labeler) -> Outcome:
        rounds = list[Round]()
        for number in range(self.settings.rounds + 1):
            folder = self.out / f"round{number}"
            if (folder / RECORD).is_file():
                rounds.append(Round(**RunDir(folder).read_json(RECORD)))
            elif number:
                runs = self._learn(folder, number, [teacher.provenance])
                rounds.append(self._look(folder, number, self._route(runs), runs))
            else:
                rounds.append(self._look(folder, number, teacher, []))
            if verdict := give_verdict(rounds, self.settings):
                break
        best = best_of(rounds)
        self._keep(best, [teacher.provenance])
        return Outcome(rounds=tuple(rounds), verdict=verdict, best=best)

    def _learn(self, folder: Path, number: int, lineage: Sequence[Provenance]) -> list[RunDir]:
        """The students of a round: one, or with `crossfit` one a fold, which has not learned from it."""
        self._write_labels(folder, number)
        self.tell(f"round {number}: learning from the masks of round {number - 1}")
        runs, labels = [], read_cohort(folder / "labels.csv")
        for name, fold in self._folds().items():
            table = folder / ("labels.csv" if name == "run" else f"{name}.csv")
            if fold:
                hidden = pl.col("subject").is_in(fold)
                closed = [pl.when(~hidden).then(pl.col(column)).alias(column) for column in LABEL_COLUMNS]
                write_cohort(labels.with_columns(closed), table)
            before = RunDir(folder.parent / f"round{number - 1}" / name) if number > 1 else None
            runs.append(self.student.train(folder / name, table, before=before, teachers=lineage))
        return runs

    def _folds(self) -> dict[str, list[str]]:
        """Name of a student -> subjects that it does not learn from."""
        folds = self.settings.crossfit
        if folds == 1:
            return {"run": []}
        subjects = draw_order({job.subject for job in self.jobs}, self.student.seed, purpose="fold ")
        return {f"fold{number}": subjects[number::folds] for number in range(folds)}

    def _route(self, runs: Sequence[RunDir]) -> Labeler:
        sure = self.settings.filters.uncertainty or self.settings.smooth > 0
        labelers = [open_run(run.path, confident=sure) for run in runs]
        if len(labelers) == 1:
            return labelers[0]
        fold = {subject: i for i, subjects in enumerate(self._folds().values()) for subject in subjects}
        images = {split_fragment(job.image)[0]: fold[job.subject] for job in self.jobs}
        return Routed(labelers, {str(image): number for image, number in images.items()})

    def _keep(self, best: int, lineage: Sequence[Provenance]) -> None:
        """The best student as a run folder of its own; with `crossfit` one that learns from all masks."""
        folder, target = self.out / f"round{best}", self.out / "best"
        if best == 0:
            return
        if self.settings.crossfit > 1:
            self.tell(f"round {best}: learning from all masks of round {best - 1}")
            self.student.train(target, folder / "labels.csv", before=None, teachers=lineage)
        elif not target.exists():
            with staging_folder(target) as staging:
                shutil.copytree(folder / "run", staging / "best")
                (staging / "best").rename(target)

    def _write_labels(self, folder: Path, number: int) -> None:
        before = folder.parent / f"round{number - 1}"
        reasons = pl.read_csv(before / LEFT_OUT, schema_overrides={"scan": pl.String, "frame": pl.Int64})
        table = pl.read_parquet(before / FRAMES).select("scan", "frame").unique(maintain_order=True)
        kept = table.join(reasons, on=["scan", "frame"], how="anti", maintain_order="left")
        frames = {str(scan): rows["frame"].to_list() for (scan,), rows in kept.group_by("scan")}
        predicted, made = read_predictions(before / "predictions")
        folder.mkdir(exist_ok=True)
        write_labels(
            self.cohort,
            {one.scan: (one.mask, frames.get(one.scan, [])) for one in predicted},
            {job.scan: before / "predictions" / job.confidence for job in self.jobs},
            folder / "labels.csv",
            structures=made["structures"],
            source="pseudo" if number > 1 else "teacher",
            manual=self.student.kept(self.cohort),
        )

    def _look(self, folder: Path, number: int, labeler: Labeler, runs: Sequence[RunDir]) -> Round:
        """Label all scans and look at the masks."""
        begun = time.perf_counter()
        about, most = {"round": number}, 0.0 if number else MOST_FAILED
        quiet: Tell = lambda line: None  # noqa: E731
        how: dict[str, Any] = {"about": about, "most_failed": most, "executor": self.executor, "tell": quiet}
        sure = self.settings.filters.uncertainty
        if self.settings.smooth:
            labeler = Smoothed(labeler, self.settings.smooth)
        failed = label_scans(self.jobs, labeler, folder / "predictions", confidence=sure, **how)
        dice = None
        if self.judged:
            label_scans(self.judged, labeler, folder / "judged", **how)
        labeled = time.perf_counter()
        if self.judged:
            by_subject = judge(folder / "judged", self.cohort)
            by_subject.write_parquet(folder / JUDGED)
            dice = None if by_subject.is_empty() else float(by_subject["dice"].mean())  # type: ignore[arg-type]
        before = folder.parent / f"round{number - 1}" / "predictions" if number else None
        table = tabulate_frames(folder / "predictions", before=before)
        reasons = find_reasons(table, self.settings.filters)
        table.write_parquet(folder / FRAMES)
        reasons.write_csv(folder / LEFT_OUT)
        frames = table.select("scan", "frame").n_unique()
        agreement = table["agreement"].mean()
        found = Round(
            number=number,
            quality=float(quality(table, self.settings.filters.species)["score"].mean()),  # type: ignore[arg-type]
            agreement=None if agreement is None else float(agreement),  # type: ignore[arg-type]
            dice=dice,
            frames=frames,
            kept=frames - reasons.select("scan", "frame").n_unique(),
            failed=failed,
            seconds={
                "training": sum(run.read_config().seconds or 0.0 for run in runs),
                "labeling": labeled - begun,
                "rest": time.perf_counter() - labeled,
            },
        )
        RunDir(folder).write_json(RECORD, asdict(found))
        self.tell(summarize(found))
        return found


def give_verdict(rounds: Sequence[Round], settings: RoundSettings) -> str:
    """Why to stop after these rounds; empty to go on."""
    last = rounds[-1]
    if last.kept == 0:
        return f"no mask of round {last.number} may be learned from: all {last.frames} frames were left out"
    if last.number == 0:
        if last.dice is None and last.quality < LEAST_QUALITY:
            return f"the teacher is too weak to start from: its masks' plausibility is {last.quality:.2f}"
        return ""
    if is_worse(last, rounds[-2]):
        kind, value = last.score
        return (
            f"round {last.number} is worse than the one before ({kind} {value:.3f} after "
            f"{rounds[-2].score[1]:.3f})"
        )
    if last.agreement is not None and last.agreement > settings.settled:
        return f"masks have settled: round {last.number} agrees to {last.agreement:.3f} with the one before"
    return "" if last.number < settings.rounds else f"all {settings.rounds} rounds are done"


def is_worse(one: Round, other: Round) -> bool:
    """Whether a round fell behind another by more than chance."""
    kind, value = one.score
    return value < other.score[1] - WORSE[kind]


def best_of(rounds: Sequence[Round]) -> int:
    """The round whose masks are taken: by manual labels the best; without them the last that is not worse."""
    if rounds[0].dice is not None:
        return max(rounds, key=lambda one: (one.score[1], one.number)).number
    last = rounds[-1]
    return last.number - 1 if last.number and is_worse(last, rounds[-2]) else last.number


def summarize(one: Round) -> str:
    """A line for the terminal."""
    parts = [f"plausibility {one.quality:.3f}"]
    if one.agreement is not None:
        parts.append(f"agreement with the round before {one.agreement:.3f}")
    if one.dice is not None:
        parts.append(f"Dice {one.dice:.3f}")
    parts.append(f"{one.kept} of {one.frames} frames to learn from")
    if one.failed:
        parts.append(f"{len(one.failed)} scans failed")
    return f"round {one.number}: {', '.join(parts)}"


def with_splits(cohort: pl.DataFrame) -> pl.DataFrame:
    """All scans are of split train where nobody split them."""
    if cohort["split"].is_null().all():
        return cohort.with_columns(split=pl.lit("train"))
    return cohort


def find_jobs(cohort: pl.DataFrame, split: str) -> CohortJobs:
    """The scans of a split.

    Raises:
        InputError: an image of the cohort is missing.
    """
    check_files(cohort, labels=False)
    return CohortJobs(cohort.filter(pl.col("split") == split))


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Go on with a self-training of the same request, or begin one."""
    run = RunDir(out)
    if not (out / STATE).is_file():
        run.write_json(STATE, {"request": request, "finished": False})
    elif run.read_json(STATE).get("request") != request:
        raise InputError(f"{out}: holds a self-training with other settings; choose another --out")


def _plain(content: Any) -> Any:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(content, default=str))
