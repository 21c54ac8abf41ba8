"""The phantom: its truth is exact, its scans agree with it, and it is hard enough to fail a classifier."""

from __future__ import annotations

import csv
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewbeats.anatomy import FEWBEATS_VALUES
from fewbeats.errors import InputError
from fewbeats.phantom.anatomy import Tissue, beat_at, contraction
from fewbeats.phantom.cohort import cohort_subject, write_cohort
from fewbeats.phantom.imaging import signal_of
from fewbeats.phantom.pig import make_pig
from fewbeats.phantom.scan import (
    PhantomSettings,
    frame_phases,
    make_scan,
    sampled_ml,
    tissue_at,
    truth_ml,
)
from fewbeats.phantom.subject import GROUPS, make_subject
from fewbeats.scan import Reorientation, canonical_reorientation

LV, MYO, RV = (FEWBEATS_VALUES[s] for s in ("LV", "MYO", "RV"))
CINE = PhantomSettings(subjects=2, frames=4, matrix=80, pixel_mm=(2.6, 3.0))
CT = PhantomSettings(subjects=1, modality="ct", frames=2, matrix=80, pixel_mm=(2.5, 2.5))
PHASES = np.linspace(0.0, 1.0, 41)


@pytest.fixture(scope="module")
def cine():
    """(subject, scan, mask) of twelve subjects, three of each group."""
    subjects = [cohort_subject(CINE, i) for i in range(12)]
    return [(s, *make_scan(s, CINE)) for s in subjects]


@pytest.fixture(scope="module")
def ct():
    subject = cohort_subject(CT, 0)
    return (subject, *make_scan(subject, CT))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("phase", [0.0, 0.35])
def test_exact_volumes_agree_with_a_fine_grid(group, phase):
    subject = make_subject(5, group=group)
    counted, exact = sampled_ml(subject, phase, step_mm=2.5), truth_ml(subject, np.array([phase]))
    for name in ("LV", "MYO", "RV"):
        assert counted[name] == pytest.approx(exact[name][0], rel=0.01), name
    assert 30 < counted["LA"] < 160
    assert 30 < counted["RA"] < 200
    assert counted["AO"] > 40
    assert counted["PA"] > 20


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_subjects_beat_like_hearts(seed):
    subject = make_subject(seed)
    truth = truth_ml(subject, PHASES)
    ejected = 100.0 * (truth["LV"].max() - truth["LV"].min()) / truth["LV"].max()
    assert 89 < truth["LV"].max() < 251
    assert 19 < ejected < 71
    assert ejected == pytest.approx(subject.lv_ef_percent, abs=0.5)
    np.testing.assert_allclose(truth["MYO"], truth["MYO"][0], rtol=1e-9)
    assert 45 < truth["MYO"][0] * 1.05 < 400  # grams
    assert truth["LV"][0] == pytest.approx(truth["LV"][-1])
    full, empty = beat_at(subject, 0.0), beat_at(subject, subject.es_phase)
    assert empty.base_mm > full.base_mm + 3.0  # the base comes down
    assert empty.epi_mm[0] - empty.endo_mm[0] > 1.08 * (full.epi_mm[0] - full.endo_mm[0])  # the wall thickens


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_short_axis_stacks_are_canonical_oblique_and_base_first(seed):
    subject = make_subject(seed)
    scan, _ = make_scan(subject, PhantomSettings(frames=1, matrix=16, pixel_mm=(2.0, 2.0)))
    assert canonical_reorientation(scan.affine, scan.shape[1:]) == Reorientation()
    assert scan.is_stack
    assert scan.spacing_mm[0] in (pytest.approx(8), pytest.approx(9), pytest.approx(10))
    direction = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-9)
    assert direction[:, 2] @ subject.axes[:, 2] > 0.99
    assert np.abs(direction).max() < 0.999
    assert 8 <= scan.shape[1] <= 12


def test_volume_curve_is_circular_and_has_the_phases_of_a_beat():
    s = contraction(PHASES, 0.35)
    np.testing.assert_allclose(contraction(PHASES + 3.0, 0.35), s, atol=1e-12)
    edge = contraction(np.array([-1e-3, 0.0, 1e-3]), 0.35)
    np.testing.assert_allclose(edge, 0.0, atol=1e-6)
    assert contraction(0.35, 0.35) == pytest.approx(1.0)
    rate = np.abs(np.diff(contraction(np.linspace(0, 1, 201), 0.35)))
    emptying, diastasis, kick = rate[20:50].max(), rate[130:160].max(), rate[170:195].max()
    assert diastasis < 1e-9 < kick < emptying


