"""Label conventions: named, narrowed and read from a user's own file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbeats.anatomy import (
    CONVENTIONS,
    FEWBEATS_VALUES,
    OTHER,
    PART_OF,
    Convention,
    annotated,
    name_structure,
    relabel,
    whole_labels,
)
from fewbeats.data.conventions import find_convention, read_convention
from fewbeats.errors import InputError

STRUCTURES = list(FEWBEATS_VALUES)


def relabel_voxel_by_voxel(labels, convention, targets):
    out = np.zeros(labels.shape, np.uint8)
    for voxel, value in np.ndenumerate(labels):
        structure = convention.values.get(int(value))
        for candidate in (structure, PART_OF.get(structure)):
            if candidate in targets:
                out[voxel] = targets.index(candidate) + 1
                break
    return out


@given(
    st.dictionaries(st.integers(1, 900), st.sampled_from([*STRUCTURES, OTHER]), min_size=1),
    st.lists(st.sampled_from(STRUCTURES), unique=True),
    st.randoms(use_true_random=False),
)
def test_relabel_agrees_with_voxel_by_voxel(values, targets, random):
    convention = Convention(name="own", values=values)
    labels = np.array([random.choice([0, *values]) for _ in range(24)]).reshape(2, 3, 4)
    expected = relabel_voxel_by_voxel(labels, convention, targets)
    assert np.array_equal(relabel(labels, convention, targets), expected)
    assert np.array_equal(relabel(labels.astype(float), convention, targets), expected)


def test_unknown_and_broken_values_are_named():
    with pytest.raises(InputError, match=r"gt\.nii.*\[7\].*'acdc'"):
        relabel(np.array([0, 1, 7]), CONVENTIONS["acdc"], ["LV"], file="gt.nii")
    with pytest.raises(InputError, match="whole numbers"):
        relabel(np.array([0, 1.5]), CONVENTIONS["acdc"], ["LV"])


def test_whole_numbers_are_known_within_the_rounding_of_their_file():
    stored = np.rint(np.array([0, 205, 500, 600]) / 0.0091554).astype(int) * 0.0091554
    assert whole_labels(stored, file="a.nii", step=0.0091554).tolist() == [0, 205, 500, 600]
    assert whole_labels(np.float32([0, 0.9999995, 2.999998]), file="a.nii").tolist() == [0, 1, 3]
    with pytest.raises(InputError, match="whole numbers"):
        whole_labels(np.array([0, 204.9]), file="a.nii", step=0.0091554)
    with pytest.raises(InputError, match=r"stored 2\.35 apart, too coarsely"):
        whole_labels(np.array([0, 204.7]), file="a.nii", step=2.35)


def test_public_conventions_map_to_the_right_structures():
    assert relabel(np.array([500, 600, 420, 550, 205, 820, 850]), CONVENTIONS["mmwhs"],
                   ["LV", "RV", "LA", "RA", "MYO", "AO", "PA"]).tolist() == [1, 2, 3, 4, 5, 6, 7]  # fmt: skip
    scar = relabel(np.array([1, 2, 3, 4]), CONVENTIONS["emidec"], ["MYO", "LV"])
    assert scar.tolist() == [2, 1, 1, 1]  # infarct counts as myocardium unless asked for
    assert annotated(CONVENTIONS["emidec"], ["LV", "MYO", "RV"]) == (True, True, False)


def test_narrowed_convention_is_silent_about_the_rest():
    narrow = find_convention("fewbeats:LV+MYO")
    assert narrow.speaks_of == {"LV", "MYO"}
    assert narrow.values == CONVENTIONS["fewbeats"].values
    assert find_convention("acdc").speaks_of == {"LV", "MYO", "RV"}
    for text in ("acdc:LA", "acdc:", "nobody", "fewbeats:LV+heart"):
        with pytest.raises(InputError, match="convention"):
            find_convention(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "value,structure\n1,MYO\n2,left ventricle\n3,OTHER\n"),
        ("c.csv", "\ufeffvalue, structure\n0,background\n1, myocardium\n2,LV\n3,other\n"),
        ("c.yaml", "values: {1: MYO, 2: LV cavity, 3: OTHER}\n"),
        ("c.json", json.dumps({"labels": {"background": 0, "MYO": 1, "LV": 2, "OTHER": 3}})),
        ("c.json", json.dumps({"labels": {"0": "background", "1": "MYO", "2": "LV", "3": "OTHER"}})),
    ],
)
def test_own_file(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    convention = find_convention(str(file))
    assert convention.values == {1: "MYO", 2: "LV", 3: OTHER}
    assert convention.speaks_of == {"MYO", "LV"}


def test_own_file_may_be_silent(tmp_path):
    file = tmp_path / "c.yml"
    file.write_text("values: {1: LV, 2: RV}\nsilent_about: [right ventricle]\n")
    assert find_convention(str(file)).speaks_of == {"LV"}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("c.csv", "value,structure\n1,liver\n", "'liver' is no structure"),
        ("c.csv", "value,structure\nx,LV\n", "not a list"),
        ("c.csv", "value,structure\n0,LV\n", "0 is always background"),
        ("c.csv", "value,structure\n1,LV\n1,RV\n", "1 stands twice"),
        ("c.csv", "number,name\n1,LV\n", "no entry 'value'"),
        ("c.csv", "", "names no structure"),
        ("c.yaml", "structures: {}", "no entry 'values'"),
        ("c.json", '{"labels": {"heart": [1, 2]}}', "region-based labels"),
    ],
)
def test_broken_own_file(tmp_path, name, text, complaint):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        read_convention(file)
    assert str(file) in str(caught.value)


def test_missing_own_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        find_convention(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".yaml", ".json"])
@given(
    content=st.one_of(st.text(), st.binary(), st.from_regex(r"(value,structure\n)?([0-9]{1,2},[A-Z]{2}\n)*"))
)
def test_garbage_is_a_convention_or_an_input_error(tmp_path_factory, suffix, content):
    file = tmp_path_factory.mktemp("c") / f"c{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "ignore"))
    try:
        assert read_convention(file).values
    except InputError as error:
        assert str(file) in str(error)  # noqa: PT017


def test_names_of_other_people():
    for name, structure in {
        "Left Ventricular Cavity": "LV", "heart_ventricle_right": "RV", "LVM": "MYO", "left atrium": "LA",
        "No-Reflow": "NO_REFLOW", "aorta": "AO", "right atrium blood cavity": "RA",
    }.items():  # fmt: skip
        assert name_structure(name, file="f") == structure
