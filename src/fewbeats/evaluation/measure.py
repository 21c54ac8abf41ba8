"""Masks -> rows: agreement by scan, frame and structure, volumes, and heartbeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fewbeats.anatomy import CONVENTIONS, PART_OF, Convention, relabel
from fewbeats.errors import InputError
from fewbeats.evaluation.clinical import find_phases, heartbeat
from fewbeats.evaluation.metrics import Spacing, bounding_box, compare
from fewbeats.evaluation.predictions import ManualLabel, PredictedScan
from fewbeats.io.nifti import read_nifti
from fewbeats.scan import Scan

LONG_AXIS_VIEWS = ("2CH", "3CH", "4CH")
"""Single planes along the heart: their areas are no volumes."""


class MaskFile:
    """Masks of a NIfTI label map on the grid it is stored on, one frame at a time."""

    def __init__(self, path: Path, convention: Convention):
        self.path, self.convention = path, convention
        self.scan: Scan = read_nifti(path)
        self.affine, self.shape = self.scan.source.affine, self.scan.source.shape

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.scan.shape[0]

    @property
    def spacing_mm(self) -> Spacing:
        """(z, y, x) of the stored grid."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    def masks(self, t: int, structures: Iterable[str]) -> dict[str, np.ndarray]:
        """Structure -> (Z, Y, X) boolean mask of frame t; a structure's parts belong to it."""
        named = sorted(set(self.convention.values.values()))
        stored = self.scan.source.reorientation.invert(self.scan.frame(t))
        box = bounding_box(stored != 0)  # a heart is a small part of a CT: look at no more than that
        classes = relabel(stored[box], self.convention, named, file=self.path)
        found = {}
        for s in structures:
            parts = [i + 1 for i, n in enumerate(named) if s in (n, PART_OF.get(n))]
            found[s] = np.zeros(stored.shape, bool)
            found[s][box] = np.isin(classes, parts)
        return found


@dataclass(frozen=True, kw_only=True)
class MeasuredScan:
    """What was measured in one predicted scan."""

    source: PredictedScan
    frames: int
    """Number of frames."""
    rows: list[dict[str, Any]]
    """One row a labeled frame and structure; empty without a manual label."""
    volumes_ml: dict[str, np.ndarray]
    """Structure -> (T,) predicted volume; empty where the spacing is not to be trusted."""
    manual_ml: dict[str, np.ndarray]
    """Structure -> (T,) manual volume, NaN in frames without a label."""
    frame_times_ms: np.ndarray | None
    """(T,), None where unknown."""

    @property
    def manual_frames(self) -> list[int]:
        """Frames with a manual label."""
        return [int(t) for t in np.flatnonzero(~np.isnan(next(iter(self.manual_ml.values()), np.array([]))))]


def measure_scan(source: PredictedScan) -> MeasuredScan:
    """Measure a predicted scan, and judge the frames that have a manual label.

    Raises:
        InputError: unreadable masks, or masks on another grid than the labels.
    """
    predicted = MaskFile(source.mask, CONVENTIONS["fewbeats"])
    manual, drawn, judged = None, {}, []
    if source.label is not None:
        manual = MaskFile(source.label.path, source.label.convention)
        _check_same_grid(predicted, manual)
        drawn = drawn_frames(source.label, manual.frames, predicted)
        judged = [s for s in source.structures if s in source.label.convention.speaks_of]
    voxel_ml = abs(np.linalg.det(predicted.affine[:3, :3])) / 1000.0
    volumes = {s: np.zeros(predicted.frames) for s in source.structures}
    manual_volumes = {s: np.full(predicted.frames, np.nan) for s in judged}
    rows: list[dict[str, Any]] = []
    for t in range(predicted.frames):
        found = predicted.masks(t, source.structures)
        for s, mask in found.items():
            volumes[s][t] = np.count_nonzero(mask) * voxel_ml
        if manual is None or t not in drawn:
            continue
        truth = manual.masks(drawn[t], judged)
        for s in judged:
            manual_volumes[s][t] = np.count_nonzero(truth[s]) * voxel_ml
            spacing_mm = predicted.spacing_mm if source.spacing_trusted else None
            agreement = compare(found[s], truth[s], spacing_mm=spacing_mm)
            rows.append({"t": t, "structure": s, **asdict(agreement)})
    phases = _phases(source, manual_volumes)
    return MeasuredScan(
        source=source,
        frames=predicted.frames,
        rows=[_row(source, row, phases, volumes, manual_volumes) for row in rows],
        volumes_ml=volumes if source.spacing_trusted else {},
        manual_ml=manual_volumes,
        frame_times_ms=predicted.scan.frame_times_ms,
    )


