"""Predictions joined to labels, and the figures that come of it."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import polars as pl
import pytest

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.commands.evaluate import Evaluate
from fewbeats.data.cohort import write_cohort
from fewbeats.data.provenance import Provenance
from fewbeats.errors import InputError
from fewbeats.evaluation.evaluate import write_prediction_report
from fewbeats.metrics import compare
from small_cohort import (
    ACDC,
    AFFINE,
    SHAPE,
    SPACING_MM,
    STRUCTURES,
    empty_cohort,
    heart,
    judge,
    labels,
    save,
    volume_ml,
)

cohort = pytest.fixture(empty_cohort)


def test_pairs_of_files_by_hand(cohort):
    cohort.add_pair("s1", height_cm=180.0, weight_kg=80.0)
    cohort.add_pair("s2", shift=2, group="DCM")
    cohort.add_pair("s3", drop="RV")
    summary, rows, clinical, _ = judge(cohort)
    assert len(rows) == 3 * 2 * 3
    shifted = [
        compare(heart(r, shift=2)[s], heart(r)[s], spacing_mm=SPACING_MM) for s in STRUCTURES for r in (9, 6)
    ]
    of_subject = [1.0, np.mean([a.dice for a in shifted]), 1 - 1 / 6]
    assert summary["dice"]["mean"] == pytest.approx(np.mean(of_subject))
    assert summary["groups"]["DCM"]["hd95_mm"]["mean"] == pytest.approx(np.mean([a.hd95_mm for a in shifted]))
    assert summary["groups"]["DCM"]["dice"]["ci95"] is None  # one subject
    assert summary["dice"]["RV"] == pytest.approx(np.mean([1, np.mean([a.dice for a in shifted[4:]]), 0.5]))
    assert summary["dice"]["ci95"][0] < summary["dice"]["mean"] < summary["dice"]["ci95"][1]
    assert (summary["subjects"], summary["misses"], summary["judged_masks"]) == (3, 1, 18)
    diagonal = np.linalg.norm(np.multiply(SHAPE, SPACING_MM))
    missed = rows.filter(pl.col("miss")).row(0, named=True)
    assert (missed["subject"], missed["phase"], missed["structure"]) == ("s3", "ES", "RV")
    assert missed["hd95_mm"] == pytest.approx(diagonal, abs=1e-4)
    ef = 100 * (1 - heart(6)["LV"].sum() / heart(9)["LV"].sum())
    found = {
        (s, q): (p, m) for s, q, p, m in clinical.select("subject", "quantity", "predicted", "manual").rows()
    }
    assert found["s1", "lv_ef_percent"] == pytest.approx((ef, ef), abs=1e-3)
    assert found["s1", "lv_mass_g"][1] == pytest.approx(1.05 * volume_ml(heart(9)["MYO"]), abs=1e-3)
    assert found["s1", "lv_edv_index_ml_m2"][0] == pytest.approx(volume_ml(heart(9)["LV"]) / 2, abs=1e-3)
    assert found["s3", "rv_ef_percent"][0] == 100.0
    assert ("s2", "lv_edv_index_ml_m2") not in found
    assert summary["ef_percent"]["LV"]["mae"] < 1
    assert summary["seconds"] == 3.5


def test_a_cine_with_labels_on_some_frames(cohort):
    manual = [
        labels(heart(r), ACDC) if r in (9, 6) else np.zeros(SHAPE, np.uint8) for r in (9, 8, 6, 6.5, 7, 8)
    ]
    cohort.add_cine("c1", manual=manual, label_frames="0;2")
    cohort.add_cine(
        "c0", manual=manual, label_frames="0;2", ed_frame=2, es_frame=0
    )  # the cohort's word counts
    cohort.add_cine("c2", manual=[labels(heart(6), ACDC)], label_frames="2")  # 3D label of one frame
    cohort.add_cine("c3")
    summary, rows, clinical, page = judge(cohort)
    assert rows.filter(subject="c1")["frame"].unique().to_list() == [0, 2]
    assert rows.filter(subject="c1", frame=2)["phase"].unique().to_list() == ["ES"]
    assert rows.filter(subject="c2")["frame"].unique().to_list() == [2]
    assert rows.filter(subject="c0", frame=2)["phase"].unique().to_list() == ["ED"]
    assert rows["dice"].to_list() == [1.0] * 15
    both = clinical.filter(quantity="lv_ef_percent").sort("subject")
    assert both["predicted"].is_null().sum() == 0
    assert both["manual"].is_not_null().to_list() == [True, True, False, False]
    assert (summary["unlabeled_scans"], summary["frames"]) == (1, 5)
    assert page.count('class="cine"') == 3  # of four: the page stays light


def test_a_warning_withholds_the_ejection_fraction_but_not_the_dice(cohort):
    cohort.add_pair("s1")
    cohort.add_pair("s2", warnings="the heart is cut; too dark")
    summary, rows, clinical, page = judge(cohort)
    assert set(rows["subject"]) == {"s1", "s2"}
    assert clinical.filter(subject="s2")["predicted"].null_count() == len(clinical.filter(subject="s2"))
    assert clinical.filter(subject="s2")["manual"].null_count() == 0
    assert (summary["warned_scans"], summary["withheld_heartbeats"]) == (2, 1)
    assert clinical.filter(subject="s2")["from_masks"].null_count() == 0
    agreement = summary["ef_percent"]["LV"]
    assert (agreement["subjects"], agreement["quoted"]["subjects"]) == (2, 1)  # failures are judged, too
    assert "in the 1 without a warning" in page
    assert "the heart is cut; too dark" in page


def test_lost_spacing_gives_no_mm_and_no_ml(cohort):
    cohort.add_pair("s1", spacing_trusted=False)
    summary, rows, clinical, page = judge(cohort)
    assert summary["dice"]["mean"] == 1.0
    assert summary["hd95_mm"]["mean"] is None
    assert rows["volume_ml"].null_count() == len(rows)
    assert clinical.is_empty()
    assert "HD95 mm" not in page


def test_planes_give_no_volumes(cohort):
    frames = [labels(heart(r), FEWBEATS_VALUES)[2:3] for r in (9, 6)]
    manual = [labels(heart(r), ACDC)[2:3] for r in (9, 6)]
    cohort.add("plane", frames, manual, subject="s1", view=None, ends=(0, 1))
    cohort.add_cine("long", view="4CH")
    cohort.add_cine("stack", view=None)
    summary, rows, clinical, _ = judge(cohort)
    assert summary["dice"]["mean"] == 1.0
    assert rows.filter(scan="plane")["volume_ml"].null_count() == 6
    assert clinical["scan"].unique().to_list() == ["stack_4d"]


def test_only_structures_the_labels_speak_of_are_judged(cohort):
    manual = labels({"LV": heart(9)["LV"], "MYO": heart(9)["MYO"]}, {"LV": 1, "MYO": 2})
    manual[2, 20, 35] = 3  # infarct is part of the myocardium
    predicted = labels(heart(9), FEWBEATS_VALUES)
    cohort.add("s1", [predicted], [manual], subject="s1", convention="emidec")
    summary, rows, _, _ = judge(cohort)
    assert set(rows["structure"]) == {"LV", "MYO"}
    assert summary["dice"]["MYO"] == 1.0


def test_caveats_are_counted(cohort):
    cohort.add_pair("t1")
    cohort.add_pair("s2")
    cohort.predicted.pop()
    cohort.predicted.append(cohort.predicted[0] | {"scan": "stranger"})
    summary, _, _, page = judge(cohort)
    assert summary["subjects_trained_on"] == 1
    assert summary["labeled_scans_not_predicted"] == 1
    assert summary["scans_outside_cohort"] == 1
    assert "labels the network was trained on" in page


def test_bad_input_is_named(cohort):
    cohort.add_pair("s1")
    save(cohort.folder / "labels" / "s1_ES.nii.gz", [np.zeros(SHAPE, np.uint8)], affine=AFFINE * 1.1)
    with pytest.raises(InputError, match=r"masks/s1_ES.*labels/s1_ES.*grid"):
        judge(cohort)
    assert not (cohort.folder / "out").exists()
    with pytest.raises(InputError, match=r"predictions\.csv: missing"):
        write_prediction_report(cohort.folder, cohort.folder / "out")


@pytest.mark.parametrize(
    ("ends", "complaint"),
    [
        (("abc", 2), r"predictions\.csv: ed_frame of c1_4d is 'abc'"),
        ((0, "-1"), "es_frame of c1_4d is '-1'"),
        ((0, 77), r"c1_4d\.nii\.gz: .*predictions\.csv is beyond its frames 0 to 5"),
    ],
)
def test_an_edited_table_of_predictions_is_checked(cohort, ends, complaint):
    cohort.add_cine("c1", manual=[labels(heart(9), ACDC)] * 6)
    assert judge(cohort)[0]["subjects"] == 1
    cohort.predicted[0] |= {"ed_frame": str(ends[0]), "es_frame": f"{ends[1]}"}
    with pytest.raises(InputError, match=complaint):
        judge(cohort)
    cohort.predicted[0] |= {"ed_frame": "1.0", "es_frame": " 2"}
    assert judge(cohort)[0]["subjects"] == 1


def test_frames_that_cannot_be_matched_are_refused(cohort):
    cohort.add_cine("c1", manual=[labels(heart(6), ACDC)] * 2)
    with pytest.raises(InputError, match="label_frames"):
        judge(cohort)


def test_predictions_that_cannot_be_written_to_are_judged(cohort, tmp_path):
    cohort.predictions = tmp_path / "closed"
    cohort.predictions.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cohort.predictions)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        cohort.add_pair("s1")
        predictions, table = cohort.write()
        Provenance(run="run").save(predictions)
        write_cohort(table, tmp_path / "cohort.csv")
        subprocess.run(["mount", "-o", "remount,ro", str(predictions)], check=True)
        judged = Evaluate(predictions=predictions, cohort=tmp_path / "cohort.csv", out=tmp_path / "out")
        assert judged.run()["subjects"] == 1
    finally:
        subprocess.run(["umount", "-l", str(cohort.predictions)], check=False)


def test_labels_of_a_teacher_judge_nothing(cohort):
    cohort.add_pair("s1", label_source="teacher")
    cohort.add_cine("c1")
    with pytest.raises(InputError, match=r"none of its 3 scans has a manual label .* \(2 labels are teacher"):
        judge(cohort)


def test_exchanged_ventricles_are_told(cohort):
    """Labels of one convention read as those of another: every figure would be that of a failed network."""
    cohort.add_pair("s1")
    swapped = heart(9) | {"LV": heart(9)["RV"], "RV": heart(9)["LV"]}
    cohort.add("s2", [labels(heart(9), FEWBEATS_VALUES)], [labels(swapped, ACDC)], subject="s2")
    summary, rows, _, page = judge(cohort)
    assert summary["exchanged_scans"] == 1
    swapped_rows = rows.group_by("subject").agg(pl.col("exchanged").all())
    assert dict(swapped_rows.iter_rows()) == {"s1": False, "s2": True}
    assert "Ventricles look exchanged in 1 scan:" in page
