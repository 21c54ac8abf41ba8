"""Build a segmentation network from its settings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fewbeats.errors import InputError
from fewbeats.ranges import check_most, check_ranges, later

if TYPE_CHECKING:
    import torch
    from torch import nn

NetworkKind = Literal["lite0", "unet2d", "unet3d", "swinunetr", "vit", "hub"]
SWIN_STRIDE = 32  # of SwinUNETR, along all axes
SWIN_HEADS = 12  # its widths are multiples of it


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network, and how large."""

    kind: NetworkKind = "lite0"
    """lite0: 2D U-Net on an EfficientNet-Lite0 encoder, whose ImageNet weights come inside a package;
    unet2d, unet3d: plain U-Net with deep supervision; swinunetr: 3D transformer of MONAI; vit: vision
    transformer with a convolutional decoder; hub: 2D network on any timm or MiT encoder."""
    base_channels: int = 16
    """Channels of a plain U-Net's first level, which double with each level up to 16 times that; of SwinUNETR
    a multiple of 12."""
    levels: int = 6
    """Resolution levels of a plain U-Net."""
    isotropic: bool = later(False)
    """Halve the slices of a 3D plain U-Net as often as rows and columns, as for volumes of even spacing; else
    only twice, as stacks have few, thick slices."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalization of a plain U-Net."""
    vit_width: int = 384
    """Width of a vision transformer's tokens; 384 is ViT-S."""
    vit_depth: int = 12
    """Its blocks."""
    vit_heads: int = 6
    """Attention heads of a block; must divide the width."""
    vit_patch_px: int = 8
    """Side of its patches, pixels, a power of 2."""
    encoder: str = "resnet34"
    """timm name of the encoder, for hub, or mit_b0 to mit_b5 of SegFormer."""
    architecture: Literal[
        "unet", "unetplusplus", "manet", "linknet", "fpn", "pan", "deeplabv3plus", "upernet", "segformer"
    ] = later("unet")
    """What stands on the encoder, for hub, by its name in segmentation-models-pytorch."""
    stem: Literal["repeat", "learned"] = later("repeat")
    """How a gray image enters an encoder of colors: as all three of them, or through a learned mixture."""
    decoder_channels: tuple[int, ...] = (128, 64, 32, 16, 16)
    """Channels of the decoder's levels, coarsest first, for lite0 and hub; most of the time is spent here."""
    context: int = 0
    """Neighboring slices on each side given to a 2D network as further channels."""

    def __post_init__(self) -> None:
        counts = ("base_channels", "levels", "vit_width", "vit_depth", "vit_heads", "decoder_channels")
        check_ranges(self, "network.", counts=counts, not_negative=("context",))
        check_most(
            self, "network.", {"levels": 12, "vit_depth": 128, "base_channels": 4096, "vit_width": 16384}
        )
        if self.levels < 2:
            raise InputError(f"--network.levels {self.levels}: a U-Net has at least 2")
        if self.kind in ("lite0", "hub") and len(self.decoder_channels) != 5:
            raise InputError(f"--network.decoder-channels: give 5 numbers, not {len(self.decoder_channels)}")
        if self.kind == "swinunetr" and self.base_channels % SWIN_HEADS:
            raise InputError(
                f"--network.base-channels {self.base_channels}: swinunetr needs a multiple of {SWIN_HEADS}"
            )
        if self.vit_patch_px < 2 or self.vit_patch_px & (self.vit_patch_px - 1):
            raise InputError(f"--network.vit-patch-px {self.vit_patch_px}: must be a power of 2")
        if self.vit_width % self.vit_heads:
            raise InputError(
                f"--network.vit-heads {self.vit_heads}: must divide --network.vit-width {self.vit_width}"
            )

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return 1 if self.dims == 3 else 2 * self.context + 1

    @property
    def dims(self) -> int:
        """2 or 3 spatial dimensions."""
        return 3 if self.kind in ("unet3d", "swinunetr") else 2

    @property
    def stride(self) -> int:
        """In-plane sides of the input must be multiples of this."""
        if self.kind == "vit":
            return self.vit_patch_px
        if self.kind == "swinunetr":
            return SWIN_STRIDE
        return 32 if self.kind in ("lite0", "hub") else 2 ** (self.levels - 1)

    @property
    def slice_stride(self) -> int:
        """The number of slices given to a 3D network must be a multiple of this."""
        if self.dims == 2:
            return 1
        if self.kind == "swinunetr":
            return SWIN_STRIDE
        return 2 ** (self.levels - 1) if self.isotropic else 4


def build_network(settings: NetworkSettings, *, classes: int) -> nn.Module:
    """A network from random weights, (B, in_channels, [Z,] Y, X) -> logits (B, classes, [Z,] Y, X).

    Plain U-Nets return a list of logits, finest first, while training (deep supervision).

    Args:
        settings: kind and size.
        classes: background included.

    Raises:
        InputError: timm knows no such encoder, or none that a U-Net can stand on.
    """
    if settings.kind == "vit":
        return _vit(settings, classes)
    if settings.kind in ("unet2d", "unet3d"):
        return _plain_unet(settings, classes)
    if settings.kind == "swinunetr":
        return _swin_unetr(settings, classes)
    return _on_encoder(settings, classes)


