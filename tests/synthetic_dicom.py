"""Writes DICOM files whose pixels are an analytic function of the place in the patient and of time.

A test reads them back and compares every voxel with `brightness` at the voxel's own world coordinates: wrong
positions, orders, flips or slopes all show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    MRImageStorage,
    generate_uid,
)

from fewbeats.scan import Scan

PATIENT_NAME = "Secretname^Patricia"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def oblique(yaw: float, pitch: float, roll: float) -> tuple[float, ...]:
    """ImageOrientationPatient of a plane turned by three angles in degrees, written as DICOM writes it."""
    a, b, c = np.deg2rad([yaw, pitch, roll])
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    turned = z @ y @ x
    return tuple(round(float(v), 10) for v in (*turned[:, 0], *turned[:, 1]))


def brightness(world_lps: np.ndarray, t: int) -> np.ndarray:
    """Value at (..., 3) LPS mm in frame t: smooth, without symmetry, and different in every frame."""
    x, y, z = np.moveaxis(world_lps, -1, 0)
    return 300 + 90 * np.sin(x / 17 + 0.3 * t) + 70 * np.cos(y / 23 - 0.1 * t) + 0.6 * z + 0.4 * x + 25 * t


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A stack of slices: slice z has its corner at `origin` + z * `distance` along the normal."""

    rows: int = 12
    columns: int = 16
    slices: int = 4
    spacing: tuple[float, float] = (1.5, 1.25)
    """Distance between (rows, columns), mm."""
    distance: float = 8.0
    orientation: tuple[float, ...] = AXIAL
    origin: tuple[float, float, float] = (-11.0, 7.0, 23.0)
    shear: float = 0.0
    """Sideways drift along the columns per mm of depth: the tangent of a gantry tilt."""

    def corner(self, z: int) -> np.ndarray:
        """(3,) LPS mm of the first voxel of slice z."""
        row, column = np.reshape(self.orientation, (2, 3))
        return np.array(self.origin) + z * self.distance * (np.cross(row, column) + self.shear * column)

    def world(self, z: int) -> np.ndarray:
        """(rows, columns, 3) LPS mm of every voxel of slice z."""
        row, column = np.reshape(self.orientation, (2, 3))
        x = np.arange(self.columns)[None, :, None] * self.spacing[1] * row
        y = np.arange(self.rows)[:, None, None] * self.spacing[0] * column
        return self.corner(z) + x + y

    def image(self, z: int, t: int) -> np.ndarray:
        """(rows, columns) whole-numbered truth of slice z in frame t."""
        return np.rint(brightness(self.world(z), t))


def header(modality: str, sop_class: str, **tags: object) -> Dataset:
    """What all images share; `tags` override."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = PATIENT_NAME, "p1", "", ""
    data.StudyDate = data.AcquisitionDate = data.ContentDate = "20240229"
    data.StudyTime, data.StudyID, data.Modality, data.PatientPosition = "120000", "1", modality, "HFS"
    data.StudyInstanceUID, data.FrameOfReferenceUID = "1.2.3.4", "1.2.3.5"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    for tag, value in tags.items():
        setattr(data, tag, value)
    return data


JPEG_LOSSLESS = (JPEGLossless, JPEGLosslessSV1)


def save(data: Dataset, file: Path, *, syntax: str | None = None) -> Path:
    """Write a file, compressed to the transfer syntax where one is given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if syntax not in (None, *JPEG_LOSSLESS):
        data.compress(syntax, generate_instance_uid=False)
    data.save_as(file, enforce_file_format=True)
    if syntax in JPEG_LOSSLESS:  # pydicom itself has no encoder
        coded = _transcoded(file, syntax)
        data.PixelData, data.file_meta.TransferSyntaxUID = coded.PixelData, syntax
        data["PixelData"].is_undefined_length = True
        data.save_as(file, enforce_file_format=True)
    return file


