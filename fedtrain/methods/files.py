"""Open, read and write the big flat files of a round: no links, no surprises, reused buffers.

Files that the other side wrote are opened without following a link and only if they are regular
files. Operating-system errors become `StorageError` here and go no further.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any

from fedtrain.errors import BadUpdate, StorageError

StrPath = str | os.PathLike[str]


def open_source(path: StrPath) -> tuple[int, int]:
    """(descriptor, size in bytes) of an existing regular file, opened for reading.

    Raises `BadUpdate` if it is a link or no regular file, `StorageError` if it cannot be read.
    """
    # O_NONBLOCK: opening a FIFO that someone planted must not hang.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadUpdate(f"{os.fspath(path)} is a link; only regular files are read") from error
        raise storage_error("read", path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadUpdate(f"{os.fspath(path)} is not a regular file")
    return descriptor, status.st_size


def create_target(path: StrPath, size_bytes: int = 0) -> int:
    """Descriptor of a new file of `size_bytes` (sparse) for reading and writing.

    A file already there is unlinked and not emptied: a stored blob may be another name of it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - the path may be a plain string
        descriptor = os.open(path, flags, 0o644)
        if size_bytes:
            os.ftruncate(descriptor, size_bytes)
    except OSError as error:
        raise storage_error("write", path, error) from error
    return descriptor


def octet_view(buffer: Any) -> memoryview:
    """The bytes of a contiguous buffer or array, without a copy."""
    return memoryview(buffer).cast("B")


def read_exactly(descriptor: int, buffer: Any, offset: int) -> None:
    """Fill `buffer` (contiguous) from byte `offset`; safe to call from several threads."""
    view = octet_view(buffer)
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise storage_error("read", f"descriptor {descriptor}", error) from error
        if count == 0:
            raise StorageError(f"the file ended {len(view) - done} bytes early: it was cut while it was read")
        done += count


def write_exactly(descriptor: int, buffer: Any, offset: int) -> None:
    """Write all of `buffer` (contiguous) at byte `offset`; safe to call from several threads."""
    view = octet_view(buffer)
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            raise storage_error("write", f"descriptor {descriptor}", error) from error


def storage_error(verb: str, path: StrPath, error: OSError) -> StorageError:
    """The sentence for a disk that refused: what was tried, where, and the system's reason."""
    return StorageError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}; check the disk")
