"""The cohort table."""

from __future__ import annotations

import shutil
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.cli import main
from fewbeats.data.cohort import COLUMNS, join_cohorts, new_cohort, read_cohort, write_cohort
from fewbeats.data.files import check_files, open_labels, open_scan
from fewbeats.errors import InputError
from small_nifti import image, label, rows_of

names = st.from_regex(r"[A-Za-z0-9_.,;\"' -]{1,8}", fullmatch=True).filter(lambda s: s.strip() == s)
tables = st.lists(
    st.fixed_dictionaries(
        {"subject": names, "image": names.map(lambda s: f"/d/{s}.nii")},
        optional={
            "label": names.map(lambda s: f"/d/l {s}.nii"),
            "frame": st.integers(0, 99),
            "frames": st.integers(1, 99),
            "weight_kg": st.floats(0.1, 1e3),
            "spacing_trusted": st.booleans(),
            "view": st.sampled_from(["SAX", "2CH"]),
            "group": names,
            "scanner": names,
        },
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@given(rows=tables)
@settings(deadline=None)
def test_written_and_read_is_the_same(tmp_path_factory, suffix, rows):
    for i, row in enumerate(rows):
        row |= {"scan": f"s{i}", "convention": "acdc" if "label" in row else None}
    cohort = new_cohort(rows)
    file = tmp_path_factory.mktemp("t") / f"cohort{suffix}"
    write_cohort(cohort, file)
    assert read_cohort(file).equals(cohort)


def test_paths_follow_the_table(tmp_path):
    for name in ("a/x.nii.gz", "a/x_gt.nii.gz"):
        label(tmp_path / name)
    own = tmp_path / "a/own.csv"
    own.write_text("value,structure\n1,LV\n2,MYO\n3,RV\n")
    outside = tmp_path / "b/y.nii.gz"
    cohort = new_cohort([
        {"subject": "x", "image": str(tmp_path / "a/x.nii.gz"), "label": str(tmp_path / "a/x_gt.nii.gz"),
         "convention": str(own)},
        {"subject": "y", "image": str(outside)},
    ])  # fmt: skip
    write_cohort(cohort, tmp_path / "a/cohort.csv")
    text = pl.read_csv(tmp_path / "a/cohort.csv")
    assert text["image"].to_list() == ["x.nii.gz", str(outside)]
    assert text["convention"][0] == "own.csv"
    shutil.move(tmp_path / "a", tmp_path / "moved")
    moved = read_cohort(tmp_path / "moved/cohort.csv")
    assert moved["image"].to_list() == [str(tmp_path / "moved/x.nii.gz"), str(outside)]
    assert open_labels(rows_of(moved)["x"], open_scan(rows_of(moved)["x"])).keys() == {0}
    with pytest.raises(InputError, match=r"y\.nii\.gz: no such file; mend"):
        check_files(moved)


def test_two_columns_are_enough_and_the_rest_is_derived(tmp_path):
    file = tmp_path / "c.csv"
    file.write_text('subject,image,note\np1,p1/sax.nii.gz,"a, b"\np2,p2/sax.nii.gz,\n\np2,z.nii,\n')
    cohort = read_cohort(file)
    assert cohort["scan"].to_list() == ["p1_sax", "p2_sax", "z"]
    assert cohort["study"].to_list() == ["p1", "p2", "p2"]
    assert cohort["image"][0] == str(tmp_path / "p1/sax.nii.gz")
    assert cohort["spacing_trusted"].to_list() == [True] * 3
    assert cohort["note"].to_list() == ["a, b", None, None]
    assert cohort.columns == [*COLUMNS, "note"]


def test_spreadsheet_habits_are_read(tmp_path):
    file = tmp_path / "c.csv"
    file.write_bytes(
        b"\xef\xbb\xbfsubject,image,spacing_trusted,weight_kg,frame\r\np1, a.nii ,FALSE,70,3.0\r\n"
    )
    row = read_cohort(file).row(0, named=True)
    assert (row["subject"], row["spacing_trusted"], row["weight_kg"], row["frame"]) == ("p1", False, 70.0, 3)
    assert row["image"].endswith("/a.nii")


def test_a_table_in_another_encoding(tmp_path):
    file = tmp_path / "c.csv"
    for encoding in ("utf-16", "utf-16-le"):
        file.write_text("subject,image\na,a.nii\n", encoding=encoding)
        with pytest.raises(InputError, match=r"c\.csv: not UTF-8 text; save it as CSV UTF-8"):
            read_cohort(file)


@pytest.mark.parametrize(
    ("header", "line", "complaint"),
    [
        ("subject,image,frame", "a,a.nii,x", r"row 3, column 'frame': 'x' is not a whole number"),
        ("subject,image,weight_kg", "a,a.nii,heavy", r"column 'weight_kg': 'heavy' is not a number"),
        ("subject,image,weight_kg", "a,a.nii,-3", r"column 'weight_kg': -3.0 is not a positive"),
        ("subject,image,height_cm", "a,a.nii,1.75", "'height_cm': 1.75 is too small; write centimeters"),
        ("subject,image,spacing_z_mm", "a,a.nii,nan", r"column 'spacing_z_mm': nan is not a positive"),
        ("subject,image,frame", "a,a.nii,-1", "counted from 0"),
        ("subject,image,phase", "a,a.nii,end", "'end' is none of ED, ES"),
        ("subject,image,split", "a,a.nii,validation", "is none of train, tune, dev, test"),
        ("subject,image,spacing_trusted", "a,a.nii,maybe", "'maybe' is not true or false"),
        ("subject,image,scan", "a,a.nii,../a", r"'\.\./a' cannot be part of a file's name"),
        ("subject,image,scan", "a,a.nii,first", "row 3, column 'scan': 'first' stands twice"),
        ("subject,image,label", "a,a.nii,l.nii", "column 'convention': is needed for a label"),
        ("subject,image,label,convention", "a,a.nii,l.nii,adcd", r"row 3.*'convention'.*unknown"),
        ("subject,image,label,convention", "a,a.nii,l.nii,no.csv", r"no\.csv.*cannot be read"),
        ("subject,image,label_frames", "a,a.nii,0;1", "is given without a label"),
        ("subject,image,label,convention,frames,label_frames", "a,a.nii,l.nii,acdc,9,0;9", "goes beyond"),
        ("subject,image,label,convention,label_frames", "a,a.nii,l.nii,acdc,0-9", "is not like 0;12"),
        ("subject,image,label,convention,label_frames", "a,a.nii,l.nii,acdc,3;03", "names a frame twice"),
        ("subject,image,frames,ed_frame", "a,a.nii,9,9", "row 3, column 'ed_frame': 9 goes beyond"),
        ("subject,image,frames,es_frame", "a,a.nii,9,99", "row 3, column 'es_frame': 99 goes beyond"),
        ("subject,image", ",a.nii", "row 3, column 'subject': is empty"),
        ("subject,image", "a,", "row 3, column 'image': is empty"),
        ("subject,image,split", "first,a.nii,dev", "in two splits: first"),
        ("subject,image,lable", "a,a.nii,l.nii", "unknown column 'lable'; rename it to label"),
        ("subject,picture", "a,a.nii", "has no column 'image'"),
        ("subject,image,image", "a,a.nii,b.nii", "column 'image' stands twice"),
        ("subject;image", "a;a.nii", "separate columns by commas"),
        ("subject;image;weight_kg", "a;a.nii;70,5", "separate columns by commas, and write decimals"),
        ("subject,image", "a,a.nii,b", "row 3 has 3 cells for 2 columns"),
        ("subject,image", "M\udcfcller,a.nii", "save it as CSV UTF-8"),
    ],
)
def test_broken_table(tmp_path, header, line, complaint):
    file = tmp_path / "c.csv"
    good = {"subject": "first", "image": "first.nii", "picture": "x"}
    first = (";" if ";" in header else ",").join(good.get(name, "") for name in header.split(","))
    file.write_text(f"{header}\n{first}\n{line}\n", errors="surrogateescape")
    with pytest.raises(InputError, match=complaint) as caught:
        read_cohort(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


cells = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "0", "-1", "1e400", "ED", "train", "a.nii", "acdc", "0;1", "true", '"', "\n", "#"]),
)


