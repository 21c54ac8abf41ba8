"""DICOM files -> Scans: which frames belong together, in which order, and where they are.

Positions decide where a slice is, never the thickness tags. What had to be inferred is said in
`Source.notes`. The stored grid is the stack along its normal, rows and columns as stored.
"""

from __future__ import annotations

import filecmp
import os
import warnings
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewbeats.disk import files_below
from fewbeats.errors import InputError
from fewbeats.io.dicom_headers import CONTOUR_CLASS, FrameHeader, read_headers, sop_class
from fewbeats.io.dicom_kinds import plane_of_words
from fewbeats.io.dicom_series import Stack, is_even, join_series, may_be_one, same_place_mm, split_series
from fewbeats.io.dicom_time import ONCE_A_BEAT, frame_times, order_frames
from fewbeats.scan import Reorientation, Scan, Source, canonical_reorientation

MENDS = (
    (("dicomdir",), "it is the index of a CD; give the folder that it lies in"),
    ((".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z"), "an archive; unpack it and give the folder"),
    (
        (".nii", ".nii.gz"),
        "it holds NIfTI files: give one of them, or index the folder first and give the cohort table",
    ),
    (
        (".hdr", ".img", ".img.gz"),
        "convert Analyze and two-file NIfTI images (.hdr and .img) to .nii.gz",
    ),
    (
        (".nrrd", ".nhdr", ".mha", ".mhd", ".par", ".rec", ".mnc"),
        "this format is not read; save it as .nii.gz",
    ),
    ((".dcm.gz", ".ima.gz", ".dicom.gz"), "gzipped DICOM files; unpack them (gunzip) and give the folder"),
)
"""How names end where there is no DICOM image, and what to do."""
CONTOURS = "export them as DICOM SEG, or as a mask in NIfTI"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class DicomPixels:
    """Lazy pixels of DICOM frames, in canonical orientation; a frame is decoded when it is asked for.

    `headers` is [t][z] in stack order, as stored; `turn` leads from the stack to the canonical grid.
    """

    def __init__(self, headers: list[list[FrameHeader]], turn: Reorientation):
        self.headers, self._turn = headers, turn
        stored = (len(headers[0]), *headers[0][0].shape)
        z, y, x = (stored[axis] for axis in turn.order)
        self.shape = (len(headers), z, y, x)
        self.dtype = headers[0][0].dtype

    def frame(self, t: int) -> np.ndarray:
        values = np.empty(self.shape[1:], np.float32)
        stored = self._turn.invert(values)  # a view: filling it fills `values`
        wanted: dict[Path, list[int]] = defaultdict(list)
        for z, header in enumerate(self.headers[t]):
            wanted[header.file].append(z)
        for file, slices in wanted.items():
            planes = _decode(file, [self.headers[t][z].index for z in slices], stored.shape[1:])
            for z, plane in zip(slices, planes, strict=True):
                header = self.headers[t][z]
                stored[z] = header.gray(plane)
        return values


def _decode(file: Path, indices: list[int], shape: tuple[int, ...]) -> list[np.ndarray]:
    """Stored values of some frames of one file; the others are not decoded."""
    from pydicom.pixels import iter_pixels

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                planes = list(iter_pixels(file, indices=indices, raw=True))
            except AttributeError:  # no transfer syntax
                syntax = _transfer_syntax(file)
                planes = list(iter_pixels(file, indices=indices, raw=True, transfer_syntax_uid=syntax))
    except Exception as error:  # every decoder has its own; their text may quote the header
        raise InputError(
            f"{file}: its pixels cannot be decoded (truncated, corrupt, or a compression without a decoder "
            f"here); export it again uncompressed"
        ) from error
    if any(plane.shape != shape for plane in planes):
        raise InputError(f"{file}: its pixels do not have the size its header says; export it again")
    return planes


