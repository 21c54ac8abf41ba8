"""Does a sequence of masks move as a heart does: volume curves, and what changes from frame to frame.

Smoothness alone proves nothing: a curve without a beat is the smoothest. So roughness is told beside stroke
volume and ejection fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewbeats.heartbeat import ejection_fraction_percent, find_phases

CORNER = 1.7
"""Second difference, in largest volumes over frames a beat, that a heart reaches where it turns from emptying
to filling: it empties in a third of the beat, by three quarters at most, and fastest in the middle."""


@dataclass(frozen=True, kw_only=True)
class Beating:
    """One structure over a heartbeat."""

    largest_ml: float
    stroke_ml: float
    """Largest less smallest volume."""
    ejection_percent: float
    """Of the largest volume; 0 where nothing was found."""
    roughness_ml: float
    """Mean absolute second difference (`second_difference`)."""
    flagged: tuple[int, ...]
    """Frames that do not fit between their neighbors."""


def second_difference(curve: Sequence[float] | np.ndarray, *, circular: bool) -> np.ndarray:
    """How far each frame lies from the middle of its neighbors.

    Args:
        curve: (T,) volumes, mL.
        circular: the last frame is followed by the first, as where the heartbeat's length is known.

    Returns:
        (T,) d_t = a_t - (a_t-1 + a_t+1) / 2 in mL; 0 at the ends of a curve that is not circular, and in one
        of fewer than 3 frames.

    >>> second_difference([0.0, 4.0, 0.0, 0.0], circular=False).tolist()
    [0.0, 4.0, -2.0, 0.0]
    """
    values = np.asarray(curve, float)
    if len(values) < 3:
        return np.zeros(len(values))
    away = values - (np.roll(values, 1) + np.roll(values, -1)) / 2
    if not circular:
        away[[0, -1]] = 0.0
    return away


def beating(curve: Sequence[float] | np.ndarray, *, circular: bool) -> Beating:
    """What a volume curve says of a heart.

    Args:
        curve: (T,) volumes, mL.
        circular: see `second_difference`.

    >>> even = 100 + 30 * np.cos(np.arange(20) / 20 * 2 * np.pi)
    >>> odd = even + 25 * (np.arange(20) == 7)
    >>> beating(even, circular=True).flagged, beating(odd, circular=True).flagged
    ((), (7,))
    """
    values = np.asarray(curve, float)
    ed, es = find_phases(values)
    largest, smallest = float(values[ed]), float(values[es])
    away = second_difference(values, circular=circular)
    inner = away if circular or len(away) < 3 else away[1:-1]
    return Beating(
        largest_ml=largest,
        stroke_ml=largest - smallest,
        ejection_percent=ejection_fraction_percent(largest, smallest) or 0.0,
        roughness_ml=float(np.abs(inner).mean()) if len(values) > 2 else 0.0,
        flagged=_flag(away, largest),
    )


def _flag(away: np.ndarray, largest_ml: float) -> tuple[int, ...]:
    """Frames farther from the middle of their neighbors than a beat allows; of neighbors the farthest alone.

    A frame that is off pulls the middle of each of its neighbors half as far the other way.
    """
    far = np.abs(away)
    around = np.maximum(np.roll(far, 1), np.roll(far, -1))
    odd = (far > CORNER / max(1, len(far)) * largest_ml) & (far >= around)
    return tuple(int(t) for t in np.flatnonzero(odd))