@given(
    st.one_of(
        st.binary(),
        st.text(),
        st.tuples(
            st.lists(st.sampled_from([*COLUMNS, "", "own"]), max_size=6),
            st.lists(st.lists(cells, max_size=8), max_size=4),
        ).map(lambda t: "\n".join(",".join(line) for line in [["subject", "image", *t[0]], *t[1]])),
    ),
    st.sampled_from([".csv", ".parquet"]),
)
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_table_or_an_input_error(tmp_path_factory, content, suffix):
    file = tmp_path_factory.getbasetemp() / f"garbage{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        cohort = read_cohort(file)
    except InputError as error:
        assert str(error).startswith(str(file))  # noqa: PT017
        return
    write_cohort(cohort, file.with_name("again.csv"))
    assert read_cohort(file.with_name("again.csv")).equals(cohort)


def test_biobank_is_read_in_seconds(tmp_path):
    rows = 300_000
    table = pl.DataFrame({"subject": [f"s{i // 3}" for i in range(rows)]}).with_columns(
        pl.lit("train").alias("split"), pl.lit(50).alias("frames"),
        pl.Series("image", [f"s{i // 3}/{i}.nii.gz" for i in range(rows)]),
    )  # fmt: skip
    table.write_csv(tmp_path / "c.csv")
    start = time.perf_counter()
    assert read_cohort(tmp_path / "c.csv").height == rows
    assert time.perf_counter() - start < 10