def _transfer_syntax(file: Path) -> str:
    """What the file names, or where it has no preamble to name one, what its first tag shows."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[], force=True)
    implicit, little = data.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return data.file_meta.get("TransferSyntaxUID") or (ImplicitVRLittleEndian if implicit else explicit)


def read_dicom(path: Path | str) -> list[Scan]:
    """Read a folder of DICOM files, flat or nested, in any order, or one file; only headers, pixels lazily.

    Frames are joined to scans by geometry: one series per slice position, one per cardiac phase, or one
    for all. Files that are no images (DICOMDIR, text, reports, segmentations) are passed over.

    Args:
        path: folder or file.

    Returns:
        Scans, the one with most frames first. What is unreadable beside a larger readable scan (a color
        snapshot, a film without positions) is left out, and every scan's notes say so.

    Raises:
        InputError: no image at all; a corrupt file; or the largest scan is unusable: gantry tilt, mixed
            spacings or sizes, missing slices or frames, duplicate frames, color, no position.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; check the path")
    files = [root] if root.is_file() else files_below(root)
    empty = [file for file in files if len(files) > 1 and _is_empty(file)]
    read_files = {file: read_headers(file) for file in files if file not in empty}
    headers = [header for found in read_files.values() for header in found]
    if not headers:
        raise InputError(f"{root}: no DICOM image in it; {_mend_without_dicom(files)}")
    headers, notes = _drop_copies(headers)
    notes += [f"left out: {_counted(empty, 'empty file')}"] if empty else []
    contours = [file for file, found in read_files.items() if not found and sop_class(file) == CONTOUR_CLASS]
    notes += [f"not read: contours (RTSTRUCT), {_counted(contours, 'file')}; {CONTOURS}"] if contours else []
    read, scans, faults = [], [], []
    for stack in join_series(split_series(headers)):
        try:
            scans.append(_build(stack))
            read.append(stack)
        except InputError as error:
            faults.append((stack, error))
    if not scans:
        raise _first_fault(faults, headers)
    for stack, fault in faults:
        if any(may_be_one(stack, other) for other in read):  # what is left would be a part of a heart
            raise fault
    notes += [f"left out: {fault}" for _, fault in faults]
    return [replace(scan, source=replace(scan.source, notes=(*scan.source.notes, *notes))) for scan in scans]


def _first_fault(faults: list[tuple[Stack, InputError]], headers: list[FrameHeader]) -> InputError:
    """What is wrong with the largest scan, where none can be read, and with a file of another."""
    error = faults[0][1]
    flawed = next((h for h in headers if h.flaw and h.file.name not in str(error)), None)
    return error if flawed is None else InputError(f"{error}; of another series {flawed.file}: {flawed.flaw}")


def _is_empty(file: Path) -> bool:
    return file.stat().st_size == 0


def _counted(files: list[Path], what: str) -> str:
    if len(files) == 1:
        return f"1 {what}, {files[0].name}"
    return f"{len(files)} {what}s, among them {files[0].name}"


def _mend_without_dicom(files: list[Path]) -> str:
    names = [file.name.lower() for file in files]
    for suffixes, mend in MENDS:
        if any(name.endswith(suffixes) for name in names):
            return mend
    return "give the folder or file of an image series"


def _drop_copies(headers: list[FrameHeader]) -> tuple[list[FrameHeader], list[str]]:
    """Frames without those that are there twice, and what there is to say of them.

    The same SOPInstanceUID says so where headers and pixels agree; some anonymizers write one into all files.
    """
    seen: dict[tuple[str, int], list[FrameHeader]] = defaultdict(list)
    kept, copies, reused = [], [], False
    for header in headers:
        others = seen[header.sop_uid, header.index] if header.sop_uid else []
        if any(_is_copy(header, other) for other in others):
            copies.append(header.file)
            continue
        reused |= bool(others)
        others.append(header)
        kept.append(header)
    notes = [f"left out: {_counted(sorted(set(copies)), 'copied file')}"] if copies else []
    if reused:
        notes.append(
            "files share a SOPInstanceUID though their images differ; they are told apart by content"
        )
    return kept, notes


def _is_copy(a: FrameHeader, b: FrameHeader) -> bool:
    """Whether two frames of one UID are one image: at one place and time, and of equal pixels."""
    if (a.position, a.orientation, a.order, a.shape) != (b.position, b.orientation, b.order, b.shape):
        return False
    if filecmp.cmp(a.file, b.file, shallow=False):
        return True
    one, other = (_decode(header.file, [header.index], header.shape)[0] for header in (a, b))
    return np.array_equal(one, other)


