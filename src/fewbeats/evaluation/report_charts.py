"""Charts of a report as inline SVG: they take the page's type and colors, and tell the subject on hover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

import numpy as np

from fewbeats.evaluation.statistics import BlandAltman

Range = tuple[float, float]


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    step = (high - low) / count
    power = 10.0 ** floor(log10(step))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999) * power
    first = ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, floor(high / step + 1e-9) + 1)]


class Chart:
    """A plot area with scales; marks are added in data units."""

    def __init__(self, x: Range, y: Range, *, width: int = 340, height: int = 240, margin: int = 12):
        self.x_range, self.y_range = x, y
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 44, width - margin, 30, height - 36
        self.marks: list[str] = []

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str) -> None:
        """A straight line of CSS class `kind`."""
        ends = (self.x(x1), self.y(y1), self.x(x2), self.y(y2))
        self.marks.append(
            '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(kind, *ends)
        )

    def box(self, x1: float, y1: float, x2: float, y2: float, *, kind: str) -> None:
        """A filled rectangle; y1 below y2."""
        place = (self.x(x1), self.y(y2), self.x(x2) - self.x(x1), self.y(y1) - self.y(y2))
        self.marks.append(
            '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>'.format(
                kind, *place
            )
        )

    def dot(self, x: float, y: float, *, kind: str, says: str) -> None:
        """A point with a tooltip."""
        self.marks.append(
            f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.4">'
            f"<title>{escape(says)}</title></circle>"
        )

    def curve(self, x: Sequence[float], y: Sequence[float], *, kind: str) -> None:
        """A line through points."""
        points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y))
        self.marks.append(f'<polyline class="{kind}" points="{points}"/>')

    def text(self, x: float, y: float, words: str, *, kind: str = "tick", anchor: str = "middle") -> None:
        """Words at a place in pixels."""
        self.marks.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def y_axis(self, title: str) -> None:
        """Grid lines with numbers, and a title above them."""
        for value in ticks(*self.y_range):
            self.line(self.x_range[0], value, self.x_range[1], value, kind="grid")
            self.text(self.left - 6, self.y(value) + 3.5, number(value), anchor="end")
        self.text(self.left - 38, 14, title, kind="axis-title", anchor="start")

    def x_axis(self, title: str) -> None:
        """Numbers below, and a title below them."""
        for value in ticks(*self.x_range):
            self.text(self.x(value), self.bottom + 16, number(value))
        self.text((self.left + self.right) / 2, self.height - 4, title, kind="axis-title")

    def svg(self, says: str, *, attributes: str = "") -> str:
        """The finished chart; `says` describes it to a screen reader."""
        return (
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(says)}" {attributes}>{"".join(self.marks)}</svg>'
        )


def number(value: float) -> str:
    """A tick's label, with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def draw_strips(values: Mapping[str, Mapping[str, float]], title: str, *, structure: str, y: Range) -> str:
    """One dot a subject in columns by group, over a box from the first to the third quartile.

    Args:
        values: group -> subject -> value.
        title: of the y axis.
        structure: its color.
        y: range of the axis, shared between charts to be compared; what lies above is a ring at the top.
    """
    chart = Chart((-0.5, len(values) - 0.5), y)
    chart.y_axis(title)
    for column, (group, by_subject) in enumerate(values.items()):
        ordered = sorted(by_subject.items(), key=lambda item: item[1])
        low, middle, high = np.percentile(list(by_subject.values()), [25, 50, 75])
        low, middle, high = (min(value, y[1]) for value in (low, middle, high))
        if len(ordered) > 2:
            chart.box(column - 0.3, low, column + 0.3, high, kind=f"quartiles {structure}")
        for i, (subject, value) in enumerate(ordered):
            aside = (i * 0.618034 % 1 - 0.5) * 0.4 if len(ordered) > 1 else 0.0
            kind = f"dot {structure}" if value <= y[1] else f"ring {structure}"
            chart.dot(column + aside, min(value, y[1]), kind=kind, says=f"{subject}: {value:.3g}")
        chart.line(column - 0.3, middle, column + 0.3, middle, kind=f"median {structure}")
        label = f"{group} ({len(by_subject)})" if len(values) <= 6 else group
        lower = 13 if column % 2 and len(values) > 3 else 0  # neighbors on two lines do not collide
        chart.text(chart.x(column), chart.bottom + 16 + lower, label)
    return chart.svg(f"{title} by group")


