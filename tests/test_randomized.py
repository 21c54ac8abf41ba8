"""Phantoms far wider than life: their truth is as exact, and what is drawn anew is as wide as was said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.phantom.anatomy import Tissue, beat_at
from fewbeats.phantom.cohort import cohort_subject
from fewbeats.phantom.imaging import signal_of
from fewbeats.phantom.randomized import random_subject
from fewbeats.phantom.scan import (
    PhantomSettings,
    frame_phases,
    make_scan,
    sampled_ml,
    tissue_at,
    truth_ml,
)
from fewbeats.phantom.scar import Scar
from fewbeats.phantom.subject import make_subject

ANY = PhantomSettings(contrast="any", frames=2, matrix=64, pixel_mm=(2.5, 4.0))


@pytest.mark.parametrize("seed", range(4))
def test_exact_volumes_hold_however_wide_a_heart_is(seed):
    subject = random_subject(seed)
    counted, exact = sampled_ml(subject, 0.3, step_mm=2.5), truth_ml(subject, np.array([0.3]))
    for name in ("LV", "MYO", "RV"):
        assert counted[name] == pytest.approx(exact[name][0], rel=0.02), name


def test_hearts_are_wider_than_life():
    drawn = [cohort_subject(ANY, i) for i in range(60)]
    assert random_subject(3) == random_subject(3)
    assert {one.group for one in drawn} == {"any"}
    for name, low, high in (("lv_edv_ml", 80, 250), ("wall_mm", 6, 15), ("rv_edv_ml", 90, 280),
                            ("lv_ef_percent", 20, 68), ("trabeculation", 0.5, 2.5)):  # fmt: skip
        values = [getattr(one, name) for one in drawn]
        assert min(values) < low < high < max(values), name
    assert 10 < sum(one.scar is not None for one in drawn) < 30


def test_what_is_imaged_holds_emptied_hearts():
    drawn = [cohort_subject(ANY, i) for i in range(60)]
    smallest = [truth_ml(one, frame_phases(one, ANY)) for one in drawn]
    emptied = [one["LV"].min() < 15 and one["MYO"].min() > 60 for one in smallest]
    assert 4 < sum(emptied) < 30  # a thick wall and hardly any blood
    for one in drawn:
        phases = frame_phases(one, replace(ANY, frames=5))
        assert {0.0, one.es_phase} <= set(phases)
        assert (np.diff(phases) > 0).all()


def test_any_contrast_may_be_inverted_and_faint():
    rng = np.random.default_rng(0)
    tables = [signal_of("cine", "any", rng).mean for _ in range(300)]
    ratios = np.array([table[Tissue.LV] / table[Tissue.MYO] for table in tables])
    assert 0.02 < (ratios < 0.95).mean() < 0.2  # seen, but not as common as in no scanner's images
    assert (np.abs(np.log(ratios)) < 0.4).mean() > 0.1
    assert np.mean([table[Tissue.LUNG] for table in tables]) < 40
    apart = np.array([table[Tissue.RV] / table[Tissue.LV] for table in tables])
    assert (apart < 0.8).mean() > 0.1  # a right ventricle darker than the left


def test_a_scar_is_muscle_of_another_gray_value():
    subject = make_subject(5)
    scar = Scar(angle_deg=90.0, half_width_deg=40.0, depth=0.6, middle=0.4, half_height=0.3)
    scarred = replace(subject, scar=scar)
    points = subject.to_world(0, 0, 0) + np.random.default_rng(0).uniform(-60, 60, (60000, 3))
    before, after = (tissue_at(one, points, beat_at(one, 0.0)) for one in (subject, scarred))
    changed = before != after
    assert 50 < changed.sum() < 0.4 * (before == Tissue.MYO).sum()
    assert set(before[changed]) == {Tissue.MYO}
    assert set(after[changed]) == {Tissue.SCAR}
    local = subject.to_heart(points[changed])
    assert (np.abs(np.rad2deg(np.arctan2(local[1], local[0])) - 90) < 60).mean() > 0.95
    assert truth_ml(scarred, np.zeros(1)) == truth_ml(subject, np.zeros(1))


def test_trabeculae_grow_into_the_cavity_and_change_no_volume():
    subject = make_subject(5)
    points = subject.to_world(-20, 0, 0) + np.random.default_rng(0).uniform(-60, 60, (60000, 3))
    counts = []
    for trabeculation in (0.0, 1.0, 3.0):
        one = replace(subject, trabeculation=trabeculation)
        tissue = tissue_at(one, points, beat_at(one, 0.0))
        counts.append([(tissue == t).sum() for t in (Tissue.LV_TRABECULA, Tissue.RV_TRABECULA)])
        cavities = [np.isin(tissue, pair).sum() for pair in ((Tissue.LV, Tissue.LV_TRABECULA),
                                                             (Tissue.RV, Tissue.RV_TRABECULA))]  # fmt: skip
        counts[-1] += cavities
    lv, rv, *cavities = np.array(counts).T
    assert lv[0] < lv[1] < lv[2]
    assert rv[0] < rv[1] < rv[2]
    assert all(len(set(one)) == 1 for one in cavities)


def test_slices_are_thin_or_thick_and_masks_whole():
    heights, slices = [], []
    for index in range(8):
        scan, mask = make_scan(cohort_subject(ANY, index), ANY)
        heights.append(scan.spacing_mm[0])
        slices.append(scan.shape[1])
        assert set(np.unique(mask)) == {0, *(FEWBEATS_VALUES[s] for s in ("LV", "MYO", "RV"))}
    assert min(heights) < 7 < 10 < max(heights)
    assert min(slices) < max(slices)


def test_ct_has_its_units():
    with pytest.raises(InputError, match="--contrast any: of cine alone"):
        PhantomSettings(contrast="any", modality="ct")
