"""Look at a file, or turn DICOM into NIfTI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from fewbeats.data.files import bare_name, read_scans
from fewbeats.errors import InputError
from fewbeats.io.nifti import write_scan
from fewbeats.scan import plane_by_direction

if TYPE_CHECKING:
    from fewbeats.scan import Scan


def describe(scan: Scan) -> dict[str, Any]:
    """What is known of a scan, as plain values; no patient data."""
    from nibabel.orientations import aff2axcodes

    frames, z, y, x = scan.shape
    return {
        "frames": frames,
        "slices": z,
        "rows": y,
        "columns": x,
        "spacing_mm": {"z": scan.spacing_mm[0], "y": scan.spacing_mm[1], "x": scan.spacing_mm[2]},
        "kind": "stack of slices" if scan.is_stack else "volume",
        "modality": scan.modality or None,
        "series": list(scan.source.series),
        "plane": scan.source.plane or plane_by_direction(scan) or None,
        "orientation": dict(zip("xyz", aff2axcodes(scan.affine))),
        "stored_orientation": dict(zip("xyz", aff2axcodes(scan.source.affine))),
        "frame_times_ms": None
        if scan.frame_times_ms is None
        else [round(float(t), 2) for t in scan.frame_times_ms],
        "cycle_ms": scan.cycle_ms,
        "pixel_type": str(scan.pixels.dtype),
        "inferred": list(scan.source.notes),
    }


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show shape, frames, spacing, orientation and times of scans, and what had to be inferred."""

    path: tyro.conf.Positional[Path]
    """NIfTI file, DICOM file or DICOM folder."""
    json: bool = False
    """Print JSON."""

    def run(self) -> list[dict[str, Any]]:
        """Print and return the descriptions."""
        found = [describe(scan) for scan in read_scans(self.path)]
        if self.json:
            print(json.dumps(found, indent=1))
        else:
            print("\n\n".join(_page(number, about) for number, about in enumerate(found, 1)))
        return found


def _page(number: int, about: dict[str, Any]) -> str:
    s, times = about["spacing_mm"], about["frame_times_ms"]
    beat = f", heartbeat {about['cycle_ms']:.0f} ms" if about["cycle_ms"] else ""
    timing = "unknown" if times is None else f"0 to {times[-1]:.0f} ms{beat}"
    lines = [
        f"scan {number}: {about['kind']}{', ' + about['modality'] if about['modality'] else ''}",
        *([f"  series       {', '.join(map(str, about['series']))}"] if about["series"] else []),
        *([f"  plane        {about['plane']}"] if about["plane"] else []),
        f"  shape        {about['frames']} frames x {about['slices']} slices "
        f"x {about['rows']} x {about['columns']}",
        f"  spacing      {s['x']:.3f} x {s['y']:.3f} x {s['z']:.3f} mm (x, y, z)",
        f"  orientation  x to {about['orientation']['x']}, y to {about['orientation']['y']}, "
        f"z to {about['orientation']['z']}",
        f"  frame times  {timing}",
        f"  pixels       {about['pixel_type']}",
    ]
    return "\n".join([*lines, *(f"  inferred     {note}" for note in about["inferred"])])


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn scans into canonical NIfTI files for ITK-SNAP, 3D Slicer and label drawing."""

    path: tyro.conf.Positional[Path]
    """DICOM folder or file, or NIfTI file."""
    out: tyro.conf.Positional[Path]
    """Folder for the NIfTI files, one per scan."""
    frames: tuple[int, ...] = ()
    """Also write these frames as single 3D files, named SCAN_frameFF.nii.gz."""

    def run(self) -> list[Path]:
        """Convert; returns the files written.

        Raises:
            InputError: nothing readable, a frame that no scan has, or the output is the input.
        """
        scans, stem = read_scans(self.path), bare_name(self.path).removesuffix("_4d")
        planned: dict[Path, tuple[Scan, list[int] | None]] = {}
        for number, scan in enumerate(scans, 1):
            name = stem if len(scans) == 1 else f"{stem}_{number}"
            if any(not 0 <= t < scan.shape[0] for t in self.frames):
                raise InputError(
                    f"{self.path}: --frames {self.frames}: it has frames 0 to {scan.shape[0] - 1}"
                )
            planned[self.out / f"{name}{'_4d' if scan.shape[0] > 1 else ''}.nii.gz"] = (scan, None)
            planned |= {self.out / f"{name}_frame{t:02d}.nii.gz": (scan, [t]) for t in self.frames}
        if self.path.resolve() in {path.resolve() for path in planned}:
            raise InputError(f"{self.path}: would be overwritten; choose another output folder")
        for path, (scan, frames) in planned.items():
            write_scan(path, scan, frames=frames)
            print(path)
        return list(planned)
