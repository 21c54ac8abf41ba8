"""What results are judged by: names, units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10
from typing import Literal

from fewbeats.pages.charts import signed


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure that runs are compared by, and how it is written."""

    name: str
    """As in tables."""
    title: str
    """As in text."""
    better: Literal["higher", "lower"]
    unit: str
    """Of differences, and of values whose scale is 1."""
    scale: float = 1.0
    """Differences are multiplied by it: 100 where their unit is hundredths."""
    limits: tuple[float, float] = (0.0, inf)
    """Smallest and largest possible value."""
    missed: float | None = None
    """Value of a structure that was missed, or taken for another; None where no value says so."""

    @property
    def axis(self) -> str:
        """Title of an axis or a column of values."""
        return f"{self.title} ({self.unit})" if self.scale == 1 else self.title

    def gain(self, difference: float) -> float:
        """A difference, positive where it is an improvement."""
        return difference if self.better == "higher" else -difference

    def text(self, value: float) -> str:
        """A value, to a tenth of the differences' unit."""
        return f"{value:.{1 + round(log10(self.scale))}f}"

    def told(self, value: float) -> str:
        """A value with the score's name and unit, for a sentence."""
        return f"{self.title} {self.text(value)}{f' {self.unit}' if self.scale == 1 else ''}"

    def change(self, difference: float) -> str:
        """A difference with its sign, to a tenth of its unit."""
        return signed(self.scale * difference)


SCORES = {
    score.name: score
    for score in (
        Score(name="dice", title="Dice", better="higher", unit="points", scale=100, limits=(0, 1), missed=0),
        Score(name="hd95_mm", title="HD95", better="lower", unit="mm"),
        Score(name="assd_mm", title="ASSD", better="lower", unit="mm"),
        Score(name="accuracy", title="accuracy", better="higher", unit="points", scale=100, limits=(0, 1)),
        Score(name="error_mm", title="distance", better="lower", unit="mm"),
        Score(
            name="exchanged", title="share exchanged", better="lower", unit="points", scale=100, limits=(0, 1)
        ),
    )
}
"""Name -> score, of all that a study may compare."""
OF_MASKS = ("dice", "hd95_mm", "assd_mm")
"""Scores of a predicted mask, in order: columns of `subjects.csv`."""
EXCHANGED = "exchanged"
"""The score, and column of `subjects.csv`, that tells frames whose ventricles were taken for each other."""
