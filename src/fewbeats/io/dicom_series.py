"""Which DICOM series are one scan: one series per slice position, one per cardiac phase, or one for all."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fewbeats.io.dicom_headers import COLOR
from fewbeats.io.dicom_kinds import pass_midnight, same_contrast, split_kinds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbeats.io.dicom_headers import FrameHeader

SAME_PLACE_MM = 0.02
"""Positions closer than this are one slice,"""
SAME_PLACE = 0.1
"""and so are such as are closer than this share of a pixel, as where slices follow the breath."""
LITTLE_TURNED_DEGREES = 5.0
"""Stacks that continue one another are turned by less."""
MOST_SHARED = 0.5
"""Share of positions that pieces of one heart have in common at most; else one repeats the other."""
LOST_SLICES = 1
"""So many may be missing between them."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines within one orientation."""
EVEN = 0.1
"""How far a slice may lie from the even grid, as a share of the slice distance; a missing one gives 0.5."""
PHASE_TAGS = ("NominalPercentageOfCardiacPhase", "TemporalPositionIdentifier", "TriggerTime")
SAYS_NOTHING = {("TemporalPositionIdentifier", 1.0), ("TriggerTime", 0.0)}
"""What some scanners write into every series, whatever its phase."""

NO_PHASE_WORDS = (
    "TI", "TE", "TR", "TD", "B", "FA", "ASIR", "ASIRV", "ADMIRE", "SAFIRE", "IDOSE", "AIDR", "MBIR",
    "DLIR", "DOSE",
)  # fmt: skip
"""Before a number in SeriesDescription that is no cardiac phase."""
SHIFTED_MM = 20.0
"""Stacks that continue one another lie no farther apart in their plane."""
ONE_SESSION_MS = 15 * 60_000.0
"""A next slice is acquired within this time."""

Rule = tuple[str, int]
"""What tells phases apart: a tag, and which of the numbers in it."""


@dataclass(frozen=True)
class Series:
    """The frames of one SeriesInstanceUID that share an orientation and a kind of image."""

    frames: tuple[FrameHeader, ...]
    note: str = ""
    """Why it is less than what its SeriesInstanceUID names."""

    @cached_property
    def first(self) -> FrameHeader:
        """A frame that stands for all: the first without a flaw, where there is one."""
        return next((frame for frame in self.frames if not frame.flaw), self.frames[0])

    @cached_property
    def depths_mm(self) -> np.ndarray:
        """(Z,) distinct positions along the normal, ascending."""
        depths = np.sort(np.array([frame.position for frame in self.frames]) @ self.first.normal)
        return depths[np.r_[True, np.diff(depths) > same_place_mm(self.first)]]

    @property
    def frames_per_slice(self) -> float:
        return len(self.frames) / len(self.depths_mm)

    @cached_property
    def phases(self) -> dict[Rule, float]:
        """All that may tell the cardiac phase of this series, the most trusted first."""
        found: dict[Rule, float] = {}
        for tag in PHASE_TAGS:
            values = {frame.order.get(tag) for frame in self.frames}
            if len(values) == 1 and (value := values.pop()) is not None:
                found[tag, 0] = value
        for unit in ("%", "ms"):
            told = re.finditer(
                rf"([A-Za-z]*)[ _=:]*(?<![\d.])(\d+(?:\.\d+)?)\s*{unit}(?!\w)", self.first.description
            )
            numbers = [float(n[2]) for n in told if n[1].upper() not in NO_PHASE_WORDS]
            found |= {(f"{unit} in SeriesDescription", i): n for i, n in enumerate(numbers)}
        if self.first.modality == "CT" and all(
            (tag, value) in SAYS_NOTHING for (tag, _), value in found.items()
        ):
            found["SeriesNumber", 0] = self.first.series_number
        return found


@dataclass(kw_only=True)
class Stack:
    """Series that make one scan. With `phase_rule` each is one cardiac phase, in ascending order of phase."""

    series: list[Series] = field(default_factory=list)
    phase_rule: Rule | None = None
    notes: list[str] = field(default_factory=list)
    """On how its series belong together."""
    part: str = ""
    """Why it may be a part of a heart alone; empty where nothing says so."""

    @property
    def frames(self) -> list[FrameHeader]:
        return [frame for series in self.series for frame in series.frames]


