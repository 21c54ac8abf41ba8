"""Charts of a report as inline SVG: they take the page's type and colors, and tell the subject on hover."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

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


def signed(value: float) -> str:
    """A number with its sign and one decimal."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