def test_parquet_of_other_types(tmp_path):
    file = tmp_path / "c.parquet"
    pl.DataFrame({"subject": [1, 2], "image": ["a.nii", "b.nii"], "frame": [0.0, 1.5]}).write_parquet(file)
    with pytest.raises(InputError, match=r"row 3, column 'frame': '1\.5' is not a whole number"):
        read_cohort(file)
    pl.DataFrame({"subject": [[1]], "image": [{"a": 1}]}).write_parquet(file)
    with pytest.raises(InputError, match="not a readable table"):
        read_cohort(file)


def test_other_suffixes_and_missing_tables(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_cohort(tmp_path / "c.csv")
    (tmp_path / "c.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        read_cohort(tmp_path / "c.xlsx")
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        write_cohort(new_cohort([{"subject": "a", "image": "/a.nii"}]), tmp_path / "d.xlsx")
    assert [f.name for f in tmp_path.iterdir()] == ["c.xlsx"]  # nothing half-written


def test_indexing_again_keeps_what_was_edited_by_hand(tmp_path, capsys):
    from fewbeats.cli import main

    image(tmp_path / "src/a.nii.gz")
    table, kept = tmp_path / "c.csv", tmp_path / "c.csv.bak"
    command = ["index", str(tmp_path / "src"), "--layout=folder", f"--out={table}"]
    for _ in range(2):
        assert main(command) == 0
        assert not kept.exists()
    written = table.read_bytes()
    table.write_bytes(edited := written + b"b,b.nii\n")
    for _ in range(2):  # the second time there is nothing to keep, and the edits are still there
        assert main(command) == 0
        assert (table.read_bytes(), kept.read_bytes()) == (written, edited)
    assert capsys.readouterr().out.count(f"{kept}: the table that was there") == 1


def test_tables_are_joined_by_source(tmp_path):
    one, other = make_table(2), make_table(3)
    with pytest.raises(InputError, match="stands in two tables"):
        join_cohorts({"a": one, "b": other})
    joined = join_cohorts({"a": one, "b": other}, apart=True)
    assert joined["subject"].to_list() == ["a-s0", "a-s1", "b-s0", "b-s1", "b-s2"]
    assert set(joined.columns) == {*one.columns, "source"}
    assert joined.group_by("source").len().sort("source").rows() == [("a", 2), ("b", 3)]
    write_cohort(joined, tmp_path / "joined.csv")
    assert read_cohort(tmp_path / "joined.csv")["source"].to_list() == ["a"] * 2 + ["b"] * 3


def test_a_person_of_two_tables_is_of_one_split():
    one = make_table(1).with_columns(split=pl.lit("train"))
    other = one.with_columns(scan=pl.lit("another"), split=pl.lit("dev"))
    with pytest.raises(InputError, match="in two splits"):
        join_cohorts({"a": one, "b": other})


def test_two_tables_of_one_name_cannot_be_joined(tmp_path, capsys):
    assert main(["join", "a/scans.csv", "b/scans.csv", f"--out={tmp_path / 'c.csv'}"]) == 2
    assert "of one name" in capsys.readouterr().err
    assert main(["join", f"--out={tmp_path / 'c.csv'}"]) == 2
    assert "no table to join" in capsys.readouterr().err


def make_table(scans: int) -> pl.DataFrame:
    return new_cohort({"subject": f"s{i}", "image": f"/data/s{i}.nii.gz"} for i in range(scans))
