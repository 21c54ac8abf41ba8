"""What the documents say is so: commands and flags exist, blocks run, links resolve, tables match the code.

A bash block below `<!-- run -->` is executed, page by page, in a folder of phantoms; of every other one each
`fewbeats` line must at least be understood. Python blocks are all executed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from fewbeats import __version__
from fewbeats.cli import main, read_command

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MADE_LATER = {"docs/images/report.png", "benchmarks/RESULTS.md"}
"""Outcomes of runs; a link to one is followed once it is there."""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path | str, language: str) -> list[tuple[bool, str]]:
    """Code blocks of a page: whether it is to be run, and its text."""
    found = re.findall(rf"(<!-- run -->\n)?```{language}\n(.*?)```", read(str(page)), re.DOTALL)
    return [(bool(mark), text) for mark, text in found]


def bash_lines() -> list:
    """Every command line of every page."""
    return [
        pytest.param(line, id=f"{page.name}: {line}")
        for page in PAGES
        for _, text in blocks(page, "bash")
        for line in text.splitlines()
    ]


def first_column(page: str, heading: str) -> list[str]:
    """Names in the first column of the table below a heading."""
    section = read(page).split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("line", bash_lines())
def test_every_command_exists_with_its_flags(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    if words[0] == "make":
        assert all(re.search(rf"^{target}:", read("Makefile"), re.MULTILINE) for target in words[1:])
        return
    if words[0] == "torchrun":
        words = ["fewbeats", *words[words.index("fewbeats.cli") + 1 :]]
    if words[0] != "fewbeats":
        assert words[0] in ("cp", "mkdir"), "a command no reader has"
        return
    read_command(words[1], words[2:])


def run_blocks(page: str, *, start: int = 0, stop: int | None = None) -> None:
    """Execute the marked bash blocks of a page in the working folder."""
    marked = [text for run, text in blocks(page, "bash") if run]
    assert marked
    for line in "".join(marked[start:stop]).splitlines():
        words = shlex.split(line)
        if words[0] == "fewbeats":
            assert main(words[1:]) == 0, line
        else:
            subprocess.run(words, check=True)


@pytest.fixture
def dicom(tmp_path, monkeypatch) -> Path:
    """Working folder with two DICOM cines of 14 frames, as the pages name them."""
    from synthetic_dicom import Grid, write_cine

    monkeypatch.chdir(tmp_path)
    for number, subject in enumerate(("patient07", "patient42")):
        write_cine(tmp_path / "dicom" / subject, grid=Grid(origin=(3.0 * number, 7.0, 23.0)), frames=14)
    return tmp_path


def draw(image: Path, mask: Path) -> None:
    """What a lab does by hand: LV, MYO and RV in every frame of an image, on its grid."""
    from fewbeats.io.nifti import read_nifti, write_like

    scan = read_nifti(image)
    drawn = np.zeros(scan.shape[1:], np.uint8)
    drawn[1:3, 3:8, 3:6], drawn[1:3, 4:7, 4:5], drawn[1:3, 3:8, 8:11] = 2, 1, 3
    write_like(mask, [drawn] * scan.shape[0], scan=scan)


def test_labels_page_runs(dicom):
    page = "docs/labels.md"
    run_blocks(page, stop=1)
    lab = dicom / "lab"
    for frame in ("00", "12"):
        name = f"patient07_frame{frame}.nii.gz"
        assert (lab / "images" / name).is_file()
        draw(lab / "images" / name, lab / "labels" / name)
    Path("splits.csv").write_text(blocks(page, "csv")[0][1])
    run_blocks(page, start=1, stop=2)
    first = pl.read_csv("cohort.csv").filter(pl.col("label").is_not_null())
    assert sorted(first["scan"]) == ["patient07_frame00", "patient07_frame12"]
    assert set(first["split"]) == {"train"}
    draw(lab / "images" / "patient42_4d.nii.gz", Path("predictions/patient42_4d.nii.gz"))
    run_blocks(page, start=2)
    second = pl.read_csv("cohort2.csv").filter(pl.col("label").is_not_null())
    assert sorted(second["scan"]) == ["patient07_frame00", "patient07_frame12", "patient42_4d"]
    assert set(second["label_source"]) == {"manual"}


@pytest.mark.parametrize("page", ["docs/data.md", "docs/evaluation.md"])
def test_data_and_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/data.md")
    programs = [text for _, text in blocks(page, "python")]
    assert programs
    for text in programs:
        exec(compile(text, page, "exec"), {})


def test_no_python_block_is_left_out():
    run_elsewhere = {"training.md"}  # test_new_method.py
    told = {p.name for p in PAGES if blocks(p, "python")}
    assert told == {"data.md", "evaluation.md", *run_elsewhere}


@pytest.fixture
def work(small_run, phantoms, dicom) -> Path:
    """Working folder with a run, a cohort and two files to predict, as the pages name them."""
    from fewbeats.data.cohort import read_cohort, write_cohort

    cohort = read_cohort(phantoms)
    write_cohort(cohort, dicom / "cohort.csv")
    shutil.copyfile(cohort["image"][5], dicom / "patient42.nii.gz")
    (dicom / "run").symlink_to(small_run)
    return dicom


def test_prediction_and_evaluation_pages_run(work):
    (_, predict), *_ = blocks("docs/prediction.md", "bash")
    (_, evaluate), *_ = blocks("docs/evaluation.md", "bash")
    for line in [*predict.splitlines(), *evaluate.splitlines()]:
        assert main(shlex.split(line)[1:]) == 0, line
    check_prediction_files(work)
    check_evaluation_files(work)


def check_prediction_files(work: Path) -> None:
    """Everything a prediction and a run hold is in the tables, and the other way round."""
    text = read("docs/prediction.md")
    columns = pl.read_csv(work / "predictions" / "predictions.csv").columns
    row = re.search(r"^\| `predictions.csv` \|(.*)\|$", text, re.MULTILINE)
    assert row is not None
    assert re.findall(r"`(\w+)`", row[1]) == columns
    told = {name.split("/")[0] for name in first_column("docs/prediction.md", "OUT then holds")}
    files = {path.name for path in (work / "patient42").iterdir()}  # the DICOM cine came last
    assert {name.replace("patient42", "SCAN") for name in files} == told
    row = re.search(r"^\| `run.json` \| (`format`.*)\|$", text, re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == set(json.loads((work / "run" / "run.json").read_text()))
    told = {name.rstrip("/") for name in first_column("docs/prediction.md", "## Run folder")}
    assert {path.name for path in (work / "run").iterdir()} | {"checkpoint", "network.onnx"} == told


def check_evaluation_files(work: Path) -> None:
    page, report = "docs/evaluation.md", work / "report"
    assert first_column(page, "## subjects.csv") == pl.read_csv(report / "subjects.csv").columns
    assert first_column(page, "## clinical.csv") == pl.read_csv(report / "clinical.csv").columns
    summary = json.loads((report / "summary.json").read_text())
    assert set(first_column(page, "## summary.json")) == set(summary)


def test_bland_altman_fields_and_quantities():
    from dataclasses import fields

    from fewbeats.evaluation.statistics import BlandAltman
    from fewbeats.heartbeat import QUANTITIES

    text = read("docs/evaluation.md")
    entry = re.search(r"A Bland-Altman entry holds (.*)", text)
    named = re.search(r"Quantities, as they are named .*?: (.*)", text)
    assert entry is not None
    assert named is not None
    assert re.findall(r"`(\w+)`", entry[1]) == [field.name for field in fields(BlandAltman)]
    assert re.findall(r"`(\w+)`", named[1]) == list(QUANTITIES)


def test_cohort_columns_layouts_and_conventions():
    from fewbeats.anatomy import CONVENTIONS
    from fewbeats.data.cohort import COLUMNS
    from fewbeats.data.layouts import LAYOUTS

    assert first_column("docs/data.md", "## Cohort table") == list(COLUMNS)
    assert first_column("docs/data.md", "## Layouts") == list(LAYOUTS)
    section = read("docs/data.md").split("## Label conventions")[1]
    told = {
        name: {int(value): structure for value, structure in re.findall(r"(\d+) ([A-Z_]+)", values)}
        for name, values in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    }
    assert told == {name: dict(convention.values) for name, convention in CONVENTIONS.items()}


def test_warnings_are_worded_as_in_the_code():
    source = (ROOT / "src/fewbeats/inference/plausibility.py").read_text()
    written = first_column("docs/prediction.md", "## Warnings")
    assert len(written) == len(re.findall(r"found\.append\(", source))
    for warning in written:
        parts = [part.strip(" ,") for part in warning.split("...")]
        assert all(part in source for part in parts), warning


def test_rooms_are_where_the_page_says():
    told = {
        name.rstrip("/") for name in re.findall(r"^\| \d+ \| `([^`]+)`", read("docs/architecture.md"), re.M)
    }
    source = ROOT / "src" / "fewbeats"
    there = {p.name for p in source.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert told == there - {"__init__.py"}


def links() -> list:
    return [
        pytest.param(page, target, id=f"{page.name}: {target}")
        for page in PAGES
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://"))
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_relative_links_resolve(page, target):
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() and str(file.relative_to(ROOT)) in MADE_LATER:
        pytest.skip(f"{path} is the outcome of a run, and not there yet")
    assert file.exists()
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert not anchor or anchor in slugs


def test_files_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:src|tests|benchmarks|docs)/[\w/.]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
        for name in re.findall(r"`((?:\w+/)?\w+\.py)`", page.read_text()):
            found = [ROOT / name, ROOT / "src/fewbeats" / name]
            assert any(path.exists() for path in found), f"{page.name}: {name}"


def requirements(text: str) -> list[str]:
    """Names that apply here, without extras, in the spelling of the index."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in text.splitlines() if line]
    return [plain(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_licenses_page_names_every_dependency():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = "\n".join(line for lines in project["optional-dependencies"].values() for line in lines)
    wanted = {*requirements("\n".join(project["dependencies"])), *requirements(extras)} - {"fewbeats"}
    tables = read("docs/licenses.md").split("## Weights")[0]
    assert {plain(name) for name in re.findall(r"^\| `([\w-]+)`", tables, re.MULTILINE)} == wanted


def test_no_core_package_is_under_a_copyleft_license():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    todo, seen = requirements("\n".join(project["dependencies"])), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        kinds = [c for c in found.metadata.get_all("Classifier", []) if c.startswith("License")]
        said = [
            found.metadata.get("License-Expression", ""),
            *(found.metadata.get("License") or "").split("\n")[:1],
        ]
        assert not re.search(r"GPL|General Public", " ".join([*said, *kinds])), name
        todo += requirements("\n".join(found.requires or []))
    assert len(seen) > 30


def test_citation_is_valid_and_current():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert str(cited["version"]) == __version__
    assert cited["license"] == "Apache-2.0"
    assert cited["authors"] == [{"name": "The fewbeats developers"}]
