"""Structures whose gray values are shifted: each alike, softly at the edge, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from fewbeats.sample import Batch
from fewbeats.transforms.intensity import IntensitySettings
from fewbeats.transforms.recolor import EDGE_PX, recolor
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import ViewSettings, change_labeled, cut_labeled


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hearts(count: int = 64, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat images with two structures and an outside of zeros."""
    target = torch.zeros(count, 1, 40, 40, dtype=torch.long)
    target[..., 8:20, 8:20], target[..., 24:36, 20:34] = 1, 2
    image = torch.ones(count, channels, 40, 40)
    image[..., :4] = 0.0
    return image, target


@pytest.mark.parametrize("channels", [1, 3])
def test_each_structure_has_a_shift_of_its_own(channels):
    image, target = hearts(channels=channels)
    out = recolor(image, target, strength=0.5, generator=drawn())
    first, second = out[:, 0, 14, 14] - 1, out[:, 0, 30, 27] - 1
    moved = first != 0
    assert 0.3 < float(moved.float().mean()) < 0.7
    assert torch.equal(moved, second != 0)
    assert 0.3 < float(first[moved].std()) < 0.7
    assert abs(float(np.corrcoef(first[moved], second[moved])[0, 1])) < 0.4
    assert torch.equal(out[:, :, :, 0:4], image[:, :, :, 0:4])  # outside stays 0
    assert torch.equal(out[:, :, 0, 8:], image[:, :, 0, 8:])  # far from structures
    assert torch.equal(out[:, 0], out[:, -1])


def test_the_edge_is_a_gaussian():
    image, target = hearts(8)
    out = recolor(image, target, strength=1.0, generator=drawn())
    change = (out - 1)[:, 0, :, 6:].numpy()
    for one, labels in zip(change, target[:, 0, :, 6:].numpy()):
        shifts = [0.0, float(one[14, 8]), float(one[30, 21])]
        wanted = ndimage.gaussian_filter(np.take(shifts, labels), EDGE_PX, truncate=3.0, mode="nearest")
        assert np.abs(one - wanted).max() < 1e-2


def test_nothing_to_shift_is_nothing_drawn():
    image, target = hearts(4)
    generator = drawn()
    assert recolor(image, target, strength=0.0, generator=generator) is image
    assert recolor(image, target * 0, strength=1.0, generator=generator) is image
    assert torch.equal(generator.get_state(), drawn().get_state())


def test_labels_and_their_images_are_recolored_together():
    image, target = hearts(32)
    still = ViewSettings(
        size=40,
        spatial=SpatialSettings(elastic_probability=0.0),
        intensity=IntensitySettings(probability=0.0, structures=0.5),
    )
    cut = cut_labeled(Batch(views={"image": image}, target=target), still, drawn())
    change = change_labeled(cut, still, drawn()) - cut.views["image"]
    assert float(change.abs().max()) > 0.5
    away = ndimage.distance_transform_edt((cut.target[:, 0] == 0).numpy(), sampling=(1e6, 1, 1)) > 5
    assert float(change[:, 0][torch.from_numpy(away)].abs().max()) < 1e-6