def _transcoded(file: Path, syntax: str) -> Dataset:
    """The file as GDCM encodes it."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    coded = file.with_suffix(".coded")
    writer.SetFileName(str(coded))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    found = pydicom.dcmread(coded)
    coded.unlink()
    return found


def place(data: Dataset, grid: Grid, z: int) -> None:
    """Give a classic image its place as slice z."""
    data.Rows, data.Columns = grid.rows, grid.columns
    data.PixelSpacing = list(grid.spacing)
    data.ImageOrientationPatient = list(grid.orientation)
    data.ImagePositionPatient = [round(float(v), 9) for v in grid.corner(z)]
    data.SliceThickness = 5.0  # never the distance, so that a reader who believes it is caught


def write_cine(
    folder: Path,
    *,
    grid: Grid | None = None,
    frames: int = 3,
    series_per_slice: bool = True,
    frame_ms: float = 40.0,
    time_tag: str = "TriggerTime",
    syntax: str | None = None,
    name: str = "im_{z:03d}_{t:03d}.dcm",
    **tags: object,
) -> list[Path]:
    """Classic MR cine; `time_tag` alone tells frames apart (with any other, TriggerTime is constant)."""
    grid, files = grid or Grid(), []
    for z in range(grid.slices):
        for t in range(frames):
            data = header("MR", MRImageStorage, NominalInterval=frames * frame_ms, TriggerTime=5.0)
            data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
            data.SeriesNumber = 7 + (z if series_per_slice else 0)
            data.SeriesInstanceUID = f"1.2.3.6.{data.SeriesNumber}"
            place(data, grid, z)
            set_time(data, time_tag, z, t, frame_ms=frame_ms)
            for tag, value in tags.items():
                setattr(data, tag, value)
            data.PixelData = grid.image(z, t).astype("<u2").tobytes()
            files.append(save(data, folder / name.format(z=z, t=t), syntax=syntax))
    return files


def set_time(data: Dataset, tag: str, z: int, t: int, *, frame_ms: float) -> None:
    """Write frame t's time into one tag."""
    if tag == "TriggerTime":
        data.TriggerTime = 5.0 + t * frame_ms
    elif tag in ("TemporalPositionIdentifier", "InstanceNumber"):
        setattr(data, tag, t + 1)
    else:  # a clock, near midnight for the last slices
        seconds = 43200 + 20 * z + t * frame_ms / 1000
        setattr(data, tag, f"{int(seconds // 3600):02d}{int(seconds % 3600 // 60):02d}{seconds % 60:09.6f}")


