"""Files that are there whole or not at all, and one line for a disk that refuses."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fewbeats.errors import InputError, PlaceError

if TYPE_CHECKING:
    import torch

FULL = "the disk is full; make room and run again"
CLOSED = "cannot be written ({strerror}); choose another output folder"
NO_FOLDER = "cannot be used as a folder here; choose another"
NO_RIGHT = "no permission; choose another place or change its rights"
DAY_SECONDS = 86400.0
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
    errno.ENAMETOOLONG: (None, "its name is too long for this disk; choose a shorter one"),
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
        PlaceError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        told = explain_refusal(error, writing=True)
        if told is None:
            raise
        raise PlaceError(f"{path}: {told}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A partial file or folder beside `path`, of this process alone, named `path` when the block ends well.

    Raises:
        InputError: the disk is full, the folder cannot be written, or takes no name as long as this.
    """
    with name_disk_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.lstat()  # a name that is too long is told before the work, not after it
        partial = partial_of(path)
        _sweep(path, but=partial)
        try:
            if partial.is_dir():  # of a process that was killed and had the same number
                shutil.rmtree(partial)
            yield partial
            partial.replace(path)
        finally:
            remove(partial)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, in any layout of memory; the caller makes the write atomic.

    Raises:
        OSError: the disk is full, or takes nothing; safetensors' own writer says so in words alone.
    """
    import torch
    from safetensors.torch import save

    plain = {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in tensors.items()}
    path.write_bytes(save(plain, metadata))


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for files that move out of it when all are whole; it goes with the block.

    Raises:
        InputError: see `atomic_path`.
    """
    staging = partial_of(path)
    with name_disk_trouble(path):
        with suppress(FileNotFoundError):
            path.lstat()
        remove(staging)
        try:
            staging.mkdir(parents=True)
            yield staging
        finally:
            remove(staging)


def partial_of(path: Path) -> Path:
    """Hidden name beside `path` for what is not whole yet: of this machine and process, never too long."""
    return path.with_name(f".{_mark(path)}.{_machine()}-{os.getpid()}.partial")


def _mark(path: Path) -> str:
    return f"{path.name[:24]}.{zlib.crc32(os.fsencode(path.name)):08x}"


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:16]


def _sweep(path: Path, *, but: Path) -> None:
    """Remove what killed processes left of the same file."""
    for left in path.parent.glob(f".{glob.escape(_mark(path))}.*-*.partial"):
        if left != but and not _may_be_written(left):
            remove(left)


def _may_be_written(partial: Path) -> bool:
    """Whether a process of this machine that runs, or another machine since yesterday, may write it."""
    machine, _, number = partial.name.removesuffix(".partial").rpartition(".")[2].rpartition("-")
    if machine != _machine():
        with suppress(FileNotFoundError):
            return time.time() - partial.lstat().st_mtime < DAY_SECONDS
        return False
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """A file or a folder, gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Keep a folder to this process while the block lasts, without what killed processes left in it.

    Args:
        out: made where it is missing, and removed again where nothing was put into it.

    Raises:
        InputError: `out` is no folder and cannot be one, or another process holds it.
    """
    import fcntl

    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for --out")
    fresh = not out.exists()
    with name_disk_trouble(out):
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{out}: another process writes there; wait for it, or choose another --out"
            ) from error
        except OSError:  # a disk without locks
            pass
        for left in [*out.rglob(".*.????????.*-*.partial")]:
            if not _may_be_written(left):
                remove(left)
        yield
    finally:
        os.close(folder)
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
