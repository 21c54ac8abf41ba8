"""What a co-training refuses before it starts, and what it says of itself in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbeats.errors import InputError
from fewbeats.finetuning.segmentation import SegmentationSettings
from fewbeats.training.optim import OptimSettings

if TYPE_CHECKING:
    from fewbeats.models.network import NetworkSettings
    from fewbeats.sample import Sample
    from fewbeats.semi_supervised.settings import MnSettings
    from fewbeats.training.rundir import RunDir

COLLAPSED = 1e-4  # share of pseudo-labeled pixels of other classes than one: below, nothing is there to learn


SCHEDULE = (
    "learning_rate",
    "encoder_rate_factor",
    "layer_decay",
    "decay",
    "weight_decay",
    "warmup",
    "final_rate",
)
"""Settings of the optimizer that M&N replaces by its own."""


def check_pair(model: SegmentationSettings, flat: NetworkSettings, *, start: str, own: MnSettings) -> None:
    """Refuse networks that M&N cannot train together, and settings that mean nothing to it.

    Args:
        model: of the 3D network.
        flat: the 2D network.
        start: of the 2D network.
        own: of M&N.

    Raises:
        InputError: naming the setting.
    """
    if model.network.dims != 3 or flat.dims != 2:
        raise InputError("--method mn: needs a 3D network, --network.kind unet3d, and a 2D one, --flat.kind")
    if flat.context:
        raise InputError("--flat.context: the 2D network of mn sees each slice alone; take it out")
    if start == "natural" and flat.kind not in ("lite0", "hub"):
        raise InputError(
            f"--flat-init natural: no photograph weights for '{flat.kind}'; use --flat.kind lite0, "
            "or --flat-init scratch"
        )
    if own.flat_learns == "lora" and flat.kind == "unet2d":
        raise InputError("--mn.flat-learns lora: a plain U-Net cannot; use --flat.kind lite0 or hub")
    usual = OptimSettings()
    for name in SCHEDULE:
        if getattr(model.optim, name) != getattr(usual, name):
            flag = f"--optim.{name}".replace("_", "-")
            raise InputError(
                f"{flag}: mn has a schedule of its own; use --mn.flat-rate, --mn.deep-rate, "
                "--mn.rate-warmup, --mn.weight-decay"
            )
    if model.ema_decay != SegmentationSettings().ema_decay:
        raise InputError("--ema-decay: mn averages no weights; take it out")


def refuse_silent(samples: list[Sample], structures: tuple[str, ...]) -> None:
    """For losses that judge every class in every voxel all labels must speak of all structures.

    Raises:
        InputError: naming a subject whose labels do not.
    """
    for sample in samples:
        if not all(sample.annotated):
            silent = [s for s, speaks in zip(structures, sample.annotated) if not speaks]
            raise InputError(
                f"{sample.subject}: its labels are silent about {', '.join(silent)}; name --structures that "
                "all labels speak of, or take --method unimatch or mean-teacher"
            )


def warn_collapsed(run: RunDir, *, longer: str) -> None:
    """Say where what was learned from without labels was background, or another class, alone in the end.

    Where networks label for each other, each is judged by itself.

    Args:
        run: the finished run.
        longer: flag that lets its method learn from labels for longer.
    """
    rows = run.read_metrics()
    for network in ("", "_flat", "_deep"):
        told = [row for row in rows if f"pseudo_largest{network}" in row]
        last = told[-max(1, len(told) // 10) :]
        if last and sum(row[f"pseudo_largest{network}"] for row in last) / len(last) > 1 - COLLAPSED:
            what = "background" if last[-1][f"pseudo_foreground{network}"] < 0.5 else "one structure"
            whose = {"": "", "_flat": " of the 2D network", "_deep": " of the 3D network"}[network]
            print(
                f"{run.path}: collapsed, pseudo-labels{whose} are {what} alone; train longer on labels first "
                f"({longer}), or give more of them"
            )
