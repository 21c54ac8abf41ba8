"""Smoothing takes flicker away and leaves a beat, where it is mild."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbeats.cli import main
from fewbeats.data.provenance import Provenance
from fewbeats.evaluation.temporal import beating
from fewbeats.inference.labeler import Labeled
from fewbeats.inference.smooth import Smoothed
from fewbeats.metrics import dice
from fewbeats.phantom.cohort import cohort_subject
from fewbeats.phantom.scan import PhantomSettings, make_scan
from fewbeats.scan import ArrayPixels, Scan


@dataclass(frozen=True)
class Given:
    masks: np.ndarray
    confidence: np.ndarray | None = None
    structures: tuple[str, ...] = ("LV", "MYO", "RV")
    provenance: Provenance = field(default_factory=lambda: Provenance(run="given"))
    known = None
    key = "given"

    def label(self, scan) -> Iterator[Labeled]:
        for t, mask in enumerate(self.masks):
            yield Labeled(mask, None if self.confidence is None else self.confidence[t])

    def describe(self):
        return {"structures": self.structures}


def scan_of(masks: np.ndarray) -> Scan:
    return Scan(pixels=ArrayPixels(np.zeros(masks.shape, np.int16)), affine=np.diag([1.5, 1.5, 8.0, 1.0]))


def smoothed(masks: np.ndarray, frames: float, confidence: np.ndarray | None = None) -> np.ndarray:
    found = list(Smoothed(Given(masks, confidence), frames).label(scan_of(masks)))
    assert len(found) == len(masks)
    assert all(0 <= one.confidence.min() <= one.confidence.max() <= 1 + 1e-6 for one in found)
    return np.stack([one.mask for one in found])


@pytest.fixture(scope="module")
def heart() -> np.ndarray:
    made = PhantomSettings(frames=20, matrix=64, pixel_mm=(2.3, 2.4))
    return make_scan(cohort_subject(made, 0), made)[1]


def test_flicker_goes_and_the_beat_stays(heart):
    random = np.random.default_rng(0)
    flicker = np.where(random.random(heart.shape) < 0.15, 0, heart).astype(np.uint8)
    calm = smoothed(flicker, 1.0)
    before, after = (np.mean([dice(m == v, heart == v) for v in (1, 2, 3)]) for m in (flicker, calm))
    assert after > before + 0.03
    truth, curve = ((m == 1).sum((1, 2, 3)) for m in (heart, calm))
    assert (
        abs(beating(curve, circular=False).ejection_percent - beating(truth, circular=False).ejection_percent)
        < 4
    )


def test_too_much_of_it_stops_the_beat_and_the_ejection_fraction_shows_it(heart):
    still = smoothed(heart, 20.0)
    truth, curve = (beating((m == 1).sum((1, 2, 3)), circular=False) for m in (heart, still))
    assert curve.ejection_percent < 0.7 * truth.ejection_percent


@given(st.floats(0.3, 5.0), st.integers(1, 7))
@settings(max_examples=20)
def test_what_does_not_change_stays(frames, count):
    mask = np.random.default_rng(count).integers(0, 4, (2, 5, 6)).astype(np.uint8)
    masks = np.stack([mask] * count)
    np.testing.assert_array_equal(smoothed(masks, frames), masks)


def test_it_is_symmetric_in_time(heart):
    np.testing.assert_array_equal(smoothed(heart[::-1], 1.5)[::-1], smoothed(heart, 1.5))


def test_an_unsure_frame_gives_way_to_sure_neighbors():
    masks = np.array([1, 2, 1], np.uint8).reshape(3, 1, 1, 1)
    sure = np.array([0.9, 0.5, 0.9], np.float32).reshape(3, 1, 1, 1)
    assert smoothed(masks, 0.8).ravel().tolist() == [1, 2, 1]
    assert smoothed(masks, 0.8, sure).ravel()[1] == 1


def test_predict_smooths(small_run, phantoms, tmp_path):
    cine = phantoms.parent / "source" / "images" / "phantom004_4d.nii.gz"
    assert main(["predict", str(small_run), str(cine), f"--out={tmp_path / 'a'}", "--smooth=1"]) == 0
    assert '"smoothed_frames": 1.0' in (tmp_path / "a" / "run.json").read_text()


def test_a_negative_width_is_refused(small_run, tmp_path, capsys):
    assert main(["predict", str(small_run), "x.nii", f"--out={tmp_path}", "--smooth=-1"]) == 2
    assert capsys.readouterr().err