def split_series(headers: Sequence[FrameHeader]) -> list[Series]:
    """Frames by series, orientation and kind of image, in the order of their numbers.

    A series with an unusable frame is not split, so that the flaw is not parted from what it spoils.
    """
    by_uid: dict[tuple, list[FrameHeader]] = defaultdict(list)
    for header in headers:  # a screenshot may carry the UID of the series that it shows
        kind = (header.sop_class, header.flaw == COLOR)
        by_uid[header.series_number, header.series_uid, *kind].append(header)
    for together in by_uid.values():
        pass_midnight(together)
    series = []
    for key in sorted(by_uid):
        parts: list[list[FrameHeader]] = []
        flawed = any(header.flaw for header in by_uid[key])
        for header in sorted(
            by_uid[key], key=lambda h: (h.order.get("InstanceNumber", 0), h.sop_uid, h.index)
        ):
            part = next((p for p in parts if flawed or _same_kind(p[0], header)), None)
            if part is None:
                parts.append([header])
            else:
                part.append(header)
        for part in parts:
            kinds = [(part, "")] if flawed else split_kinds(part, same_place_mm(part[0]))
            series += [Series(tuple(kind), note) for kind, note in kinds]
    return series


def same_place_mm(header: FrameHeader) -> float:
    """How close two positions are that are one slice."""
    return max(SAME_PLACE_MM, SAME_PLACE * min(header.spacing_mm))


def join_series(series: Sequence[Series]) -> list[Stack]:
    """Series that continue each other in space or in the heartbeat, joined; most frames first.

    Series that were processed differently are joined in the end alone, and as whole stacks: two versions of
    one stack must not fill each other's gaps.
    """
    stacks: list[Stack] = []
    for one in series:
        for stack in stacks:
            if one.first.processing == stack.series[0].first.processing and _joins(stack, one):
                break
        else:
            stacks.append(Stack(series=[one]))
    stacks = _join_processed(stacks)
    for stack in stacks:
        if (rule := stack.phase_rule) is not None:
            stack.series.sort(key=lambda s: s.phases[rule])
    stacks.sort(key=lambda s: -len(s.frames))  # stable: then by series number
    _tell_neighbors(stacks)
    return stacks


def _join_processed(stacks: Sequence[Stack]) -> list[Stack]:
    """Stacks whose slices were evened out differently, and that fit each other without a gap, as one."""
    joined: list[Stack] = []
    for stack in stacks:
        for other in joined:
            if _fills(other, stack):
                other.series += stack.series
                other.notes += [note for note in stack.notes if note not in other.notes]
                break
        else:
            joined.append(stack)
    return joined


def _fills(stack: Stack, other: Stack) -> bool:
    a, b = stack.series[0].first, other.series[0].first
    if a.processing == b.processing or stack.phase_rule or other.phase_rule or _are_two_people(a, b):
        return False
    if (a.study_uid, a.frame_of_reference) != (b.study_uid, b.frame_of_reference) or not _same_grid(a, b):
        return False
    mine, theirs = (_depths_mm(each, a.normal) for each in (stack, other))
    as_many = len(stack.frames) * len(theirs) == len(other.frames) * len(mine)
    shifted_mm = np.abs(a.in_plane_mm - b.in_plane_mm).max()
    fits = is_even(np.sort(np.concatenate([mine, theirs]))) and shifted_mm < 0.5 * min(a.spacing_mm)
    return as_many and fits and not _shared(theirs, mine, same_place_mm(a))


def _tell_neighbors(stacks: Sequence[Stack]) -> None:
    """Say of stacks that lie at or beside each other's slices what they are to each other."""
    for i, stack in enumerate(stacks):
        for j, other in enumerate(stacks):
            one, another = stack.series[0].first, other.series[0].first
            if i == j or not _alike(stack, other):
                continue
            mine, theirs = (_depths_mm(each, one.normal) for each in (stack, other))
            shared = _shared(theirs, mine, same_place_mm(one))
            few = 0 < shared <= MOST_SHARED * min(len(mine), len(theirs))
            torn = (few or (not shared and _continues(mine, theirs))) and _match(stack, other, mine, theirs)
            if torn and _are_two_people(one, another):
                stack.notes.append(f"scan {j + 1} lies beside this one, but is of another person (PatientID)")
            elif torn:
                stack.part = f"scan {j + 1} seems to continue this one"
                stack.notes.append(f"{stack.part}: {_why_apart(stack, other, shared)}")
            elif shared and i < j and _same_grid(one, another):
                what = "a position" if len(theirs) == 1 else f"{shared} positions"
                stack.notes.append(f"scan {j + 1} is of {what} of this one; it was not used here")


