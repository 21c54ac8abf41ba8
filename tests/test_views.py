"""Views of one batch that belong together: what is known of a stored slice follows it into any geometry."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewbeats.sample import Batch
from fewbeats.transforms.spatial import SpatialSettings
from fewbeats.transforms.views import ViewSettings, cut_labeled, cut_middle, follow

SMOOTH = SpatialSettings(elastic_probability=1.0, turned=0.5, crop_probability=0.0)


def cut(wide: torch.Tensor, size: int, spatial: SpatialSettings, seed: int = 0) -> Batch:
    settings = ViewSettings(size=size, spatial=spatial)
    return cut_labeled(Batch(views={"image": wide}), settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [40, 41, 47])
def test_what_follows_is_what_the_view_shows(width):
    coarse = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(coarse, size=(width, width), mode="bicubic")
    batch, settings = cut(wide, 32, SMOOTH), ViewSettings(size=32)
    moved = follow(cut_middle(wide, settings), batch.place)
    inside = follow(torch.ones(6, 1, 32, 32), batch.place) > 0.999
    assert 0.2 < float(inside.float().mean()) < 1
    assert torch.allclose(moved * inside, batch.views["image"] * inside, atol=1e-4)


def test_a_blanked_field_of_view_shows_nothing():
    batch = cut(torch.ones(32, 1, 40, 40), 32, SpatialSettings(crop_probability=1.0))
    moved = follow(torch.ones(32, 1, 32, 32), batch.place)
    blank = batch.views["image"] == 0
    assert blank.any()
    assert float(moved[blank].abs().max()) == 0


def test_all_slices_of_a_slab_follow_alike():
    slab = torch.randn(2, 3, 4, 32, 32)
    place = cut(torch.ones(2, 4, 40, 40), 32, SMOOTH).place
    moved = follow(slab, place)
    assert moved.shape == slab.shape
    assert torch.allclose(moved[:, :, 1], follow(slab[:, :, 1], place), atol=1e-6)


def test_a_slice_narrower_than_the_view_is_left_whole():
    wide = torch.randn(2, 1, 24, 24)
    assert torch.equal(cut_middle(wide, ViewSettings(size=32)), wide)
