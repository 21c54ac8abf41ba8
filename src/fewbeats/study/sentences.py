"""What a study found, in words: which way to train at a budget, and whether the evidence is enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fewbeats.evaluation.scores import Score
from fewbeats.study.budget import COUNTED, tell_budget
from fewbeats.study.contrast import Cell, Contrast

ROUGH = 4
"""Up to as many draws, what is said of new ones is told to be wide and rough."""


def say(
    cells: Sequence[Cell],
    contrasts: Sequence[Contrast],
    best: Contrast | None,
    beside: Sequence[Contrast],
    *,
    baseline: str,
    score: Score,
    shared: Collection[str],
    budgeted: str = COUNTED,
) -> str:
    """The sentence of one budget.

    Args:
        cells: of this budget.
        contrasts: to the baseline.
        best: of them, the one to take; None where none is told apart as better.
        beside: of the best one to the others.
        baseline: its name.
        score: what was compared.
        shared: arms whose draws share one pretraining.
        budgeted: what a budget counts.
    """
    at = f"With {tell_budget(cells[0].labeled, budgeted)}"
    if len(cells) == 1:
        return f"{at}: {cells[0].arm} alone was tried, {score.told(cells[0].mean)}."
    if baseline not in {cell.arm for cell in cells}:
        return f"{at} {baseline} was not tried, so nothing is compared with it."
    if not contrasts:
        return f"{at}: no arm shares a draw with {baseline}, so none is compared with it."
    first = best or max(contrasts, key=lambda c: score.gain(c.difference.mean))
    told = f"{first.arm}: {score.told(first.mean)}, {describe(first, score)}"
    turned = f" {tell_hinge(first, score)}" if first.hinges else ""
    if score.gain(first.difference.mean) <= 0:
        return f"{at}, take {baseline}: no arm that could be compared with it had a better mean.{turned}"
    if not best:
        doubt = tell_doubt(first, score)
        return f"{at} the evidence is not enough to prefer {told}. {doubt} Take {baseline}.{turned}"
    alike = [c.baseline for c in beside if not c.is_clear]
    return "".join([
        f"{at}, take {told}. The evidence is enough{_scope(best)}.",
        f" It is not told apart from {', '.join(alike)}." if alike else "",
        turned,
        " Its draws share one pretraining, whose chance is in no interval." if best.arm in shared else "",
    ])  # fmt: skip


def _scope(contrast: Contrast) -> str:
    draws = len(contrast.draws)
    if contrast.crossed:
        return ""
    return f" for {'this draw' if draws == 1 else f'these {draws} draws'} of labeled subjects alone"


def describe(contrast: Contrast, score: Score) -> str:
    """A difference with its interval, test and draws, in the score's unit."""
    d, crossed = contrast.difference, contrast.crossed
    interval = "no interval" if d.ci95 is None else f"95% interval {tell_range(d.ci95, score)}"
    draws = len(contrast.draws)
    spread = "a single draw"
    if draws > 1:
        spread = f"{draws} draws from {tell_range(spread_of(contrast.draws), score)}"
    test = "p" if contrast.primary else "p after Holm"
    others = ""
    if crossed:
        rough = f", wide and rough with {draws} draws" if draws <= ROUGH else ""
        others = f"; for new draws and new subjects {tell_range(crossed.ci95, score)}{rough}"
    return (
        f"{score.change(d.mean)} {score.unit} against {contrast.baseline} ({interval} over {d.subjects} "
        f"subjects, {test} {tell_p(contrast.p_value)}, {spread}{others})"
    )


def tell_pretrainings(names: Sequence[str], drawn: Collection[str]) -> str:
    """Which pretrainings ran once, and which for each draw.

    >>> tell_pretrainings(["mim", "pcl"], {"mim", "pcl"})
    "Each pretraining ran anew for each draw, with the draw's seed."
    """
    once = (
        "ran once: what is said of an arm holds for those weights, and another run of the same pretraining "
        "may do better or worse."
    )
    parts = {
        once: [name for name in names if name not in drawn],
        "ran anew for each draw, with the draw's seed.": [name for name in names if name in drawn],
    }
    return " ".join(
        f"{'Each pretraining' if len(own) == len(names) else ', '.join(own)} {what}"
        for what, own in parts.items()
        if own
    )


def tell_p(p_value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def tell_range(ends: tuple[float, float], score: Score) -> str:
    """Two differences in the score's unit."""
    return f"{score.change(ends[0])} to {score.change(ends[1])}"


def tell_doubt(contrast: Contrast, score: Score) -> str:
    """Why both are not told apart; nothing where they are."""
    if contrast.doubt == "interval":
        return "The interval includes no difference."
    if contrast.doubt == "test":
        return f"The test does not exclude chance (p {contrast.p_value:.2f})."
    if contrast.doubt == "draws":
        return "The interval for new draws and new subjects includes no difference."
    return "The draws of labeled subjects do not agree on its direction." if contrast.doubt else ""


def tell_hinge(contrast: Contrast, score: Score) -> str:
    """What the most extreme subject decides: never a new claim, as it was chosen after looking."""
    extreme, other = contrast.difference.extreme, contrast.without
    if extreme is None or other is None:
        return ""
    scope = "" if other.crossed else " in these draws alone"
    verdict = f"told apart{scope}" if other.is_clear else "not told apart"
    return (
        f"Without {extreme.subject} alone ({score.change(extreme.difference)}), {contrast.arm} would be "
        f"{score.change(extreme.mean_without)} {score.unit} against {contrast.baseline} and {verdict}; "
        "found by looking, this is no result of its own."
    )


def spread_of(draws: Mapping[int, float]) -> tuple[float, float]:
    """Smallest and largest of the draws."""
    return min(draws.values()), max(draws.values())
