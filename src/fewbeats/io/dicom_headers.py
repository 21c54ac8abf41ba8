"""What a DICOM file says about each of its frames, classic and Enhanced alike, without its pixels.

A multi-frame file answers per frame, for all frames, or at its top level, in this order; the names of
Enhanced attributes are translated to the classic ones, so that the rest of fewbeats sees one kind of header.
Only the tags named here are read: nothing about the patient but a digest that tells two of them apart.
"""

from __future__ import annotations

import warnings
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats.errors import InputError
from fewbeats.io.dicom_values import (
    beat_ms,
    digest,
    first_number,
    number,
    order_values,
    rescale,
    stored_dtype,
    text,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydicom import Dataset

DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
SEG_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
"""SOP classes Segmentation Storage and Label Map Segmentation Storage (PS3.4, B.5)."""
CONTOUR_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class RT Structure Set Storage."""
NO_IMAGE_CLASSES = SEG_CLASSES | {"1.2.840.10008.5.1.4.1.1.481.2"}  # RT Dose has pixels, but no image
SLICE_CLASSES = {
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4")
}
"""SOP classes of CT and MR images: classic, Enhanced, Enhanced color, legacy converted."""
MOST_PIXELS = 2**26
"""Of an image; beyond it a small file would claim gigabytes."""
COLOR = "a color image, not a scan; remove it from the folder"
DEFLATED = "1.2.840.10008.1.2.1.99"

TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "ScanningSequence", "SequenceVariant",
    "ConvolutionKernel", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImageOrientationPatient", "ImagePositionPatient", "GantryDetectorTilt",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "TriggerTime", "NominalPercentageOfCardiacPhase", "TemporalPositionIdentifier",
    "TemporalResolution", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "InstanceNumber", "NominalInterval", "HeartRate", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "EchoTime", "InversionTime", "DiffusionBValue", "BitsStored",
    "ComplexImageComponent", "AcquisitionDateTime", "PatientID",
    "FlipAngle", "PixelPaddingValue",
]  # fmt: skip

FILTERS = {"NORM", "ND", "DIS2D", "DIS3D", "FIL", "PRESCAN", "SHUTTER", "FM", "FM1", "FM2", "FM3", "FM4"}
"""Words of ImageType that tell how gray values were evened out, and no other kind of image."""

GROUPS = [
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence",
    "PixelValueTransformationSequence", "CardiacSynchronizationSequence", "CTAcquisitionDetailsSequence",
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "MREchoSequence", "MRModifierSequence",
    "MRDiffusionSequence",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameHeader:
    """One two-dimensional frame: where it is, when it is, and how its stored values become numbers."""

    file: Path
    index: int
    """Index of the frame in the file, from 0."""
    is_multi_frame: bool
    """The file is an Enhanced one, which may hold many frames."""
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    series_number: int
    description: str
    """SeriesDescription; searched for a cardiac phase, never shown."""
    person: str
    """Digest of PatientID, empty where there is none; compared, never shown or written."""
    frame_of_reference: str
    modality: str
    technique: tuple[str, ...]
    """Kind of image (magnitude, phase, water, localizer), sequence, kernel: frames of one stack share it."""
    processing: tuple[str, ...]
    """Original or derived, filters and the sequence's variant: frames of one series share it, while slices of
    one stack may differ."""
    contrast: dict[str, float]
    """Tag -> value that makes another image of the same moment: echo and inversion time in ms, b-value, flip
    angle in degrees."""
    shape: tuple[int, int]
    """(rows, columns)."""
    spacing_mm: tuple[float, float]
    """Distance between (rows, columns)."""
    thickness_mm: float | None
    distance_tag: tuple[str, float] | None
    """Name and value in mm of the tag that claims a slice distance; positions decide, never this."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient: direction along a row, then along a column, LPS."""
    position: tuple[float, ...]
    """ImagePositionPatient, mm, LPS; center of the first voxel."""
    tilt_degrees: float
    dtype: np.dtype
    slope: float
    intercept: float
    mirror: float | None
    """Of MONOCHROME1, whose lowest values are shown white: the sum of the least and the largest stored value,
    which values are taken from; None of all others."""
    padding: float | None
    """Stored value of pixels outside of the image; it is none."""
    order: dict[str, float]
    """Tag -> value that may order frames in time; times in ms."""
    cycle_ms: float | None
    resolution_ms: float | None
    flaw: str
    """Why this frame cannot be part of a scan, and the mend; empty where it can."""

    def gray(self, stored: np.ndarray) -> np.ndarray:
        """Stored values as float32 gray values: bright is white, and the rescale applied."""
        values = stored.astype(np.float32)
        outside = np.zeros(0, bool) if self.padding is None else values == np.float32(self.padding)
        if outside.any() and not outside.all():
            low, high = values[~outside].min(), values[~outside].max()
            if not low < np.float32(self.padding or 0) < high:  # else it is a gray value, too
                values[outside] = low if self.mirror is None else high
        if self.mirror is not None:
            values = np.float32(self.mirror) - values
        return values * np.float32(self.slope) + np.float32(self.intercept)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def depth_mm(self) -> float:
        """Position along the normal."""
        return float(self.normal @ self.position)

    @property
    def in_plane_mm(self) -> np.ndarray:
        """(2,) position along a row and along a column."""
        return np.reshape(self.orientation, (2, 3)) @ self.position


def read_headers(file: Path) -> list[FrameHeader]:
    """Headers of all frames of one file; none where it is DICOM without an image, or not DICOM.

    Raises:
        InputError: the file is meant to be DICOM (by its preamble or suffix) but is empty, truncated or
            corrupt. An image that is sound but no slice of a scan has a `flaw` instead.
    """
    import pydicom

    head = _head(file)
    named = file.suffix.lower() in DICOM_SUFFIXES
    if not head and (named or not file.suffix):
        raise InputError(f"{file}: empty file (zero bytes); copy or export it again")
    marked = head[128:132] == b"DICM"
    if file.name == "DICOMDIR" or not (marked or named or head[:2] in (b"\x08\x00", b"\x02\x00")):
        return []
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")  # they quote values
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=not marked)
            if not marked and "SOPClassUID" not in data:
                raise ValueError("not DICOM")
            if not _is_image(data):
                return []
            if "Rows" not in data or file.stat().st_size - stream.tell() < pixel_bytes(data):
                raise InputError(f"{file}: truncated: it ends before its last pixel; copy or export it again")
            return _frames(file, data)
    except InputError:
        raise
    except Exception as error:  # pydicom raises nearly anything on a damaged file; its text quotes values
        if marked:
            raise InputError(f"{file}: corrupt or truncated DICOM header; copy or export it again") from error
        if named:
            raise InputError(f"{file}: not a DICOM file; remove it or export it again") from error
        return []