def _depths_mm(stack: Stack, normal: np.ndarray) -> np.ndarray:
    """Distinct positions of a stack along a normal, ascending."""
    depths = np.sort(np.array([frame.position for frame in stack.frames]) @ normal)
    return depths[np.r_[True, np.diff(depths) > same_place_mm(stack.series[0].first)]]


def _match(a: Stack, b: Stack, mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Of one slice distance, so far as both have one, and of one grid or as many frames."""
    steps = [float(np.median(np.diff(depths))) for depths in (mine, theirs) if len(depths) > 1]
    even = not steps or max(steps) - min(steps) <= EVEN * min(steps)
    as_many = len(a.frames) / _positions(a) == len(b.frames) / _positions(b)
    return even and (as_many or _same_grid(a.series[0].first, b.series[0].first))


def _alike(a: Stack, b: Stack) -> bool:
    """Of one kind, in about one direction, in planes that are little shifted."""
    one, other = a.series[0].first, b.series[0].first
    return (
        (one.modality, one.technique) == (other.modality, other.technique)
        and one.normal @ other.normal > np.cos(np.deg2rad(LITTLE_TURNED_DEGREES))
        and np.abs(one.in_plane_mm - other.in_plane_mm).max() < SHIFTED_MM
        and (len(a.frames) > _positions(a)) == (len(b.frames) > _positions(b))
        and not any(s.note or s.first.flaw for s in (*a.series, *b.series))
    )


def _positions(stack: Stack) -> int:
    return len(stack.series[0].depths_mm) if stack.phase_rule else sum(len(s.depths_mm) for s in stack.series)


def _continues(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether slices, at ascending positions, lie next to the others, a slice distance or two away."""
    steps = np.r_[np.diff(mine), np.diff(theirs)]
    gap = max(theirs[0] - mine[-1], mine[0] - theirs[-1])
    return len(steps) > 0 and 0 < gap <= (1 + LOST_SLICES + EVEN) * float(np.median(steps))


def _why_apart(a: Stack, b: Stack, shared: int) -> str:
    one, other = a.series[0].first, b.series[0].first
    if shared:
        return f"they have {shared} position{'s' * (shared > 1)} in common"
    if one.shape != other.shape or not np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3):
        return "their pixels differ in size or number"
    if not np.allclose(one.orientation, other.orientation, atol=SAME_DIRECTION):
        return "they are turned against each other"
    if len(a.frames) / _positions(a) != len(b.frames) / _positions(b):
        return "they have different numbers of frames"
    if one.study_uid != other.study_uid:
        return "they are of two studies"
    if one.frame_of_reference != other.frame_of_reference:
        return "they have two frames of reference, so their positions may not fit each other"
    shifted = np.abs(one.in_plane_mm - other.in_plane_mm).max() >= 0.5 * min(one.spacing_mm)
    return "they are shifted against each other" if shifted else "slices between them may be missing"


def may_be_one(a: Stack, b: Stack) -> bool:
    """Whether two stacks are so alike that one may be missing in the other: kind, grid, number of frames."""
    one, other = a.series[0].first, b.series[0].first
    ratio = a.series[0].frames_per_slice / b.series[0].frames_per_slice
    alike = _same_grid(one, other) and one.processing == other.processing
    return alike and 0.5 <= ratio <= 2 and (len(a.frames) > 1 or len(b.frames) == 1)


def is_even(depths_mm: np.ndarray) -> bool:
    """Whether ascending positions are evenly spaced."""
    if len(depths_mm) < 3:
        return True
    grid = np.linspace(depths_mm[0], depths_mm[-1], len(depths_mm))
    return bool(np.abs(depths_mm - grid).max() <= EVEN * (grid[1] - grid[0]))


def _same_grid(a: FrameHeader, b: FrameHeader) -> bool:
    """Of one modality and kind, of equal pixels, and in the same direction."""
    return (
        (a.modality, a.shape, a.technique) == (b.modality, b.shape, b.technique)
        and np.allclose(a.orientation, b.orientation, atol=SAME_DIRECTION)
        and np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3)
    )


