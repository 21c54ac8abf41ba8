"""Is this image like the training images, and is this mask like a heart?

A network answers whatever it is shown. What it was trained on is kept in the run as a fingerprint; a scan far
from it, or a mask no heart could have, gets a warning, and no ejection fraction is drawn from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewbeats.anatomy import FEWBEATS_VALUES, VESSELS
from fewbeats.inference.fingerprint import describe_gray
from fewbeats.metrics import enclosed_share
from fewbeats.scan import TURNED_DEGREES, slice_normal
from fewbeats.transforms.preprocess import prepare_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewbeats.inference.labeler import Known, Labeled
    from fewbeats.inference.localize import Region
    from fewbeats.scan import Scan

FAR = 4.0  # standard deviations from the training images at which gray values are called unlike them
SPACING_TOLERANCE = np.array([2.0, 1.6, 1.6])  # factor beyond the training scans' voxel sizes (z, y, x)
VOLUME_TOLERANCE = 2.5  # factor beyond the training subjects' volumes
LEAST_ENCLOSED = 0.75  # share of the LV cavity's in-plane outline that borders on myocardium
ENCLOSED_TOLERANCE = 0.85  # of the training frames' median: a cavity is open at its base in long-axis views
REGULAR_JUMP = 0.35  # change of LV volume between neighboring frames, as a share of its largest
BORDER_MM = 3.0
LONGEST_CUT_MM = 15.0  # outline of a structure along the image's border, over all slices of a frame
FEW_FRAMES = 4.0  # a beat of so many frames may empty the LV from one to the next


class Inspector:
    """Looks at each mask as it passes, keeps its volumes, and judges in the end.

    Args:
        scan: what was labeled.
        structures: what was looked for.
        known: what the labeler was trained on, where it tells.
        spacing_trusted: whether the voxel size is real.
    """

    def __init__(
        self,
        scan: Scan,
        structures: Sequence[str],
        known: Known | None = None,
        *,
        spacing_trusted: bool = True,
    ):
        self.scan, self.known, self.spacing_trusted = scan, known, spacing_trusted
        self.fingerprint = known.fingerprint if known else {}
        self.region: Region | None = None
        self.volumes_ml = {s: np.zeros(scan.shape[0]) for s in structures}
        self._enclosed: list[float] = []
        self._cut_mm = dict.fromkeys((s for s in structures if s not in VESSELS), 0.0)

    def see(self, t: int, labeled: Labeled) -> np.ndarray:
        """Note volumes and shape of the mask (Z, Y, X) of frame t; returns the mask."""
        mask, self.region = labeled.mask, labeled.region
        counts = np.bincount(mask.ravel(), minlength=max(FEWBEATS_VALUES.values()) + 1)
        for structure, volumes in self.volumes_ml.items():
            volumes[t] = counts[FEWBEATS_VALUES[structure]] * self.scan.voxel_ml
        if {"LV", "MYO"} <= self.volumes_ml.keys() and counts[FEWBEATS_VALUES["LV"]]:
            parts = (mask == FEWBEATS_VALUES[name] for name in ("LV", "MYO"))
            self._enclosed.append(enclosed_share(*parts))
        for structure in self._cut_mm:
            length = border_length_mm(mask, FEWBEATS_VALUES[structure], self.scan.spacing_mm)
            self._cut_mm[structure] = max(self._cut_mm[structure], length)
        return mask

    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the masks, one sentence each."""
        found = [*self._image_warnings(), *self._mask_warnings()]
        return tuple(found)

    def _image_warnings(self) -> list[str]:
        found = []
        if self.region is not None and not self.region.found:
            found.append("no heart was found at low resolution, the middle of the image was segmented")
        if self.scan.source.part:
            found.append(f"{self.scan.source.part}, so its volumes are of a part of the heart")
        if self.scan.source.no_beat:
            found.append(f"{self.scan.source.no_beat}, so they have no ejection fraction")
        if not self.spacing_trusted:
            found.append("the voxel size is lost, so nothing has a volume")
        if self.known is None or not self.fingerprint:
            return found
        found += unlike(self.scan, self.known)
        least, most = (np.array(v) for v in self.fingerprint["spacing_mm"])
        own = np.array(self.scan.spacing_mm)
        if (own < least / SPACING_TOLERANCE).any() or (own > most * SPACING_TOLERANCE).any():
            found.append(
                f"voxels of {own[2]:.2f} x {own[1]:.2f} x {own[0]:.2f} mm are unlike the training scans'"
            )
        middle = self.scan.shape[0] // 2
        image, _ = prepare_frame(
            self.scan.frame(middle),
            self.scan.spacing_mm,
            self.known.grid,
            center=self.region.center if self.region else None,
            modality=self.scan.modality or "MR",
        )
        away = np.abs(describe_gray(image) - self.fingerprint["gray_mean"]) / self.fingerprint["gray_spread"]
        if away.max() > FAR:
            found.append("gray values are unlike the training images'")
        return found

    def _mask_warnings(self) -> list[str]:
        found = []
        known = "largest_ml" if self.scan.shape[0] > 2 and "largest_ml" in self.fingerprint else "volume_ml"
        for structure, volumes in self.volumes_ml.items():
            least, most = self.fingerprint.get(known, {}).get(structure, (0.0, np.inf))
            if not volumes.any():
                found.append(f"no {structure} was found")
            elif volumes.max() > most * VOLUME_TOLERANCE or volumes.max() < least / VOLUME_TOLERANCE:
                found.append(f"{structure} of {volumes.max():.0f} mL is far from the training subjects'")
        for structure, length in self._cut_mm.items():
            if length > LONGEST_CUT_MM:
                found.append(f"{structure} is cut by the image's border")
        usual = self.fingerprint.get("enclosed")
        least = LEAST_ENCLOSED if usual is None else min(LEAST_ENCLOSED, ENCLOSED_TOLERANCE * usual)
        if self._enclosed and np.median(self._enclosed) < least:
            found.append("the LV cavity is not enclosed by myocardium as that of the training subjects is")
        lv = self.volumes_ml.get("LV", np.zeros(1))
        if np.abs(np.diff(lv)).max(initial=0.0) > max(REGULAR_JUMP, FEW_FRAMES / len(lv)) * lv.max():
            found.append("the LV volume jumps between neighboring frames")
        return found


