"""Gray-value augmentation, batched: each effect is drawn per sample and applied to a share of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fewbeats.ranges import check_ranges, later

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class IntensitySettings:
    """Ranges of the random effects on z-scored gray values."""

    probability: float = 0.3
    """Chance of each effect for each sample."""
    gamma: tuple[float, float] = (0.6, 1.6)
    """Exponent on the image scaled to [0, 1]; half of the draws act on the inverted image."""
    bias_field: float = 0.5
    """Standard deviation of the log of a smooth field that multiplies gray values, at its 4 x 4 knots."""
    contrast: tuple[float, float] = (0.65, 1.5)
    """Factor on the deviation from the mean."""
    brightness: float = 0.3
    """Standard deviation of an additive shift."""
    blur_px: tuple[float, float] = (0.5, 1.3)
    """Standard deviation of a Gaussian blur, pixels."""
    noise: float = 0.2
    """Largest standard deviation of additive Gaussian noise."""
    low_resolution: float = 0.5
    """Smallest factor of an in-plane down- and up-sampling, drawn once for all samples of a batch."""
    structures: float = later(0.0)
    """Standard deviation of a shift of each labeled structure, in half of the samples; see `recolor.py`."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "intensity.",
            positive=("gamma", "contrast", "low_resolution"),
            not_negative=("bias_field", "brightness", "blur_px", "noise", "structures"),
            shares=("probability", "low_resolution"),
        )


@dataclass(frozen=True)
class IntensityDraw:
    """What was drawn for a batch: apply it to as many tensors as belong together."""

    effects: tuple[tuple[Tensor, Callable[..., Tensor], tuple[Tensor, ...]], ...] = ()
    """In the order applied: (B,) bool which samples, the effect, and (B, ...) what it takes for each."""


def draw_intensity(settings: IntensitySettings, shape: Sequence[int], generator: Generator) -> IntensityDraw:
    """Draw the effects for images (B, C, Y, X); channels of a sample (neighboring slices) share them."""
    import torch

    p, batch = settings.probability, shape[0]
    if p <= 0:
        return IntensityDraw()

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(batch, generator=generator)).view(-1, 1, 1, 1)

    def normal(*inner: int) -> Tensor:
        return torch.randn(batch, *inner, generator=generator)

    def chosen() -> Tensor:
        return torch.rand(batch, generator=generator) < p

    blur = chosen(), _blur, (uniform(*settings.blur_px),)
    coarse, rest = chosen(), 1 - settings.low_resolution
    factor = settings.low_resolution + rest * float(torch.rand((), generator=generator))
    knots = normal(1, 4, 4) * settings.bias_field
    shade = chosen(), _shade, (knots,)
    contrast = chosen(), torch.mul, (uniform(*settings.contrast),)
    shift = normal(1, 1, 1) * settings.brightness
    brighter = chosen(), torch.add, (shift,)
    gamma = chosen(), _gamma, (uniform(*settings.gamma), uniform(0, 1) < 0.5)
    noise = normal(*shape[1:]) * uniform(0, settings.noise)
    noisy = chosen(), torch.add, (noise,)
    lower = coarse, partial(_lower_resolution, factor=factor), ()
    return IntensityDraw((blur, lower, shade, contrast, brighter, gamma, noisy))


def apply_intensity(image: Tensor, draw: IntensityDraw) -> Tensor:
    """Change (B, C, Y, X) by what was drawn. Points that are exactly 0, outside the scan, stay 0."""
    if not draw.effects:
        return image
    out = image.clone()
    for which, effect, drawn in draw.effects:
        if which.any():  # most samples are left as they are: only the others cost time
            out[which] = effect(out[which], *(values[which] for values in drawn))
    return out.masked_fill(image == 0, 0.0)


def _gamma(image: Tensor, exponent: Tensor, inverted: Tensor) -> Tensor:
    """Gamma on each sample scaled to [0, 1]; mean and deviation are kept."""
    import torch

    low = image.amin((1, 2, 3), keepdim=True)
    span = (image.amax((1, 2, 3), keepdim=True) - low).clamp_min(1e-6)
    unit = (image - low) / span
    unit = torch.where(inverted, 1 - unit, unit).clamp(1e-6, 1) ** exponent
    unit = torch.where(inverted, 1 - unit, unit)
    before = torch.std_mean(image, (1, 2, 3), keepdim=True)
    after = torch.std_mean(unit, (1, 2, 3), keepdim=True)
    return (unit - after[1]) / after[0].clamp_min(1e-6) * before[0] + before[1]


def _shade(image: Tensor, knots: Tensor) -> Tensor:
    """Gray values above the darkest one times a smooth positive field; `knots` (B, 1, 4, 4) hold its log.

    Scaling z-scores would leave all that lies near the mean as it is.
    """
    from torch.nn import functional as F

    field = F.interpolate(knots, size=image.shape[-2:], mode="bicubic", align_corners=True).exp()
    darkest = image.amin((1, 2, 3), keepdim=True)
    return (image - darkest) * field + darkest


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with a standard deviation per sample."""
    import torch
    from torch.nn import functional as F

    batch, channels, height, width = image.shape
    taps = torch.arange(-4, 5, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma.view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(image.reshape(1, batch * channels, height, width), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels).view_as(image)


def _lower_resolution(image: Tensor, *, factor: float) -> Tensor:
    """Down- and up-sample in plane."""
    from torch.nn import functional as F

    size = [max(1, round(side * factor)) for side in image.shape[-2:]]  # by a bare factor the way back shifts
    small = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=image.shape[-2:], mode="bilinear")