def draw_bland_altman(
    pairs: Mapping[str, tuple[float, float]], agreement: BlandAltman, *, title: str, unit: str
) -> str:
    """Difference against mean of predicted and manual values, with bias and limits of agreement.

    Args:
        pairs: subject -> (predicted, manual).
        agreement: of the same pairs.
        title: of the quantity.
        unit: of the quantity.
    """
    means = {s: (p + m) / 2 for s, (p, m) in pairs.items()}
    differences = {s: p - m for s, (p, m) in pairs.items()}
    low, high = agreement.limits or (agreement.bias, agreement.bias)
    edge = 1.25 * max(abs(low), abs(high), *map(abs, differences.values()), 1e-3)
    spread = max(max(means.values()) - min(means.values()), 1.0) * 0.08
    chart = Chart((min(means.values()) - spread, max(means.values()) + spread), (-edge, edge), margin=42)
    chart.y_axis(f"{title}: predicted − manual ({unit})")
    chart.x_axis(f"mean of both ({unit})")
    left, right = chart.x_range
    chart.line(left, 0, right, 0, kind="zero")
    for limit, interval in ((low, agreement.lower_limit_ci95), (high, agreement.upper_limit_ci95)):
        if interval:
            chart.box(left, max(interval[0], -edge), right, min(interval[1], edge), kind="limit-band")
            chart.line(left, limit, right, limit, kind="limit")
            chart.text(chart.right + 6, chart.y(limit) + 4, signed(limit), anchor="start")
    chart.line(left, agreement.bias, right, agreement.bias, kind="bias")
    bias = signed(agreement.bias)
    chart.text(chart.right + 6, chart.y(agreement.bias) + 4, bias, kind="tick strong", anchor="start")
    for s, difference in differences.items():
        chart.dot(means[s], difference, kind="dot", says=f"{s}: {signed(difference)} {unit}")
    return chart.svg(f"Bland-Altman plot of {title}")


def signed(value: float) -> str:
    """A number with its sign and one decimal."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def draw_volumes(
    volumes_ml: Mapping[str, np.ndarray],
    manual_ml: Mapping[str, np.ndarray],
    *,
    times: Sequence[float],
    time_title: str,
    ends: Mapping[str, int],
) -> str:
    """Volumes over the heartbeat; manual ones as rings; a cursor that the cine moves.

    Args:
        volumes_ml: structure -> (T,) predicted volume.
        manual_ml: structure -> (T,) manual volume, NaN where unknown.
        times: (T,) place on the x axis.
        time_title: of the x axis.
        ends: "ED" and "ES" -> frame, marked in the chart.
    """
    every = np.concatenate([*volumes_ml.values(), *manual_ml.values()])
    top = 1.12 * max(1.0, float(np.nanmax(every)))
    chart = Chart((times[0], times[-1]), (0.0, top), width=460, height=300)
    chart.y_axis("Volume (mL)")
    chart.x_axis(time_title)
    for name, t in ends.items():
        chart.line(times[t], 0, times[t], top, kind="end")
        chart.text(chart.x(times[t]) + 4, chart.top + 10, name, anchor="start")
    for s, volumes in volumes_ml.items():
        chart.curve(times, list(volumes), kind=f"curve {s}")
    for s, volumes in manual_ml.items():
        for time, volume in zip(times, volumes):
            if not np.isnan(volume):
                chart.dot(time, volume, kind=f"ring {s}", says=f"manual {s}: {volume:.0f} mL")
    chart.line(times[0], 0, times[0], top, kind="cursor")
    return chart.svg("Volumes over the heartbeat")
