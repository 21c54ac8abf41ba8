"""Disguises of a copied scan: those the leak guard sees through, and those docs/data.md says it does not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewbeats.data.cohort import new_cohort
from fewbeats.data.provenance import (
    SLICE_CHARS,
    Provenance,
    by_subject,
    content_hashes,
    digests,
    find_twins,
    frame_hashes,
    guard_ancestors,
    hash_scans,
    load_provenance,
)
from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.scan import ArrayPixels, Scan

AFFINE = np.diag([1.4, 1.4, 8.0, 1.0])


def as_scan(array):
    """Of (T, Z, Y, X) or (Z, Y, X)."""
    return Scan(pixels=ArrayPixels(array if array.ndim == 4 else array[None]), affine=AFFINE)


def hashes(array):
    return content_hashes(as_scan(array))


def are_twins(one, other) -> bool:
    return find_twins({"a": hashes(one), "b": hashes(other)}) == [("a", "b")]


def draw_stack(seed, slices=6, size=48, brightest=900):
    """Something like a body in black air: smooth, noisy, (Z, Y, X) int16."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(slices, size, size)), (0.5, 4, 4))
    smooth = (smooth - np.median(smooth)) / np.abs(smooth).max() + 0.2
    noisy = smooth * brightest + rng.normal(0, brightest / 50, smooth.shape)
    return np.clip(noisy, 0, None).round().astype(np.int16)


def one_voxel(stack):
    changed = stack.copy()
    changed[1, 3, 4] += 1
    return changed


def shuffled(stack):
    flat = stack.reshape(len(stack), -1)
    return np.random.default_rng(0).permuted(flat, axis=1).reshape(stack.shape)


def z_scored(stack):
    return ((stack - stack.mean()) / stack.std()).astype(np.float32)


def sloped(stack):
    """As int16 over its whole range, read with slope and intercept."""
    lowest, highest = np.percentile(stack, [0, 100])
    slope = (highest - lowest) / 65000
    stored = (np.round((stack - lowest) / slope) - 32500).astype(np.int16)
    return ArrayPixels(stored[None], slope=slope, intercept=lowest + 32500 * slope).frame(0)


def resampled(stack, factor=1.2):
    return ndimage.zoom(stack.astype(np.float32), (1, factor, factor), order=1)


def turned_a_little(stack):
    return ndimage.rotate(stack.astype(np.float32), 5, axes=(1, 2), reshape=False, order=1)


def noised(stack):
    return stack + np.random.default_rng(1).normal(0, 3, stack.shape).round().astype(np.int16)


