"""The leak guard: which pixels a run has seen, and everything its weights descend from.

A run notes hashes of the content of every frame in its pools, labeled or not, and carries the notes of its
ancestors (initial weights, teachers, localizer, pretraining) with it. Content, not names, twice over: a
frame's hash is of its exact gray values, a slice's of how many pixels share each of them, whatever they are.
docs/data.md lists the disguises that are recognized and those that are not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from fewbeats.data.files import open_scan
from fewbeats.data.split import HELD_OUT, check_splits
from fewbeats.disk import atomic_path
from fewbeats.errors import InputError, name_some

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fewbeats.scan import Scan

FILE_NAME = "provenance.json"
DIGEST_BYTES = 12  # a biobank of 10^7 frames has two equal digests by chance once in 10^14 times
SLICE_BYTES = 9  # 10^8 slices are 5 x 10^15 pairs, of 2^72: equal by chance in one of 10^6 biobanks
SLICE_CHARS = SLICE_BYTES * 4 // 3  # as base64, which is 1.2 GB for 10^8 slices
SLICES_MARK = ":"  # before the slices' digests of a scan; in no frame's hash

TELLING_LEVELS = 32
"""Gray levels whose number of pixels is not the commonest one, which a slice must have to be told by them.

Slices of few levels are alike by chance, and so are those whose pixels all differ, as interpolated floating
point values do: one pixel a level, whoever is shown. With 32, the same numbers have over 2^60 orders."""

Hashes = dict[str, list[str]]
"""Subject -> content hashes of all its scans, as `hash_scans` gives them."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a run has seen."""

    run: str
    """Name of the run folder, for messages."""
    labeled: Hashes = field(default_factory=dict)
    """Scans whose labels were trained on."""
    unlabeled: Hashes = field(default_factory=dict)
    """Scans whose pixels alone were seen: pretraining, pseudo-labels, adaptation."""
    ancestors: tuple[Provenance, ...] = ()
    """Runs whose weights or labels went into this one."""
    transductive: bool = False
    """Held-out scans were to be among the unlabeled ones."""

    def lineage(self) -> Iterator[Provenance]:
        """This run and all it descends from."""
        yield self
        for ancestor in self.ancestors:
            yield from ancestor.lineage()

    def save(self, folder: Path) -> None:
        """Write `provenance.json` into a run folder, ancestors included, so that the folder can travel."""
        with atomic_path(folder / FILE_NAME) as partial:
            partial.write_text(json.dumps(asdict(self)), encoding="utf-8")


def load_provenance(folder: Path) -> Provenance:
    """Read what a run has seen.

    Raises:
        InputError: no or a damaged `provenance.json`, without which nobody knows what the weights have seen.
    """
    file = folder / FILE_NAME
    try:
        return _from_json(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{file}: missing, so what the run has seen is unknown; use a whole run folder"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: damaged, or from another version; copy the run folder again") from error


def merge(run: str, parts: Iterable[Provenance]) -> Provenance:
    """Several provenances (the rounds of a self-training) as one, with all their ancestors."""
    listed = list(parts)
    ancestors = {json.dumps(asdict(a), sort_keys=True): a for part in listed for a in part.ancestors}
    return Provenance(
        run=run,
        labeled=_union(part.labeled for part in listed),
        unlabeled=_union(part.unlabeled for part in listed),
        ancestors=tuple(ancestors.values()),
        transductive=any(part.transductive for part in listed),
    )


def frame_hashes(scan: Scan) -> list[str]:
    """A hash of the content of each frame.

    Sorted float32 values of each slice are hashed, then the sorted slices: mirrored, turned by 90 degrees in
    plane or stored from the other end, a frame keeps its hash.

    Args:
        scan: of any length.

    Returns:
        24 hex digits a frame.

    Raises:
        InputError: the pixels cannot be read.
    """
    return [_hash_frame(scan.frame(t))[0] for t in range(scan.shape[0])]


def content_hashes(scan: Scan) -> list[str]:
    """What a scan is known by: the hash of each frame, and the digests of its slices.

    A slice's digest is of its numbers of pixels per gray level, in order of level, the lowest level left out.
    So it stays when gray values are changed without changing their order or merging two of them, when what
    is padded has the slice's lowest value, and whatever happens to other slices. Slices without enough
    `TELLING_LEVELS` have none; their frame's hash guards them.

    Args:
        scan: of any length.

    Returns:
        `frame_hashes`, and where slices have digests one entry more that holds them all (`digests` takes it
        apart): as one string they need a fifth of the memory.

    Raises:
        InputError: the pixels cannot be read.
    """
    frames, slices = zip(*(_hash_frame(scan.frame(t)) for t in range(scan.shape[0])))
    packed = b"".join(dict.fromkeys(digest for frame in slices for digest in frame))
    return [*frames, SLICES_MARK + base64.b64encode(packed).decode()] if packed else list(frames)