def test_labels_agree_with_the_truth(cine):
    """A stack is off by parts of its basal slice: within 15 % or 12 mL each, 4 % on average."""
    errors, ef_errors = [], []
    for subject, scan, mask in cine:
        truth = truth_ml(subject, frame_phases(subject, CINE))
        for name, value in (("LV", LV), ("MYO", MYO), ("RV", RV)):
            counted = (mask == value).sum((1, 2, 3)) * scan.voxel_ml
            assert np.abs(counted - truth[name]).max() < max(12.0, 0.15 * truth[name].max()), name
            errors.append((counted - truth[name]).mean() / truth[name].mean())
        counted = (mask == LV).sum((1, 2, 3)) * scan.voxel_ml
        ef = [100.0 * (v.max() - v.min()) / v.max() for v in (counted, truth["LV"])]
        ef_errors.append(ef[0] - ef[1])
    assert abs(np.mean(errors)) < 0.04
    assert np.abs(ef_errors).max() < 7.0
    assert np.abs(ef_errors).mean() < 3.0


def test_ct_labels_agree_with_the_truth(ct):
    subject, scan, mask = ct
    truth = truth_ml(subject, frame_phases(subject, CT))
    for name, value in (("LV", LV), ("MYO", MYO), ("RV", RV)):
        counted = (mask == value).sum((1, 2, 3)) * scan.voxel_ml
        np.testing.assert_allclose(counted, truth[name], rtol=0.04)
    assert set(np.unique(mask)) == set(range(8))


@pytest.mark.parametrize("group", GROUPS)
def test_the_cavity_is_wrapped_in_muscle(group):
    """On 1 mm short-axis planes nothing but muscle touches the LV cavity, in any phase."""
    subject = make_subject(11, group=group)
    side = np.arange(-70.0, 70.0)
    uvw = np.stack(np.meshgrid(side, side, [5.0, 20.0], indexing="ij"), -1).reshape(-1, 3)
    world = uvw @ subject.axes.T + np.array(subject.center_mm)
    for phase in (0.0, 0.2, 0.35, 0.7):
        tissue = tissue_at(subject, world, beat_at(subject, phase)).reshape(140, 140, 2)
        cavity = np.isin(tissue, [Tissue.LV, Tissue.LV_TRABECULA])
        rim = ndimage.binary_dilation(cavity, np.ones((3, 3, 1))) & ~cavity
        assert cavity.any()
        assert (tissue[rim] == Tissue.MYO).all()


@pytest.mark.parametrize("modality", ["cine", "ct"])
def test_a_seed_is_a_scan(modality):
    small = PhantomSettings(modality=modality, frames=2, matrix=32, pixel_mm=(5.0, 6.0))
    (one, mask), (two, same) = (make_scan(make_subject(3), small) for _ in range(2))
    np.testing.assert_array_equal(one.pixels.array, two.pixels.array)
    np.testing.assert_array_equal(mask, same)
    assert make_subject(3) == make_subject(3)
    assert make_subject(3) != make_subject(4)
    other, _ = make_scan(make_subject(4), small)
    assert other.shape != one.shape or not np.array_equal(other.pixels.array, one.pixels.array)


def test_contrasts_share_the_geometry_but_not_the_order_of_tissues():
    small = PhantomSettings(frames=2, matrix=48, pixel_mm=(4.0, 4.0))
    subject = make_subject(8)
    (bright, mask), (dark, same) = (
        make_scan(subject, replace(small, contrast=c)) for c in ("bright", "dark")
    )
    np.testing.assert_array_equal(mask, same)
    np.testing.assert_array_equal(bright.affine, dark.affine)
    rng = np.random.default_rng(0)
    tables = [np.mean([signal_of("cine", c, rng).mean for _ in range(50)], 0) for c in ("bright", "dark")]
    ratios = [t[Tissue.LV] / t[Tissue.MYO] for t in tables]
    assert ratios[0] > 2.2 > 1.8 > ratios[1] > 1.1
    assert tables[0][Tissue.LIVER] < 0.6 * tables[0][Tissue.RV]
    assert tables[1][Tissue.LIVER] > tables[1][Tissue.RV]


