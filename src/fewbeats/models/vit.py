"""Vision transformer: an encoder of patches, and a segmentation network on it.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929; its blocks are
timm's.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from math import log2
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class VitEncoder(nn.Module):
    """(B, C, Y, X) of any size that patches tile -> [(B, D, Y / P, X / P)].

    Args:
        in_channels: C of the image.
        width: D of the tokens.
        depth: number of blocks.
        heads: attention heads of a block; must divide the width.
        patch_px: side P of a patch, pixels.
    """

    def __init__(self, *, in_channels: int, width: int, depth: int, heads: int, patch_px: int):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from timm.models.vision_transformer import VisionTransformer

        self.patch_px, self.out_channels, self.in_channels = patch_px, (width,), in_channels
        self.model = VisionTransformer(
            img_size=patch_px * 16,  # where the grid of positions is kept; others interpolate it
            patch_size=patch_px,
            in_chans=in_channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            dynamic_img_size=True,
        )

    def forward(
        self, image: Tensor, blank: Tensor | None = None, token: Tensor | None = None
    ) -> list[Tensor]:
        """Map of patch tokens.

        Args:
            image: (B, C, Y, X).
            blank: (B, 1, Y / P, X / P) bool, True where a patch is hidden.
            token: (D,) what stands for a hidden patch.
        """
        _, patches = self.tokens(image, blank, token)
        rows = image.shape[-2] // self.patch_px
        return [patches.transpose(1, 2).unflatten(2, (rows, -1))]

    def summarize(self, image: Tensor) -> Tensor:
        """The [CLS] token (B, D)."""
        return self.tokens(image)[0]

    def tokens(
        self, image: Tensor, blank: Tensor | None = None, token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The [CLS] token (B, D) and those of the patches (B, Y / P * X / P, D); see `forward`."""
        model = self.model
        seen = model.patch_embed(image)  # (B, Y / P, X / P, D)
        if blank is not None and token is not None:
            seen = seen.where(~blank[:, 0, :, :, None], token.to(seen.dtype))
        out = model.norm(model.blocks(model.norm_pre(model._pos_embed(seen))))
        return out[:, 0], out[:, 1:]


class VitSegmenter(nn.Module):
    """Patch tokens doubled in size by convolutions up to the image's, then classes.

    Args:
        encoder: whose patches have a power of 2 as their side.
        classes: background included.
    """

    def __init__(self, encoder: VitEncoder, *, classes: int):
        super().__init__()
        self.encoder = encoder
        doublings = int(log2(encoder.patch_px))
        widths = [*encoder.out_channels, *(max(16, 128 // 2**i) for i in range(doublings))]
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Y, X) -> logits (B, classes, Y, X)."""
        (x,) = self.encoder(image)
        for convolve in self.decoder:
            x = convolve(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
        return self.head(x)