def write_ct(
    folder: Path,
    *,
    grid: Grid | None = None,
    phases: tuple[float, ...] = (0.0, 35.0, 70.0),
    phase_in: str = "tag",
    syntax: str | None = None,
    **tags: object,
) -> list[Path]:
    """CT, one series per phase; `phase_in` is "tag", a description such as "Heart {:g}%", or "order"."""
    grid, files = grid or Grid(slices=6, distance=1.5, spacing=(1.0, 1.0)), []
    for t, phase in enumerate(phases):
        for z in range(grid.slices):
            data = header("CT", CTImageStorage, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
            data.SeriesNumber, data.InstanceNumber = 100 + 7 * t, z + 1
            data.SeriesInstanceUID = f"1.2.3.7.{t}"
            data.ConvolutionKernel, data.HeartRate = "B26f", 60
            if phase_in == "tag":
                data.NominalPercentageOfCardiacPhase = phase
            elif phase_in != "order":
                data.SeriesDescription = phase_in.format(phase)
            place(data, grid, z)
            data.RescaleSlope, data.RescaleIntercept = 2.0, -1024.0
            for tag, value in tags.items():
                setattr(data, tag, value)
            stored = np.rint((brightness(grid.world(z), t) + 1024) / 2)
            data.PixelData = stored.astype("<u2").tobytes()
            files.append(save(data, folder / f"phase{t}" / f"{z:04d}.dcm", syntax=syntax))
    return files


def write_enhanced(
    file: Path,
    *,
    grid: Grid | None = None,
    frames: int = 3,
    only: int | None = None,
    modality: str = "MR",
    syntax: str | None = None,
) -> Path:
    """One Enhanced MR or CT file, its frames in a scrambled order; MR has trigger delays, CT percents.

    With `only` it is a series of that frame alone, at temporal position 1.
    """
    grid = grid or Grid()
    data = header(modality, EnhancedMRImageStorage if modality == "MR" else EnhancedCTImageStorage)
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    times = list(range(frames)) if only is None else [only]
    data.SeriesNumber, data.SeriesInstanceUID, data.InstanceNumber = 3 + times[0], f"1.2.3.8.{times[0]}", 1
    data.Rows, data.Columns, data.NumberOfFrames = grid.rows, grid.columns, grid.slices * len(times)
    data.ContentTime = "120000"
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(grid.orientation)
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = list(grid.spacing)
    shared.PixelMeasuresSequence[0].SliceThickness = 5.0
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 0.5
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -100
    data.SharedFunctionalGroupsSequence = [shared]
    order = [(z, t) for z in range(grid.slices) for t in times]
    np.random.default_rng(3).shuffle(order)
    data.PerFrameFunctionalGroupsSequence = [enhanced_frame(grid, z, t, modality) for z, t in order]
    if only is not None:
        for item in data.PerFrameFunctionalGroupsSequence:
            item.FrameContentSequence[0].TemporalPositionIndex = 1
    stored = np.stack([(grid.image(z, t) + 100) * 2 for z, t in order])
    data.PixelData = stored.astype("<u2").tobytes()
    return save(data, file, syntax=syntax)


def enhanced_frame(grid: Grid, z: int, t: int, modality: str) -> Dataset:
    """Per-frame functional groups of slice z, frame t."""
    item = Dataset()
    item.PlanePositionSequence = [Dataset()]
    item.PlanePositionSequence[0].ImagePositionPatient = [round(float(v), 9) for v in grid.corner(z)]
    item.FrameContentSequence = [Dataset()]
    item.FrameContentSequence[0].TemporalPositionIndex = t + 1
    item.FrameContentSequence[0].InStackPositionNumber = z + 1
    item.CardiacSynchronizationSequence = [Dataset()]
    sync = item.CardiacSynchronizationSequence[0]
    sync.RRIntervalTimeNominal = 800.0
    if modality == "MR":
        sync.NominalCardiacTriggerDelayTime = 12.0 + 40.0 * t
    else:
        sync.NominalPercentageOfCardiacPhase = 25.0 * t
    return item


def write_color(file: Path, *, grid: Grid | None = None, **tags: object) -> Path:
    """An RGB image with a place in space."""
    grid = grid or Grid()
    data = header("MR", MRImageStorage, SeriesNumber=50, SeriesInstanceUID="1.2.3.9", InstanceNumber=1)
    place(data, grid, 0)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    for tag, value in tags.items():
        setattr(data, tag, value)
    data.PixelData = bytes(grid.rows * grid.columns * 3)
    return save(data, file)


def assert_truth(scan: Scan, frames: int, *, tolerance: float = 0.5) -> None:
    """Every voxel has the brightness of its own place, which the affine alone gives."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in scan.shape[1:]), indexing="ij")
    world_ras = np.stack([x, y, z], -1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    assert scan.shape[0] == frames
    for t in range(frames):
        error = np.abs(scan.frame(t) - brightness(world_ras * [-1, -1, 1], t)).max()
        assert error <= tolerance + 1e-3, f"frame {t} is off by {error}"


def only(scans: list[Scan]) -> Scan:
    """The one scan that was found."""
    assert len(scans) == 1, [scan.shape for scan in scans]
    return scans[0]