def _check_same_grid(a: MaskFile, b: MaskFile) -> None:
    """Same shape, and no corner of the image further off than a tenth of a voxel."""
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(a.shape[::-1]) - 1
    offset_mm = np.abs(corners @ (a.affine - b.affine).T).max()
    if a.shape != b.shape or offset_mm > 0.1 * min(a.spacing_mm):
        raise InputError(
            f"{b.path}: the label's grid (shape or affine) differs from that of the prediction {a.path}; "
            "draw or resample the label on the grid of the image that was predicted"
        )


def drawn_frames(label: ManualLabel, stored: int, predicted: MaskFile) -> dict[int, int]:
    """Frame of the prediction -> frame of the label file that was drawn on it.

    Raises:
        InputError: a label file whose frames cannot be told apart.
    """
    if predicted.frames == stored == 1:
        return {0: 0}
    wanted = label.frames if label.frames is not None else tuple(range(predicted.frames))
    if max(wanted) < predicted.frames:
        if stored == predicted.frames:
            return {t: t for t in wanted}
        if stored == len(wanted):
            return {t: i for i, t in enumerate(wanted)}
    raise InputError(
        f"{label.path}: {stored} frames cannot be matched to the {predicted.frames} frames of the prediction "
        f"{predicted.path}; name the frames it was drawn on in the cohort's column label_frames"
    )


def _phases(source: PredictedScan, manual_ml: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Frame -> "ED" or "ES": as the cohort says, else by the manual volumes of the LV."""
    if source.phase:
        return {0: source.phase}
    ends = _manual_ends(manual_ml)
    return {} if ends is None else {ends[0]: "ED", ends[1]: "ES"}


def _manual_ends(manual_ml: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    frames = np.flatnonzero(~np.isnan(manual_ml.get("LV", np.array([]))))
    if len(frames) < 2:
        return None
    ed, es = find_phases(manual_ml["LV"][frames])
    return (int(frames[ed]), int(frames[es])) if ed != es else None


def _row(
    source: PredictedScan,
    row: dict[str, Any],
    phases: Mapping[int, str],
    volumes: Mapping[str, np.ndarray],
    manual: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    t, s, trusted = row["t"], row["structure"], source.spacing_trusted
    return {
        "subject": source.subject, "study": source.study, "scan": source.scan,
        "frame": t if len(volumes[s]) > 1 else source.frame, "phase": phases.get(t), "view": source.view,
        "group": source.group, "split": source.split, "structure": s,
        "dice": row["dice"], "hd95_mm": row["hd95_mm"], "assd_mm": row["assd_mm"], "miss": row["miss"],
        "volume_ml": float(volumes[s][t]) if trusted else None,
        "manual_volume_ml": float(manual[s][t]) if trusted else None,
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
    """Empty where a warning withholds it."""
    manual: dict[str, float]
    """Empty without manual labels at both ends."""
    withheld: tuple[str, ...]
    """The warnings that withhold the predicted quantities."""


def find_heartbeats(measured: Iterable[MeasuredScan]) -> list[Heartbeat]:
    """One heartbeat a 4D scan, and one a study that has single-frame files of ED and ES."""
    usable = [m for m in measured if m.volumes_ml and m.source.view not in LONG_AXIS_VIEWS]
    beats = [_beat_of_cine(m) for m in usable if m.frames > 1]
    single = sorted((m for m in usable if m.frames == 1 and m.source.phase), key=_study)
    for _, files in groupby(single, key=_study):
        by_phase = {m.source.phase: m for m in files}
        if {"ED", "ES"} <= set(by_phase):
            beats.append(_beat_of_files(by_phase["ED"], by_phase["ES"]))
    return sorted(beats, key=lambda b: (b.subject, b.study, b.scans))


def _study(measured: MeasuredScan) -> tuple[str, str, str]:
    return measured.source.subject, measured.source.study, measured.source.view


def _beat_of_cine(m: MeasuredScan) -> Heartbeat:
    ed, es = m.source.ed_frame, m.source.es_frame
    if (ed is None or es is None) and "LV" in m.volumes_ml:
        ed, es = find_phases(m.volumes_ml["LV"])
    surface, ends = m.source.body_surface, _manual_ends(m.manual_ml)
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
        predicted={} if warnings else predicted,
        manual=manual,
        withheld=warnings,
    )
