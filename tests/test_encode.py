"""Embeddings: what they are of, that a second run computes nothing, and their page."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from fewbeats.cli import main
from fewbeats.data.provenance import load_provenance
from fewbeats.evaluation.embedding_report import _told, nearest, project


@pytest.fixture(scope="module")
def encoded(small_run, phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "features.parquet"
    assert main(["encode", str(small_run), str(phantoms), f"--out={out}"]) == 0
    return out


def test_every_slice_has_an_embedding(encoded, phantoms):
    table, cohort = pl.read_parquet(encoded), pl.read_csv(phantoms)
    assert table.columns == ["subject", "study", "scan", "frame", "slice", "features"]
    slices = int((cohort["frames"] * cohort["slices"]).sum())
    assert len(table) == slices == len(table.unique(["scan", "frame", "slice"]))
    features = np.stack(table["features"].to_numpy())
    assert features.dtype == np.float32
    assert features.std(0).max() > 0


def test_of_scans_and_studies_it_is_the_mean(encoded, small_run, phantoms, capsys):
    """The slices that are there are taken: nothing is computed twice."""
    by_slice = pl.read_parquet(encoded)
    before = {file: file.stat().st_mtime_ns for file in encoded.parent.rglob("*.parquet")}
    for level in ("scan", "study"):
        assert main(["encode", str(small_run), str(phantoms), f"--out={encoded}", f"--level={level}"]) == 0
        assert "6 of 6 labeled before" in capsys.readouterr().out
        told = pl.read_parquet(encoded)
        assert len(told) == 6
        expected = np.stack(by_slice.filter(pl.col("subject") == "phantom002")["features"].to_numpy()).mean(0)
        found = told.filter(pl.col("subject") == "phantom002")["features"][0].to_numpy()
        assert np.allclose(found, expected, atol=1e-5)
    after = {file: file.stat().st_mtime_ns for file in encoded.parent.rglob("*.parquet")}
    assert {file.name for file in before if before[file] != after[file]} == {"features.parquet"}
    by_slice.write_parquet(encoded)


def test_the_page_shows_neighbors_and_says_where_there_is_nothing_to_color_by(encoded, small_run, phantoms):
    assert main(["encode", str(small_run), str(phantoms), f"--out={encoded}"]) == 0
    page = encoded.with_suffix(".html").read_text()
    assert "Nearest neighbors" in page
    taught = len(load_provenance(small_run).labeled)
    assert f"learned from labels of {taught} subject" in page
    assert "Disease" in page  # of the phantoms four groups; sequence and view are one
    assert "<figcaption>View" not in page


def test_a_projection_keeps_what_varies_most():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(50, 6)) * [9, 4, 0.1, 0.1, 0.1, 0.1]
    places, explained = project(features)
    assert abs(np.corrcoef(places[:, 0], features[:, 0])[0, 1]) > 0.99
    assert explained > 0.99
    assert project(np.ones((3, 4)))[1] == 0.0


def test_neighbors_are_of_other_subjects_wherever_they_lie(tmp_path, monkeypatch):
    """In whole tables and in pieces of them, as a sort of all cosines has it."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(40, 6)).astype(np.float32)
    subjects = draw.choice(list("abc"), 40)
    table = pl.DataFrame({"subject": subjects, "slice": range(40),
                          "features": pl.Series(features, dtype=pl.Array(pl.Float32, 6))})  # fmt: skip
    table.write_parquet(tmp_path / "features.parquet")
    center = features.mean(0)
    apart = features - center
    cosines = (apart @ apart.T) / np.outer(*[np.linalg.norm(apart, axis=1)] * 2)
    for rows in (7, 1000):
        monkeypatch.setattr("fewbeats.evaluation.embedding_report.ROWS", rows)
        found = nearest(tmp_path / "features.parquet", table[[3, 30]], center=center, count=4)
        for item, (places, alike) in zip((3, 30), found):
            others = [i for i in np.argsort(-cosines[item]) if subjects[i] != subjects[item]][:4]
            assert places["slice"].to_list() == others
            assert alike == pytest.approx(cosines[item, others], abs=1e-5)


def test_a_study_of_several_sequences_is_of_none_of_them(phantoms):
    table = pl.read_csv(phantoms).with_columns(study=pl.lit("one"), subject=pl.lit("phantom000"))
    first = pl.int_range(pl.len()) == 0
    table = table.with_columns(sequence=pl.when(first).then(pl.lit("LGE")).otherwise("sequence"))
    told = _told(table, ["subject", "study"])
    assert told["sequence"].to_list() == ["several"]
    assert told["view"].to_list() == table["view"].unique().to_list()


REFUSED = {
    "name": ("features.csv", ".parquet"),
    "run": ("f.parquet", "not a finished run folder"),
    "predicted": ("f.parquet", "holds what a run predicted; give the run, runs/small"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_encoded(name, small_run, phantoms, tmp_path, capsys):
    out, complaint = REFUSED[name]
    run = small_run if name == "name" else tmp_path
    if name == "predicted":
        (run / "run.json").write_text(json.dumps({"labeler": "0a", "model": "runs/small", "network": "mean"}))
    assert main(["encode", str(run), str(phantoms), f"--out={tmp_path / out}"]) == 2
    assert complaint in capsys.readouterr().err
