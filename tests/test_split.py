"""Splits by subject, nested budgets, given lists."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbeats.data.cohort import new_cohort
from fewbeats.data.split import (
    apply_split_file,
    check_splits,
    draw_splits,
    fold_splits,
    labeled_subjects,
    read_subject_list,
)
from fewbeats.errors import InputError


def make_cohort(subjects=20, split="train", scans=2, **more):
    return new_cohort(
        {"subject": f"p{i:02d}", "image": f"/data/p{i:02d}_{k}.nii.gz", "split": split,
         "label": f"/data/p{i:02d}_{k}_gt.nii.gz", "convention": "acdc", "group": "AB"[i % 2], **more}
        for i in range(subjects) for k in range(scans)
    )  # fmt: skip


def test_split_file_is_taken(tmp_path):
    cohort = make_cohort(4, split=None)
    file = tmp_path / "s.csv"
    file.write_text("subject,split\np00,train\np01, dev \np02,test\n\n")
    split = dict(apply_split_file(cohort, file).select("subject", "split").iter_rows())
    assert split == {"p00": "train", "p01": "dev", "p02": "test", "p03": None}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("subject,split\np00,train\np00,dev\n", "two splits: p00"),
        ("subject,split\np00,validation\n", "'validation' is none of"),
        ("subject,split\np99,train\n", "not in the cohort: p99"),
        ("subject\np00\n", "no column 'split'"),
        ("", "not a readable table"),
        ("subject,split\n,train\n", "names no subject"),
    ],
)
def test_broken_split_file(tmp_path, text, complaint):
    file = tmp_path / "s.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        apply_split_file(make_cohort(2), file)
    assert "s.csv" in str(caught.value)


@pytest.mark.parametrize("second", ["dev", None])
def test_torn_subject_is_refused(second):
    cohort = make_cohort(3)
    torn = cohort.with_columns(
        pl.when(pl.col("scan") == "p01_1").then(pl.lit(second, pl.String)).otherwise("split").alias("split")
    )
    check_splits(cohort)
    with pytest.raises(InputError, match="in two splits: p01"):
        check_splits(torn)


@given(st.integers(4, 60), st.integers(0, 99), st.sampled_from([(0.5, 0.2, 0.3), (0.8, 0.0, 0.2)]))
def test_drawn_splits_are_whole_balanced_and_independent_of_rows(subjects, seed, parts):
    fractions = dict(zip(("train", "tune", "dev"), parts, strict=True))
    cohort = make_cohort(subjects, split=None)
    drawn = draw_splits(cohort, fractions=fractions, seed=seed)
    check_splits(drawn)
    people = drawn.unique("subject")
    count = Counter(people["split"])
    assert all(abs(count[name] - part * subjects) < 1.01 for name, part in fractions.items())
    for group in "AB":
        inside = Counter(people.filter(pl.col("group") == group)["split"])
        size = sum(inside.values())
        assert all(abs(inside[name] - part * size) < 2.01 for name, part in fractions.items())
    mixed = draw_splits(cohort.sample(fraction=1.0, shuffle=True, seed=seed), fractions=fractions, seed=seed)
    assert mixed.sort("scan").equals(drawn.sort("scan"))


def test_fractions_must_be_parts_of_a_whole():
    for fractions in ({"train": 0.5}, {"train": 1.5, "dev": -0.5}, {"all": 1.0}, {}):
        with pytest.raises(InputError, match="add up to 1"):
            draw_splits(make_cohort(4), fractions=fractions)


@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20))
def test_budgets_are_nested(seed, a, b):
    cohort = make_cohort(20)
    few, many = sorted((a, b))
    chosen = labeled_subjects(cohort, many, seed)
    assert labeled_subjects(cohort, few, seed) == chosen[:few]
    assert len(set(chosen)) == many
    assert labeled_subjects(cohort.reverse(), many, seed) == chosen
    smaller = cohort.filter(pl.col("subject") != chosen[-1])  # the order does not depend on who else is there
    assert labeled_subjects(smaller, None, seed)[: many - 1] == chosen[:-1]


def test_seeds_choose_different_subjects():
    firsts = {labeled_subjects(make_cohort(20), 1, seed)[0] for seed in range(60)}
    assert len(firsts) > 12


def test_only_manual_labels_of_train_count():
    cohort = pl.concat([
        make_cohort(3), make_cohort(6, "dev").filter(pl.col("subject") > "p02"),
        make_cohort(9, label_source="pseudo").filter(pl.col("subject") > "p05"),
        make_cohort(12, label=None).filter(pl.col("subject") > "p08"),
        make_cohort(14, convention="la2018").filter(pl.col("subject") > "p11"),
    ])  # fmt: skip
    assert sorted(labeled_subjects(cohort, None, 0, structures=["LV"])) == ["p00", "p01", "p02"]
    assert sorted(labeled_subjects(cohort, None, 0, structures=["LA"])) == ["p12", "p13"]
    assert len(labeled_subjects(cohort, None, 0)) == 5
    with pytest.raises(InputError, match="3 subjects of split train have manual labels of LV"):
        labeled_subjects(cohort, 4, 0, structures=["LV"])
    with pytest.raises(InputError, match="no subject of split train has manual labels of PA"):
        labeled_subjects(cohort, None, 0, structures=["PA"])
    with pytest.raises(InputError, match="labeled 0"):
        labeled_subjects(cohort, 0, 0)


def test_given_list(tmp_path):
    cohort = make_cohort(8)
    (tmp_path / "a.txt").write_text("p03\n\n p01 \np03\n")
    assert read_subject_list(str(tmp_path / "a.txt"), cohort) == ["p03", "p01"]
    (tmp_path / "a.csv").write_text("subject,few,many\np05,0,1\np02,1,1\n")
    assert read_subject_list(str(tmp_path / "a.csv"), cohort) == ["p05", "p02"]
    assert read_subject_list(f"{tmp_path / 'a.csv'}:few", cohort) == ["p02"]


@pytest.mark.parametrize(
    ("name", "text", "flag", "complaint"),
    [
        ("a.txt", "p99\n", "", "not in the cohort: p99"),
        ("a.txt", "p06\n", "", "not in split train, or without manual labels: p06"),
        ("a.txt", "\n", "", "names no subject"),
        ("a.csv", "subject,few\np00,1\n", ":many", "no column 'many'"),
        ("a.csv", "subject,few\np00,0\n", ":few", "names no subject"),
    ],
)
def test_broken_list(tmp_path, name, text, flag, complaint):
    cohort = pl.concat([make_cohort(6), make_cohort(8, "tune").filter(pl.col("subject") > "p05")])
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_subject_list(f"{tmp_path / name}{flag}", cohort)


def test_missing_list(tmp_path):
    with pytest.raises(InputError, match="missing or cannot be read"):
        read_subject_list(str(tmp_path / "none.txt"), make_cohort(2))


@given(st.integers(2, 6), st.integers(0, 3), st.integers(6, 30))
def test_folds_cover_every_subject_once_and_are_balanced(folds, repeat, subjects):
    cohort = make_cohort(subjects)
    parts = []
    for fold in range(folds):
        cut = fold_splits(cohort, folds=folds, draw=repeat * folds + fold, held_out="dev")
        check_splits(cut)
        assert set(cut["split"]) == {"train", "dev"}
        held = cut.filter(pl.col("split") == "dev").unique("subject")
        parts.append(list(held["subject"]))
        groups = Counter(held["group"])
        assert max(groups.values()) - min(groups["A"], groups["B"]) <= 1
    assert sorted(name for part in parts for name in part) == sorted(set(cohort["subject"]))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_another_repeat_cuts_otherwise():
    cohort = make_cohort(20)
    one, other = (fold_splits(cohort, folds=5, draw=draw, held_out="dev") for draw in (0, 5))
    assert not one["split"].equals(other["split"])


def test_more_folds_than_subjects():
    with pytest.raises(InputError, match="there are 3 subjects"):
        fold_splits(make_cohort(3), folds=5, draw=0, held_out="dev")


def test_subjects_that_are_one_heart_stay_in_one_part():
    cohort = make_cohort(12)
    twins = [("p00", "p04"), ("p04", "p07"), ("p02", "p03")]
    seen = []
    for draw in range(4):
        cut = fold_splits(cohort, folds=4, draw=draw, held_out="dev", together=twins)
        held = set(cut.filter(pl.col("split") == "dev")["subject"])
        assert all(held.isdisjoint(names) or held.issuperset(names) for names in twins)
        seen += held
    assert sorted(seen) == sorted(set(cohort["subject"]))
    with pytest.raises(InputError, match="there are 2 subjects"):
        fold_splits(make_cohort(3), folds=3, draw=0, held_out="dev", together=[("p00", "p01")])
