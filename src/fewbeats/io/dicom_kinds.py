"""Which images of one series are no phases of one heartbeat: other echoes, inversion times, hours, or kinds.

What differs in such a way at one slice position becomes scans of their own, so that no cine, and no ejection
fraction, is made of them. From position to position the same tags may drift, as inversion times do.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fewbeats.io.dicom_headers import FrameHeader

SAME_CONTRAST = 0.01
"""Echo and inversion times that differ by less than this share are one contrast."""
APART_MS = 60_000.0
"""Images of one position that are longer apart are of two acquisitions: nobody holds the breath that long."""

ONE_BOLUS_MS = 15_000.0
"""As such of CT: the contrast medium has moved on."""
CLOCKS = ("AcquisitionTime", "ContentTime")
"""Which tell hours apart, the more trusted first."""

DAY_MS = 24 * 3_600_000.0

Ranks = list[int]
"""For each image of a position, which of the kinds found there it is, from 0."""


PLANES = {
    "SAX": r"sax|sa|short[ _-]?axis",
    "2CH": r"2[ _-]?ch(amber)?|two[ _-]?chamber|vla",
    "3CH": r"3[ _-]?ch(amber)?|three[ _-]?chamber|lvot",
    "4CH": r"4[ _-]?ch(amber)?|four[ _-]?chamber|hla",
}
"""What a series of a plane is called."""


def plane_of_words(description: str) -> str:
    """Plane that the description of a series names; empty where it names none, or several.

    >>> [plane_of_words(text) for text in ("cine_sa_stack", "TRUFI 4-Ch", "loc 2ch 4ch", "sagittal")]
    ['SAX', '4CH', '', '']
    """
    text = description.lower()
    found = [plane for plane, words in PLANES.items() if re.search(rf"(?<![a-z0-9])({words})(?![a-z])", text)]
    return found[0] if len(found) == 1 else ""


def split_kinds(frames: Sequence[FrameHeader], same_place_mm: float) -> list[tuple[list[FrameHeader], str]]:
    """Images of one series and orientation, parted where they are no phases of one beat.

    Args:
        frames: in the order of their numbers.
        same_place_mm: positions closer than this are one slice.

    Returns:
        the parts, each with a note that says why it stands alone; empty where nothing was parted.
    """
    places = _by_place(frames, same_place_mm)
    found = {header.processing for header in frames}
    kinds = sorted(found, key=lambda kind: (kind[:1] != ("ORIGINAL",), kind))
    if max(len({header.processing for header in place}) for place in places) > 1 and (
        parts := _part(places, lambda place: [kinds.index(header.processing) for header in place])
    ):
        return _said(parts, same_place_mm, "images of one position were processed differently (ImageType)")
    for tag in ("EchoTime", "InversionTime", "DiffusionBValue", "FlipAngle"):
        if parts := _part(places, lambda place: _rank_values(place, tag)):  # noqa: B023 (used at once)
            return _said(parts, same_place_mm, f"images of one position differ in {tag}")
    if parts := _part(places, _rank_acquisitions):
        return _said(parts, same_place_mm, "images of one position were acquired minutes apart")
    if parts := _part(places, _rank_repeats):
        return _said(parts, same_place_mm, "each TriggerTime is there as often as there are kinds of image")
    return [(list(frames), "")]


def _said(
    parts: list[list[FrameHeader]], same_place_mm: float, why: str
) -> list[tuple[list[FrameHeader], str]]:
    note = f"one of {len(parts)} scans of one series: {why}, so they are no cardiac phases"
    return [(one, inner or note) for part in parts for one, inner in split_kinds(part, same_place_mm)]


def same_contrast(a: FrameHeader, b: FrameHeader) -> bool:
    """Whether two images of one position may be phases of one beat.

    Without preparation, or diffusion, an image has no such tag.
    """
    for tag in a.contrast.keys() | b.contrast.keys():
        told = [header.contrast.get(tag) for header in (a, b)]
        if None in told and tag not in ("InversionTime", "DiffusionBValue"):
            continue
        value, other = (one or 0.0 for one in told)
        if abs(value - other) > SAME_CONTRAST * max(abs(value), abs(other)):
            return False
    if a.modality == "CT" and b.modality == "CT":
        return apart_ms(a, b, "AcquisitionTime") <= ONE_BOLUS_MS
    known = [tag for tag in CLOCKS if tag in a.order and tag in b.order]
    return not known or apart_ms(a, b, known[0]) <= APART_MS


def pass_midnight(frames: Sequence[FrameHeader]) -> None:
    """Let a clock whose date stands still go on after midnight."""
    for tag in CLOCKS:
        known = [frame.order for frame in frames if tag in frame.order]
        times = np.array([order[tag] for order in known])
        if len(times) and DAY_MS / 2 < np.ptp(times) < DAY_MS:
            for order in known:
                order[tag] += DAY_MS if order[tag] < times.max() - DAY_MS / 2 else 0.0


def apart_ms(a: FrameHeader, b: FrameHeader, tag: str) -> float:
    """Between two images by a clock; 0 where it is not known."""
    return abs(a.order[tag] - b.order[tag]) if tag in a.order and tag in b.order else 0.0


def _by_place(frames: Sequence[FrameHeader], same_place_mm: float) -> list[list[FrameHeader]]:
    depths = np.array([frame.position for frame in frames]) @ frames[0].normal
    order = np.argsort(depths, kind="stable")
    starts = np.r_[True, np.diff(depths[order]) > same_place_mm]
    places: dict[int, list[FrameHeader]] = defaultdict(list)
    for i, place in zip(order, np.cumsum(starts)):
        places[int(place)].append(frames[i])
    return list(places.values())


def _part(
    places: Sequence[list[FrameHeader]], rank: Callable[[list[FrameHeader]], Ranks | None]
) -> list[list[FrameHeader]]:
    """Images by their rank within their position; nothing where all are of one kind."""
    parts: dict[int, list[FrameHeader]] = defaultdict(list)
    for place in places:
        for header, number in zip(place, rank(place) or [0] * len(place)):
            parts[number].append(header)
    return [parts[number] for number in sorted(parts)] if len(parts) > 1 else []


def _rank_values(place: list[FrameHeader], tag: str) -> Ranks | None:
    values = np.array([header.contrast.get(tag, np.nan) for header in place], float)
    untold = np.isnan(values)
    if untold.all():
        return None
    told = np.unique(values[~untold])
    if tag == "DiffusionBValue":  # not told where it is 0
        values[untold] = 0.0
    elif len(told) == 1:  # a tag that was forgotten, and no other kind
        return None
    else:
        values[untold] = -1.0
    return _rank(values, lambda ascending: SAME_CONTRAST * np.abs(ascending[1:]))


def _rank_acquisitions(place: list[FrameHeader]) -> Ranks | None:
    for tag in CLOCKS:
        times = [header.order.get(tag) for header in place]
        if None not in times:
            return _rank(np.array(times, float), lambda ascending: APART_MS)
    return None


def _rank(values: np.ndarray, gap: Callable[[np.ndarray], np.ndarray | float]) -> Ranks:
    """Which group each value is in, where ascending values that are more than `gap` apart part the groups."""
    ascending = np.unique(values)
    fresh = np.r_[False, np.diff(ascending) > gap(ascending)]
    return [int(n) for n in np.cumsum(fresh)[np.searchsorted(ascending, values)]]


def _rank_repeats(place: list[FrameHeader]) -> Ranks | None:
    """Every one of several trigger times is there equally often, as of magnitude and phase images."""
    times = [header.order.get("TriggerTime") for header in place]
    counts = Counter(times)
    if None in counts or len(counts) < 2 or len(set(counts.values())) > 1 or counts[times[0]] == 1:
        return None
    for tag in ("AcquisitionTime", "TemporalPositionIdentifier"):
        if len({header.order.get(tag) for header in place}) == len(place):
            return None  # one beat after another, each with the same delays; or delays that were rounded
    order = sorted(range(len(place)), key=lambda i: place[i].order.get("InstanceNumber", i))
    seen: Counter = Counter()
    ranks = [0] * len(place)
    for i in order:
        ranks[i] = seen[times[i]]
        seen[times[i]] += 1
    return ranks
