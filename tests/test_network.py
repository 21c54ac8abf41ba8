"""Networks: shapes, strides and widths."""

from __future__ import annotations

import pytest
import torch

from fewbeats.models.network import NetworkSettings, build_network, set_deep_supervision
from small_networks import SMALL2D, SMALL3D, photograph_lite0

lite0 = pytest.fixture(photograph_lite0, scope="module")


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("settings", "shape"), [(SMALL2D, (2, 3, 32, 48)), (SMALL3D, (1, 1, 4, 32, 40))], ids=["2D", "3D"]
)
def test_plain_unets_keep_the_size_and_halve_it_at_each_scale(settings, shape, classes):
    network, image = build_network(settings, classes=classes), torch.randn(shape)
    scales = network(image)
    assert scales[0].shape == (shape[0], classes, *shape[2:])
    assert [s.shape[-1] for s in scales] == [shape[-1] // 2**i for i in range(settings.levels - 1)]
    set_deep_supervision(network, False)
    torch.testing.assert_close(network(image), scales[0])
    set_deep_supervision(network, True)
    assert len(network(image)) == len(scales)


@pytest.mark.parametrize("settings", [SMALL2D, SMALL3D, NetworkSettings(kind="unet3d", base_channels=2)])
def test_the_said_strides_are_the_smallest_input(settings):
    network = build_network(settings, classes=2)
    set_deep_supervision(network, False)
    slices = (settings.slice_stride,) if settings.dims == 3 else ()
    shape = (2, settings.in_channels, *[2 * s for s in slices], settings.stride, 2 * settings.stride)
    assert network(torch.randn(shape)).shape == (2, 2, *shape[2:])


def test_widths_double_up_to_sixteen_times():
    network = build_network(NetworkSettings(kind="unet2d", base_channels=2, levels=7), classes=2)
    assert network.encoder.output_channels == [2, 4, 8, 16, 32, 32, 32]


def test_switching_deep_supervision_of_other_networks_does_nothing(lite0):
    set_deep_supervision(lite0, True)
    with torch.inference_mode():
        assert lite0(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)
