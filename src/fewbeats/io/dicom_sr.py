"""Classes and points of DICOM images as a structured report (SR, TID 1500) that refers to them.

Viewers show its points on the slices that they were found in, and its classes as text.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbeats import __version__
from fewbeats.io.dicom_identity import read_identity
from fewbeats.io.dicom_seg import stack_headers

if TYPE_CHECKING:
    from pydicom import Dataset

    from fewbeats.io.dicom_headers import FrameHeader
    from fewbeats.scan import Scan

SCHEME = "99FEWBEATS"
PROCEDURE = ("25056-3", "LN", "MRI Heart")
LEAST_CONFIDENCE = 0.5
"""Of points that are shown in a viewer; the table holds all."""


def write_sr(
    file: Path, scans: Sequence[tuple[str, Scan]], rows: Sequence[Mapping[str, Any]], *, title: str
) -> None:
    """Write what a task told of DICOM scans; nothing where no point is sure enough to be shown.

    Args:
        file: to write.
        scans: by name, as they were read; those that are not of DICOM have no part in it.
        rows: of the task: points with `point`, `x_mm`, `y_mm`, `z_mm` (RAS), or classes with `level`.
        title: of the task.

    Raises:
        InputError: none of the scans is of DICOM.
    """
    import highdicom as hd
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    of_dicom = [(name, scan) for name, scan in scans if scan.source.instances] or scans[:1]
    headers = {name: stack_headers(scan) for name, scan in of_dicom}
    told = [*_points(rows, headers), *_classes(rows, title)]
    if not told:
        return
    first = next(iter(headers.values()))[0][0]
    identity = read_identity(first.file)
    evidence = [_evidence(header, identity) for own in headers.values() for frame in own for header in frame]
    evidence = list({str(image.SOPInstanceUID): image for image in evidence}.values())
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(prefix=None), name="fewbeats", manufacturer_name="fewbeats", model_name=__version__
    )
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(hd.sr.CodedConcept("121007", "DCM", "Device"), device)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote the patient's name
        report = hd.sr.MeasurementReport(
            observation_context=context,
            procedure_reported=Code(*PROCEDURE),
            imaging_measurements=told,
        )
        document = hd.sr.ComprehensiveSR(
            evidence=evidence,
            content=report[0],
            series_instance_uid=generate_uid(prefix=None),
            series_number=9001,
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer="fewbeats",
            is_complete=True,
            series_description=f"fewbeats: {title}"[:64],
        )
        document.save_as(file)


def place_in_image(header: FrameHeader, place_mm: Sequence[float]) -> tuple[float, float]:
    """(column, row) of a place (RAS mm) in an image, where the first pixel reaches from 0 to 1."""
    away = np.array([-place_mm[0], -place_mm[1], place_mm[2]]) - header.position
    along, down = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    row_mm, column_mm = header.spacing_mm
    return float(away @ along / column_mm + 0.5), float(away @ down / row_mm + 0.5)


def _nearest(frame: Sequence[FrameHeader], place_mm: Sequence[float]) -> FrameHeader:
    """The slice of a frame in whose plane a place lies."""
    place = np.array([-place_mm[0], -place_mm[1], place_mm[2]])

    def away(header: FrameHeader) -> float:
        normal = np.cross(header.orientation[:3], header.orientation[3:])
        return abs(float((place - header.position) @ normal))

    return min(frame, key=away)


def _points(
    rows: Sequence[Mapping[str, Any]], headers: Mapping[str, Sequence[Sequence[FrameHeader]]]
) -> Iterator[Any]:
    """A region for each point that is sure enough."""
    import highdicom as hd

    for row in rows:
        if "point" not in row or row["scan"] not in headers or row["confidence"] < LEAST_CONFIDENCE:
            continue
        place = [row[axis] for axis in ("x_mm", "y_mm", "z_mm")]
        header = _nearest(headers[row["scan"]][row["frame"]], place)
        numbers = [header.index + 1] if header.is_multi_frame else None
        region = hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POINT,
            graphic_data=np.array([place_in_image(header, place)]),
            source_image=hd.sr.SourceImageForRegion(header.sop_class, header.sop_uid, numbers),
        )
        yield hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_track(f"{row['point']}, frame {row['frame']}, slice {row['slice']}"),
            referenced_region=region,
            finding_type=_code(row["point"]),
            measurements=[_share("confidence", row["confidence"])],
        )


def _classes(rows: Sequence[Mapping[str, Any]], title: str) -> Iterator[Any]:
    """What was told of each scan and study, with the probability of every class."""
    import highdicom as hd

    for row in rows:
        if row.get("level") in ("scan", "study"):
            each = {name[2:]: row[name] for name in row if name.startswith("p_")}
            yield hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=_track(f"{title}, {row['level']} {row.get('scan', '')}".strip()),
                measurements=[_share("confidence", row["confidence"])]
                + [_share(f"probability of {name}", value) for name, value in each.items()],
                qualitative_evaluations=[
                    hd.sr.QualitativeEvaluation(name=_code(title), value=_code(row["class"]))
                ],
            )


def _track(name: str) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    return hd.sr.TrackingIdentifier(uid=generate_uid(prefix=None), identifier=name)


def _code(meaning: str) -> Any:
    """A code of this package's own, as no standard has a word for every class of every task."""
    from pydicom.sr.coding import Code

    value = "".join(c if c.isalnum() else "_" for c in meaning.upper())
    if len(value) > 16:  # as long as a code may be; what follows tells it from others that begin alike
        value = f"{value[:9]}_{hashlib.sha256(meaning.encode()).hexdigest()[:6].upper()}"
    return Code(value, SCHEME, meaning[:64])


def _share(name: str, value: float) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.Measurement(name=_code(name), value=round(value, 4), unit=codes.UCUM.NoUnits)


def _evidence(header: FrameHeader, identity: Dataset) -> Dataset:
    """What a report needs of an image that it refers to."""
    from pydicom import Dataset

    image = Dataset()
    image.update(identity)
    image.SOPClassUID, image.SOPInstanceUID = header.sop_class, header.sop_uid
    image.SeriesInstanceUID, image.Modality = header.series_uid, header.modality or "MR"
    return image
