"""Masks -> rows: agreement by scan, frame and structure, volumes, and heartbeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fewbeats.anatomy import CONVENTIONS, PART_OF, Convention, relabel
from fewbeats.data.files import check_grid, is_nifti, open_labels, open_scan
from fewbeats.errors import InputError
from fewbeats.evaluation.predictions import PredictedScan
from fewbeats.heartbeat import find_phases, has_volume, heartbeat
from fewbeats.io.nifti import read_nifti
from fewbeats.metrics import bounding_box, compare, dice
from fewbeats.scan import Scan

Masks = dict[str, np.ndarray]
FEWBEATS = CONVENTIONS["fewbeats"]


def split_structures(
    labels: np.ndarray, convention: Convention, structures: Iterable[str], *, file: Path | str
) -> Masks:
    """Structure -> (Z, Y, X) boolean mask; a structure's parts belong to it.

    Args:
        labels: (Z, Y, X) label values.
        convention: their meaning.
        structures: those wanted.
        file: named in the error.

    Raises:
        InputError: a value the convention does not know.
    """
    named = sorted(set(convention.values.values()))
    box = bounding_box(labels != 0)  # a heart is a small part of a CT: look at no more than that
    classes = relabel(labels[box], convention, named, file=file)
    found = {}
    for s in structures:
        parts = [i + 1 for i, n in enumerate(named) if s in (n, PART_OF.get(n))]
        found[s] = np.zeros(labels.shape, bool)
        found[s][box] = np.isin(classes, parts)
    return found


class ScanMasks:
    """Predicted and manual masks of one scan, in canonical orientation.

    Raises:
        InputError: a file that cannot be read, or a label on another grid than the prediction.
    """

    def __init__(self, source: PredictedScan):
        self.source = source
        self.scan: Scan = read_nifti(source.mask)
        self.judged: list[str] = []
        self._manual: Mapping[int, np.ndarray] = {}
        if source.convention is not None:
            self.judged = [s for s in source.structures if s in source.convention.speaks_of]
            self._manual = self._read_manual()

    def _read_manual(self) -> Mapping[int, np.ndarray]:
        row = self.source.row
        grid = self.scan if is_nifti(Path(row["label"])) else open_scan(row)  # a SEG refers to its images
        try:
            check_grid(self.scan, grid, path=self.source.mask)
            return open_labels(row, grid)
        except InputError as error:
            raise InputError(f"{self.source.mask}: does not go with its label: {error}") from error

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.scan.shape[0]

    def predicted(self, t: int) -> Masks:
        """Masks of frame t."""
        labels = self.scan.frame(t)
        return split_structures(labels, FEWBEATS, self.source.structures, file=self.source.mask)

    def manual(self, t: int) -> Masks:
        """Masks of frame t as drawn by hand, where the label speaks of them; empty where it was not drawn."""
        if t not in self._manual or self.source.convention is None:
            return {}
        label = self.source.row["label"]
        return split_structures(self._manual[t], self.source.convention, self.judged, file=label)


SHARE_A_WALL = ("LV", "MYO", "RV")
"""What networks and conventions take for each other."""
LEAST_ALIKE = 0.3  # Dice of structures that were exchanged; of worse ones nothing is known


@dataclass(frozen=True, kw_only=True)
class MeasuredScan:
    """What was measured in one predicted scan."""

    source: PredictedScan
    frames: int
    """Number of frames."""
    rows: list[dict[str, Any]]
    """One row a labeled frame and structure; empty without a manual label."""
    volumes_ml: dict[str, np.ndarray]
    """Structure -> (T,) predicted volume; empty for planes, and where the spacing is not to be trusted."""
    manual_ml: dict[str, np.ndarray]
    """Structure -> (T,) manual volume, NaN in frames without a label."""
    frame_times_ms: np.ndarray | None
    """(T,), None where unknown."""
    exchanged: bool = False
    """What was predicted as each ventricle agrees better with what is called the other one by hand."""

    @property
    def manual_frames(self) -> list[int]:
        """Frames with a manual label."""
        return [int(t) for t in np.flatnonzero(~np.isnan(next(iter(self.manual_ml.values()), np.array([]))))]


def measure_scan(source: PredictedScan) -> MeasuredScan:
    """Measure a predicted scan, and judge the frames that have a manual label.

    Raises:
        InputError: unreadable masks, masks on another grid than the labels, or ED and ES beyond their frames.
    """
    masks = ScanMasks(source)
    voxel_ml, frames = masks.scan.voxel_ml, masks.frames
    if max(source.ed_frame or 0, source.es_frame or 0) >= frames:
        raise InputError(
            f"{source.mask}: ed_frame or es_frame in predictions.csv is beyond its frames 0 to {frames - 1}; "
            "mend it"
        )
    spacing_mm = masks.scan.spacing_mm if source.spacing_trusted else None
    volumes = {s: np.zeros(frames) for s in source.structures}
    manual_volumes = {s: np.full(frames, np.nan) for s in masks.judged}
    rows: list[dict[str, Any]] = []
    exchanged: dict[int, bool] = {}
    for t in range(frames):
        predicted, manual = masks.predicted(t), masks.manual(t)
        if len(shared := [s for s in SHARE_A_WALL if s in predicted and s in manual]) > 1:
            exchanged[t] = are_exchanged(predicted, manual, shared)
        for s, mask in predicted.items():
            volumes[s][t] = np.count_nonzero(mask) * voxel_ml
        for s, mask in manual.items():
            manual_volumes[s][t] = np.count_nonzero(mask) * voxel_ml
            agreement = compare(predicted[s], mask, spacing_mm=spacing_mm)
            swapped = exchanged.get(t) if s in SHARE_A_WALL else None
            rows.append({"t": t, "structure": s, "exchanged": swapped, **asdict(agreement)})
    phases = _phases(source, manual_volumes)
    in_ml = source.spacing_trusted and has_volume(masks.scan.shape[1], source.plane)
    return MeasuredScan(
        source=source,
        frames=frames,
        rows=[
            _row(source, row, phases=phases, volumes=volumes, manual=manual_volumes, in_ml=in_ml)
            for row in rows
        ],
        volumes_ml=volumes if in_ml else {},
        manual_ml=manual_volumes,
        frame_times_ms=masks.scan.frame_times_ms,
        exchanged=bool(exchanged) and all(exchanged.values()),
    )


def are_exchanged(predicted: Masks, manual: Masks, structures: Sequence[str]) -> bool:
    """Whether several predicted structures agree better with what is called another one by hand."""
    drawn = [name for name in structures if predicted[name].any() and manual[name].any()]
    best = {}
    for name in drawn:
        agreement = {other: dice(predicted[name], manual[other]) for other in drawn}
        best[name] = max(agreement, key=lambda other: (agreement[other], other == name))
        if agreement[best[name]] < LEAST_ALIKE:
            return False
    elsewhere = sum(name != other for name, other in best.items())
    return elsewhere > 1 and len({*best.values()}) == len(best)


def _phases(source: PredictedScan, manual_ml: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Frame -> "ED" or "ES"."""
    if source.phase:
        return {0: source.phase}
    ends = _manual_ends(source, manual_ml)
    return {} if ends is None else {ends[0]: "ED", ends[1]: "ES"}