def test_thick_slices_mix_tissues(cine):
    """Near the base the LV's edge is a mixture; sampling the slice's middle alone gives another mask."""
    subject, scan, _ = cine[0]
    beat = beat_at(subject, float(frame_phases(subject, CINE)[0]))
    depth = (np.arange(6) + 0.5) / 6 - 0.5
    mixed = 0
    for z in range(scan.shape[1]):
        x, y = np.meshgrid(np.arange(80), np.arange(80))
        index = np.stack([np.broadcast_to(x, (6, 80, 80)), np.broadcast_to(y, (6, 80, 80)),
                          np.broadcast_to((z + depth)[:, None, None], (6, 80, 80))], -1)  # fmt: skip
        points = index.reshape(-1, 3) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
        in_lv = np.isin(tissue_at(subject, points, beat), [Tissue.LV, Tissue.LV_TRABECULA])
        share = in_lv.reshape(6, -1).mean(0)
        mixed += int(((share > 0) & (share < 1)).sum())
    assert mixed > 150


def test_ct_is_in_hounsfield_units(ct):
    _, scan, mask = ct
    frame, label = scan.frame(0), mask[0]
    assert scan.modality == "CT"
    np.testing.assert_allclose(scan.spacing_mm, 2.5)
    assert (np.diag(scan.affine)[:3] > 0).all()
    inner = {v: ndimage.binary_erosion(label == v) for v in (LV, MYO, RV, FEWBEATS_VALUES["AO"])}
    mean = {v: float(frame[m].mean()) for v, m in inner.items()}
    assert 280 < mean[LV] < 480
    assert 280 < mean[FEWBEATS_VALUES["AO"]] < 480
    assert 70 < mean[MYO] < 140
    assert 110 < mean[RV] < mean[LV] - 60
    assert frame.min() < -950
    assert frame.max() > 500
    assert 10 < frame[inner[MYO]].std() < 60
    assert (np.abs(frame + 860) < 80).mean() > 0.05  # lung
    assert (np.abs(frame + 95) < 40).mean() > 0.02  # fat


def test_cine_is_magnitude_with_uneven_slices(cine):
    for _, scan, mask in cine:
        values = scan.pixels.array
        assert values.dtype == np.int16
        assert values.min() >= 0
        assert scan.modality == "MR"
        assert set(np.unique(mask)) == {0, LV, MYO, RV}
        blood, muscle = (np.median(values[mask == v]) for v in (LV, MYO))
        assert blood > 1.2 * muscle
    shares = [
        np.mean(s.pixels.array[m == RV] < np.percentile(s.pixels.array[m == MYO], 95)) for _, s, m in cine
    ]
    assert np.mean(shares) > 0.05  # intensities of RV and muscle overlap


def test_frame_times_make_a_circle(cine):
    for subject, scan, _ in cine:
        assert scan.cycle_ms == subject.cycle_ms
        step = np.diff(scan.frame_times_ms)
        assert scan.frame_times_ms[-1] + step[0] == pytest.approx(scan.cycle_ms)
    assert len({frame_phases(s, CINE)[0] for s, _, _ in cine}) > 1  # not always triggered at end-diastole


def test_a_cohort_is_ordinary_nifti(tmp_path):
    small = PhantomSettings(subjects=2, frames=3, matrix=40, pixel_mm=(5.0, 5.0))
    rows = write_cohort(tmp_path, small, jobs=2)
    assert rows == write_cohort(tmp_path / "one", small)
    for name in ("phantom000_4d.nii.gz", "phantom001_4d.nii.gz"):
        there, here = (nib.load(tmp_path / side / "images" / name) for side in ("", "one"))
        assert np.array_equal(there.dataobj, here.dataobj)
    with (tmp_path / "subjects.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [r["subject"] for r in rows] == [r["subject"] for r in written] == ["phantom000", "phantom001"]
    for index, row in enumerate(rows):
        subject = cohort_subject(small, index)
        scan, mask = make_scan(subject, small)
        image = nib.load(tmp_path / "images" / f"{row['subject']}_4d.nii.gz")
        label = nib.load(tmp_path / "labels" / f"{row['subject']}_4d.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(3, 2, 1, 0), scan.pixels.array)
        np.testing.assert_array_equal(np.asarray(label.dataobj).transpose(3, 2, 1, 0), mask)
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-3)
        assert image.header.get_xyzt_units() == ("mm", "msec")
        assert image.header.get_zooms()[3] == pytest.approx(subject.cycle_ms / 3, rel=1e-5)
        truth = truth_ml(subject, frame_phases(subject, small))["LV"]
        assert row["lv_edv_ml"] == pytest.approx(truth.max(), abs=0.01)
        assert (row["ed_frame"], row["es_frame"]) == (truth.argmax(), truth.argmin())
        assert float(written[index]["lv_ef_percent"]) == row["lv_ef_percent"]


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="frames=0"):
        PhantomSettings(frames=0)
    with pytest.raises(InputError, match="normal, dilated"):
        make_subject(0, group="giraffe")


