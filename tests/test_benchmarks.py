"""Scripts of benchmarks/ that compare rows: what the package says of them, whatever their order."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fewbeats.evaluation.scores import SCORES
from fewbeats.study.result import analyze
from fewbeats.study.units import read_rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ABOUT = {
    "labeled": 3, "split": "dev", "group": "", "settings": "s", "data": "d", "steps": 10, "minutes": 1.0,
    "hd95_mm": 2.0, "misses": 0, "pretraining_steps": None, "pretraining_minutes": None,
    "commit": "c", "machine": "m", "date": "2026-11-25",
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def table(*, subjects: int = 25, seeds: int = 3) -> pl.DataFrame:
    """Rows of two arms, with a column a score as earlier studies had them."""
    random = np.random.default_rng(0)
    names = (f"patient{s:03}" for s in range(subjects))
    cells = product(("a", "b"), names, range(seeds), ("ED", "ES"), ("LV", "MYO", "RV"))
    rows = pl.DataFrame(list(cells), schema=["arm", "subject", "seed", "phase", "structure"], orient="row")
    dice = random.uniform(size=len(rows)).round(5)
    return rows.with_columns(pl.Series("dice", dice), *(pl.lit(v).alias(k) for k, v in ABOUT.items()))


def shuffle(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    return rows.sample(fraction=1, shuffle=True, seed=seed)


def expected(tmp_path: Path, rows: pl.DataFrame) -> dict:
    """What the package finds in a table."""
    rows.write_csv(tmp_path / "expected.csv")
    known = read_rows(tmp_path / "expected.csv")
    [contrast] = analyze(known, ["a", "b"], baseline="a", score=SCORES["dice"]).contrasts
    return flat(contrast)


def flat(contrast) -> dict:
    """All values of a contrast but its budget, which the rows of compare.py do not have."""
    found = {}

    def walk(value, name):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key != "labeled":
                    walk(inner, f"{name}.{key}")
        elif isinstance(value, (tuple, list)):
            for at, inner in enumerate(value):
                walk(inner, f"{name}.{at}")
        else:
            found[name] = value

    walk(asdict(contrast), "contrast")
    return found


def read(tmp_path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    rows.write_csv(tmp_path / "rows.csv")
    return read_rows(tmp_path / "rows.csv").filter(pl.col("metric") == "dice")


def run(module, folder: Path, capsys, monkeypatch, *words: str) -> str:
    monkeypatch.setattr(module, "ROWS", folder)
    monkeypatch.setattr(sys, "argv", ["script", *words])
    module.main()
    return capsys.readouterr().out


def test_compare_says_the_same_of_any_order_of_rows(scripts, tmp_path, capsys, monkeypatch):
    import compare

    said = set()
    for rows in (table(), table().reverse(), shuffle(table(), 1), shuffle(table(), 2)):
        rows.write_csv(tmp_path / compare.TABLE)
        words = ("--split", "dev", "--baseline", "a", "--arms", "b")
        said.add(run(compare, tmp_path, capsys, monkeypatch, *words))
    assert len(said) == 1
    assert said.pop().startswith("a: Dice 0.")


def test_compare_finds_what_the_package_finds(scripts, tmp_path):
    import compare

    [contrast] = compare.compare(compare.to_study(shuffle(table(), 3)), "a", ["b"])
    known = expected(tmp_path, table())
    assert flat(contrast) == pytest.approx(known)


def test_compare_adjusts_for_the_number_of_arms(scripts):
    import compare

    rows = compare.to_study(table())
    more = pl.concat([rows, rows.filter(pl.col("arm") == "b").with_columns(arm=pl.lit("c"))])
    [alone] = compare.compare(rows, "a", ["b"])
    both = compare.compare(more, "a", ["b", "c"])
    assert [c.p_value for c in both] == pytest.approx([min(1, 2 * alone.p_value)] * 2)


def test_draws_says_the_same_of_any_order_of_rows(scripts, tmp_path, capsys, monkeypatch):
    import draws

    said = set()
    for rows in (table(), table().reverse(), shuffle(table(), 1)):
        rows.write_csv(tmp_path / "ssp_acdc.csv")
        words = ("--labeled", "3", "--baseline", "a", "--arms", "b", "--without", "patient007")
        said.add(run(draws, tmp_path, capsys, monkeypatch, *words))
    [text] = said
    assert "without patient007" in text


def test_draws_finds_what_the_package_finds(scripts, tmp_path):
    import draws
    from fewbeats.study.contrast import compare_arms

    rows = read(tmp_path, shuffle(table(), 3))
    contrast = compare_arms(rows, "b", 3, baseline="a")
    assert flat(contrast) == pytest.approx(expected(tmp_path, table()))
    values = draws.differences(rows, contrast)
    assert values.mean() == pytest.approx(100 * contrast.difference.mean)
    extreme = contrast.difference.extreme
    at = int(extreme.subject.removeprefix("patient"))
    assert values[at] == pytest.approx(100 * extreme.difference)


def test_draws_leaves_out_the_named_subject(scripts, tmp_path, capsys, monkeypatch):
    import draws
    from fewbeats.study.contrast import compare_arms

    contrast = compare_arms(read(tmp_path, table()), "b", 3, baseline="a")
    named = contrast.difference.extreme.subject
    table().write_csv(tmp_path / "ssp_acdc.csv")
    words = ("--labeled", "3", "--baseline", "a", "--arms", "b", "--without", named)
    text = run(draws, tmp_path, capsys, monkeypatch, *words)
    assert f"b against a: {draws.describe(contrast)}" in text
    assert f"without {named}: {draws.describe(contrast.without)}" in text


def test_an_interval_covers_as_it_says_where_nothing_is_skewed(scripts):
    from draws import coverage

    values = np.random.default_rng(0).normal(size=200)
    boot, student = coverage(values, 60, samples=300)
    assert 0.90 <= boot <= 0.99
    assert 0.90 <= student <= 0.99
