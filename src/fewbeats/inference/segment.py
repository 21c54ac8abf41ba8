"""Segment a scan frame by frame; memory does not grow with frames, slices or classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, special

from fewbeats.anatomy import FEWBEATS_VALUES, VESSELS
from fewbeats.errors import InputError
from fewbeats.inference.engine import Engine, load_engine
from fewbeats.inference.localize import Region, locate_heart, whole_image
from fewbeats.training.rundir import RunDir
from fewbeats.transforms.preprocess import Grid, lay_grid, normalize

if TYPE_CHECKING:
    from fewbeats.scan import Scan
    from fewbeats.transforms.preprocess import PreprocessSettings

ALONE, LIMB = 4, 0.2  # see `keep_largest`
SLAB = 16  # slices that pass the network, and are resampled and decided on, together
ROOM = 1.2  # the field of view is at least this many times the heart
MOST_ZOOM = 1.5  # beyond it hearts would look smaller than augmentation ever showed them


@dataclass(frozen=True)
class Model:
    """What a run folder predicts with."""

    segmenter: Engine
    localizer: Engine | None
    others: tuple[Engine, ...] = ()
    """Further networks on the same grid, whose probabilities are averaged with the segmenter's."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures it looks for."""
        return self.segmenter.structures

    @property
    def modalities(self) -> tuple[str, ...]:
        """MR, CT or both: what it was trained on."""
        return self.segmenter.config.modalities


def load_model(run: Path | str, *, network: str = "network", runtime: str | None = None) -> Model:
    """Open a run folder.

    Args:
        run: the folder.
        network: `network` for the run's own, the name of another one that it exported, or `mean` of all.
        runtime: see `load_engine`.

    Raises:
        InputError: not a finished run of this version, or without such a network.
    """
    names = RunDir(run).read_config().networks
    chosen = names if network == "mean" else (network,)
    if not set(chosen) <= set(names) or (network == "mean" and len(names) < 2):
        raise InputError(f"{run}: has no network '{network}'; it has {', '.join(names)}")
    folders = [Path(run) if name == names[0] else Path(run) / name for name in chosen]
    first, *others = (load_engine(folder, runtime=runtime) for folder in folders)
    if not set(first.structures) <= FEWBEATS_VALUES.keys():
        raise InputError(f"{run}: only finds the heart; give the run folder above it")
    folder = Path(run) / "localizer"
    localizer = load_engine(folder, runtime=runtime) if folder.is_dir() else None
    return Model(first, localizer, tuple(others))


def find_region(scan: Scan, model: Model) -> Region:
    """Where to look; an image no larger than the network's field of view is taken whole."""
    settings = model.segmenter.settings.preprocess
    sides_mm = [n * s for n, s in zip(scan.shape[2:], scan.spacing_mm[1:])]
    if model.localizer is None or max(sides_mm) <= settings.field_of_view_mm:
        return whole_image(scan)
    return locate_heart(scan, model.localizer)


def widen_grid(settings: PreprocessSettings, region: Region) -> PreprocessSettings:
    """A coarser grid where the heart would not fit into the network's field of view."""
    zoom = min(max(1.0, ROOM * region.extent_mm / settings.field_of_view_mm), MOST_ZOOM)
    return replace(settings, spacing_mm=settings.spacing_mm * zoom)