def _same_kind(a: FrameHeader, b: FrameHeader) -> bool:
    return a.technique == b.technique and np.allclose(a.orientation, b.orientation, atol=SAME_DIRECTION)


def _joins(stack: Stack, series: Series) -> bool:
    """Add the series to the stack where it is its next slice or phase."""
    a, b = stack.series[0].first, series.first
    if _are_two_people(a, b):
        return False
    shifted_mm = np.abs(a.in_plane_mm - b.in_plane_mm).max()
    if not _same_grid(a, b) or shifted_mm >= 0.5 * min(a.spacing_mm):
        return False
    space = [(h.study_uid, h.frame_of_reference) for h in (a, b)]
    if not stack.phase_rule and _is_next_slice(stack, series):
        if space[0] != space[1]:
            if not _is_certainly_next(stack, series):
                return False
            what = "StudyInstanceUID" if space[0][0] != space[1][0] else "FrameOfReferenceUID"
            note = f"joined though its series differ in {what}: positions and times continue one another"
            stack.notes = list(dict.fromkeys([*stack.notes, note]))
        stack.series.append(series)
        return True
    if space[0] != space[1]:
        return False
    if _is_next_phase(stack, series):
        stack.series.append(series)
        stack.phase_rule = _phase_rule(stack.series)
        return True
    return False


def _are_two_people(a: FrameHeader, b: FrameHeader) -> bool:  # within one study it was corrected
    return bool(a.person and b.person) and a.person != b.person and a.study_uid != b.study_uid


def _is_next_slice(stack: Stack, series: Series) -> bool:
    """At places the stack does not have yet, with about as many frames, and filling it evenly."""
    taken = np.concatenate([s.depths_mm for s in stack.series])
    if _shared(series.depths_mm, taken, same_place_mm(series.first)):
        return False
    ratio = series.frames_per_slice / stack.series[0].frames_per_slice
    if not 0.5 <= ratio <= 2:
        return False
    singles = all(len(s.depths_mm) == 1 for s in (*stack.series, series))
    return singles or is_even(np.sort(np.concatenate([taken, series.depths_mm])))


def _is_certainly_next(stack: Stack, series: Series) -> bool:
    """Minutes after, with as many frames, and the next of an even row where there is one."""
    times = [s.first.order.get("AcquisitionTime") for s in (stack.series[-1], series)]
    depths = np.concatenate([s.depths_mm for s in (*stack.series, series)])
    return (
        None not in times
        and abs(times[0] - times[1]) < ONE_SESSION_MS  # type: ignore[operator]
        and series.frames_per_slice == stack.series[0].frames_per_slice
        and is_even(np.sort(depths))
    )


def _is_next_phase(stack: Stack, series: Series) -> bool:
    """At the stack's places, one frame each, at a phase the stack does not have yet."""
    if len(stack.series) > 1 and not stack.phase_rule:
        return False
    if _phase_rule([*stack.series, series]) is None:
        return False
    if any(s.frames_per_slice >= 1.5 for s in (*stack.series, series)):
        return False
    first = series.first
    for one in stack.series:
        beside = min(one.frames, key=lambda frame: abs(frame.depth_mm - first.depth_mm))
        if not same_contrast(beside, first):
            return False
    places, most = stack.series[0].depths_mm, max(len(s.depths_mm) for s in (stack.series[0], series))
    return _shared(series.depths_mm, places, same_place_mm(first)) > 0.5 * most


def _phase_rule(series: Sequence[Series]) -> Rule | None:
    """The first rule by which each series is a phase of its own; None where a tag says two are the same."""
    for rule in series[0].phases:
        values = [one.phases[rule] for one in series if rule in one.phases]
        if len(values) < len(series):
            continue
        repeated = {value for value in values if values.count(value) > 1}
        if not repeated:
            return rule
        if rule[0] in PHASE_TAGS and any((rule[0], value) not in SAYS_NOTHING for value in repeated):
            return None
    return None


def _shared(a: np.ndarray, b: np.ndarray, within_mm: float) -> int:
    """How many positions of `a` are also in `b`."""
    return int((np.abs(a[:, None] - b[None]).min(1) <= within_mm).sum())
