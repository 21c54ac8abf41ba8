"""Charts of a report: agreement by subject, Bland-Altman, volumes over the heartbeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fewbeats.evaluation.statistics import BlandAltman
from fewbeats.pages.charts import Chart, Range, signed


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