def _manual_ends(source: PredictedScan, manual_ml: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Labeled frames of ED and ES in a cine: as the cohort says, else by the manual volumes of the LV."""
    drawn = ~np.isnan(next(iter(manual_ml.values()), np.array([])))
    frames = np.flatnonzero(drawn)
    ed, es = source.row.get("ed_frame"), source.row.get("es_frame")
    if ed is not None and es is not None and {ed, es} <= set(frames):
        return int(ed), int(es)
    if len(frames) < 2 or "LV" not in manual_ml:
        return None
    largest, smallest = find_phases(manual_ml["LV"][frames])
    return (int(frames[largest]), int(frames[smallest])) if largest != smallest else None


def _row(
    source: PredictedScan,
    row: dict[str, Any],
    *,
    phases: Mapping[int, str],
    volumes: Mapping[str, np.ndarray],
    manual: Mapping[str, np.ndarray],
    in_ml: bool,
) -> dict[str, Any]:
    t, s = row["t"], row["structure"]
    return {
        "subject": source.subject, "study": source.study, "scan": source.scan,
        "frame": t if len(volumes[s]) > 1 else source.frame, "phase": phases.get(t), "view": source.plane,
        "group": source.group, "split": source.split, "structure": s,
        "dice": row["dice"], "hd95_mm": row["hd95_mm"], "assd_mm": row["assd_mm"], "miss": row["miss"],
        "exchanged": row["exchanged"],
        "volume_ml": float(volumes[s][t]) if in_ml else None,
        "manual_volume_ml": float(manual[s][t]) if in_ml else None,
        "warned": bool(source.warnings),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The clinical quantities of one heartbeat, predicted and manual, keyed by `clinical.QUANTITIES`."""

    subject: str
    study: str
    group: str
    scans: tuple[str, ...]
    predicted: dict[str, float]
    """As the masks give them, trusted or not."""
    manual: dict[str, float]
    """Empty without manual labels at both ends."""
    withheld: tuple[str, ...]
    """The warnings that withhold the predicted quantities from whoever asks for a patient's."""

    @property
    def quoted(self) -> dict[str, float]:
        """The predicted quantities that may be told of a patient."""
        return {} if self.withheld else self.predicted


def find_heartbeats(measured: Iterable[MeasuredScan]) -> list[Heartbeat]:
    """One heartbeat a 4D scan, and one a study that has single-frame files of ED and ES."""
    usable = [m for m in measured if m.volumes_ml]
    beats = [_beat_of_cine(m) for m in usable if m.frames > 1]
    single = sorted((m for m in usable if m.frames == 1 and m.source.phase), key=_study)
    for _, files in groupby(single, key=_study):
        by_phase = {m.source.phase: m for m in files}
        if {"ED", "ES"} <= set(by_phase):
            beats.append(_beat_of_files(by_phase["ED"], by_phase["ES"]))
    return sorted(beats, key=lambda b: (b.subject, b.study, b.scans))


def _study(measured: MeasuredScan) -> tuple[str, str, str]:
    return measured.source.subject, measured.source.study, measured.source.plane


def _beat_of_cine(m: MeasuredScan) -> Heartbeat:
    ed, es = m.source.ed_frame, m.source.es_frame
    if (ed is None or es is None) and "LV" in m.volumes_ml:
        ed, es = find_phases(m.volumes_ml["LV"])
    surface, ends = m.source.body_surface, _manual_ends(m.source, m.manual_ml)
    predicted = {} if ed is None or es is None else heartbeat(m.volumes_ml, ed, es, body_surface=surface)
    manual = {} if ends is None else heartbeat(m.manual_ml, *ends, body_surface=surface)
    return _beat((m,), predicted, manual)


def _beat_of_files(ed: MeasuredScan, es: MeasuredScan) -> Heartbeat:
    surface = ed.source.body_surface or es.source.body_surface

    def joined(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, float]:
        volumes = {s: np.concatenate([a[s], b[s]]) for s in a if s in b}
        return heartbeat(volumes, 0, 1, body_surface=surface)

    return _beat((ed, es), joined(ed.volumes_ml, es.volumes_ml), joined(ed.manual_ml, es.manual_ml))


def _beat(
    scans: tuple[MeasuredScan, ...], predicted: dict[str, float], manual: dict[str, float]
) -> Heartbeat:
    first = scans[0].source
    warnings = tuple(dict.fromkeys(w for m in scans for w in m.source.warnings))
    return Heartbeat(
        subject=first.subject,
        study=first.study,
        group=first.group,
        scans=tuple(m.source.scan for m in scans),
        predicted=predicted,
        manual=manual,
        withheld=warnings,
    )
