"""Scripts of benchmarks/ that compare rows: the same figures whatever the order of the rows."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def rows(*, subjects: int = 25, seeds: int = 3) -> pl.DataFrame:
    random = np.random.default_rng(0)
    cells = product((f"patient{s:03}" for s in range(subjects)), range(seeds), ("LV", "MYO", "RV"))
    table = pl.DataFrame(list(cells), schema=["subject", "seed", "structure"], orient="row")
    return table.with_columns(arm=pl.lit("a"), dice=pl.Series(random.uniform(size=len(table))))


def test_an_interval_does_not_depend_on_the_order_of_rows(scripts):
    from compare import by_subject, describe

    table = rows()
    texts = {describe(table.sample(fraction=1, shuffle=True, seed=s), "a") for s in range(5)}
    assert texts == {describe(table, "a")}
    found = by_subject(table.reverse(), "a")
    assert list(found) == sorted(found)


def test_draws_stand_in_order_whatever_that_of_the_rows(scripts):
    from draws import by_subject_and_draw

    table = by_subject_and_draw(rows().sample(fraction=1, shuffle=True, seed=1), "a")
    assert table.columns == ["subject", "0", "1", "2"]
    whole = rows().filter(pl.col("subject") == "patient007", pl.col("seed") == 2)["dice"].mean()
    assert table.row(7)[3] == pytest.approx(whole)


def test_draws_that_agree_leave_students_t_over_subjects(scripts):
    from scipy import stats

    from draws import random_draws

    values = np.random.default_rng(0).normal(1, 2, size=20)
    low, high, freedom, p = random_draws(np.repeat(values[:, None], 3, 1))
    exact = stats.ttest_1samp(values, 0)
    assert (low, high) == pytest.approx(tuple(exact.confidence_interval()))
    assert (freedom, p) == pytest.approx((19, exact.pvalue))


def test_an_interval_covers_as_it_says_where_nothing_is_skewed(scripts):
    from draws import coverage, sign_flip

    values = np.random.default_rng(0).normal(size=200)
    boot, student = coverage(values, 60, samples=300)
    assert 0.90 <= boot <= 0.99
    assert 0.90 <= student <= 0.99
    assert sign_flip(np.full(5, 0.3), flips=20_000) == pytest.approx(2 / 32, abs=0.01)