def moved(stack):
    """The next frame of its cine: the same heart, somewhat deformed, with noise of its own."""
    return noised(np.roll(stack, 1, axis=1) // 2 + stack // 2)


CAUGHT = {
    "stored in another type": lambda s: s.astype(np.float64),
    "put into a cine with other frames": lambda s: np.stack([noised(s), s]),
    "mirrored in plane": lambda s: s[:, :, ::-1],
    "stored from the other end": lambda s: s[::-1],
    "transposed in plane": lambda s: s.transpose(0, 2, 1),
    "turned by 90 degrees": lambda s: np.rot90(s, axes=(1, 2)),
    "rolled by a pixel": lambda s: np.roll(s, 1, axis=2),
    "shuffled within its slices": shuffled,
    "padded with the darkest value": lambda s: np.pad(s, ((0, 0), (5, 3), (0, 4))),
    "given empty slices": lambda s: np.pad(s, ((1, 2), (0, 0), (0, 0))),
    "robbed of a slice": lambda s: np.delete(s, 1, axis=0),
    "given a slice twice": lambda s: np.concatenate([s[:1], s]),
    "cut to half of its slices": lambda s: s[: len(s) // 2],
    "changed in a voxel": one_voxel,
    "multiplied": lambda s: s * 2,
    "z-scored": z_scored,
    "gamma-corrected": lambda s: (s / np.float32(s.max())) ** np.float32(0.7),
    "stored as int16 with a slope": sloped,
}
"""Name -> what becomes of (Z, Y, X); each is found on its own."""

MISSED = {
    "cropped": lambda s: s[:, 10:-10, 10:-10],
    "resampled": resampled,
    "turned by 5 degrees": turned_a_little,
    "given noise": noised,
    "blurred": lambda s: ndimage.gaussian_filter(s.astype(np.float32), (0, 1, 1)),
    "rounded to fewer gray levels": lambda s: (s * (255 / s.max())).astype(np.uint8),
    "clipped in every slice": lambda s: np.minimum(s, np.percentile(s, 99, axis=(1, 2), keepdims=True)),
    "inverted": lambda s: s.max() - s,
    "replaced by another frame of its cine": moved,
}
"""What a copy must not be believed to be safe from."""


@pytest.mark.parametrize("disguise", CAUGHT)
@given(
    seed=st.integers(0, 2**32 - 1),
    slices=st.integers(2, 7),
    size=st.integers(40, 64),
    brightest=st.integers(300, 3000),
)
@settings(max_examples=15)
def test_a_disguised_copy_is_recognized(disguise, seed, slices, size, brightest):
    stack = draw_stack(seed, slices, size, brightest)
    assert are_twins(stack, CAUGHT[disguise](stack))


@pytest.mark.parametrize("disguise", MISSED)
def test_what_the_documents_say_is_missed_is_missed(disguise):
    stack = draw_stack(0, brightest=3000)
    assert not are_twins(stack, MISSED[disguise](stack))


def test_the_documents_name_these_disguises_and_no_others():
    page = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    section = page.split("## Leak guard\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([^|]+) \| (yes|no) \|$", section, re.MULTILINE)
    assert [name for name, found in rows if found == "yes"] == list(CAUGHT)
    assert [name for name, found in rows if found == "no"] == list(MISSED)


KINDS = {
    "body": lambda rng, shape: draw_stack(rng, shape[0], shape[1]),
    "few levels": lambda rng, shape: rng.integers(0, 40, shape).astype(np.uint8),
    "many levels": lambda rng, shape: rng.integers(0, 5000, shape).astype(np.int16),
    "all different": lambda rng, shape: rng.normal(size=shape).astype(np.float32),
    "half precision": lambda rng, shape: rng.random(shape).astype(np.float16),
    "mostly air": lambda rng, shape: np.maximum(rng.normal(-1, 1, shape), 0).astype(np.float32),
    "interpolated": lambda rng, shape: resampled(draw_stack(rng, *shape[:2]))[:, : shape[1], : shape[1]],
}
"""What scans may be of; the generator is handed on where a stack is drawn."""


@given(
    kinds=st.tuples(st.sampled_from(list(KINDS)), st.sampled_from(list(KINDS))),
    seeds=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    shape=st.tuples(st.integers(1, 6), st.integers(32, 64)),
)
@settings(max_examples=200)
def test_unrelated_images_are_not_twins(kinds, seeds, shape):
    assume(seeds[0] != seeds[1])
    size = (shape[0], shape[1], shape[1])
    one, other = (KINDS[kind](np.random.default_rng(seed), size) for kind, seed in zip(kinds, seeds))
    assert find_twins({"a": hashes(one), "b": hashes(other)}) == []


@pytest.mark.parametrize("stack", [
    np.zeros((2, 40, 40), np.int16),
    (draw_stack(0) > 300).astype(np.uint8),
    draw_stack(0) // 40,
    np.arange(3200, dtype=np.float32).reshape(2, 40, 40),
], ids=["constant", "binary", "few levels", "all different"])  # fmt: skip
def test_slices_that_tell_nothing_are_guarded_by_their_frame(stack):
    known = hashes(stack)
    assert len(known) == 1
    assert known == frame_hashes(as_scan(stack))
    assert hashes(np.ascontiguousarray(stack[::-1, :, ::-1])) == known
    assert hashes(one_voxel(stack)) != known


def test_frames_see_through_what_the_documents_say_of_them():
    stack = (draw_stack(0) > 300).astype(np.uint8)
    by_frame = [name for name, change in CAUGHT.items() if are_twins(stack, change(stack))]
    assert by_frame[:8] == list(CAUGHT)[:8]


def test_frames_come_first_and_slices_are_packed_once():
    cine = np.stack([draw_stack(0), draw_stack(1), draw_stack(0)])
    known = hashes(cine)
    assert len(known) == 4
    assert known[0] == known[2]
    assert {len(frame) for frame in known[:3]} == {24}
    assert len(known[3]) == 1 + 12 * SLICE_CHARS  # of 18 slices six are there twice
    parts = list(digests(known))
    assert parts[:3] == known[:3]
    assert len(parts) == len(set(parts)) + 1 == 15


def test_runs_that_noted_frames_alone_still_guard(tmp_path):
    """As every run did before slices had digests."""
    stack = draw_stack(0)
    old = Provenance(run="old", labeled={"x": [hashes(stack)[0]]})
    assert {len(h) for h in old.labeled["x"]} == {24}
    old.save(tmp_path)
    mirrored = {"d": hashes(stack[:, ::-1])}
    with pytest.raises(InputError, match="'old' has seen held-out subjects: d;"):
        guard_ancestors([load_provenance(tmp_path)], mirrored)
    assert find_twins({**old.labeled, **mirrored}) == [("d", "x")]
    guard_ancestors([load_provenance(tmp_path)], {"d": hashes(z_scored(stack))})  # which they cannot know
    new = Provenance(run="new", unlabeled={"x": hashes(stack)})
    new.save(tmp_path)
    with pytest.raises(InputError, match="'new' has seen held-out subjects: d;"):
        guard_ancestors([load_provenance(tmp_path)], {"d": hashes(z_scored(stack))})


def real_cohort(files, subject):
    """A table of real scans; `subject` takes it from the file's path."""
    return new_cohort(
        {"subject": subject(file), "scan": file.name.split(".")[0], "image": str(file)} for file in files
    )


@pytest.mark.realdata
@pytest.mark.parametrize(("images", "subjects", "twins"), [
    ("acdc/patient*/*_frame??.nii.gz", 80, [("patient074", "patient076")]),
    ("emidec/images/*.nii.gz", 80, [("Case_P059", "Case_P072")]),  # one slice as is, others moved by a pixel
    ("la2018/images/*.nii.gz", 50, []),
])  # fmt: skip
def test_real_hearts_are_told_apart(images, subjects, twins, realdata):
    rows = real_cohort(sorted(realdata.glob(images)), lambda file: file.name.split(".")[0].split("_frame")[0])
    assert rows["subject"].n_unique() == subjects
    assert find_twins(by_subject(rows, hash_scans(rows))) == twins


@pytest.mark.realdata
def test_real_scans_are_recognized_in_every_disguise(realdata):
    for number in ("002", "014", "063", "082"):
        file = realdata / f"acdc/patient{number}/patient{number}_frame01.nii.gz"
        stack = read_nifti(file).frame(0)
        assert [name for name, change in CAUGHT.items() if not are_twins(stack, change(stack))] == []
