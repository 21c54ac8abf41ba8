"""Train a segmentation network on labeled samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from fewbeats.errors import InputError
from fewbeats.metrics import dice
from fewbeats.models.network import NetworkSettings, memory_format
from fewbeats.ranges import check_ranges, later
from fewbeats.training.loop import Validation
from fewbeats.training.optim import PRETRAINED_RATE, OptimSettings
from fewbeats.transforms.inputs import cut_inputs
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.preprocess import PreprocessSettings, middle
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import Viewed, ViewSettings, as_input, change_labeled, cut_labeled

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, nn

    from fewbeats.finetuning.supervised import Supervised
    from fewbeats.sample import Batch, Batches, Sample
    from fewbeats.training.method import Method


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """Everything that decides what a segmentation network becomes, but for its data and its start."""

    network: NetworkSettings = field(default_factory=NetworkSettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    batch_size: int = 16
    """Slices (2D) or slabs (3D) a step and process."""
    slab_slices: int = 12
    """Slices of a 3D network's input, a multiple of 4."""
    foreground: float = later(0.0)
    """Share of a 3D network's inputs that are moved onto foreground, where they do not hold all slices."""
    freeze_encoder: float = 0.0
    """Share of the steps in which the encoder stays as it started."""
    ema_decay: float = 0.99
    """Decay of the weights' moving average per step; the average is what the run exports."""

    def __post_init__(self) -> None:
        size, stride = self.preprocess.size, self.network.stride
        if size % stride or size < 2 * stride:
            raise InputError(
                f"--preprocess.size {size}: '{self.network.kind}' needs a multiple of {stride}, at least "
                f"{2 * stride}; take {max(2 * stride, round(size / stride) * stride)}"
            )
        if self.network.dims == 3 and (self.slab_slices < 1 or self.slab_slices % self.network.slice_stride):
            raise InputError(
                f"--slab-slices {self.slab_slices}: '{self.network.kind}' needs a multiple of "
                f"{self.network.slice_stride}"
            )
        check_ranges(self, "", shares=("foreground",))
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: give at least 1")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.freeze_encoder <= 1:
            raise InputError("--ema-decay: must be in [0, 1); --freeze-encoder: in [0, 1]")

    def cut(self, image: np.ndarray) -> np.ndarray:
        """One frame (Z, Y, X) as the network takes it (`cut_inputs`)."""
        network = self.network
        return cut_inputs(image, dims=network.dims, context=network.context, multiple=network.slice_stride)

    @property
    def views(self) -> ViewSettings:
        """What a random view is."""
        return ViewSettings(size=self.preprocess.size, spatial=self.spatial, intensity=self.intensity)

    @property
    def depth(self) -> int:
        """Slices that are cut out together."""
        return self.slab_slices if self.network.dims == 3 else self.network.in_channels


def localizer_settings(model: SegmentationSettings) -> SegmentationSettings:
    """Finds the heart in the whole slice at 4 mm, with the same kind of network as the segmentation's."""
    network = model.network
    kind = replace(network, levels=min(network.levels, 6))  # 96 pixels are 3 at the bottom
    if network.dims == 3:
        kind = replace(kind, kind="unet2d", context=1)
    return SegmentationSettings(
        network=kind,
        preprocess=PreprocessSettings(spacing_mm=4.0, size=96),
        spatial=SpatialSettings(
            shift_px=16.0, scale=(0.6, 1.4), elastic_probability=0.0, crop_probability=0.3
        ),
        optim=OptimSettings(  # of its own
            learning_rate=PRETRAINED_RATE, precision=model.optim.precision
        ),
    )


def supervise(
    network: nn.Module,
    batches: Batches,
    settings: SegmentationSettings,
    *,
    seed: int,
    held_back: Sequence[Sample] = (),
) -> tuple[Supervised, Batches, Validation | None]:
    """Supervised training of a network on batches of wide, raw slices, which are augmented and cut here.

    Args:
        network: from `build_network`, started as wanted; changed in place.
        batches: whose "image" is (B, depth, Y, X) and target (B, 1 or depth, Y, X).
        settings: all but data and start.
        seed: of the augmentation.
        held_back: samples that choose the best state; the last one is taken without them.

    Returns:
        the method, its batches, and what chooses the state, None for the last.
    """
    from fewbeats.finetuning.supervised import Supervised
    from fewbeats.models.finish import finish_network

    network.to(memory_format=memory_format(settings.network.dims))
    method = Supervised(
        network, optim=settings.optim, ema_decay=settings.ema_decay, freeze=settings.freeze_encoder
    )
    viewed = Viewed(batches, partial(views, settings=settings), seed)

    def validate(method: Method) -> dict[str, float]:
        ready = finish_network(method.networks()["network"], viewed)
        return {"validation": score_samples(ready, held_back, settings)}

    return method, viewed, Validation(measure=validate, best="validation") if held_back else None


def views(batch: Batch, generator: Generator, settings: SegmentationSettings) -> Batch:
    """A random view of wide slices and of their masks, as the network takes them."""
    cut = cut_labeled(batch, settings.views, generator)
    image = change_labeled(cut, settings.views, generator)
    return as_input(replace(cut, views={"image": image}), dims=settings.network.dims)


def score_samples(network: nn.Module, samples: Sequence[Sample], settings: SegmentationSettings) -> float:
    """Mean Dice over subjects and structures, on the network's grid; 1 for an absent structure not found."""
    import numpy as np
    import torch

    from fewbeats.models.answering import answering

    scores: dict[str, list[float]] = {}
    device = next(network.parameters()).device
    with answering(network) as ask:
        for sample in samples:
            side = middle(sample.image.shape[-1], settings.preprocess.size)
            batch = settings.cut(np.asarray(sample.image[:, side, side], np.float32))
            truth = sample.mask[:, side, side]
            found = ask(torch.from_numpy(batch).to(device)).argmax(1).cpu().numpy()
            found = found.reshape(-1, *found.shape[-2:])
            found = found[(len(found) - len(truth)) // 2 :][: len(truth)]
            for index, speaks in enumerate(sample.annotated, 1):
                if speaks:
                    agreement = dice(found == index, truth == index)
                    scores.setdefault(sample.subject, []).append(agreement)
    return float(np.mean([np.mean(values) for values in scores.values()]))
