"""Which DICOM series are one scan: one series per slice position, one per cardiac phase, or one for all."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbeats.io.dicom_headers import FrameHeader

SAME_PLACE_MM = 0.02
"""Positions closer than this are one slice."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines within one orientation."""
EVEN = 0.1
"""How far a slice may lie from the even grid, as a share of the slice distance; a missing one gives 0.5."""
PHASE_TAGS = ("NominalPercentageOfCardiacPhase", "TemporalPositionIdentifier", "TriggerTime")
SAYS_NOTHING = {("TemporalPositionIdentifier", 1.0), ("TriggerTime", 0.0)}
"""What some scanners write into every series, whatever its phase."""

Rule = tuple[str, int]
"""What tells phases apart: a tag, and which of the numbers in it."""


@dataclass(frozen=True)
class Series:
    """The frames of one SeriesInstanceUID that share an orientation and a kind of image."""

    frames: tuple[FrameHeader, ...]

    @cached_property
    def first(self) -> FrameHeader:
        """A frame that stands for all: the first without a flaw, where there is one."""
        return next((frame for frame in self.frames if not frame.flaw), self.frames[0])

    @cached_property
    def depths_mm(self) -> np.ndarray:
        """(Z,) distinct positions along the normal, ascending."""
        depths = np.sort(np.array([frame.position for frame in self.frames]) @ self.first.normal)
        return depths[np.r_[True, np.diff(depths) > SAME_PLACE_MM]]

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
            numbers = re.findall(rf"(\d+(?:\.\d+)?)\s*{unit}(?!\w)", self.first.description)
            found |= {(f"{unit} in SeriesDescription", i): float(n) for i, n in enumerate(numbers)}
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

    @property
    def frames(self) -> list[FrameHeader]:
        return [frame for series in self.series for frame in series.frames]


def split_series(headers: Sequence[FrameHeader]) -> list[Series]:
    """Frames by series, orientation and kind of image, in the order of their numbers.

    A series with an unusable frame is not split, so that the flaw is not parted from what it spoils.
    """
    by_uid: dict[tuple[int, str], list[FrameHeader]] = defaultdict(list)
    for header in headers:
        by_uid[header.series_number, header.series_uid].append(header)
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
        series += [Series(tuple(part)) for part in parts]
    return series


def join_series(series: Sequence[Series]) -> list[Stack]:
    """Series that continue each other in space or in the heartbeat, joined; most frames first."""
    stacks: list[Stack] = []
    for one in series:
        for stack in stacks:
            if _joins(stack, one):
                break
        else:
            stacks.append(Stack(series=[one]))
    for stack in stacks:
        if (rule := stack.phase_rule) is not None:
            stack.series.sort(key=lambda s: s.phases[rule])
    return sorted(stacks, key=lambda s: -len(s.frames))  # stable: then by series number


def is_even(depths_mm: np.ndarray) -> bool:
    """Whether ascending positions are evenly spaced."""
    if len(depths_mm) < 3:
        return True
    grid = np.linspace(depths_mm[0], depths_mm[-1], len(depths_mm))
    return bool(np.abs(depths_mm - grid).max() <= EVEN * (grid[1] - grid[0]))


def _same_kind(a: FrameHeader, b: FrameHeader) -> bool:
    return a.technique == b.technique and np.allclose(a.orientation, b.orientation, atol=SAME_DIRECTION)


def _joins(stack: Stack, series: Series) -> bool:
    """Add the series to the stack where it is its next slice or phase."""
    a, b = stack.series[0].first, series.first
    same_grid = (
        (a.study_uid, a.frame_of_reference, a.modality, a.shape)
        == (b.study_uid, b.frame_of_reference, b.modality, b.shape)
        and _same_kind(a, b)
        and np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3)
        and np.abs(a.in_plane_mm - b.in_plane_mm).max() < 0.5 * min(a.spacing_mm)
    )
    if not same_grid:
        return False
    if not stack.phase_rule and _is_next_slice(stack, series):
        stack.series.append(series)
        return True
    if _is_next_phase(stack, series):
        stack.series.append(series)
        stack.phase_rule = _phase_rule(stack.series)
        return True
    return False


def _is_next_slice(stack: Stack, series: Series) -> bool:
    """At places the stack does not have yet, with about as many frames, and filling it evenly."""
    taken = np.concatenate([s.depths_mm for s in stack.series])
    if _shared(series.depths_mm, taken):
        return False
    ratio = series.frames_per_slice / stack.series[0].frames_per_slice
    if not 0.5 <= ratio <= 2:
        return False
    singles = all(len(s.depths_mm) == 1 for s in (*stack.series, series))
    return singles or is_even(np.sort(np.concatenate([taken, series.depths_mm])))


def _is_next_phase(stack: Stack, series: Series) -> bool:
    """At the stack's places, one frame each, at a phase the stack does not have yet."""
    if len(stack.series) > 1 and not stack.phase_rule:
        return False
    if _phase_rule([*stack.series, series]) is None:
        return False
    if any(s.frames_per_slice >= 1.5 for s in (*stack.series, series)):
        return False
    places = stack.series[0].depths_mm
    return _shared(series.depths_mm, places) > 0.5 * max(len(places), len(series.depths_mm))


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


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many positions of `a` are also in `b`."""
    return int((np.abs(a[:, None] - b[None]).min(1) <= SAME_PLACE_MM).sum())