def _build(stack: Stack) -> Scan:
    frames, first = stack.frames, stack.series[0].first
    _refuse_unusable(frames, first)
    slices = _slices(frames, first.normal)
    step_mm, notes = _slice_step(slices, first)
    rule, values, order_notes = order_frames(slices, stack)
    times_ms, cycle_ms, time_notes = frame_times(slices, rule, values)
    headers = [list(frame) for frame in zip(*slices, strict=True)]  # [t][z]
    affine, shape = _affine(headers[0][0], step_mm), (len(slices), *first.shape)
    turn = canonical_reorientation(affine, shape)
    backward = turn.flipped[turn.order.index(0)]
    instances = tuple(
        tuple((h.file, h.index) for h in (reversed(frame) if backward else frame)) for frame in headers
    )
    return Scan(
        pixels=DicomPixels(headers, turn),
        affine=turn.affine(affine, shape),
        frame_times_ms=times_ms,
        cycle_ms=cycle_ms,
        modality=first.modality,
        source=Source(
            path=_place(frames),
            affine=affine,
            shape=shape,
            reorientation=turn,
            notes=(_series_note(stack), *stack.notes, *_gray_notes(first), *order_notes, *notes, *time_notes),
            instances=instances,
            series=tuple(sorted({series.first.series_number for series in stack.series})),
            plane=_plane(stack),
            part=stack.part,
            people=tuple(sorted({frame.person for frame in frames} - {""})),
            study=first.study_uid,
            no_beat=ONCE_A_BEAT if any(ONCE_A_BEAT in note for note in time_notes) else "",
        ),
    )


def _plane(stack: Stack) -> str:
    """What all of its series are called, where they agree."""
    named = {plane_of_words(series.first.description) for series in stack.series}
    return named.pop() if len(named) == 1 else ""


def _place(frames: list[FrameHeader]) -> Path:
    """The file, or the innermost folder, that holds all frames."""
    files = {frame.file for frame in frames}
    return files.pop() if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))


def _refuse_unusable(frames: list[FrameHeader], first: FrameHeader) -> None:
    across = np.array([frame.in_plane_mm for frame in frames])
    shift = float(np.abs(across - first.in_plane_mm).max())
    depths = [frame.depth_mm for frame in frames]
    for frame in frames:
        if frame.flaw:
            raise InputError(f"{frame.file}: {frame.flaw}")
        if abs(frame.tilt_degrees) > 0.01:
            raise InputError(
                f"{frame.file}: gantry tilt of {frame.tilt_degrees:.1f} degrees: its slices are not at right "
                f"angles to their stack; resample the series to an untilted one and give that"
            )
        if frame.shape != first.shape or not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise InputError(
                f"{frame.file}: mixed spacings or sizes in one series: {_grid(frame)} here, {_grid(first)} "
                f"in {first.file}; put each into its own folder and give one"
            )
    if shift > 0.5 * min(first.spacing_mm):
        angle = np.degrees(np.arctan2(shift, max(depths) - min(depths)))
        raise InputError(
            f"{first.file}: gantry tilt (or slices shifted sideways): {shift:.1f} mm over the stack, "
            f"{angle:.1f} degrees; resample the series to an untilted one and give that"
        )


def _grid(frame: FrameHeader) -> str:
    (rows, columns), (y, x) = frame.shape, frame.spacing_mm
    return f"{rows} x {columns} of {y:.4g} x {x:.4g} mm"


def _slices(frames: list[FrameHeader], normal: np.ndarray) -> list[list[FrameHeader]]:
    """Frames by position along the normal, ascending; every position has equally many."""
    depths = np.array([frame.position for frame in frames]) @ normal
    order = np.argsort(depths, kind="stable")
    slices: list[list[FrameHeader]] = []
    for previous, i in zip([order[0], *order], order, strict=False):
        if not slices or depths[i] - depths[previous] > same_place_mm(frames[i]):
            slices.append([])
        slices[-1].append(frames[i])
    counts = Counter(len(one) for one in slices)
    usual = max(counts, key=lambda n: (counts[n], n))
    for one in slices:
        if len(one) < usual:
            raise InputError(f"{one[0].file}: {_tell_fewer(one, slices, usual)}")
        if len(one) > usual:
            counted = f"its slice position has {len(one)} frames where others have {usual}"
            same = [a for a in one if any(a is not b and a.order == b.order for b in one)]
            if same:
                raise InputError(
                    f"{same[0].file}: duplicate frames: {counted} (compare {same[1].file}); remove the copies"
                )
            raise InputError(
                f"{one[0].file}: {counted}, each at another time; add the frames that the others lack, or "
                f"remove this position's surplus"
            )
    return slices


