"""Label maps <-> DICOM segmentations (SEG) of a scan that was read from DICOM, one SEG per frame.

highdicom takes its sources from one series of plain images. Here they may span several series, or be frames
of Enhanced files, so it is given stand-ins with the geometry of each slice, and the references are then
set to the true images.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats import __version__
from fewbeats.anatomy import FEWBEATS_VALUES, FULL_NAMES, name_structure
from fewbeats.errors import InputError
from fewbeats.io.dicom import DicomPixels
from fewbeats.io.dicom_headers import FrameHeader, is_seg, pixel_bytes
from fewbeats.io.dicom_identity import read_identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

    from fewbeats.scan import Scan

CODES: dict[str, tuple[str, str, str]] = {
    "LV": ("87878005", "SCT", "Left ventricle"),
    "MYO": ("74281007", "SCT", "Myocardium"),
    "RV": ("53085002", "SCT", "Right ventricle"),
    "LA": ("82471001", "SCT", "Left atrium"),
    "RA": ("73829009", "SCT", "Right atrium"),
    "AO": ("15825003", "SCT", "Aorta"),
    "PA": ("81040000", "SCT", "Pulmonary artery"),
    "INFARCT": ("55641003", "SCT", "Infarct"),
    "NO_REFLOW": ("NO_REFLOW", "99FEWBEATS", "No-reflow myocardium"),
}
"""Structure -> (code, coding scheme, meaning) of its segment."""
ANATOMICAL = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
STAND_IN_CLASS = {"CT": "1.2.840.10008.5.1.4.1.1.2"}
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
SAME_PLANE_MM = 0.1


def write_seg(
    mask_frames: Iterable[np.ndarray], scan: Scan, out_dir: Path, *, structures: Sequence[str]
) -> list[Path]:
    """Write label maps as DICOM SEG (BINARY), one file per frame of the scan, all of one series.

    Args:
        mask_frames: T label maps (Z, Y, X), canonical, values of `FEWBEATS_VALUES`; may be an iterator.
        scan: read from DICOM, the images that the segments refer to.
        out_dir: folder for `seg_000.dcm`, `seg_001.dcm`, ...; made where it does not exist.
        structures: the structures looked for; each is a segment, also where it was not found.

    Returns:
        The files, in the order of the frames.

    Raises:
        InputError: the scan was not read from DICOM, or the folder cannot be written; no file is left then.
        ValueError: a mask does not fit the scan or holds other structures.
    """
    from pydicom.uid import generate_uid

    headers = stack_headers(scan)
    identity = read_identity(headers[0][0].file)
    series_uid = generate_uid(prefix=None)
    segment_of = np.zeros(256, np.uint8)
    for number, name in enumerate(structures, 1):
        segment_of[FEWBEATS_VALUES[name]] = number
    parts: list[Path] = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for t, (mask, slices) in enumerate(zip(mask_frames, headers, strict=True)):
            if mask.shape != scan.shape[1:]:
                raise ValueError(f"mask of shape {mask.shape} for a scan of {scan.shape[1:]}")
            segments = segment_of[np.ascontiguousarray(scan.source.reorientation.invert(mask))]
            if np.count_nonzero(segments) != np.count_nonzero(mask):
                raise ValueError(f"mask of frame {t} holds other structures than {', '.join(structures)}")
            seg = _segmentation(
                segments, slices, identity, names=structures, series_uid=series_uid, number=t + 1
            )
            parts.append(out_dir / f"seg_{t:03d}.part")
            seg.save_as(parts[-1])
        return [part.replace(part.with_suffix(".dcm")) for part in parts]
    except OSError as error:
        raise InputError(f"{out_dir}: cannot be written ({error.strerror}); give another folder") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def read_seg(path: Path, scan: Scan) -> np.ndarray:
    """Read a DICOM SEG, or all SEGs in a folder, as label maps on the scan's canonical grid.

    Args:
        path: file, or folder of files, for instance of `write_seg` or drawn in a viewer.
        scan: the scan it refers to, read from DICOM.

    Returns:
        uint8 (F, Z, Y, X), values of `FEWBEATS_VALUES`, for the F frames of `seg_frames`; where segments
        overlap the later value of `FEWBEATS_VALUES` wins, so that a part covers its whole.

    Raises:
        InputError: no segmentation, of other images, on another grid, or with unknown segments.
    """
    planes = sorted(_planes(path, scan, pixels=True), key=lambda plane: plane[:3])
    frames = sorted({t for t, *_ in planes})
    stored = np.zeros((len(frames), *scan.source.shape), np.uint8)
    for t, value, z, plane in planes:
        stored[frames.index(t), z][plane] = value
    return np.stack([scan.source.reorientation.apply(frame) for frame in stored])


def seg_frames(path: Path, scan: Scan) -> tuple[int, ...]:
    """The frames t of the scan that a SEG (or all in a folder) speaks of.

    Raises:
        InputError: as `read_seg`.
    """
    return tuple(sorted({t for t, *_ in _planes(path, scan, pixels=False)}))


def stack_headers(scan: Scan) -> list[list[FrameHeader]]:
    """[t][z] headers in stack order, as stored."""
    if not isinstance(scan.pixels, DicomPixels):
        where = scan.source.path or "scan"
        raise InputError(
            f"{where}: not read from DICOM, so nothing of DICOM can refer to it; write NIfTI instead"
        )
    return scan.pixels.headers


def _segmentation(
    segments: np.ndarray,
    slices: Sequence[FrameHeader],
    identity: Dataset,
    *,
    names: Sequence[str],
    series_uid: str,
    number: int,
) -> Segmentation:
    """SEG of one frame; `segments` is (Z, rows, columns) of segment numbers, in stack order."""
    from highdicom.seg import Segmentation, SegmentationTypeValues
    from pydicom.uid import generate_uid

    stand_ins = [_stand_in(header, identity) for header in slices]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them quotes the patient's name
        seg = Segmentation(
            source_images=stand_ins,
            pixel_array=segments,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(n, name) for n, name in enumerate(names, 1)],
            series_instance_uid=series_uid,
            series_number=9000,
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=number,
            manufacturer="fewbeats",
            manufacturer_model_name="fewbeats",
            software_versions=__version__,
            device_serial_number="0",
            omit_empty_frames=bool(segments.any()),
            series_description="fewbeats segmentation",
        )
    true = {str(image.SOPInstanceUID): header for image, header in zip(stand_ins, slices, strict=True)}
    for group in seg.PerFrameFunctionalGroupsSequence:
        for reference in _source_images(group):
            if header := true.get(str(reference.ReferencedSOPInstanceUID)):  # segments share references
                _refer(reference, header)
    seg.ReferencedSeriesSequence = _referenced_series(slices)
    return seg


def _stand_in(header: FrameHeader, identity: Dataset) -> Dataset:
    """A plain single-frame image at the slice's place; its UID exists only until `_refer`."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    image = Dataset()
    image.update(identity)
    image.SOPClassUID = STAND_IN_CLASS.get(header.modality, MR_CLASS)
    image.SOPInstanceUID = generate_uid(prefix=None)
    image.SeriesInstanceUID = "2.25.1"
    image.Modality = header.modality or "MR"
    image.Rows, image.Columns = header.shape
    image.PixelSpacing = list(header.spacing_mm)
    image.SliceThickness = header.thickness_mm or header.spacing_mm[0]
    image.ImageOrientationPatient = list(header.orientation)
    image.ImagePositionPatient = list(header.position)
    return image