def is_seg(path: Path) -> bool:
    """Whether a file is a DICOM segmentation (a mask, for instance one drawn in a viewer)."""
    return sop_class(path) in SEG_CLASSES


def sop_class(path: Path) -> str:
    """What kind of object a file is; empty where it is not DICOM, or does not say."""
    import pydicom

    if _head(path)[128:132] != b"DICM":
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return str(data.get("SOPClassUID", ""))
    except Exception:  # a damaged file is no mask; whoever reads it as an image names it
        return ""


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(132)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); check the path and its rights"
        ) from error


def _is_image(data: Dataset) -> bool:
    """By its SOP class: a file cut short may be an image and not have its size any more."""
    sop_class = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    if sop_class in NO_IMAGE_CLASSES:
        return False
    return "Rows" in data or not sop_class or sop_class in SLICE_CLASSES


def pixel_bytes(data: Dataset) -> int:
    """At least how many bytes must follow the header."""
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax == DEFLATED:
        return 0
    if syntax is not None and syntax.is_compressed:
        return 1
    frames = int(data.get("NumberOfFrames") or 1)
    bits = frames * data.Rows * data.Columns * data.get("SamplesPerPixel", 1) * data.get("BitsAllocated", 16)
    return int(bits) // 8


def _frames(file: Path, data: Dataset) -> list[FrameHeader]:
    top = {element.keyword: element.value for element in data}
    shared = _flat(data.get("SharedFunctionalGroupsSequence"), 0)
    groups = data.get("PerFrameFunctionalGroupsSequence")
    count = int(top.get("NumberOfFrames") or 1)
    if groups is None and count > 1:  # a film without places: one header, with its flaw, stands for all
        return [_frame_header(file, 0, {**top, "ImagePositionPatient": None})]
    if groups is not None and len(groups) != count:
        raise InputError(f"{file}: {len(groups)} frame headers for {count} frames; export it again")
    return [_frame_header(file, index, ChainMap(_flat(groups, index), shared, top)) for index in range(count)]


