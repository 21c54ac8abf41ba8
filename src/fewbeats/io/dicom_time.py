"""Which DICOM tag orders the frames of a scan in time, and when each frame was taken."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fewbeats.errors import InputError
from fewbeats.heartbeat import FRAME_MS, LONGEST_FRAME_MS, MANY_FRAMES, is_heart_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewbeats.io.dicom_headers import FrameHeader
    from fewbeats.io.dicom_series import Stack

TIME_TAGS = (
    "TriggerTime", "NominalPercentageOfCardiacPhase", "TemporalPositionIdentifier", "AcquisitionTime",
    "ContentTime", "InstanceNumber",
)  # fmt: skip
"""Tags that may order the frames of a slice; the first that tells most of them apart in every slice does."""
IN_MS = {"TriggerTime", "AcquisitionTime", "ms in SeriesDescription"}
IN_PERCENT = {"NominalPercentageOfCardiacPhase", "% in SeriesDescription"}
ONE_A_BEAT = 0.75  # of a heartbeat from frame to frame, as in perfusion
ONCE_A_BEAT = "frames are as far apart as heartbeats"
# A difference between slices that is worth a sentence.
NOTABLE_MS = 1.0


def order_frames(slices: list[list[FrameHeader]], stack: Stack) -> tuple[str, np.ndarray, list[str]]:
    """Sort the frames of every slice in time, in place.

    Args:
        slices: [z][t] headers; every slice has equally many.
        stack: the series they are from.

    Returns:
        the tag that ordered them ("" for one frame), its values (Z, T), and a note that names it.

    Raises:
        InputError: no tag tells the frames of a slice apart.
    """
    if len(slices[0]) == 1:
        return "", np.zeros((len(slices), 1)), []
    if stack.phase_rule:
        rule = stack.phase_rule[0]
        phases = {one.first.series_uid: one.phases[stack.phase_rule] for one in stack.series}
        values = _sort(slices, lambda header: phases[header.series_uid])
        return rule, values, [f"frames ordered by {rule}, one series each"]
    passed_over: list[str] = []
    for tag in TIME_TAGS:
        if not any(tag in header.order for one in slices for header in one):
            continue
        why = f" ({', '.join(passed_over)} not unique within a position)" if passed_over else ""
        if _is_whole(slices, tag):
            values = _sort(slices, lambda header: header.order[tag])  # noqa: B023 (used at once)
            return tag, values, [f"frames ordered by {tag}{why}", *_tell_contradictions(slices, tag)]
        if all(_tells_most(one, tag) for one in slices):
            return _order_by_two(slices, tag, why)
        if all(tag in header.order for one in slices for header in one):
            passed_over.append(tag)
    a, b = slices[0][:2]
    raise InputError(
        f"{a.file}: duplicate frames: no time and no InstanceNumber tells it from {b.file} at the same "
        f"position; remove the copies"
    )


def _tell_contradictions(slices: list[list[FrameHeader]], tag: str) -> list[str]:
    """Which tags would order the frames otherwise than they stand now."""
    later = [
        t for t in TIME_TAGS[TIME_TAGS.index(tag) + 1 :] if t != "InstanceNumber" or not _is_packed(slices)
    ]
    others = [t for t in later if _is_whole(slices, t) and not _agrees(slices, tag, t)]
    return [f"{' and '.join(others)} would order the frames otherwise; check the cine"] if others else []


def _is_packed(slices: list[list[FrameHeader]]) -> bool:
    """Whether frames lie in files of many, in whose order nothing is said."""
    return any(header.is_multi_frame for one in slices for header in one)


def _is_whole(slices: list[list[FrameHeader]], tag: str) -> bool:
    """Whether a tag tells all frames of every slice apart."""
    return all(None not in (values := {h.order.get(tag) for h in one}) and len(values) == len(one)
               for one in slices)  # fmt: skip


def _tells_most(one: list[FrameHeader], tag: str) -> bool:
    """Whether it has more values in a slice than half of its frames."""
    return _count_told(one, tag) > len(one) / 2


def _count_told(one: list[FrameHeader], tag: str) -> int:
    """How many values it has in a slice."""
    return len({header.order[tag] for header in one if tag in header.order})


def _order_by_two(slices: list[list[FrameHeader]], tag: str, why: str) -> tuple[str, np.ndarray, list[str]]:
    """By a tag that leaves a few frames untold, and for those by the next one that agrees with it.

    Raises:
        InputError: no other tag tells all frames apart without contradicting the first.
    """
    later = TIME_TAGS[TIME_TAGS.index(tag) + 1 :]
    second = next((t for t in later if _is_whole(slices, t) and _agrees(slices, t, tag)), None)
    if second is None:
        one = next(one for one in slices if _count_told(one, tag) < len(one))
        raise InputError(
            f"{one[0].file}: {tag} leaves frames of its position untold, and no other tag that tells them "
            f"apart agrees with it; export the series again with its times"
        )
    _sort(slices, lambda header: header.order[second])
    untold = sum(len(one) - _count_told(one, tag) for one in slices)
    values = np.array([[header.order.get(tag, np.nan) for header in one] for one in slices])
    told = f"frames ordered by {tag}{why}, {untold} that it leaves untold by {second}"
    return tag, values, [told]


def _agrees(slices: list[list[FrameHeader]], second: str, first: str) -> bool:
    """Whether frames in the order of the second tag are in that of the first, where they have it."""
    for one in slices:
        ordered = sorted(one, key=lambda header: header.order[second])
        known = [header.order[first] for header in ordered if first in header.order]
        if any(a > b for a, b in pairwise(known)):
            return False
    return True


def _sort(slices: list[list[FrameHeader]], key: Callable[[FrameHeader], float]) -> np.ndarray:
    for one in slices:
        one.sort(key=key)
    return np.array([[key(header) for header in one] for one in slices])


def frame_times(
    slices: list[list[FrameHeader]], rule: str, values: np.ndarray
) -> tuple[np.ndarray | None, float | None, list[str]]:
    """When each frame was taken.

    Args:
        slices: [z][t] headers, in order.
        rule: what ordered them, "" for one frame.
        values: (Z, T) of `rule`.

    Returns:
        (T,) ms after the first frame or None, length of the heartbeat in ms or None, and notes.
    """
    headers = [header for one in slices for header in one]
    cycles = [header.cycle_ms for header in headers if header.cycle_ms]
    cycle_ms = float(np.median(cycles)) if cycles else None
    if not rule:
        return None, cycle_ms, []
    notes = [f"heartbeat of {cycle_ms:.4g} ms (median of what the frames say)"] if cycle_ms else []
    whole = np.array([len(set(one)) == len(one) and not np.isnan(one).any() for one in values])
    if not whole.any():
        return None, cycle_ms, [*notes, f"frame times are unknown ({rule} leaves frames untold)"]
    values = values[whole]
    since_first = values - values[:, :1]
    resolution_ms = headers[0].resolution_ms
    if rule in IN_MS:
        times = since_first.mean(0)
        spread = float(np.ptp(since_first, axis=0).max())
        if spread > NOTABLE_MS:
            notes.append(f"frame times are the average over positions (they differ by up to {spread:.4g} ms)")
    elif rule in IN_PERCENT and cycle_ms:
        times = since_first.mean(0) / 100 * cycle_ms
        notes.append("frame times from the cardiac phase and the heartbeat")
    elif resolution_ms:
        times = np.arange(values.shape[1]) * resolution_ms
        notes.append(f"frames are {resolution_ms:.4g} ms apart (TemporalResolution)")
    else:
        return None, cycle_ms, [*notes, f"frame times are unknown ({rule} gives only their order)"]
    step_ms = float(times[-1]) / (len(times) - 1)
    slow = LONGEST_FRAME_MS if len(times) >= MANY_FRAMES else np.inf
    slow = min(slow, ONE_A_BEAT * cycle_ms) if cycle_ms and len(times) > 2 else slow
    if slow < step_ms <= FRAME_MS[1]:
        return times, None, [*notes, f"{ONCE_A_BEAT}, so they are no cardiac phases"]
    if not is_heart_time(len(times), float(times[-1])):
        what = f"{len(times)} frames in {times[-1]:.4g} ms are no heartbeat"
        return None, cycle_ms, [*notes, f"frame times are unknown ({what})"]
    if cycle_ms and times[-1] > cycle_ms:
        notes.append("the frames last longer than the heartbeat, so they are not one cycle")
        cycle_ms = None
    return times, cycle_ms, notes
