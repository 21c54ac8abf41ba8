"""Tables of classes and points that came back from a spreadsheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewbeats.errors import InputError
from fewbeats.evaluation.answers import read_answers

STUDY = {"title": "Scar", "kind": "study", "column": "scar", "classes": ["no", "yes"], "present": ["INFARCT"]}
POINTS = {"title": "Points", "kind": "landmarks", "points": ["rv_insertions", "lv_center"]}
CLASSES = """\
subject,study,level,scan,frame,slice,attention,class,confidence,p_no,p_yes,p_absent,p_present
a,a1,study,,,,,yes,0.75,0.25,0.75,,
a,a1,slice,a_lge,0,0,0.4,absent,0.9,,,0.9,0.1
a,a1,slice,a_lge,0,1,0.6,present,0.6,,,0.4,0.6
"""
PLACES = """\
subject,study,scan,frame,slice,point,x_mm,y_mm,z_mm,confidence
a,,a_sax,0,2,rv_insertions,1.5,2,3,0.9
a,,a_sax,0,2,rv_insertions,9.5,2,3,0.8
a,,a_sax,0,2,lv_center,5,5,3,0.8
"""


def folder_of(where: Path, table: str | bytes, task: dict = STUDY) -> Path:
    """A folder as `predict` leaves it."""
    run = {"task": task["kind"], "target": task, "finished": True}
    (where / "run.json").write_text(json.dumps(run))
    content = table if isinstance(table, bytes) else table.encode()
    (where / ("points.csv" if task is POINTS else "classes.csv")).write_bytes(content)
    return where


def test_what_was_written_is_read(tmp_path):
    task, _, rows = read_answers(folder_of(tmp_path, CLASSES))
    assert task.classes == ("no", "yes")
    assert [(row["level"], row["frame"], row["slice"]) for row in rows] == [
        ("study", None, None), ("slice", 0, 0), ("slice", 0, 1),
    ]  # fmt: skip
    assert rows[0]["p_yes"] == "0.75"
    _, _, points = read_answers(folder_of(tmp_path, PLACES, POINTS))
    assert [row["point"] for row in points] == ["rv_insertions", "rv_insertions", "lv_center"]


@pytest.mark.parametrize("saved", [
    "\N{ZERO WIDTH NO-BREAK SPACE}" + CLASSES,  # Excel's mark at the beginning
    CLASSES.replace("\n", "\r\n"),
    CLASSES.replace("a_lge,0,0,", "a_lge,0.0,0.0,"),  # pandas, where a column has gaps
    CLASSES.replace("0.25,0.75", "0.2,0.8").replace("0.9,0.1", "0.903,0.1"),  # rounded
    CLASSES + ",,,,,,,,,,,,\n",
])  # fmt: skip
def test_what_programs_do_to_a_table_is_borne(saved, tmp_path):
    rows = read_answers(folder_of(tmp_path, saved))[2][1:]
    assert [(row["scan"], row["frame"], row["slice"]) for row in rows] == [
        ("a_lge", 0, 0),
        ("a_lge", 0, 1),
    ]


SPOILED = {
    "semicolons": (CLASSES.replace(",", ";"), "separate columns by commas"),
    "latin": (CLASSES.replace("a_lge", "ä_lge").encode("latin-1"), "not UTF-8 text"),
    "no column": (CLASSES.replace("p_yes", "yes"), "has no column 'p_yes'"),
    "no number": (CLASSES.replace("0.25", "n/a"), "p_no is 'n/a', no number"),
    "not finite": (CLASSES.replace("0.25", "nan"), "p_no is 'nan', no number"),
    "empty": (CLASSES.replace("0.25,0.75", ","), "p_no is '', no number"),
    "too much": (CLASSES.replace("0.25", "7.25"), "no probabilities that add up to 1"),
    "negative": (CLASSES.replace("0.25,0.75", "-0.5,1.5"), "no probabilities that add up to 1"),
    "cut off": (CLASSES[: CLASSES.rindex("present")], "row 4: p_absent is '', no number"),
    "twice": (CLASSES + CLASSES.splitlines()[2], "stands in it 2 times"),
    "a class": (CLASSES.replace("yes,0.75", "Yes,0.75"), "'Yes' is none of no, yes"),
    "a level": (CLASSES.replace("slice,a_lge,0,1", "Slice,a_lge,0,1"), "level is 'Slice'"),
    "a frame": (CLASSES.replace("a_lge,0,1", "a_lge,0.5,1"), "row 4: frame is '0.5'"),
    "nothing": (CLASSES.splitlines()[0], "holds no row"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_table_of_classes_is_refused_in_a_line(how, tmp_path):
    table, complaint = SPOILED[how]
    with pytest.raises(InputError, match=r"classes\.csv") as caught:
        read_answers(folder_of(tmp_path, table))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("was", "becomes", "complaint"), [
    ("9.5,2", "9.5,", "y_mm is ''"),
    ("9.5,2", "inf,2", "x_mm is 'inf'"),
    ("lv_center", "rv_insertions", "rv_insertions: stands in it 3 times"),
    ("lv_center", "apex", "'apex' is none of rv_insertions, lv_center"),
    (",2,lv_center", ",two,lv_center", "row 4: slice is 'two'"),
])  # fmt: skip
def test_a_spoiled_table_of_points_is_refused_in_a_line(was, becomes, complaint, tmp_path):
    with pytest.raises(InputError, match=r"points\.csv") as caught:
        read_answers(folder_of(tmp_path, PLACES.replace(was, becomes), POINTS))
    assert complaint in str(caught.value)