def _flat(sequence: Any, index: int) -> dict[str, Any]:
    """The attributes of all functional groups of one item, by keyword."""
    if not sequence:
        return {}
    item = sequence[index]
    groups = (item.get(name) for name in GROUPS)
    return {element.keyword: element.value for group in groups if group for element in group[0]}


def _frame_header(file: Path, index: int, tags: Mapping[str, Any]) -> FrameHeader:
    kind = tags.get("FrameType") or tags.get("ImageType") or []
    technique = "ScanningSequence", "ConvolutionKernel", "ComplexImageComponent"
    words = [*map(str, kind)]
    claims = [(tag, number(tags, tag)) for tag in ("SpacingBetweenSlices", "SliceThickness")]
    flaws: list[str] = []
    color = text(tags, "PhotometricInterpretation")
    if tags.get("SamplesPerPixel", 1) != 1 or not color.startswith("MONOCHROME"):
        flaws.append(COLOR)
    if int(tags["Rows"]) * int(tags["Columns"]) > MOST_PIXELS:
        flaws.append(f"says that it has {tags['Rows']} x {tags['Columns']} pixels, as no scan has; remove it")
    if "MOSAIC" in map(str, kind):
        flaws.append("a mosaic: all slices tiled in one image; export it as one image a slice")
    return FrameHeader(
        file=file,
        index=index,
        is_multi_frame="PerFrameFunctionalGroupsSequence" in tags,
        sop_class=text(tags, "SOPClassUID"),
        sop_uid=text(tags, "SOPInstanceUID"),
        study_uid=text(tags, "StudyInstanceUID"),
        series_uid=text(tags, "SeriesInstanceUID"),
        series_number=int(number(tags, "SeriesNumber") or 0),
        description=text(tags, "SeriesDescription"),
        person=digest(text(tags, "PatientID").strip().casefold()),
        frame_of_reference=text(tags, "FrameOfReferenceUID"),
        modality=text(tags, "Modality").upper(),
        technique=(*(w for w in words[2:] if w not in FILTERS), *(text(tags, tag) for tag in technique)),
        processing=(*words[:2], *(w for w in words[2:] if w in FILTERS), text(tags, "SequenceVariant")),
        contrast=_contrast(tags),
        shape=(int(tags["Rows"]), int(tags["Columns"])),
        spacing_mm=vector(tags, "PixelSpacing", (1.0, 1.0), flaws),  # type: ignore[arg-type]
        thickness_mm=number(tags, "SliceThickness"),
        distance_tag=next(((tag, value) for tag, value in claims if value), None),
        orientation=vector(tags, "ImageOrientationPatient", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), flaws),
        position=vector(tags, "ImagePositionPatient", (0.0, 0.0, 0.0), flaws),
        tilt_degrees=number(tags, "GantryDetectorTilt") or 0.0,
        dtype=stored_dtype(tags),
        slope=rescale(tags, "RescaleSlope", 1.0, flaws),
        intercept=rescale(tags, "RescaleIntercept", 0.0, flaws),
        mirror=_mirror(tags) if color == "MONOCHROME1" else None,
        padding=number(tags, "PixelPaddingValue"),
        order=order_values(index, tags),
        cycle_ms=beat_ms(tags),
        resolution_ms=number(tags, "TemporalResolution"),
        flaw=flaws[0] if flaws else "",
    )


def _contrast(tags: Mapping[str, Any]) -> dict[str, float]:
    values = {
        "EchoTime": first_number(tags, "EffectiveEchoTime", "EchoTime"),
        "InversionTime": first_number(tags, "InversionTimes", "InversionTime"),
        "DiffusionBValue": number(tags, "DiffusionBValue"),
        "FlipAngle": number(tags, "FlipAngle"),
    }
    return {tag: value for tag, value in values.items() if value is not None}


def _mirror(tags: Mapping[str, Any]) -> float | None:
    """None of CT, too, whose numbers mean the same however they are shown."""
    if text(tags, "Modality") == "CT":
        return None
    bits = int(first_number(tags, "BitsStored", "BitsAllocated") or 16)
    return -1.0 if tags.get("PixelRepresentation") else 2.0**bits - 1