def digests(hashes: Iterable[str]) -> Iterator[str]:
    """What is compared: two scans that share one of these share pixels.

    Args:
        hashes: of one or more scans (`hash_scans`, or a value of `Hashes`).

    Returns:
        the frames' hashes and the slices' digests, one by one.
    """
    for entry in hashes:
        if entry.startswith(SLICES_MARK):
            yield from (entry[at : at + SLICE_CHARS] for at in range(1, len(entry), SLICE_CHARS))
        else:
            yield entry


def hash_scans(rows: pl.DataFrame, *, cache: Path | None = None) -> dict[str, list[str]]:
    """Scan -> hashes of its content (`content_hashes`), for rows of a cohort.

    Args:
        rows: of a cohort.
        cache: JSON file that remembers hashes of files by `file_key`; made where missing.

    Returns:
        for each scan its hashes.

    Raises:
        InputError: an image cannot be read.
    """
    known = _read_cache(cache)
    hashes, size_before = {}, len(known)
    for row in rows.iter_rows(named=True):
        key = file_key(row["image"])
        found = known.get(key) if key else None
        hashes[row["scan"]] = found or content_hashes(open_scan(row))
        if key:
            known[key] = hashes[row["scan"]]
    if cache is not None and len(known) > size_before:
        with atomic_path(cache) as partial:
            partial.write_text(json.dumps(known), encoding="utf-8")
    return hashes


def by_subject(rows: pl.DataFrame, hashes: Mapping[str, list[str]]) -> Hashes:
    """Hashes of scans, gathered by the subjects of `rows`."""
    gathered: Hashes = {}
    for subject, scan in rows.select("subject", "scan").iter_rows():
        gathered.setdefault(subject, []).extend(hashes[scan])
    return gathered


def digest_hashes(*pools: Hashes) -> str:
    """One short text for all that pools hold, by which a request is known."""
    return _digest(json.dumps(pools, sort_keys=True).encode()).hex()


def find_twins(subjects: Mapping[str, Iterable[str]]) -> list[tuple[str, ...]]:
    """Subjects that share a frame or slice: one heart under several names, several in statistics.

    Args:
        subjects: subject -> content hashes of its scans (`by_subject`).

    Returns:
        the names of each such heart.
    """
    owner: dict[str, str] = {}
    shared: dict[str, set[str]] = {}  # apart, as nearly every digest has one owner
    for subject, hashes in subjects.items():
        for digest in digests(hashes):
            if (first := owner.setdefault(digest, subject)) != subject:
                shared.setdefault(digest, {first}).add(subject)
    return sorted({tuple(sorted(names)) for names in shared.values()})


def guard_training(
    cohort: pl.DataFrame,
    *,
    labeled: pl.DataFrame,
    unlabeled: pl.DataFrame | None = None,
    hashes: Mapping[str, list[str]] | None = None,
    transductive: bool = False,
) -> None:
    """Refuse training pools that touch held-out subjects, by split and by content.

    Args:
        cohort: the whole table.
        labeled: its rows whose labels are trained on.
        unlabeled: its rows whose pixels alone are used.
        hashes: scan -> hashes of its content (`hash_scans`) for pools and held-out scans, to find copies
            under other names; scans without an entry are judged by their split alone.
        transductive: allow held-out scans in the unlabeled pool (the report must say so).

    Raises:
        InputError: a subject in two splits, or held-out subjects (named) in a pool.
    """
    check_splits(cohort)
    held_out = cohort.filter(pl.col("split").is_in(HELD_OUT))
    hashes = hashes or {}
    secret = {digest: subject for subject, scan in held_out.select("subject", "scan").iter_rows()
              for digest in digests(hashes.get(scan, ()))}  # fmt: skip
    pools = {"labeled": labeled}
    if unlabeled is not None and not transductive:
        pools["unlabeled"] = unlabeled
    for name, pool in pools.items():
        inside = pool.filter(pl.col("subject").is_in(held_out["subject"].implode()))
        if not inside.is_empty():
            names = name_some(inside["subject"].unique().sort())
            raise InputError(f"{name} pool: held-out subjects in it: {names}; train on split train alone")
        for subject, scan in pool.select("subject", "scan").iter_rows():
            twin = next((secret[d] for d in digests(hashes.get(scan, ())) if d in secret), None)
            if twin is not None:
                raise InputError(
                    f"{name} pool: '{scan}' of {subject} is, in whole or part, a copy of a scan of the "
                    f"held-out {twin}; put both in the same split"
                )