def _tell_fewer(one: list[FrameHeader], slices: list[list[FrameHeader]], usual: int) -> str:
    """Why a position has fewer frames than others, and the mend."""
    times, others = (
        {round(header.order["TriggerTime"]) for header in frames if "TriggerTime" in header.order}
        for frames in (one, next(other for other in slices if len(other) == usual))
    )
    counted = f"its slice position has {len(one)} frames where others have {usual}"
    own = [len(frames) for frames in slices if frames[0].series_uid == one[0].series_uid]
    whole_series = len(own) > 1 and set(own) == {len(one)}
    if times - others or whole_series:
        return (
            f"{counted}, at times of their own: slices have different numbers of phases; give those with "
            "equally many"
        )
    return f"{counted}: frames are missing; add their files"


def _slice_step(slices: list[list[FrameHeader]], first: FrameHeader) -> tuple[np.ndarray, list[str]]:
    """Vector from one slice to the next, LPS mm, and what there is to say about it.

    The vector between the outer slices, not the normal, so that every slice lies where its header says.
    """
    tag, claimed = first.distance_tag or ("", 0.0)
    if len(slices) == 1:
        thickness = first.thickness_mm or max(first.spacing_mm)
        origin = "SliceThickness" if first.thickness_mm else "the pixel spacing, for want of SliceThickness"
        return first.normal * thickness, [f"one slice: its depth, {thickness:.4g} mm, is {origin}"]
    positions = np.array([one[0].position for one in slices])
    depths = positions @ first.normal
    if not is_even(depths):
        gaps = np.diff(depths)
        close = int(np.argmin(gaps))
        if gaps[close] < 0.5 * np.median(gaps):
            raise InputError(
                f"{slices[close][0].file}: repeated slice: {slices[close + 1][0].file} is only "
                f"{gaps[close]:.4g} mm away, others {np.median(gaps):.4g} mm; remove one of the two"
            )
        after = slices[int(np.argmax(gaps))][0].file
        raise InputError(
            f"{after}: slice positions are missing or uneven: distances from {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm, the largest beyond this file; add the missing files"
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    distance = float(np.linalg.norm(step))
    told = f" ({tag} says {claimed:.4g} mm)" if abs(claimed - distance) > 0.01 * distance and claimed else ""
    notes = [f"slice distance {distance:.4g} mm from positions{told}"]
    moved = max(float(np.ptp([header.depth_mm for header in one])) for one in slices)
    if moved > 0.01:
        notes.append(f"the position of a slice moves by up to {moved:.2g} mm in time; its first is taken")
    return step, notes


def _affine(corner: FrameHeader, step_mm: np.ndarray) -> np.ndarray:
    """(4, 4) stored voxel (x, y, z, 1) -> RAS+ mm (PS3.3, C.7.6.2.1.1, with x and y turned from LPS)."""
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(corner.orientation[:3], corner.spacing_mm[1])
    affine[:3, 1] = np.multiply(corner.orientation[3:], corner.spacing_mm[0])
    affine[:3, 2] = step_mm
    affine[:3, 3] = corner.position
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _gray_notes(first: FrameHeader) -> list[str]:
    return [] if first.mirror is None else ["gray values turned round, so that bright is white (MONOCHROME1)"]


def _series_note(stack: Stack) -> str:
    count = len(stack.series)
    if count == 1:
        return stack.series[0].note or "one series"
    if stack.phase_rule:
        return f"{count} series, one per cardiac phase"
    singles = all(len(series.depths_mm) == 1 for series in stack.series)
    return f"{count} series, one per slice position" if singles else f"{count} series joined by position"