def _refer(reference: Dataset, header: FrameHeader) -> None:
    reference.ReferencedSOPClassUID = header.sop_class
    reference.ReferencedSOPInstanceUID = header.sop_uid
    if header.is_multi_frame:
        reference.ReferencedFrameNumber = header.index + 1


def _referenced_series(slices: Sequence[FrameHeader]) -> list[Dataset]:
    from pydicom import Dataset

    series: dict[str, dict[str, Dataset]] = {}
    for header in slices:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.sop_class, header.sop_uid
        series.setdefault(header.series_uid, {})[header.sop_uid] = image
    items = []
    for uid, images in series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, list(images.values())
        items.append(item)
    return items


def _description(number: int, name: str) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=Code(*(ABNORMAL if name in ("INFARCT", "NO_REFLOW") else ANATOMICAL)),
        segmented_property_type=Code(*CODES[name]),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name="fewbeats", version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
    )


def _planes(path: Path, scan: Scan, *, pixels: bool) -> Iterator[tuple[int, int, int, Any]]:
    """(t, label value, z as stored, (rows, columns) bool or None) of every plane of every segment."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
    files = [file for file in files if is_seg(file)]
    if not files:
        raise InputError(f"{path}: no DICOM segmentation; give a SEG file or a folder of them")
    headers = stack_headers(scan)
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield from _planes_of(file, headers, pixels=pixels)
        except InputError:
            raise
        except Exception as error:  # a damaged file; the library's text may quote the header
            raise InputError(f"{file}: corrupt or truncated segmentation; export it again") from error


def _planes_of(
    file: Path, headers: Sequence[Sequence[FrameHeader]], *, pixels: bool
) -> Iterator[tuple[int, int, int, Any]]:
    import pydicom
    from pydicom.pixels import iter_pixels

    with file.open("rb") as stream:
        data = pydicom.dcmread(stream, stop_before_pixels=True)
        if file.stat().st_size - stream.tell() < pixel_bytes(data):  # pydicom would fill up with background
            raise InputError(f"{file}: truncated segmentation; export it again")
    values = {int(s.SegmentNumber): _value(file, s) for s in data.SegmentSequence if s.get("SegmentNumber")}
    shared = data.SharedFunctionalGroupsSequence[0]
    labelmap = data.get("SegmentationType") == "LABELMAP"
    least = 0.5 * data.get("MaximumFractionalValue", 1)
    images = iter_pixels(file, raw=True) if pixels else None
    places = {
        (h.sop_uid, h.index + 1): (t, z) for t, frame in enumerate(headers) for z, h in enumerate(frame)
    }
    for group in data.PerFrameFunctionalGroupsSequence:
        t, z = (
            _place(file, group, places) if _source_images(group) else _place_by_position(file, group, headers)
        )
        _check_plane(file, data, group=group, shared=shared, header=headers[t][z])
        image = next(images) if images is not None else None
        if labelmap:
            for number, value in values.items():
                yield t, value, z, None if image is None else image == number
        else:
            segment = group if "SegmentIdentificationSequence" in group else shared
            number = int(segment.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            yield t, values[number], z, None if image is None else image > least * 0.999


def _value(file: Path, segment: Dataset) -> int:
    """Label value of a segment: by its label, under any usual name of a structure, else by its code."""
    label = str(segment.get("SegmentLabel", "")).strip()
    with suppress(InputError):
        if (name := name_structure(label, file=file)) in FEWBEATS_VALUES:
            return FEWBEATS_VALUES[name]
    code = segment.SegmentedPropertyTypeCodeSequence[0].get("CodeValue", "")
    for name, value in FEWBEATS_VALUES.items():
        if label.casefold() == FULL_NAMES[name].casefold() or code == CODES[name][0]:
            return value
    raise InputError(
        f"{file}: segment {segment.SegmentNumber} is no structure fewbeats knows; name the segments "
        f"{', '.join(FEWBEATS_VALUES)}"
    )


def _source_images(group: Dataset) -> list[Dataset]:
    derivation = group.get("DerivationImageSequence") or []
    return [image for item in derivation for image in item.get("SourceImageSequence") or []]


def _place(file: Path, group: Dataset, places: Mapping[tuple[str, int], tuple[int, int]]) -> tuple[int, int]:
    """(t, z as stored) of the one image that a SEG frame refers to."""
    references = [
        (str(r.ReferencedSOPInstanceUID), int(r.get("ReferencedFrameNumber") or 1))
        for r in _source_images(group)
    ]
    return _only(file, [places[reference] for reference in references if reference in places])


def _place_by_position(
    file: Path, group: Dataset, headers: Sequence[Sequence[FrameHeader]]
) -> tuple[int, int]:
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    distances = np.array([[np.abs(position - h.position).max() for h in frame] for frame in headers])
    return _only(file, [(int(t), int(z)) for t, z in np.argwhere(distances < SAME_PLANE_MM)])


def _only(file: Path, found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{file}: does not say which frame it segments; draw it on one frame and save again")
    raise InputError(f"{file}: segments images that are not in this scan; give it with its own scan")


def _check_plane(file: Path, data: Dataset, *, group: Dataset, shared: Dataset, header: FrameHeader) -> None:
    """A SEG frame lies on the very pixels of its image; nothing is resampled."""
    place = group if "PlanePositionSequence" in group else shared
    facing = group if "PlaneOrientationSequence" in group else shared
    position = np.array(place.PlanePositionSequence[0].ImagePositionPatient, float)
    orientation = np.array(facing.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    if (
        (data.Rows, data.Columns) != header.shape
        or np.abs(position - header.position).max() > SAME_PLANE_MM
        or not np.allclose(orientation, header.orientation, atol=1e-3)
    ):
        raise InputError(f"{file}: drawn on another grid than {header.file}; save it on the image's own grid")
