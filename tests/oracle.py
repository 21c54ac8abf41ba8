"""Geometry without learning: a network that knows the answer, and the scans it reads it off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fewbeats.finetuning.segmentation import SegmentationSettings, localizer_settings
from fewbeats.inference.engine import Engine
from fewbeats.models.network import NetworkSettings
from fewbeats.scan import ArrayPixels, Scan, Source
from fewbeats.training.runconfig import RunConfig
from fewbeats.transforms.preprocess import PreprocessSettings

STRUCTURES = ("LV", "MYO", "RV")
SIDE = 32


def oracle(kind: str, *, dims: int = 2, size: int = SIDE, spacing_mm: float = 2.5) -> Engine:
    """A network that reads the answer off the image: `GRAY` has a value for each class, evenly apart."""
    if kind == "localizer":
        settings = localizer_settings(
            SegmentationSettings(network=NetworkSettings(kind="unet2d", levels=4, context=0))
        )
        structures: tuple[str, ...] = ("heart",)
    else:
        settings = SegmentationSettings(
            network=NetworkSettings(kind="unet2d" if dims == 2 else "unet3d", levels=3, context=0),
            preprocess=PreprocessSettings(size=size, spacing_mm=spacing_mm, clip_percent=(0.0, 100.0)),
            slab_slices=8,
        )
        structures = STRUCTURES

    def call(batch: np.ndarray) -> np.ndarray:
        gray = batch[:, 0]
        levels = LEVELS[kind](gray)
        return np.stack([-np.abs(gray - level) * 50 for level in levels], 1).astype(np.float32)

    return Engine(Path("oracle"), settings, structures, "oracle", call, RunConfig(task="segmentation"))


def _class_levels(gray: np.ndarray) -> list[float]:
    low, high = float(gray.min()), float(gray.max())
    return [low + (high - low) * share for share in (0, 1 / 3, 2 / 3, 1)]


LEVELS = {
    "segmenter": _class_levels,
    "localizer": lambda gray: _class_levels(gray)[:2],
}


def make_truth(shape=(6, 60, 70), center=(22, 45), reach=(9, 6, 3)) -> np.ndarray:
    """(Z, Y, X) nested boxes RV, MYO, LV off the middle; slices 0 and 5 are empty."""
    truth = np.zeros(shape, np.uint8)
    for value, side in zip((3, 2, 1), reach):
        rows, columns = (slice(c - side, c + side + 1) for c in center)
        truth[1:5, rows, columns] = value
    return truth


GRAY = np.array([0, 300, 200, 100], np.float32)  # of background, LV, MYO, RV


def make_scan(truth: np.ndarray, *, spacing=(8.0, 2.5, 2.5), frames: int = 1) -> Scan:
    image = np.repeat(GRAY[truth][None], frames, 0)
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    source = Source(affine=affine, shape=truth.shape)
    return Scan(pixels=ArrayPixels(image), affine=affine, modality="MR", source=source)


RANKED = ("RV", "MYO", "LV")  # classes of the oracle in the order of their gray values


def ranked(engine: Engine) -> Engine:
    return replace(engine, structures=RANKED)
