"""Clinical quantities from volumes."""

from __future__ import annotations

import numpy as np
import pytest

from fewbeats.heartbeat import (
    QUANTITIES,
    body_surface_m2,
    ejection_fraction_percent,
    find_phases,
    heartbeat,
)

VOLUMES = {
    "LV": np.array([140.0, 90.0, 56.0, 100.0]),
    "RV": np.array([150.0, 100.0, 75.0, 110.0]),
    "MYO": np.array([100.0, 102.0, 104.0, 101.0]),
}


def test_a_heartbeat_by_hand():
    found = heartbeat(VOLUMES, 0, 2)
    assert (found["lv_edv_ml"], found["lv_esv_ml"], found["lv_sv_ml"]) == (140, 56, 84)
    assert found["lv_ef_percent"] == pytest.approx(60.0)
    assert found["rv_ef_percent"] == pytest.approx(50.0)
    assert found["lv_mass_g"] == pytest.approx(105.0)
    assert not any("index" in key for key in found)


def test_indexed_by_body_surface():
    surface = body_surface_m2(180.0, 80.0)
    assert surface == pytest.approx(2.0)
    found = heartbeat(VOLUMES, 0, 2, body_surface=surface)
    assert found["lv_edv_index_ml_m2"] == pytest.approx(70.0)
    assert found["lv_mass_index_g_m2"] == pytest.approx(52.5)
    assert list(found) == [q for q in QUANTITIES if q in found]
    assert set(found) == set(QUANTITIES)


def test_only_what_the_structures_allow():
    assert set(heartbeat({"LA": np.array([60.0, 80.0])}, 0, 1)) == set()
    assert set(heartbeat({"MYO": VOLUMES["MYO"]}, 0, 2)) == {"lv_mass_g"}


def test_nothing_found_gives_no_ejection_fraction():
    assert ejection_fraction_percent(0.0, 0.0) is None
    assert "lv_ef_percent" not in heartbeat({"LV": np.zeros(2)}, 0, 1)


def test_phases_are_the_largest_and_smallest_cavity():
    assert find_phases(VOLUMES["LV"]) == (0, 2)
    assert find_phases(np.array([50.0, 120.0, 120.0, 50.0])) == (1, 0)


@pytest.mark.realdata
def test_a_dilated_heart_pumps_little(realdata):
    nib = pytest.importorskip("nibabel")
    lv = []
    for frame in ("01", "12"):
        label = nib.load(realdata / f"acdc/patient002/patient002_frame{frame}_gt.nii.gz")
        lv.append((np.asarray(label.dataobj) == 3).sum() * abs(np.linalg.det(label.affine[:3, :3])) / 1000)
    found = heartbeat({"LV": np.array(lv)}, *find_phases(np.array(lv)))
    assert find_phases(np.array(lv)) == (0, 1)
    assert 10 < found["lv_ef_percent"] < 40  # ACDC's dilated group is defined by an EF under 40%


PLANES = [(9, "SAX", True), (9, "", True), (1, "", False), (3, "4CH", False)]


@pytest.mark.parametrize(("slices", "view", "told"), PLANES)
def test_the_terminal_tells_no_ejection_fraction_of_a_plane(tmp_path, slices, view, told):
    from fewbeats.recipes.labeling import Job, summarize
    from fewbeats.scan import Prediction

    volumes = {"LV": np.array([100.0, 40.0])}
    found = Prediction(
        mask=tmp_path, structures=("LV",), volumes_ml=volumes, ed_frame=0, es_frame=1, warnings=()
    )
    line = summarize(Job("a", "a", "a.nii", None, view), found, slices=slices)
    assert ("EF 60 %" in line) == ("mL" in line) == told
