"""How well classes were told: accuracy, areas under ROC curves, calibration, with the subject as the unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbeats.evaluation.statistics import Interval

RESAMPLES = 2000
BINS = 10
"""Of the confidence, for the calibration."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Items (slices, scans or studies) with what was said of them and what they are."""

    classes: tuple[str, ...]
    subject: np.ndarray
    """(N,) names."""
    truth: np.ndarray
    """(N,) class indices."""
    shares: np.ndarray
    """(N, C) how likely each class is, said to be."""

    @property
    def found(self) -> np.ndarray:
        """(N,) the likeliest class."""
        return self.shares.argmax(1)

    def select(self, items: np.ndarray) -> Told:
        """Some of them, by number or as a mask."""
        return Told(classes=self.classes, subject=self.subject[items], truth=self.truth[items],
                    shares=self.shares[items])  # fmt: skip


def accuracy(told: Told) -> float:
    """Share of items whose class was told."""
    return float((told.found == told.truth).mean())


def balanced_accuracy(told: Told) -> float:
    """The same in each class that is there, then their mean."""
    return float(np.mean([(told.found == c)[told.truth == c].mean() for c in np.unique(told.truth)]))


def macro_auc(told: Told) -> float | None:
    """Area under the ROC curve of each class against all others, then the mean over classes.

    An area is the chance that an item of the class is said to be likelier of it than one of another class;
    ties count half (Hanley and McNeil, Radiology 143:29, 1982). None where no class has both.
    """
    areas = [area for c in range(len(told.classes)) if (area := class_auc(told, c)) is not None]
    return float(np.mean(areas)) if areas else None


def class_auc(told: Told, c: int) -> float | None:
    """Area under the ROC curve of one class against all others."""
    from scipy.stats import rankdata

    own = told.truth == c
    if own.all() or not own.any():
        return None
    ranks = rankdata(told.shares[:, c])
    wins = ranks[own].sum() - own.sum() * (own.sum() + 1) / 2
    return float(wins / (own.sum() * (~own).sum()))


def calibration_error(told: Told) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, over ten bins of confidence.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.
    """
    return float(sum(abs(sure - right) * count for sure, right, count in reliability(told)) / len(told.truth))


def reliability(told: Told) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of items of each bin that holds any."""
    sure, right = told.shares.max(1), told.found == told.truth
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [(float(sure[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
            for b in np.unique(bins)]  # fmt: skip


def brier_score(told: Told) -> float:
    """Mean squared distance of the shares from the truth; 0 is perfect, 2 the worst."""
    return float(((told.shares - np.eye(len(told.classes))[told.truth]) ** 2).sum(1).mean())


def roc_curve(told: Told, c: int) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of a class against all others, from the strictest threshold on."""
    order = np.argsort(-told.shares[:, c], kind="stable")
    own, value = (told.truth == c)[order], told.shares[order, c]
    last = np.append(np.flatnonzero(np.diff(value)), len(value) - 1)  # ties move together
    hits, alarms = np.cumsum(own)[last], np.cumsum(~own)[last]
    return np.append(0, alarms / max(1, alarms[-1])), np.append(0, hits / max(1, hits[-1]))


def confusion(told: Told) -> np.ndarray:
    """(C, C) items of each true class (row) that were told to be of each class (column)."""
    table = np.zeros((len(told.classes),) * 2, int)
    np.add.at(table, (told.truth, told.found), 1)
    return table


Figure = Callable[[Told], float | None]
FIGURES: dict[str, Figure] = {
    "accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_auc": macro_auc,
    "calibration_error": calibration_error, "brier": brier_score,
}  # fmt: skip
"""Name -> figure of `summary.json`."""


def summarize_classes(told: Told, *, seed: int = 0) -> dict[str, Any]:
    """All figures, each with its 95% bootstrap interval over subjects."""
    figures = {
        name: {"value": figure(told), "ci95": interval_over_subjects(told, figure, seed=seed)}
        for name, figure in FIGURES.items()
    }
    areas = {name: class_auc(told, c) for c, name in enumerate(told.classes)}
    return {
        "items": len(told.truth),
        "subjects": len(np.unique(told.subject)),
        **figures,
        "auc": areas,
        "classes": list(told.classes),
        "confusion": confusion(told).tolist(),
    }


def interval_over_subjects(told: Told, figure: Figure, *, seed: int = 0) -> Interval | None:
    """95% percentile bootstrap interval of a figure: subjects are drawn anew, with all their items.

    None with fewer than two subjects. A resample of which a figure cannot be told is left out.
    """
    names, own = np.unique(told.subject, return_inverse=True)
    if len(names) < 2:
        return None
    order = np.argsort(own, kind="stable")
    items = np.split(order, np.cumsum(np.bincount(own))[:-1])
    draw, values = np.random.default_rng(seed), list[float]()
    for _ in range(RESAMPLES):
        chosen = np.concatenate([items[i] for i in draw.integers(len(names), size=len(names))])
        value = figure(told.select(chosen))
        if value is not None:
            values.append(value)
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
