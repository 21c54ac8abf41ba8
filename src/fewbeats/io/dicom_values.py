"""What the values of DICOM tags are: numbers, texts, places and times, as files really write them."""

from __future__ import annotations

import hashlib
import math
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

BEATS_MS = (75.0, 4000.0)
"""Heartbeats there are, of a mouse under stress to a slow heart; other numbers stand for "unknown"."""


def order_values(index: int, tags: Mapping[str, Any]) -> dict[str, float]:
    """Tag -> value that may order the frames of a file in time; times in ms."""
    instance = number(tags, "InstanceNumber") or 0
    values = {
        "TriggerTime": _not_negative(first_number(tags, "NominalCardiacTriggerDelayTime", "TriggerTime")),
        "NominalPercentageOfCardiacPhase": number(tags, "NominalPercentageOfCardiacPhase"),
        "TemporalPositionIdentifier": first_number(
            tags, "TemporalPositionIndex", "TemporalPositionIdentifier"
        ),
        "AcquisitionTime": _clock_ms(tags, "FrameAcquisitionDateTime", "AcquisitionDate", "AcquisitionTime"),
        "ContentTime": _clock_ms(tags, "FrameReferenceDateTime", "ContentDate", "ContentTime"),
        "InstanceNumber": instance * 1e6 + index if "InstanceNumber" in tags or index else None,
    }
    return {tag: value for tag, value in values.items() if value is not None}


def _not_negative(value: float | None) -> float | None:
    """Below zero stands for "unknown"."""
    return None if value is None or value < 0 else value


def digest(told: str) -> str:
    """What tells two texts apart and shows neither; empty of an empty one."""
    return hashlib.sha256(told.encode()).hexdigest()[:16] if told else ""


def _clock_ms(tags: Mapping[str, Any], date_time: str, day: str, time: str) -> float | None:
    """Milliseconds since year 1 of a DT, or of a DA and a TM; None where missing or malformed.

    A classic file may tell its acquisition by a DT, too.
    """
    clock = text(tags, time).replace(":", "")
    told = text(tags, date_time) or (clock and (text(tags, day) or "00010101") + clock)
    told = told or (text(tags, "AcquisitionDateTime") if time == "AcquisitionTime" else "")
    try:
        days = date(int(told[:4]), int(told[4:6]), int(told[6:8])).toordinal()
        clock = told[8:].split("+")[0].split("-")[0]
        hours, minutes, seconds = int(clock[:2]), int(clock[2:4] or 0), float(clock[4:] or 0)
    except ValueError:
        return None
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000.0


def beat_ms(tags: Mapping[str, Any]) -> float | None:
    """Length of the heartbeat, None where none is told that a heart may have."""
    interval, rate = first_number(tags, "RRIntervalTimeNominal", "NominalInterval"), number(tags, "HeartRate")
    told = (interval, 60_000.0 / rate if rate else None)
    return next((ms for ms in told if ms is not None and BEATS_MS[0] <= ms <= BEATS_MS[1]), None)


def stored_dtype(tags: Mapping[str, Any]) -> np.dtype:
    """Type of the stored values."""
    if "PixelRepresentation" not in tags:
        return np.dtype(f"f{int(tags['BitsAllocated']) // 8}")
    return np.dtype(f"{'i' if tags['PixelRepresentation'] else 'u'}{int(tags['BitsAllocated']) // 8}")


def rescale(tags: Mapping[str, Any], tag: str, default: float, flaws: list[str]) -> float:
    """Slope or intercept; a flaw where gray values would be unknown."""
    value = tags.get(tag)
    if value in (None, ""):
        return default
    factor = float(value)
    if not math.isfinite(factor) or (tag == "RescaleSlope" and factor == 0):
        flaws.append(f"{tag} is {factor}, so its values are unknown; export it again")
    return factor


def vector(
    tags: Mapping[str, Any], tag: str, default: tuple[float, ...], flaws: list[str]
) -> tuple[float, ...]:
    """The values of a tag that gives a frame its place; `default` and a flaw where they are unusable."""
    try:
        values = tuple(float(v) for v in tags.get(tag) or ())
    except ValueError:
        flaws.append(f"{tag} is no number as DICOM writes it (a decimal comma?); export it again")
        return default
    usable = len(values) == len(default) and bool(np.isfinite(values).all())
    if usable and tag == "PixelSpacing":
        usable = min(values) > 0
    if usable and tag == "ImageOrientationPatient":
        axes = np.reshape(values, (2, 3))
        usable = np.allclose(axes @ axes.T, np.eye(2), atol=1e-2)
    if usable:
        return values
    flaws.append(f"{tag} is missing or unusable, so it has no place in space; remove or export it again")
    return default


def number(tags: Mapping[str, Any], tag: str) -> float | None:
    """A finite number, None where missing or unusable; only for tags that may be missing."""
    try:
        value = float(tags.get(tag))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def first_number(tags: Mapping[str, Any], *names: str) -> float | None:
    """Of the first of several tags that tells one."""
    return next((value for name in names if (value := number(tags, name)) is not None), None)


def text(tags: Mapping[str, Any], tag: str) -> str:
    """Empty where the tag is missing."""
    value = tags.get(tag)
    return "" if value is None else str(value)
