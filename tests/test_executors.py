"""Work on several processes or a cluster: the same masks, nothing lost, nothing twice, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from fewbeats.data.cohort import new_cohort
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.evaluation.predictions import read_predictions
from fewbeats.inference.labeler import Labeled
from fewbeats.io.nifti import read_nifti
from fewbeats.recipes.executors import Dask, Processes, open_executor, serial
from fewbeats.recipes.jobs import CohortJobs, Job
from fewbeats.recipes.labeled_folder import JOURNAL, open_labeled
from fewbeats.recipes.labeling import label_scans

SCANS = tuple(f"scan{number}" for number in range(8))


@dataclass(frozen=True)
class Deadly:
    """Labels by gray value; the first to meet one of `deadly` dies, if it leaves a mark that nobody left."""

    marks: Path
    deadly: tuple[str, ...] = ()
    ever: bool = False
    """Everybody who meets one dies."""
    provenance = Provenance(run="deadly")
    structures = ("LV", "MYO", "RV")
    known = None
    key = "deadly"

    def label(self, scan) -> Iterator[Labeled]:
        name = scan.source.path.name.removesuffix(".nii")
        with (self.marks / f"{name}.seen").open("a") as seen:
            seen.write("x")
        if name in self.deadly:
            mark = self.marks / f"{name}.died"
            if self.ever or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        for t in range(scan.shape[0]):
            yield Labeled((scan.frame(t) % 4).astype(np.uint8))

    def describe(self):
        return {"structures": self.structures, "model": "deadly"}


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(SCANS):
        values = np.random.default_rng(number).integers(0, 99, (6, 6, 3, 2)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])), folder / f"{name}.nii")
    return [Job(n, n, str(folder / f"{n}.nii"), partial(read_nifti, folder / f"{n}.nii")) for n in SCANS]


def label(jobs, out: Path, labeler, executor, **more) -> dict[str, str]:
    return label_scans(jobs, labeler, out, about={}, executor=executor, tell=lambda line: None, **more)


def masks_in(out: Path) -> dict[str, bytes]:
    return {f.name: np.asarray(nib.load(f).dataobj).tobytes() for f in sorted(out.glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two worker processes."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as one:
        yield one.scheduler_address


def whole(out: Path, expected: Path) -> None:
    assert masks_in(out) == masks_in(expected)
    assert [scan.scan for scan in read_predictions(out)[0]] == list(SCANS)
    assert {p.name for p in out.iterdir() if p.name.startswith(".")} == set()


@pytest.mark.parametrize("where", ["processes", "dask"])
def test_a_killed_worker_changes_nothing(jobs, tmp_path, where, request):
    executor = Processes(2) if where == "processes" else Dask(request.getfixturevalue("cluster"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    label(jobs, tmp_path / "alone", Deadly(tmp_path / "a"), serial)
    failed = label(jobs, tmp_path / "together", Deadly(tmp_path / "b", deadly=(SCANS[3],)), executor)
    assert failed == {}
    assert (tmp_path / "b" / f"{SCANS[3]}.died").exists()
    whole(tmp_path / "together", tmp_path / "alone")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "together").iterdir()}
    label(jobs, tmp_path / "together", Deadly(tmp_path / "b"), executor)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "together").iterdir()} == before, "nothing twice"


def test_one_bad_scan_of_many_is_told_and_the_rest_is_there(jobs, tmp_path):
    Path(jobs[2].image).write_bytes(b"no image")
    (tmp_path / "a").mkdir()
    failed = label(jobs, tmp_path / "out", Deadly(tmp_path / "a"), Processes(2), most_failed=0.5)
    assert list(failed) == [SCANS[2]]
    assert len(masks_in(tmp_path / "out")) == 7


def test_processes_that_always_die_stop_it_with_a_word(jobs, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="are killed, one after the other"):
        label(jobs[:1], tmp_path / "out", Deadly(tmp_path / "a", deadly=(SCANS[0],), ever=True), Processes(1))


@pytest.mark.parametrize(
    ("on", "jobs", "told"),
    [
        ("nowhere", 1, "write local, or dask:ADDRESS"),
        ("dask:", 1, "write local, or dask:ADDRESS"),
        ("local", 0, "--jobs 0: give at least 1"),
        ("dask:tcp://127.0.0.1:9", 4, "the cluster has workers of its own"),
    ],
)
def test_executors_that_are_none_are_told(on, jobs, told):
    with pytest.raises(InputError, match=told):
        open_executor(on, jobs)


def test_a_cluster_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("fewbeats.recipes.executors.PATIENCE", 1.0)
    with pytest.raises(InputError, match="no scheduler answers there"):
        list(Dask("tcp://127.0.0.1:9")(len, [()]))
    with pytest.raises(InputError, match="no scheduler answers there"):
        list(Dask("/nowhere/scheduler.json")(len, [()]))


def test_a_biobank_is_planned_and_resumed_in_seconds(tmp_path):
    import resource

    count = 60_000
    image = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)), image)
    names = [f"s{number:06d}" for number in range(count)]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    schema = new_cohort([{"subject": "a", "image": str(image)}])
    table = pl.DataFrame({"subject": names, "scan": names, "image": str(image)})
    jobs = CohortJobs(pl.concat([schema.clear(), table], how="diagonal_relaxed"))
    about = {"labeler": "x", "about": {}, "provenance": Provenance(run="x"), "jobs": jobs}
    with open_labeled(tmp_path / "out", **about) as folder:
        folder._write_table()
    row = {"mask": "predictions.csv", "source": jobs[0].source_key(), "labeler": "x"}
    lines = [json.dumps({"scan": name, **row}) + "\n" for name in names[:-1]]  # all but the last are done
    (tmp_path / "out" / JOURNAL).write_text("".join(lines) + '{"scan": "cut o')
    begun = time.perf_counter()
    with open_labeled(tmp_path / "out", **about) as folder:
        waiting = [job.scan for job in jobs if not folder.has(job)]
    assert waiting == [names[-1]]
    assert time.perf_counter() - begun < 30
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024 < 300
