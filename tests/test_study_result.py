"""Studies: what the rows are made to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fewbeats.errors import InputError
from fewbeats.evaluation.scores import SCORES
from fewbeats.evaluation.statistics import adjust_holm
from fewbeats.study.contrast import by_subject
from fewbeats.study.reading import read_plan
from fewbeats.study.report import write_report
from fewbeats.study.result import Result, analyze
from fewbeats.study.sentences import spread_of, tell_range
from fewbeats.study.units import read_rows
from small_study import content, made_rows, write

ROOT = Path(__file__).parents[1]
DICE = SCORES["dice"]


def test_a_true_gain_is_found_and_a_null_is_told_as_one():
    rows = made_rows({"scratch": 0.0, "good": 0.04, "same": 0.0})
    result = analyze(rows, ["scratch", "good", "same"], baseline="scratch", score=DICE, primary=("good", 3))
    good, same = result.contrasts
    assert good.difference.mean == pytest.approx(0.04, abs=0.004)
    assert good.primary
    assert good.is_clear
    assert good.p_value == good.difference.p_value
    assert not same.is_clear
    assert result.sentences[3].startswith("With 3 labeled subjects, take good: Dice")
    assert "The evidence is enough." in result.sentences[3]
    null = analyze(
        made_rows({"scratch": 0.0, "same": 0.0005}), ["scratch", "same"], baseline="scratch", score=DICE
    )
    assert "had a better mean" in null.sentences[3] or "not enough" in null.sentences[3]


def test_draws_that_disagree_are_not_enough():
    rows = pl.concat([
        made_rows({"scratch": 0.0, "lucky": 0.08}, seeds=(0,)),
        made_rows({"scratch": 0.0, "lucky": -0.02}, seeds=(1,)),
    ])  # fmt: skip
    contrast = analyze(rows, ["scratch", "lucky"], baseline="scratch", score=DICE).contrasts[0]
    assert contrast.difference.ci95[0] > 0
    assert not contrast.is_clear
    sentence = analyze(rows, ["scratch", "lucky"], baseline="scratch", score=DICE).sentences[3]
    assert "The draws of labeled subjects do not agree" in sentence


@pytest.mark.parametrize(("seeds", "scope"), [
    ((0,), "The evidence is enough for this draw of labeled subjects alone."),
    ((0, 1), "The evidence is enough for these 2 draws of labeled subjects alone."),
    ((0, 1, 2), "The evidence is enough. "),
])  # fmt: skip
def test_few_draws_speak_for_themselves_alone(seeds, scope):
    rows = made_rows({"scratch": 0.0, "good": 0.08}, seeds=seeds)
    result = analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE, shared=["good"])
    contrast = result.contrasts[0]
    assert contrast.is_clear
    assert (contrast.crossed is None) == (len(seeds) < 3)
    assert f"{result.sentences[3]} ".count(scope) == 1
    assert "Its draws share one pretraining, whose chance is in no interval." in result.sentences[3]


def test_arms_that_are_alike_are_named():
    rows = made_rows({"scratch": 0.0, "a": 0.05, "b": 0.0498})
    sentence = analyze(rows, ["scratch", "a", "b"], baseline="scratch", score=DICE).sentences[3]
    assert "It is not told apart from" in sentence


def test_the_subject_is_the_unit():
    """A subject with twice as many rows counts once; the same by hand, slowly."""
    rows = made_rows({"scratch": 0.0}, subjects=3)
    more = pl.concat([rows, rows.filter(pl.col("subject") == "s0")])
    slow = {}
    for subject in ("s0", "s1", "s2"):
        own = rows.filter(pl.col("subject") == subject)
        slow[subject] = np.mean([
            np.mean([
                np.mean(own.filter(pl.col("seed") == seed, pl.col("structure") == s)["value"].to_numpy())
                for s in ("LV", "RV")
            ])
            for seed in (0, 1, 2)
        ])  # fmt: skip
    assert by_subject(rows) == pytest.approx(slow)
    assert by_subject(more) == pytest.approx(slow)


def test_only_draws_that_both_have_are_compared():
    rows = made_rows({"scratch": 0.0, "late": 0.04})
    rows = rows.filter((pl.col("arm") != "late") | (pl.col("seed") < 1))
    contrast = analyze(rows, ["scratch", "late"], baseline="scratch", score=DICE).contrasts[0]
    assert list(contrast.draws) == [0]
    nothing = analyze(
        rows.filter((pl.col("arm") == "late") | (pl.col("seed") > 0)),
        ["scratch", "late"],
        baseline="scratch",
        score=DICE,
    )
    assert nothing.contrasts == []
    assert "no arm shares a draw with scratch" in nothing.sentences[3]
    alone = rows.filter((pl.col("arm") == "late") | (pl.col("seed") > 5))
    found = analyze(
        pl.concat([alone, made_rows({"other": 0.0})]),
        ["scratch", "late", "other"],
        baseline="scratch",
        score=DICE,
    )
    assert (
        found.sentences[3] == "With 3 labeled subjects scratch was not tried, so nothing is compared with it."
    )


def test_a_noisy_arm_does_not_hide_a_clearly_better_one():
    rows = made_rows({"scratch": 0.0, "good": 0.03, "wild": 0.0})
    rng = np.random.default_rng(1)
    jump = {f"s{i}": 0.8 if i == 0 else float(rng.normal(0, 0.02)) for i in range(20)}
    wild = pl.col("value") + pl.col("subject").replace_strict(jump, return_dtype=pl.Float64)
    rows = rows.with_columns(
        pl.when(pl.col("arm") == "wild").then(wild).otherwise(pl.col("value")).alias("value")
    )
    result = analyze(rows, ["scratch", "good", "wild"], baseline="scratch", score=DICE, primary=("good", 3))
    assert result.contrasts[1].difference.mean > result.contrasts[0].difference.mean
    assert result.sentences[3].startswith("With 3 labeled subjects, take good")
    assert "not told apart from wild" in result.sentences[3]


def test_an_easy_draw_of_the_baseline_alone_does_not_decide():
    rows = pl.concat([
        made_rows({"scratch": 0.0, "good": 0.03}, seeds=(0, 1)),
        made_rows({"scratch": 0.1}, seeds=(2,)),
    ])  # fmt: skip
    assert "take good" in analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE).sentences[3]


def test_the_sentence_is_of_the_draws_that_are_compared():
    """A draw that the baseline lacks must not lift the Dice beside the difference."""
    rows = made_rows({"scratch": 0.0, "mim": 0.05})
    lifted = pl.when((pl.col("arm") == "mim") & (pl.col("seed") == 2)).then(1.0).otherwise(pl.col("value"))
    rows = rows.with_columns(value=lifted).filter((pl.col("arm") == "mim") | (pl.col("seed") != 2))
    result = analyze(rows, ["scratch", "mim"], baseline="scratch", score=DICE, primary=None)
    shared = by_subject(rows.filter(pl.col("arm") == "mim", pl.col("seed") != 2))
    assert f"mim: Dice {np.mean(list(shared.values())):.3f}" in result.sentences[3]
    assert "p after Holm < 0.001" in result.sentences[3]


def test_arms_judged_on_different_subjects_are_refused():
    rows = made_rows({"scratch": 0.0, "good": 0.03})
    rows = rows.filter((pl.col("arm") == "scratch") | (pl.col("subject") != "s3"))
    with pytest.raises(InputError, match=r"of different subjects, .*: s3 0 ED LV"):
        analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE)


def test_arms_judged_on_different_structures_are_refused():
    rows = made_rows({"scratch": 0.0, "good": 0.0})
    rows = rows.filter((pl.col("arm") == "scratch") | (pl.col("structure") != "RV"))
    with pytest.raises(InputError, match="RV"):
        analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE)


def test_exploratory_tests_are_adjusted_and_the_primary_one_is_not():
    rows = made_rows({"scratch": 0.0, "a": 0.01, "b": 0.008, "c": 0.006}, noise=0.05)
    plain = analyze(
        rows, ["scratch", "a", "b", "c"], baseline="scratch", score=DICE, primary=("a", 3)
    ).contrasts
    assert plain[0].p_value == plain[0].difference.p_value
    assert all(c.p_value >= c.difference.p_value for c in plain[1:])
    assert min(c.p_value for c in plain[1:]) == pytest.approx(
        min(1, 2 * min(c.difference.p_value for c in plain[1:]))
    )


def test_draws_that_differ_much_are_not_enough():
    """All three point the same way, and the subjects agree; new draws may do otherwise."""
    rows = pl.concat([
        made_rows({"scratch": 0.0, "lucky": effect}, seeds=(seed,))
        for seed, effect in enumerate((0.10, 0.01, 0.02))
    ])  # fmt: skip
    result = analyze(rows, ["scratch", "lucky"], baseline="scratch", score=DICE)
    contrast = result.contrasts[0]
    assert contrast.difference.ci95[0] > 0
    assert contrast.p_value < 0.001
    assert contrast.crossed.ci95[0] < 0 < min(contrast.draws.values())
    assert contrast.doubt == "draws"
    assert "The interval for new draws and new subjects includes no difference. Take" in result.sentences[3]


def test_many_draws_need_not_all_point_the_same_way():
    rows = made_rows({"scratch": 0.0, "good": 0.01}, seeds=range(12), noise=0.06)
    contrast = analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE).contrasts[0]
    assert min(contrast.draws.values()) < 0
    assert contrast.is_clear


def shift(rows: pl.DataFrame, arm: str, subject: str, by: float) -> pl.DataFrame:
    there = (pl.col("arm") == arm) & (pl.col("subject") == subject)
    return rows.with_columns(value=pl.col("value") + pl.when(there).then(by).otherwise(0.0))


def test_what_hangs_on_one_subject_is_told():
    rows = shift(made_rows({"scratch": 0.0, "mim": 0.006}), "mim", "s7", -0.3)
    result = analyze(rows, ["scratch", "mim"], baseline="scratch", score=DICE)
    contrast = result.contrasts[0]
    extreme = contrast.difference.extreme
    assert extreme.subject == "s7"
    assert extreme.difference == pytest.approx(-0.294, abs=0.01)
    assert extreme.mean_without == pytest.approx(0.006, abs=0.003)
    assert (contrast.is_clear, contrast.without.is_clear, contrast.hinges) == (False, True, True)
    told = result.sentences[3]
    assert told.startswith("With 3 labeled subjects, take scratch")  # it is told, and decides nothing
    assert "Without s7 alone (−29" in told
    assert "against scratch and told apart; found by looking, this is no result of its own." in told


def test_what_would_be_told_apart_in_few_draws_is_told_of_these_alone():
    rows = shift(made_rows({"scratch": 0.0, "mim": 0.02}, seeds=(0, 1)), "mim", "s7", -0.3)
    result = analyze(rows, ["scratch", "mim"], baseline="scratch", score=DICE)
    assert "and told apart in these draws alone; found by looking" in result.sentences[3]


def test_without_its_extreme_subject_a_contrast_is_adjusted_beside_the_others_as_they_are():
    rows = made_rows({"scratch": 0.0, "a": 0.01, "b": 0.008}, noise=0.05)
    a, b = analyze(rows, ["scratch", "a", "b"], baseline="scratch", score=DICE).contrasts
    expected = adjust_holm([a.without.difference.p_value, b.difference.p_value])[0]
    assert a.without.p_value == pytest.approx(expected)


def test_structures_that_are_missed_are_counted():
    rows = made_rows({"scratch": 0.0, "good": 0.03}, subjects=4)
    gone = (pl.col("arm") == "good") & (pl.col("subject") == "s1") & (pl.col("structure") == "LV")
    rows = rows.with_columns(value=pl.when(gone).then(0.0).otherwise("value"))
    result = analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE)
    assert [(c.missed, c.judged) for c in result.cells] == [(0, 48), (6, 48)]  # 3 draws, 2 phases
    far = pl.concat([rows, rows.with_columns(metric=pl.lit("hd95_mm"), value=pl.lit(5.0))])
    cells = analyze(far, ["scratch", "good"], baseline="scratch", score=SCORES["hd95_mm"]).cells
    assert [(c.mean, c.missed, c.judged) for c in cells] == [(5.0, 0, 48), (5.0, 6, 48)]


def test_exchanged_ventricles_are_an_outcome_of_their_own():
    """Counted by heart, phase and draw; rows from before that tell nothing of it are not taken for none."""
    rows = made_rows({"scratch": 0.0, "good": 0.03}, subjects=4)
    assert [
        c.exchanged for c in analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE).cells
    ] == [
        None,
        None,
    ]
    taken = (pl.col("arm") == "good") & (pl.col("subject") == "s1") & (pl.col("phase") == "ES")
    told = rows.with_columns(metric=pl.lit("exchanged"), value=pl.when(taken).then(1.0).otherwise(0.0))
    result = analyze(pl.concat([rows, told]), ["scratch", "good"], baseline="scratch", score=DICE)
    assert [c.exchanged for c in result.cells] == [0, 3]  # 3 draws, whatever the number of structures
    share = analyze(
        pl.concat([rows, told]), ["scratch", "good"], baseline="scratch", score=SCORES["exchanged"]
    )
    assert [c.mean for c in share.cells] == [0.0, 0.125]


def test_a_score_of_which_less_is_better():
    rows = made_rows({"scratch": 0.0, "near": -0.05, "far": 0.05})
    rows = rows.with_columns(metric=pl.lit("hd95_mm"), value=20 * pl.col("value"))
    result = analyze(rows, ["scratch", "near", "far"], baseline="scratch", score=SCORES["hd95_mm"])
    assert [c.is_clear for c in result.contrasts] == [True, True]
    told = result.sentences[3]
    assert "take near: HD95 14." in told
    assert " mm, −1.0 mm against scratch (95% interval −1.1 to −1.0" in told
    assert "Dice" not in told
    assert "points" not in told
    worse = analyze(rows, ["scratch", "far"], baseline="scratch", score=SCORES["hd95_mm"]).sentences[3]
    assert worse == (
        "With 3 labeled subjects, take scratch: no arm that could be compared with it had a better mean."
    )


def test_a_page_of_another_score_has_its_words(tmp_path):
    settings = content("cohort.csv", tmp_path, labeled=[3], seeds=[0, 1, 2], primary=None, score="hd95_mm")
    plan = read_plan(Path(write(tmp_path, settings)))
    rows = made_rows({"scratch": 0.0, "mim": -0.05}).with_columns(metric=pl.lit("hd95_mm"))
    digests = {name: plan.digest(arm) for name, arm in plan.arms.items()}
    plan.rows.parent.mkdir()
    rows.with_columns(settings=pl.col("arm").replace_strict(digests)).write_csv(plan.rows)
    page = write_report(plan)[0].read_text()
    assert "HD95 (mm)" in page
    assert "Lower is better" in page
    assert "Dice" not in page
    assert "oints" not in page.partition("<main>")[2].partition("Fine-tuning, as")[0]
    assert "The draws of mim share one pretraining" in page
    assert "With 3 draws the last two are wide and rough." in page


def test_no_labeled_subject_and_rows_without_structure_or_phase():
    """As of a label of the whole image, by an arm that is taught by nobody here."""
    rows = made_rows({"scratch": 0.0, "taught": 0.05}, labeled=0)
    rows = rows.filter(pl.col("phase") == "ED", pl.col("structure") == "LV")
    rows = rows.with_columns(phase=pl.lit(None, pl.String), structure=pl.lit(None, pl.String))
    result = analyze(rows, ["scratch", "taught"], baseline="scratch", score=DICE, primary=("taught", 0))
    assert result.sentences[0].startswith("With 0 labeled subjects, take taught")
    assert result.cells[0].by_structure == {}
    assert result.contrasts[0].primary


def test_further_networks_of_a_run_are_arms_of_their_own():
    rows = made_rows({"scratch": 0.0, "mn": 0.03})
    flat = made_rows({"mn": 0.05}).with_columns(network=pl.lit("plane"))
    result = analyze(
        pl.concat([rows, flat]), ["scratch", "mn"], baseline="scratch", score=DICE, shared=["mn"]
    )
    assert [c.arm for c in result.cells] == ["scratch", "mn", "mn/plane"]
    assert result.cells[1].mean == pytest.approx(0.03 + result.cells[0].mean, abs=0.005)
    assert result.shared == ("mn", "mn/plane")
    assert "take mn/plane" in result.sentences[3]


def test_draws_that_were_judged_on_different_subjects_are_refused():
    rows = made_rows({"scratch": 0.0, "good": 0.03})
    rows = rows.filter((pl.col("seed") > 0) | (pl.col("subject") != "s3"))
    with pytest.raises(InputError, match="its seeds were judged on different subjects"):
        analyze(rows, ["scratch", "good"], baseline="scratch", score=DICE)


def test_scores_are_written_to_a_tenth_of_their_unit():
    assert [DICE.change(v) for v in (0.041, -0.0123, 0.0001)] == ["+4.1", "−1.2", "0.0"]
    assert (DICE.told(0.8521), DICE.axis, DICE.gain(-0.1)) == ("Dice 0.852", "Dice", -0.1)
    distance = SCORES["hd95_mm"]
    assert (distance.told(8.349), distance.axis, distance.gain(-2)) == ("HD95 8.3 mm", "HD95 (mm)", 2)
    assert distance.change(-1.25) == "−1.2"


# What the tracked studies say


PUBLISHED = {
    ("scratch", 3): "0.848 0.808 0.877 0.833 0.864", ("natural", 3): "0.854 0.813 0.884 0.828 0.879",
    ("simclr", 3): "0.858 0.827 0.882 0.848 0.865", ("pcl", 3): "0.845 0.804 0.876 0.830 0.858",
    ("dino", 3): "0.849 0.811 0.876 0.832 0.859", ("mim", 3): "0.852 0.807 0.882 0.837 0.860",
    ("simclr-natural", 3): "0.869 0.842 0.889 0.857 0.876", ("scratch", 7): "0.868 0.838 0.892 0.859 0.876",
    ("natural", 7): "0.885 0.864 0.902 0.879 0.888", ("mim", 7): "0.867 0.837 0.891 0.861 0.878",
}  # fmt: skip
"""Dice, interval and range over draws, as in benchmarks/RESULTS.md."""


@pytest.fixture(scope="module")
def acdc() -> Result:
    """The tracked study of pretraining."""
    rows = read_rows(ROOT / "benchmarks" / "rows" / "ssp_acdc.csv").filter(pl.col("split") == "dev")
    arms = list(dict.fromkeys(["scratch", "natural", *rows["arm"]]))
    return analyze(rows, arms, baseline="scratch", score=DICE, primary=("mim", 3))


def test_published_means_are_found_again(acdc):
    found = {
        (c.arm, c.labeled): " ".join(map(DICE.text, (c.mean, *c.ci95, *spread_of(c.draws))))
        for c in acdc.cells
    }
    assert {name: found[name] for name in PUBLISHED} == PUBLISHED


def test_published_differences_are_found_again_with_draws_as_chance(acdc):
    """Intervals over subjects are those of RESULTS.md; the others were computed apart from this code."""
    found = {
        (c.arm, c.labeled): f"{tell_range(c.difference.ci95, DICE)}, {tell_range(c.crossed.ci95, DICE)}"
        for c in acdc.contrasts
    }
    assert found["simclr-natural", 3] == "+1.1 to +3.5, +0.5 to +3.6"
    assert found["simclr", 3] == "+0.2 to +2.2, −0.6 to +2.6"
    assert found["natural", 7] == "+0.8 to +2.8, −1.5 to +4.9"
    tests = {(c.arm, c.labeled): (c.difference.p_value, c.crossed.p_value) for c in acdc.contrasts}
    assert tests["simclr-natural", 3][1] == pytest.approx(0.018, abs=5e-4)
    assert tests["mim", 3][0] == pytest.approx(0.34, abs=5e-3)
    assert tests["simclr-10", 3][0] == pytest.approx(0.069, abs=2e-3)
    mim = next(c for c in acdc.contrasts if c.primary)
    assert mim.p_value == mim.difference.p_value
    assert (mim.difference.extreme.subject, DICE.change(mim.difference.extreme.mean_without)) == (
        "patient086",
        "+0.6",
    )


def test_the_verdicts_of_the_tracked_study(acdc):
    assert [(c.arm, c.labeled) for c in acdc.contrasts if c.is_clear] == [("simclr-natural", 3)]
    beside = {c.baseline: c for c in acdc.beside}
    assert not beside["natural"].is_clear
    assert beside["simclr"].is_clear
    assert "It is not told apart from natural, " in acdc.sentences[3]
    assert "not enough to prefer natural" in acdc.sentences[7]
    assert "Without patient086 alone (+11.0), natural would be +1.3 points" in acdc.sentences[7]