def smp_encoder(name: str) -> str:
    """What segmentation-models-pytorch calls an encoder: its own ones by their name, timm's with a prefix."""
    return name if name.startswith("mit_") else f"tu-{name}"


def _on_encoder(settings: NetworkSettings, classes: int) -> nn.Module:
    """A network of segmentation-models-pytorch."""
    if set(settings.encoder) & set(":/"):
        raise InputError(
            f"--network.encoder {settings.encoder}: a timm name without an address; give weights with --init"
        )
    name = "tf_efficientnet_lite0" if settings.kind == "lite0" else settings.encoder
    architecture = "unet" if settings.kind == "lite0" else settings.architecture
    learned = settings.stem == "learned"
    options: dict[str, Any] = {}
    if architecture in ("unet", "unetplusplus", "manet"):
        options["decoder_channels"] = settings.decoder_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm and smp announce deprecations of torch that no user can mend
        import segmentation_models_pytorch as smp

        try:
            network = smp.create_model(
                architecture,
                encoder_name=smp_encoder(name),
                encoder_weights=None,
                in_channels=3 if learned else settings.in_channels,
                classes=classes,
                **options,
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"encoder '{name}': timm knows no such model with a pyramid of features, or none that "
                f"'{architecture}' can stand on; see timm.list_models()"
            ) from error
    if learned:
        from fewbeats.models.stem import add_stem

        add_stem(network, channels=settings.in_channels)
    return network


def _swin_unetr(settings: NetworkSettings, classes: int) -> nn.Module:
    """Hatamizadeh et al., Swin UNETR, BrainLes 2021, https://arxiv.org/abs/2201.01266, as MONAI has it.

    Raises:
        InputError: MONAI is not installed.
    """
    try:
        from monai.networks.nets import SwinUNETR
    except ImportError as error:
        raise InputError("--network.kind swinunetr: needs MONAI; pip install 'fewbeats[monai]'") from error
    return SwinUNETR(
        in_channels=settings.in_channels, out_channels=classes, feature_size=settings.base_channels
    )


def _vit(settings: NetworkSettings, classes: int) -> nn.Module:
    from fewbeats.models.vit import VitEncoder, VitSegmenter

    encoder = VitEncoder(
        in_channels=settings.in_channels,
        width=settings.vit_width,
        depth=settings.vit_depth,
        heads=settings.vit_heads,
        patch_px=settings.vit_patch_px,
    )
    return VitSegmenter(encoder, classes=classes)


def _plain_unet(settings: NetworkSettings, classes: int) -> nn.Module:
    """nnU-Net's plain U-Net: two [conv3, norm, LeakyReLU] a level, strided convolutions."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    kwargs = {
        name: getattr(nn, value.rpartition(".")[2]) if name in NAMED_BY_IMPORT and value else value
        for name, value in plain_unet_plan(settings).items()
    }
    return PlainConvUNet(settings.in_channels, num_classes=classes, deep_supervision=True, **kwargs)


NAMED_BY_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")


def plain_unet_plan(settings: NetworkSettings) -> dict[str, Any]:
    """Arguments of a plain U-Net as nnU-Net's plans hold them, classes by their import path.

    The 3D one halves the through-plane axis only twice where it is not `isotropic`.
    """
    dims, levels = settings.dims, settings.levels
    kernels: list = [[3] * dims] * levels
    strides: list = [[1] * dims] + [[2] * dims] * (levels - 1)
    if dims == 3 and not settings.isotropic:
        kernels = [[1, 3, 3] if i < 2 else [3, 3, 3] for i in range(levels)]
        strides = [[1, 1, 1]] + [[2, 2, 2] if i in (3, 4) else [1, 2, 2] for i in range(1, levels)]
    norm = {"instance": "instancenorm.InstanceNorm", "batch": "batchnorm.BatchNorm"}[settings.norm]
    return {
        "n_stages": levels,
        "features_per_stage": [settings.base_channels * min(2**i, 16) for i in range(levels)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{norm}{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def memory_format(dims: int) -> torch.memory_format:
    """In which layout a CPU convolves fastest, of 2 or 3 spatial dimensions."""
    import torch

    return torch.channels_last if dims == 2 else torch.channels_last_3d


LAST_LAYERS = ("segmentation_head.", "decoder.seg_layers.")
"""How the names of the U-Nets' last layers begin, which make classes of features."""


def has_deep_supervision(network: nn.Module) -> bool:
    """Whether a network returns its logits at several scales."""
    return any(getattr(module, "deep_supervision", False) for module in network.modules())


def set_deep_supervision(network: nn.Module, active: bool) -> None:
    """Let a plain U-Net return all its scales (training) or only the finest; other networks have one."""
    for module in network.modules():
        if hasattr(module, "deep_supervision"):
            module.deep_supervision = active  # type: ignore[assignment]
