"""Gray images for an encoder that was trained on colors: a learned mixture of them in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class StemmedEncoder(nn.Module):
    """An encoder of three channels behind a 1 x 1 convolution, which begins as their mean repeated.

    Args:
        body: gives maps of features, the first of them its input.
        channels: of the image.
    """

    def __init__(self, body: Any, *, channels: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, 3, 1)
        nn.init.constant_(self.stem.weight, 1 / channels)
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        self.body = body
        self.out_channels, self.output_stride = body.out_channels, body.output_stride

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of features of (B, channels, Y, X), the first of them the image."""
        return [image, *self.body(self.stem(image))[1:]]


def body_of(encoder: Any) -> Any:
    """The encoder proper, without a stem in front of it."""
    return encoder.body if isinstance(encoder, StemmedEncoder) else encoder


def add_stem(network: Any, *, channels: int) -> None:
    """Put a learned stem in front of the encoder of a network that was built for three channels."""
    network.encoder = StemmedEncoder(network.encoder, channels=channels)
