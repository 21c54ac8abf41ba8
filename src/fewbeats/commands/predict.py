"""Ask a run's network about a scan, a DICOM folder or a cohort: masks of every frame, classes, or points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from fewbeats.errors import InputError

if TYPE_CHECKING:
    from fewbeats.finetuning.task import Task
    from fewbeats.recipes.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Label every frame with a run's network; masks come back on the source's own grid, or classes or points
    as a table, as the run's task is."""

    model: tyro.conf.Positional[Path]
    """Run folder of `fewbeats finetune`, `cotrain` or `selftrain`, or synthetic: the network that comes with
    the package."""
    input: tyro.conf.Positional[Path]
    """NIfTI file (3D or 4D), folder of one NIfTI file a frame or slice, DICOM file or folder, or cohort
    table."""
    out: Path
    """Folder for masks, predictions.csv, run.json and, for scans without labels, report.html; or for
    classes.csv or points.csv."""
    split: str | None = None
    """Of a cohort, only this split."""
    network: str = "network"
    """Of a run of several networks: the name of another one, as flat of mn, or mean for all of them."""
    ed_frame: int | None = None
    """End-diastolic frame, where the volume curve should not decide."""
    es_frame: int | None = None
    """End-systolic frame, where the volume curve should not decide."""
    frame_time_ms: float | None = None
    """Time between frames, where a NIfTI header does not know it."""
    runtime: Literal["torch", "onnxruntime", "openvino"] | None = None
    """By default the fastest, as measured when the run was trained."""
    smooth: float = 0.0
    """Standard deviation in frames of the Gaussian that smooths labels in time; 0 for none."""
    jobs: int = 1
    """Processes of this machine that label scans side by side."""
    on: str = "local"
    """Where: local, or dask: with the address or the scheduler file of a cluster that runs already."""

    def run(self) -> Path:
        """Predict; returns the folder.

        Raises:
            InputError: the run or the input cannot be used.
        """
        from fewbeats.finetuning.task import TABLES
        from fewbeats.inference.labeler import Labeler, open_run
        from fewbeats.inference.smooth import Smoothed
        from fewbeats.ranges import check_ranges
        from fewbeats.recipes.executors import open_executor
        from fewbeats.recipes.jobs import CohortJobs
        from fewbeats.recipes.labeling import choose_fitting, label_scans
        from fewbeats.training.rundir import RunDir, find_run

        jobs, executor = self.find_jobs(), open_executor(self.on, self.jobs)
        check_ranges(self, "", not_negative=("smooth",))
        about = {"split": self.split, "network": self.network}
        config = RunDir(find_run(self.model)).read_config()
        if config.task in TABLES:
            from fewbeats.inference.examine import open_examiner
            from fewbeats.recipes.examining import examine_scans

            examiner = open_examiner(self.model)
            for name in ("network", "ed_frame", "es_frame", "runtime", "smooth"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    flag = f"--{name}".replace("_", "-")
                    raise InputError(f"{flag}: is of masks, the run is of {examiner.task.kind}; take it out")
            found = examine_scans(
                self._fitting(jobs, examiner.task), examiner, self.out, about=about, executor=executor
            )
            print(f"{found}")
            return self.out
        if isinstance(jobs, CohortJobs):
            jobs = jobs.about(config.where)
        labeler: Labeler = open_run(
            self.model, network=self.network, runtime=self.runtime, confident=self.smooth > 0
        )
        if self.smooth:
            labeler = Smoothed(labeler, self.smooth)
        if not self._is_cohort:
            jobs = choose_fitting(jobs, labeler.known, tell=print)
        label_scans(jobs, labeler, self.out, about=about, executor=executor)
        if not self._is_cohort:
            from fewbeats.evaluation.evaluate import write_prediction_report

            print(f"report: {write_prediction_report(self.out, self.out)}")
        return self.out

    def _fitting(self, jobs: Sequence[Job], task: Task) -> Sequence[Job]:
        """Of a cohort the scans that a task is about; of a task of studies, those of a study together.

        Of a file or folder nobody says what its scans show; those of one person and visit are one study.
        """
        from fewbeats.recipes.examining import group_studies
        from fewbeats.recipes.jobs import CohortJobs

        study_of: dict[str, str] = {}
        if isinstance(jobs, CohortJobs):
            jobs = jobs.about(task.where)
            study_of = dict(jobs.rows.select("scan", "study").iter_rows())
        else:
            if task.where:
                about = "; ".join(f"{name} {' or '.join(told)}" for name, told in task.where.items())
                print(
                    f"{self.input}: taken to be what the task is about ({about}); a cohort table would tell"
                )
            sources = [job.open().source for job in jobs]
            visits = [(source.people, source.study) for source in sources]
            if len(set(visits)) > 1:
                numbers = {visit: number for number, visit in enumerate(dict.fromkeys(visits), 1)}
                study_of = {job.scan: f"{job.subject}_{numbers[visit]}" for job, visit in zip(jobs, visits)}
        return group_studies(jobs, study_of) if task.kind == "study" else jobs

    @property
    def _is_cohort(self) -> bool:
        from fewbeats.recipes.jobs import COHORT_SUFFIXES

        return self.input.suffix.lower() in COHORT_SUFFIXES

    def find_jobs(self) -> Sequence[Job]:
        """The scans that the input stands for.

        Raises:
            InputError: nothing readable is there, or settings of one scan were given for several or for such
                as know better.
        """
        from fewbeats.data.files import is_nifti
        from fewbeats.io.nifti_parts import find_parts
        from fewbeats.recipes.jobs import Phases, jobs_of_cohort, jobs_of_path, with_phases

        if self._is_cohort:
            jobs: Sequence[Job] = jobs_of_cohort(self.input, self.split)
        elif self.split is not None:
            raise InputError(f"--split {self.split}: goes with a cohort table, not with {self.input}")
        else:
            jobs = jobs_of_path(self.input, frame_time_ms=self.frame_time_ms)
        if len(jobs) > 1 and (self.ed_frame is not None or self.es_frame is not None):
            raise InputError(f"--ed-frame, --es-frame: go with one scan; {self.input} holds {len(jobs)}")
        if self.frame_time_ms is not None and not (is_nifti(self.input) or find_parts(self.input)):
            raise InputError(f"--frame-time-ms: goes with a NIfTI file, not with {self.input}")
        return with_phases(jobs, Phases(self.ed_frame, self.es_frame))
