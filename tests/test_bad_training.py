"""Training on what is wrong: exit code 2, one line with the file and the mend, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest

from conftest import TINY
from fewbeats.cli import main
from refusals import refuse
from spoiling import (
    SHORT,
    colored,
    copy_phantoms,
    files_below,
    image_of,
    label_of,
    rewrite,
    truncate,
    with_value,
)

cohort = pytest.fixture(copy_phantoms)


def shifted(path: Path) -> None:
    affine = nib.load(path).affine.copy()
    affine[0, 3] += 5.0
    rewrite(path, lambda array: array, affine=affine)


SPOILED_FILES = {
    "missing image": (image_of, Path.unlink, "no such file"),
    "truncated gzip": (image_of, truncate, "truncated"),
    "no image": (image_of, lambda f: f.write_text("hello"), "NIfTI"),
    "zero bytes": (image_of, lambda f: f.write_bytes(b""), "0 bytes"),
    "NaN": (image_of, lambda f: rewrite(f, with_value(np.nan, (5, 5, 0, 0))), "NaN"),
    "infinite": (image_of, lambda f: rewrite(f, with_value(np.inf, (5, 5, 0, 2))), "infinite"),
    "empty": (image_of, lambda f: rewrite(f, np.zeros_like), "empty"),
    "color": (image_of, colored, "color"),
    "missing label": (label_of, Path.unlink, "no such file"),
    "truncated label": (label_of, truncate, "truncated"),
    "cropped label": (label_of, lambda f: rewrite(f, lambda a: a[:-1]), "own grid"),
    "shifted label": (label_of, shifted, "own grid"),
    "unknown label value": (label_of, lambda f: rewrite(f, with_value(99, (5, 5, 0, 0))), "[99]"),
    "label between values": (label_of, lambda f: rewrite(f, with_value(0.5, (5, 5, 0, 0))), "whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_FILES)
def test_training_on_a_spoiled_file(name, cohort, capfd):
    find, spoil, complaint = SPOILED_FILES[name]
    file, out = find(cohort), cohort.parent / "run"
    spoil(file)
    line = refuse(capfd, "finetune", cohort, f"--out={out}", *SHORT)
    assert str(file) in line
    assert complaint in line
    assert not out.exists()
    assert not [f for f in files_below(cohort.parent) if "partial" in f.name]


def edited(cohort: Path, **columns) -> Path:
    """Change columns of the table."""
    pl.read_csv(cohort, infer_schema=False).with_columns(**columns).write_csv(cohort)
    return cohort


def of(subject: str, value: str, column: str):
    return pl.when(pl.col("subject") == subject).then(pl.lit(value)).otherwise(pl.col(column))


BLANK = pl.lit(None, pl.String)


SPOILED_TABLES = {
    "subject in two splits": (
        lambda c: edited(c, subject=of("phantom004", "phantom000", "subject")), [], "in two splits"),
    "no labels": (lambda c: edited(c, label=BLANK, label_source=BLANK), [], "has manual labels"),
    "pseudo-labels alone": (lambda c: edited(c, label_source=pl.lit("pseudo")), [], "has manual labels"),
    "no split": (lambda c: edited(c, split=BLANK), [], "split train"),
    "too many wanted": (lambda c: c, ["--labeled=9"], "ask for 1 to 3"),
    "none wanted": (lambda c: c, ["--labeled=0"], "ask for 1 to 3"),
    "two lists": (lambda c: c, ["--labeled=2", "--labeled-subjects=x.txt"], "either"),
    "missing list": (lambda c: c, ["--labeled-subjects=x.txt"], "x.txt"),
    "unknown structure": (lambda c: c, ["--structures", "LX"], "LX"),
    "structure not drawn": (lambda c: c, ["--structures", "LA"], "LA"),
    "one subject to choose by": (lambda c: c, ["--labeled=1", "--select=best"], "--select last"),
    "another kind of table": (lambda c: c.write_text("a,b\n1,2\n") and c, [], "subject"),
    "missing table": (lambda c: c.with_name("none.csv"), [], "no such table"),
    "unknown convention": (lambda c: edited(c, convention=pl.lit("acdcc")), [], "acdcc"),
    "budget twice": (lambda c: c, ["--minutes=3"], "--minutes"),
    "size": (lambda c: c, ["--preprocess.size=60"], "multiple of 8"),
    "size of the bottom": (lambda c: c, ["--preprocess.size=8"], "at least 16"),
    "batch": (lambda c: c, ["--batch-size=0"], "--batch-size"),
    "slab": (lambda c: c, ["--network.kind=unet3d", "--slab-slices=10"], "multiple of 4"),
    "photographs in 3D": (lambda c: c, ["--network.kind=unet3d", "--init=natural"], "lite0"),
    "no such start": (lambda c: c, ["--init=nowhere"], "nowhere"),
    "steps": (lambda c: c, ["--steps=-4"], "at least 1"),
    "no spacing": (lambda c: c, ["--preprocess.spacing-mm=nan"], "--preprocess.spacing-mm"),
    "percentiles": (lambda c: c, ["--preprocess.clip-percent", "99", "1"], "--preprocess.clip-percent"),
    "through plane": (lambda c: c, ["--preprocess.through-plane-mm=-2"], "--preprocess.through-plane-mm"),
    "average": (lambda c: c, ["--ema-decay=2"], "--ema-decay"),
    "no slab": (lambda c: c, ["--network.kind=unet3d", "--slab-slices=0"], "multiple of 4"),
    "another spacing": (lambda c: edited(c, spacing_y_mm=pl.lit("9.5")), [], "mend the file's header"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_TABLES)
def test_training_on_a_spoiled_table_or_with_wrong_settings(name, cohort, capfd):
    spoil, flags, complaint = SPOILED_TABLES[name]
    out = cohort.parent / "run"
    line = refuse(capfd, "finetune", spoil(cohort), f"--out={out}", *SHORT, *flags)
    assert complaint in line
    assert not out.exists()


def test_no_budget(cohort, capfd):
    assert "--minutes" in refuse(capfd, "finetune", cohort, "--out=x", *TINY)


@pytest.mark.usefixtures("no_onnx")
def test_one_heart_under_two_names_is_told(cohort, capfd):
    for find in (image_of, label_of):
        shutil.copy(find(cohort, 0), find(cohort, 1))
    table = pl.read_csv(cohort, infer_schema=False)
    first = table.row(by_predicate=pl.col("subject") == "phantom000", named=True)
    shape = [c for c in table.columns if c in ("frames", "slices", "rows", "columns") or "spacing" in c]
    edited(cohort, **{c: of("phantom001", first[c], c) for c in shape})
    assert main(["finetune", str(cohort), f"--out={cohort.parent / 'run'}", *SHORT]) == 0
    assert "phantom000 and phantom001 are one heart" in capfd.readouterr().out


def test_a_split_table_with_semicolons(cohort, capfd):
    split = cohort.parent / "split.csv"
    split.write_text("subject;split\nphantom000;train\n")
    words = ["index", cohort.parent / "source", "--layout=phantom", "--out", cohort, "--split", split]
    assert "separate columns by commas" in refuse(capfd, *words)


# Leaks


def test_a_renamed_copy_of_a_held_out_scan(cohort, capfd):
    for find in (image_of, label_of):
        shutil.copy(find(cohort, 3), find(cohort, 3).with_name("stranger_4d.nii.gz"))
    assert main(["index", str(cohort.parent / "source"), "--layout=phantom", f"--out={cohort}",
                 f"--split={add_stranger(cohort)}"]) == 0  # fmt: skip
    line = refuse(capfd, "finetune", cohort, "--out", cohort.parent / "run", *SHORT)
    assert "copy of a scan of the held-out phantom003" in line
    assert not (cohort.parent / "run").exists()


def add_stranger(cohort: Path) -> Path:
    """The subject also stands in the phantoms' table and in the splits."""
    facts = cohort.parent / "source" / "subjects.csv"
    header, *rows = facts.read_text().splitlines()
    twin = next(row for row in rows if row.startswith("phantom003"))
    facts.write_text("\n".join([header, *rows, twin.replace("phantom003", "stranger")]) + "\n")
    split = cohort.parent / "split.csv"
    names = ["train"] * 3 + ["tune", "dev", "dev"]
    rows = [f"phantom{i:03d},{s}" for i, s in enumerate(names)]
    split.write_text("\n".join(["subject,split", *rows, "stranger,train"]))
    return split


def swapped(cohort: Path) -> Path:
    """What was trained on is held out, and the other way round."""
    swap = {"train": "dev", "dev": "train", "tune": "train"}
    return edited(cohort, split=pl.col("split").replace_strict(swap))


@pytest.mark.parametrize("start", ["", "network.safetensors"])
def test_starting_from_weights_that_saw_held_out_scans(start, cohort, small_run, capfd):
    out = cohort.parent / "again"
    line = refuse(capfd, "finetune", swapped(cohort), f"--out={out}", *SHORT, f"--init={small_run / start}")
    assert "has seen held-out subjects: phantom000, phantom001, phantom002" in line
    assert not out.exists()


def test_judging_a_run_on_what_it_was_trained_on(cohort, small_run, tmp_path, capfd):
    masks = tmp_path / "masks"
    assert main(["predict", str(small_run), str(cohort), "--split=train", f"--out={masks}"]) == 0
    line = refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")
    assert "has seen held-out subjects" in line
    (masks / "provenance.json").unlink()
    assert "provenance.json" in refuse(capfd, "evaluate", masks, cohort, "--out", tmp_path / "report")
    assert not (tmp_path / "report").exists()