def guard_ancestors(
    ancestors: Iterable[Provenance],
    held_out: Mapping[str, Iterable[str]],
    *,
    transductive: bool = False,
    mend: str = "start from weights that have not",
) -> None:
    """Refuse weights, teachers or localizers that have seen held-out scans, themselves or in their lineage.

    Args:
        ancestors: provenance of everything a run starts from; or of the run itself, before it is evaluated.
        held_out: subject -> content hashes of its scans (`by_subject`).
        transductive: allow scans that were seen without their labels (the report must say so).
        mend: what the user is told to do.

    Raises:
        InputError: naming the subjects and the run that saw them.
    """
    for start in ancestors:
        for run in start.lineage():
            pools = (run.labeled,) if transductive else (run.labeled, run.unlabeled)
            if seen := find_seen(pools, held_out):
                through = "" if run is start else f" (an ancestor of '{start.run}')"
                raise InputError(
                    f"run '{run.run}'{through} has seen held-out subjects: {name_some(seen)}; {mend}"
                )


def find_seen(pools: Iterable[Hashes], subjects: Mapping[str, Iterable[str]]) -> list[str]:
    """Those of some subjects, subject -> content hashes, whose scans are in any of the pools, by any name."""
    owner = {digest: subject for subject, hashes in subjects.items() for digest in digests(hashes)}
    known = (digest for pool in pools for hashes in pool.values() for digest in digests(hashes))
    return sorted({owner[digest] for digest in known if digest in owner})


def _hash_frame(frame: np.ndarray) -> tuple[str, list[bytes]]:
    """The hash of a frame (Z, Y, X) and the digests of its slices that have one."""
    zero = np.float32(0)  # -0.0 + 0 is 0.0
    exact, counted = [], []
    for plane in frame:
        ordered = np.sort(plane, axis=None) + zero
        exact.append(_digest(ordered.tobytes()))
        counted.append(_hash_counts(ordered))
    return _digest(b"".join(sorted(exact))).hex(), [digest for digest in counted if digest]


def _hash_counts(ordered: np.ndarray) -> bytes | None:
    """Digest of the pixels per gray level of a slice's sorted values; None where they tell too little."""
    starts = np.flatnonzero(ordered[1:] != ordered[:-1])  # of all levels but the lowest
    counts = np.diff(starts, append=ordered.size - 1)
    if counts.size < TELLING_LEVELS or counts.size - np.bincount(counts).max() < TELLING_LEVELS:
        return None
    return _digest(counts.astype("<i4").tobytes(), SLICE_BYTES)


def _digest(content: bytes, size: int = DIGEST_BYTES) -> bytes:
    return hashlib.blake2b(content, digest_size=size).digest()


def _union(pools: Iterable[Hashes]) -> Hashes:
    union: dict[str, dict[str, None]] = {}
    for pool in pools:
        for subject, hashes in pool.items():
            union.setdefault(subject, {}).update(dict.fromkeys(hashes))
    return {subject: list(hashes) for subject, hashes in union.items()}


def _from_json(content: dict) -> Provenance:
    pools = {name: {str(s): [str(h) for h in hashes] for s, hashes in content[name].items()}
             for name in ("labeled", "unlabeled")}  # fmt: skip
    return Provenance(
        run=str(content["run"]),
        **pools,
        ancestors=tuple(map(_from_json, content["ancestors"])),
        transductive=bool(content.get("transductive", False)),
    )


def file_key(image: str) -> str | None:
    """What tells whether a file is still the one that was read: path, size and two times of change.

    The time of its content can be set back, by copying or unpacking with times kept as by intent; that of its
    inode cannot. It also changes with mode, links or name, which costs one reading. The first stands beside
    it for systems where the second is the time of creation. The inode's number is left out: some network
    mounts make it up anew, so that everything would be stored again, and where a file is replaced the
    times tell. Not seen are only changes within the clock's grain (milliseconds; seconds on FAT), and where
    the file system itself makes the second time up from the first, as for mounted archives and object stores.

    Args:
        image: as in the cohort's column.

    Returns:
        the key; None for a folder, whose own times say little.
    """
    path = Path(image)
    if not path.is_file():
        return None
    stat = path.stat()
    return f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def _read_cache(cache: Path | None) -> dict[str, list[str]]:
    try:
        return dict(json.loads(cache.read_text(encoding="utf-8"))) if cache and cache.exists() else {}
    except (OSError, ValueError, TypeError):
        return {}  # it only saves time
