"""The probe: what an encoder knows about the place of a slice in its heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbeats.data.pool import sample_slices
from fewbeats.models.network import NetworkSettings, build_network
from fewbeats.pretraining.probe import explained, height_probe
from fewbeats.pretraining.settings import SimclrSettings
from fewbeats.pretraining.simclr import Simclr
from fewbeats.training.optim import OptimSettings
from tiny_training import train_pool

pool = pytest.fixture(train_pool, scope="module")


def test_the_probe_tells_what_features_know():
    rng = np.random.default_rng(0)
    height, subject = rng.random(120), np.repeat(np.arange(6), 20)
    angle = height * np.pi / 2
    knowing = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert explained(knowing, height, subject) > 0.95
    assert explained(rng.normal(size=(120, 16)), height, subject) < 0.2


def test_neighbors_of_the_same_heart_do_not_help_the_probe():
    """Features that name the subject alone: within it heights would be told, from others they are not."""
    subject = np.repeat(np.arange(4), 30)
    height = subject / 3 + np.random.default_rng(0).normal(0, 0.01, 120)
    features = np.eye(4)[subject] + np.random.default_rng(1).normal(0, 0.01, (120, 4))
    assert explained(features, height, subject) < 0


def test_slices_for_the_probe_are_the_same_each_time_and_of_known_direction(pool):
    first, second = (sample_slices(pool, 24, size=64, context=1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    images, heights, subjects = first
    assert images.shape == (24, 3, 64, 64)
    assert set(subjects) == {"phantom000", "phantom001", "phantom002"}
    assert heights.min() >= 0
    assert heights.max() <= 1
    unknown = replace(pool, order=np.zeros(3, int))
    assert len(sample_slices(unknown, 24, size=64, context=0)[0]) == 0


def test_the_probe_leaves_the_method_as_it_was(pool):
    torch.manual_seed(0)
    network = build_network(NetworkSettings(kind="unet2d", base_channels=4, levels=3), classes=3)
    method = Simclr(network, settings=SimclrSettings(), optim=OptimSettings()).train()
    before = {n: v.clone() for n, v in method.state_dict().items()}
    images, heights, subjects = sample_slices(pool, 24, size=64, context=0)
    measure = height_probe(torch.from_numpy(images), heights, subjects)
    assert measure(method) == measure(method)
    assert all(torch.equal(v, before[n]) for n, v in method.state_dict().items())
    assert method.training