def unlike(scan: Scan, known: Known) -> list[str]:
    """Why a scan is of another kind than what a labeler was trained on, by its header alone."""
    found = []
    if scan.modality and scan.modality not in known.modalities:
        found.append(f"{scan.modality}, but the network was trained on {' and '.join(known.modalities)}")
    normal, trained = slice_normal(scan), known.fingerprint.get("normals", [])
    if normal is not None and trained:
        nearest = min(1.0, np.abs(np.array(trained) @ normal).max())
        if np.degrees(np.arccos(nearest)) > TURNED_DEGREES:
            found.append("slices are cut in another direction than the training scans'")
    return found


def border_length_mm(mask: np.ndarray, value: int, spacing_mm: Sequence[float]) -> float:
    """Length along which a structure runs into the in-plane border of the image, summed over slices.

    Args:
        mask: (Z, Y, X) label values.
        value: the structure's.
        spacing_mm: (z, y, x).

    The border is `BORDER_MM` wide: a network that sees a structure end there stops a little before it.
    """
    _, y_mm, x_mm = spacing_mm
    y_px, x_px = (max(1, round(BORDER_MM / side)) for side in (y_mm, x_mm))
    along_y = sum((side == value).any(2).sum() for side in (mask[:, :, :x_px], mask[:, :, -x_px:]))
    along_x = sum((side == value).any(1).sum() for side in (mask[:, :y_px], mask[:, -y_px:]))
    return float(along_y * y_mm + along_x * x_mm)
