"""Settings of the methods, beside each other and free of torch, so that a command can show them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewbeats.ranges import check_ranges, later


@dataclass(frozen=True, kw_only=True)
class MnSettings:
    """Of `co_training.py`, whose symbols these are."""

    iterations: int = 8
    """Updates of an epoch; the networks take turns by epochs."""
    warmup: float = 0.125
    """e_t / E: share of the run in which both learn from labels alone."""
    rate_warmup: float = 0.0125
    """Share of the run in which rates rise, from a hundredth to the base."""
    flat_rate: float = 1e-3
    """Base learning rate of the 2D network."""
    deep_rate: float = 1e-4
    """Base learning rate of the 3D network."""
    sampling: Literal["progress", "learning_rate", "half"] = "progress"
    """How the share of pseudo-labeled items grows: with the epochs of stage two; as the learning rate falls;
    or not at all, half from the start of stage two on."""
    targets: Literal["soft", "hard"] = "soft"
    """What is learned of a partner: its probabilities, or its likeliest class (cross pseudo supervision)."""
    turns: Literal["alternate", "joint"] = "alternate"
    """joint: both networks learn in every epoch of stage two."""
    weight_decay: float = 0.01
    """Of AdamW."""
    flat_learns: Literal["train", "frozen", "lora"] = later("train")
    """What of the 2D network's encoder learns: all, nothing, or additions of low rank and biases (peft)."""
    rank: int = later(64)
    """r: of the additions."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "mn.",
            counts=("iterations", "rank"),
            shares=("warmup", "rate_warmup"),
            positive=("flat_rate", "deep_rate"),
            not_negative=("weight_decay",),
        )


@dataclass(frozen=True, kw_only=True)
class MeanTeacherSettings:
    """Of `mean_teacher.py`, whose symbols these are."""

    consistency: float = 1.0
    """w: weight of the consistency at its height."""
    ramp: float = 0.3
    """r: share of the run in which it rises."""

    def __post_init__(self) -> None:
        check_ranges(self, "mean-teacher.", not_negative=("consistency",), shares=("ramp",))


@dataclass(frozen=True, kw_only=True)
class UnimatchSettings:
    """Of `unimatch.py`, whose symbols these are."""

    threshold: float = 0.95
    """tau: the least confidence of a pseudo-label that is learned from."""
    features: float = 0.5
    """Share of feature channels that are dropped in the perturbed stream; 0 leaves the stream out."""
    strong_views: int = 2
    """Strong views; 1 without features is FixMatch."""
    cutmix: float = 0.5
    """Chance that a strong view has a box of another one in it."""
    weight: float = 0.5
    """Of what is learned without labels, beside 1 - this for the labels."""
    pretraining: float = later(0.0)
    """Share of the run in which labels alone are learned from, with whole batches of them."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "unimatch.",
            counts=("strong_views",),
            shares=("threshold", "features", "cutmix", "weight", "pretraining"),
        )


@dataclass(frozen=True, kw_only=True)
class BcpSettings:
    """Of `bcp.py`, whose symbols these are."""

    pretraining: float = 0.3
    """Share of the run in which labeled images alone are pasted into each other."""
    side: float = 0.667
    """beta: side of the box that is pasted, share of the image's."""
    unlabeled: float = 0.5
    """alpha: weight of what lies on pseudo-labels, 1 for labels."""

    def __post_init__(self) -> None:
        check_ranges(self, "bcp.", shares=("pretraining", "side"), not_negative=("unlabeled",))
