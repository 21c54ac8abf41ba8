"""Files that are there whole or not at all, and one line for a disk that refuses."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fewbeats.errors import InputError

FULL = "the disk is full; make room and run again"
CLOSED = "cannot be written ({strerror}); choose another output folder"
NO_FOLDER = "cannot be used as a folder here; choose another"
NO_RIGHT = "no permission; choose another place or change its rights"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED: dict[int, tuple[str | None, str | None]] = {
    errno.ENOSPC: (FULL, FULL),
    errno.EDQUOT: (FULL, FULL),
    errno.ENOTDIR: (NO_FOLDER, CLOSED),
    errno.EEXIST: (NO_FOLDER, CLOSED),
    errno.ENOENT: ("not there and cannot be made; choose another place", CLOSED),
    errno.EACCES: (NO_RIGHT, CLOSED),
    errno.EPERM: (NO_RIGHT, CLOSED),
    errno.EROFS: ("the disk is read-only; choose another place", CLOSED),
    errno.EISDIR: (None, CLOSED),
    errno.ENAMETOOLONG: (None, CLOSED),
    errno.EPIPE: ("nobody reads it any more", None),
}
"""What the operating system may refuse, and the mend: anywhere, and while a result is written."""


def explain_refusal(error: OSError, *, writing: bool = False) -> str | None:
    """What an error of the operating system means and how to mend it; None where it is no refusal.

    Args:
        error: as caught.
        writing: whether it was raised while a result was written.
    """
    anywhere, while_writing = REFUSED.get(error.errno or 0, (None, None))
    told = while_writing if writing else anywhere
    return told and told.format(strerror=error.strerror)


@contextmanager
def name_disk_trouble(path: Path) -> Iterator[None]:
    """Turn what a full or closed disk raises into one line about `path`.

    Raises:
        InputError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        told = explain_refusal(error, writing=True)
        if told is None:
            raise
        raise InputError(f"{path}: {told}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A partial file or folder beside `path`, of this process alone, named `path` when the block ends well.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with name_disk_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path, *, names: Sequence[str], mark: str) -> Iterator[Path]:
    """A hidden folder in `out` whose content moves into `out` when the block ends well; else it is removed.

    Args:
        out: made where it is missing.
        names: files that are part of such a result; what an earlier one has and this one lacks goes away.
        mark: file that an earlier result holds, without which nothing in `out` is overwritten.

    Raises:
        InputError: `out` is no folder, or holds files of these names that are not an earlier result.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for --out")
    if (out / "request.json").exists():
        raise InputError(f"{out}: is a training run, which would be overwritten; choose another --out")
    taken = [name for name in names if (out / name).exists()]
    if taken and not (out / mark).is_file():
        raise InputError(f"{out / taken[0]}: would be overwritten; choose another --out")
    fresh, staging = not out.exists(), out / f".{os.getpid()}.partial"
    try:
        staging.mkdir(parents=True)
        yield staging
        written = {whole.name for whole in staging.iterdir()}
        for whole in sorted(staging.iterdir()):
            if (out / whole.name).is_dir():
                shutil.rmtree(out / whole.name)
            whole.replace(out / whole.name)
        for name in taken:
            if name not in written:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh:
            with suppress(OSError):  # it holds what was written
                out.rmdir()


def append_locked(file: Path, table: str) -> None:
    """Add the lines of a CSV to a file, whole or not at all; its header only where the file is new.

    Processes that append at the same time take turns.

    Raises:
        InputError: the file has other columns, the disk is full, or it cannot be written.
    """
    import fcntl

    with name_disk_trouble(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        earlier = file.read_text(encoding="utf-8") if file.is_file() else ""
        if earlier and not earlier.endswith("\n"):  # an editor took it
            earlier += "\n"
        header, _, lines = table.partition("\n")
        if earlier and earlier.partition("\n")[0] != header:
            raise InputError(f"{file}: has other columns than the new rows; name another file")
        with atomic_path(file) as partial:
            partial.write_text(earlier + (lines if earlier else table), encoding="utf-8")
    finally:
        os.close(folder)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted, but for hidden ones (`._NAME` of a Mac).

    Folders that are links are entered, unless they lead back upward; and each folder once.

    Raises:
        InputError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # the caller says what a missing folder means
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); check its rights"
            ) from error

    found, seen = [], set(map(str, Path(os.path.realpath(folder)).parents))
    seen |= {os.path.realpath(parent) for parent in Path(os.path.abspath(folder)).parents}
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(base)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(base) / name for name in names]
    return sorted(file for file in found if not file.name.startswith(".") and file.is_file())