def test_intensity_and_position_are_not_enough(cine):
    """A logistic classifier on intensity, position and their squares stays under a mean Dice of 0.6."""
    from sklearn.linear_model import LogisticRegression

    def features(scan, mask):
        image = scan.frame(0)
        image = (image - image.mean()) / image.std()
        position = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
        columns = np.stack([image, *position], -1).reshape(-1, 4)
        return np.concatenate([columns, columns**2], 1), mask[0].ravel()

    rng = np.random.default_rng(0)
    samples = [features(scan, mask) for _, scan, mask in cine]
    picks = [(x[k], y[k]) for x, y in samples[:8] for k in [rng.choice(len(y), 5000, replace=False)]]
    classifier = LogisticRegression(max_iter=200)
    classifier.fit(np.concatenate([x for x, _ in picks]), np.concatenate([y for _, y in picks]))
    dice = []
    for x, y in samples[8:]:
        found = classifier.predict(x)
        dice.append(
            [
                2 * ((found == v) & (y == v)).sum() / ((found == v).sum() + (y == v).sum())
                for v in (LV, MYO, RV)
            ]
        )
    assert 0.05 < np.mean(dice) < 0.6


PIG = PhantomSettings(subjects=2, modality="ct", frames=2, matrix=64, pixel_mm=(3.2, 3.4), species="pig")


def test_a_pig_is_no_person_and_its_truth_is_exact():
    pigs = [make_pig(seed) for seed in range(12)]
    people = [make_subject(seed, group="normal") for seed in range(12)]
    smaller = ("lv_edv_ml", "elongation", "chest_width", "atria_scale", "cycle_ms")
    for name in (*smaller, "azimuth_deg", "chest_depth"):
        pig, person = (np.mean([getattr(s, name) for s in group]) for group in (pigs, people))
        assert (pig < person) == (name in smaller), name
    counted, exact = sampled_ml(pigs[0], 0.3, step_mm=2.5), truth_ml(pigs[0], np.array([0.3]))
    for name in ("LV", "MYO", "RV"):
        assert counted[name] == pytest.approx(exact[name][0], rel=0.01), name


@given(st.integers(0, 1000), st.floats(0, 1.5))
@example(93, 1.5)  # a person with the largest heart, a pig with a small one
@settings(max_examples=20)
def test_the_gap_leads_from_a_person_to_a_pig(seed, gap):
    person, pig, between = make_subject(seed, group="normal"), make_pig(seed), make_pig(seed, gap=gap)
    for name in ("lv_edv_ml", "wall_mm", "azimuth_deg", "chest_width", "cycle_ms"):
        start, end = getattr(person, name), getattr(pig, name)
        least = 0.5 * end if name == "lv_edv_ml" else -np.inf
        assert getattr(between, name) == pytest.approx(max(least, start + gap * (end - start)))
    assert beat_at(between, 0.3).volumes_ml[0] > 10


def test_a_pig_lies_turned_in_the_scanner_and_is_filled_on_both_sides():
    subject = replace(cohort_subject(PIG, 0), roll_deg=0.0)
    straight, _ = make_scan(subject, PIG)
    turned, mask = make_scan(replace(subject, roll_deg=20.0), PIG)
    np.testing.assert_array_equal(straight.affine, turned.affine)
    image = turned.frame(0)
    rv, lv = (float(image[mask[0] == value].mean()) for value in (RV, LV))
    assert rv > 0.8 * lv
    volume = np.count_nonzero(mask[0] == LV) * turned.voxel_ml
    assert volume == pytest.approx(truth_ml(subject, frame_phases(subject, PIG))["LV"][0], rel=0.06)


def test_a_pig_beyond_a_pig_is_refused():
    with pytest.raises(InputError, match="--gap 2"):
        PhantomSettings(species="pig", gap=2.0)
    with pytest.raises(InputError, match="of no species"):
        PhantomSettings(species="pig", contrast="any")
