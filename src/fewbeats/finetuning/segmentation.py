"""Train a segmentation network on labeled samples."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fewbeats.clock import Clock
from fewbeats.errors import InputError
from fewbeats.models.network import NetworkSettings
from fewbeats.training.loop import FitSettings, Validation, fit
from fewbeats.training.optim import OptimSettings
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.preprocess import PreprocessSettings
from fewbeats.transforms.spatial import SpatialSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from fewbeats.sample import Batch, Batches, Sample
    from fewbeats.training.method import Method
    from fewbeats.training.rundir import RunDir


RECALIBRATION = 25  # batches from which the exported network's BatchNorm statistics are taken


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
            raise InputError(f"--slab-slices {self.slab_slices}: must be a multiple of 4")
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: give at least 1")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.freeze_encoder <= 1:
            raise InputError("--ema-decay: must be in [0, 1); --freeze-encoder: in [0, 1]")

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
        optim=OptimSettings(precision=model.optim.precision),  # with an optimizer of its own
    )


def train_segmentation(
    network: nn.Module,
    batches: Batches,
    *,
    settings: SegmentationSettings,
    fit_settings: FitSettings,
    run: RunDir,
    label: str = "training",
    held_back: Sequence[Sample] = (),
) -> tuple[nn.Module, int]:
    """Train a network on batches of wide, raw slices; they are augmented and cut to size here.

    Args:
        network: from `build_network`, started as wanted; changed in place.
        batches: yields batches whose "image" is (B, depth, Y, X) and target (B, 1 or depth, Y, X).
        settings: all but data and start.
        fit_settings: length and seed.
        run: folder for metrics and checkpoints.
        label: name on the progress bar.
        held_back: samples that choose the best state; the last one is taken without them.

    Returns:
        the network to export (moving average, evaluation mode) and the number of steps.
    """
    import torch

    from fewbeats.finetuning.supervised import Supervised

    layout = torch.channels_last if settings.network.dims == 2 else torch.channels_last_3d
    network.to(memory_format=layout)
    method = Supervised(
        network, optim=settings.optim, ema_decay=settings.ema_decay, freeze=settings.freeze_encoder
    )
    augmented = augment(batches, settings, seed=fit_settings.seed)

    def validate(method: Method) -> dict[str, float]:
        network = recalibrate(exported(method), augmented)
        return {"validation": score_samples(network, held_back, settings)}

    validation = Validation(measure=validate, best="validation") if held_back else None
    steps = fit(method, augmented, settings=fit_settings, run=run, label=label, validation=validation)
    return recalibrate(exported(method), augmented), steps


def recalibrate(network: nn.Module, batches: Batches) -> nn.Module:
    """Take BatchNorm's statistics anew under the averaged weights, which never ran in training mode."""
    from torch.optim.swa_utils import update_bn

    device = next(network.parameters()).device
    clocks = (Clock(step, RECALIBRATION) for step in range(RECALIBRATION))
    update_bn((batches(clock).views["image"].to(device) for clock in clocks), network)
    return network.eval()


def exported(method: Method) -> nn.Module:
    """A copy of the network a method exports, ready to predict; the method's own is left as it is."""
    from fewbeats.models.network import set_deep_supervision

    network = deepcopy(method.networks()["network"]).eval()
    set_deep_supervision(network, False)
    return network


def augment(batches: Batches, settings: SegmentationSettings, *, seed: int) -> Batches:
    """Random transform of each batch."""
    from fewbeats.transforms.views import Randomized

    return Randomized(batches, lambda batch, generator: transform(batch, settings, generator), seed)


def transform(batch: Batch, settings: SegmentationSettings, generator) -> Batch:
    """Cut a batch of wide slices to the network's field of view with a random transform."""
    import torch

    from fewbeats.transforms.intensity import augment_intensity
    from fewbeats.transforms.spatial import apply_spatial, draw_spatial

    image, target = batch.views["image"], batch.target
    assert target is not None
    draw = draw_spatial(
        settings.spatial,
        batch=len(image),
        source_px=image.shape[-1],
        out_px=settings.preprocess.size,
        generator=generator,
    )
    image = augment_intensity(apply_spatial(image, draw), settings.intensity, generator)
    target = apply_spatial(target.float(), draw, labels=True).long()
    if settings.network.dims == 3:
        return replace(batch, views={"image": image[:, None]}, target=target)
    image = image.contiguous(memory_format=torch.channels_last)
    return replace(batch, views={"image": image}, target=target[:, 0])


def score_samples(network: nn.Module, samples: Sequence[Sample], settings: SegmentationSettings) -> float:
    """Mean Dice over subjects and structures, on the network's grid; 1 for an absent structure not found."""
    import numpy as np
    import torch

    scores: dict[str, list[float]] = {}
    device = next(network.parameters()).device
    margin = (samples[0].image.shape[-1] - settings.preprocess.size) // 2
    for sample in samples:
        assert sample.mask is not None
        plane = (slice(None), *[slice(margin, margin + settings.preprocess.size)] * 2)
        batch = cut_inputs(np.asarray(sample.image[plane], np.float32), settings)
        with torch.inference_mode():
            found = network(torch.from_numpy(batch).to(device)).argmax(1).cpu().numpy()
        truth = np.asarray(sample.mask[plane])
        found = found.reshape(-1, *found.shape[-2:])
        found = found[(len(found) - len(truth)) // 2 :][: len(truth)]
        for index, speaks in enumerate(sample.annotated, 1):
            if speaks:
                both, total = (
                    ((found == index) & (truth == index)).sum(),
                    (found == index).sum() + (truth == index).sum(),
                )
                scores.setdefault(sample.subject, []).append(2 * both / total if total else 1.0)
    return float(np.mean([np.mean(values) for values in scores.values()]))


def cut_inputs(image: np.ndarray, settings: SegmentationSettings) -> np.ndarray:
    """One frame on the network's grid (Z, Y, X) -> the network's input.

    Returns:
        (Z, depth, Y, X) for a 2D network, each slice with its neighbors (the last slice repeated beyond the
        stack); (1, 1, Z', Y, X) for a 3D one, empty slices added at both ends up to the multiple it needs.
    """
    import numpy as np

    slices = len(image)
    if settings.network.dims == 3:
        missing = -slices % settings.network.slice_stride
        return np.pad(image, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))[None, None]
    context = settings.network.context
    around = np.clip(np.arange(slices)[:, None] + np.arange(-context, context + 1), 0, slices - 1)
    return image[around]