def segment_frames(
    scan: Scan, model: Model, region: Region, *, confident: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Masks (Z, Y, X) uint8 in the `fewbeats` convention, one a frame, on the scan's canonical grid.

    Args:
        scan: what is segmented.
        model: the networks.
        region: where to look.
        confident: also how sure each voxel is, its label's probability; 0 where a part was removed.

    Raises:
        InputError: a frame cannot be read, or is empty.
    """
    settings = widen_grid(model.segmenter.settings.preprocess, region)
    grid = lay_grid(scan.shape[1:], scan.spacing_mm, settings, center=region.center)
    inside = grid.inside()
    for t in range(scan.shape[0]):
        values = scan.shown(t)
        image = normalize(grid.sample(values), inside, settings, modality=scan.modality or "MR")
        sure = np.ones(grid.source_shape, np.float32) if confident else None
        yield _decide(image, grid, (model.segmenter, *model.others), sure=sure), sure


def _decide(
    image: np.ndarray, grid: Grid, engines: Sequence[Engine], *, sure: np.ndarray | None = None
) -> np.ndarray:
    """Network input -> label values on the scan's grid, slab by slab; of several networks by their mean.

    Where background has the highest score at all grid points a voxel draws from, it has it at the voxel.
    `sure`, all 1, is filled with the probability of each label.
    """
    engine, scores = engines[0], [_score(image, one) for one in engines]
    logits = scores[0] if len(scores) == 1 else np.mean([special.softmax(s, axis=0) for s in scores], axis=0)
    values = np.array([0, *(FEWBEATS_VALUES[s] for s in engine.structures)], np.uint8)
    if len(logits) != len(values):
        raise InputError(f"{engine.run}: its network does not fit its run.json; restore the run folder")
    mask = np.zeros(grid.source_shape, np.uint8)
    seen = ndimage.find_objects((logits[1:] > logits[0]).any(0).astype(np.uint8))
    if seen:
        depth, rows, columns = grid.reach(seen[0])
        for first in range(depth.start, depth.stop, SLAB):
            box = slice(first, min(first + SLAB, depth.stop)), rows, columns
            restored = grid.restore(logits, box=box)
            mask[box] = values[restored.argmax(0)]
            if sure is not None:
                sure[box] = (restored if len(scores) > 1 else special.softmax(restored, axis=0)).max(0)
        before = None if sure is None else mask.copy()
        keep_largest(mask[depth, rows, columns], engine.structures)
        if sure is not None:
            sure[mask != before] = 0.0
    return mask


def _score(image: np.ndarray, engine: Engine) -> np.ndarray:
    """(Z, Y, X) -> logits (classes, Z, Y, X)."""
    return (_slide if engine.settings.network.dims == 3 else _slice_by_slice)(image, engine)


def _slice_by_slice(image: np.ndarray, engine: Engine) -> np.ndarray:
    """(Z, Y, X) -> logits (classes, Z, Y, X) of a 2D network."""
    inputs = engine.settings.cut(image)
    slabs = [engine.call(np.ascontiguousarray(inputs[i : i + SLAB])) for i in range(0, len(inputs), SLAB)]
    return np.concatenate(slabs).swapaxes(0, 1)


def _slide(image: np.ndarray, engine: Engine) -> np.ndarray:
    """The same of a 3D network: windows as thick as in training, overlapping by half, averaged."""
    slices, depth = len(image), engine.settings.slab_slices
    missing = max(0, depth - slices)
    before = missing // 2
    padded = np.pad(image, ((before, missing - before), (0, 0), (0, 0)))
    starts = sorted({*range(0, len(padded) - depth, depth // 2), len(padded) - depth})
    total = np.zeros((len(engine.structures) + 1, *padded.shape), np.float32)
    for start in starts:
        window = slice(start, start + depth)
        total[:, window] += engine.call(np.ascontiguousarray(padded[None, None, window]))[0]
    seen = np.zeros(len(padded), np.float32)
    for start in starts:
        seen[start : start + depth] += 1
    return (total / seen[:, None, None])[:, before : before + slices]


def _widen(mask: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """`scipy.ndimage.binary_dilation` of a bool array, by shifting it: several times as fast."""
    padded, wide = np.pad(mask, 1), np.zeros_like(mask)
    for offsets in np.argwhere(structure):
        wide |= padded[tuple(slice(at, at + size) for at, size in zip(offsets, mask.shape))]
    return wide


def keep_largest(mask: np.ndarray, structures: tuple[str, ...]) -> np.ndarray:
    """Keep one connected part (3D, faces and edges) of each structure; changes `mask` in place.

    The largest one; of such as are apart from all other structures one `ALONE` times as large as a part that
    adjoins them, since what lies alone in a corner of an image is seldom of the heart. Of a vessel, which the
    field of view may part, also parts of at least `LIMB` of that one's size.
    """
    touching = ndimage.generate_binary_structure(3, 2)
    extents = ndimage.find_objects(mask) if mask.size else []
    for structure in structures:
        value = FEWBEATS_VALUES[structure]
        extent = extents[value - 1] if value <= len(extents) else None
        if extent is None:
            continue
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in extent)
        part = mask[wide]
        labels, count = ndimage.label(part == value, touching)
        if count > 1:
            sizes = np.bincount(labels.ravel())[1:]
            others = _widen((part != 0) & (part != value), touching)
            adjoin = np.bincount(labels[others], minlength=count + 1)[1:] > 0
            chosen = 1 + int(np.argmax(sizes * np.where(adjoin, ALONE, 1)))
            keep = np.arange(count + 1) == chosen
            if structure in VESSELS:
                keep[1:] |= (sizes >= LIMB * sizes[chosen - 1]) & (adjoin | (sizes <= sizes[chosen - 1]))
            part[(labels != 0) & ~keep[labels]] = 0
    return mask
