"""Settings of the methods, beside each other and free of torch, so that a command can show them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewbeats.errors import InputError
from fewbeats.ranges import check_ranges, later

if TYPE_CHECKING:
    from fewbeats.models.network import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class SimclrSettings:
    """Of `simclr.py`, whose symbols these are."""

    temperature: float = 0.1
    """tau."""
    projector: tuple[int, ...] = (512, 512, 512)
    """Widths of g's layers."""
    stages: Literal["last", "all"] = later("last")
    """all: every stage of f is pooled and handed to g, whose layers have BatchNorm then. A random encoder
    loses what two views share before its last stage (own)."""

    def __post_init__(self) -> None:
        check_ranges(self, "simclr.", positive=("temperature",), counts=("projector",))


@dataclass(frozen=True, kw_only=True)
class PclSettings:
    """Of `pcl.py`, whose symbols these are."""

    temperature: float = 0.1
    """tau."""
    projector: tuple[int, ...] = (512, 512, 512)
    """Widths of g's layers."""
    distance: float = 0.1
    """d, share of the stack's height."""

    def __post_init__(self) -> None:
        check_ranges(self, "pcl.", positive=("temperature",), counts=("projector",))
        if not 0.001 <= self.distance <= 1:
            raise InputError(f"--pcl.distance {self.distance}: must be between 0.001 and 1")


@dataclass(frozen=True, kw_only=True)
class DinoSettings:
    """Of `dino.py`, whose symbols these are."""

    small_views: int = 6
    """Number of views in L."""
    small_size: float = 0.5
    """Side of a small view, share of a large one's."""
    hidden: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck: int = 256
    """Width before the prototypes."""
    prototypes: int = 8192
    """Number of outputs K."""
    student_temperature: float = 0.1
    """tau_s."""
    teacher_temperature: tuple[float, float] = (0.02, 0.04)
    """tau_t at the start and after its warm-up."""
    temperature_warmup: float = 0.3
    """Share of the steps in which tau_t rises linearly."""
    center_momentum: float = 0.9
    """m."""
    teacher_momentum: float = 0.996
    """l at the start."""
    freeze: float = 0.01
    """Share of the steps in which the prototypes stay as they are."""
    head_norm: bool = later(False)
    """BatchNorm in the head, where the encoder has none, too: a short run learns sooner."""
    patches: float = later(0.0)
    """Weight of the loss of hidden patches (iBOT), for vision transformers; 0 for none."""
    hidden_share: tuple[float, float] = later((0.1, 0.5))
    """Least and largest share of a large view's patches that are hidden, in half of the views."""

    def __post_init__(self) -> None:
        shares = ("small_size", "temperature_warmup", "center_momentum", "teacher_momentum", "freeze",
                  "hidden_share")  # fmt: skip
        check_ranges(
            self,
            "dino.",
            positive=("small_size", "student_temperature", "teacher_temperature"),
            not_negative=("small_views", "patches"),
            counts=("hidden", "bottleneck"),
            several=("prototypes",),
            shares=shares,
        )

    def small_px(self, size: int) -> int:
        """Side of a small view beside large ones of `size` pixels."""
        return round(size * self.small_size)


@dataclass(frozen=True, kw_only=True)
class SimmimSettings:
    """Of `simmim.py`, whose symbols these are."""

    patch_px: int = 16
    """P; 32 of 224 pixels in the paper."""
    ratio: float = 0.6
    """r; the number of hidden squares is exact."""

    def __post_init__(self) -> None:
        check_ranges(self, "simmim.", counts=("patch_px",), shares=("ratio",))


@dataclass(frozen=True, kw_only=True)
class MimSettings:
    """Of `mim.py`, whose symbols these are."""

    patch_px: int = 16
    """P; 32 of 256 pixels in the paper, the same share of 128 here."""
    ratio: float = 0.75
    """r; the number of blanked patches is exact, 48 of 64."""

    def __post_init__(self) -> None:
        check_ranges(self, "mim.", counts=("patch_px",), shares=("ratio",))


@dataclass(frozen=True, kw_only=True)
class Pix2repSettings:
    """Of `pix2rep.py`, whose symbols these are."""

    features: int = 64
    """D: of a pixel."""
    off_diagonal: float = 5e-3
    """lambda."""

    def __post_init__(self) -> None:
        check_ranges(self, "pix2rep.", counts=("features",), positive=("off_diagonal",))


def read_weights(words: Sequence[str]) -> dict[str, float]:
    """Source -> weight, of words SOURCE=NUMBER.

    Raises:
        InputError: something else, or a source twice.
    """
    found: dict[str, float] = {}
    for word in words:
        source, _, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not source or source in found or not 0 < weight < float("inf"):
            raise InputError(f"--weights {word}: write SOURCE=NUMBER once for each, the number above 0")
        found[source] = weight
    return found


def check_contrast(name: str, network: NetworkSettings, batch_size: int) -> None:
    """What methods that contrast the slices of a batch need.

    Raises:
        InputError: a transformer, or too few negatives.
    """
    if network.kind == "vit":
        raise InputError(f"{name}: for U-Nets; a vision transformer learns by dino or mim")
    if batch_size < 4:
        raise InputError(f"--batch-size {batch_size}: too few negatives; give at least 4")
