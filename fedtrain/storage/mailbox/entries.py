"""Entries of a mailbox folder: written whole, read with suspicion.

Folders are passed as open descriptors and entries as plain names below them, so that a link put in
the place of a folder is met with a refusal and never followed. What the other side did wrong is a
`BadMailbox`; `FileNotFoundError` passes through, because entries come and go.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fedtrain.core import canonical
from fedtrain.errors import BadMailbox, RemoteError

T = TypeVar("T")

DOCUMENT_BYTES_MAX = 256 * 1024
ENTRIES_MAX = 10_000
"""Entries of one folder that are looked at; a healthy mailbox holds a handful."""

COPY_BYTES = 1 << 20

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking, because opening a pipe that nobody writes to would wait for ever.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_FOREIGN = {
    errno.ELOOP: "is a link",
    errno.ENOTDIR: "is not a folder",
    errno.ENXIO: "is not a regular file",
    errno.EACCES: "may not be read",
    errno.EPERM: "may not be read",
}
"""Refusals that only the other side's choice of file can cause; all others are our own disk's."""


@contextlib.contextmanager
def open_folder(name: str | Path, within: int | None = None) -> Iterator[int]:
    """A descriptor of the folder `name` (below the descriptor `within`), links refused."""
    descriptor = _open(name, _FOLDER_FLAGS, within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(name: str | Path, flags: int, within: int | None) -> int:
    try:
        return os.open(name, flags, dir_fd=within)
    except OSError as error:
        if error.errno in _FOREIGN:
            raise BadMailbox(f"mailbox entry {str(name)[-80:]!r} {_FOREIGN[error.errno]}") from error
        raise


def names(folder: int) -> list[str]:
    """Names in the folder, without temporary ones, at most `ENTRIES_MAX`."""
    with os.scandir(folder) as found:
        return [e.name for e in itertools.islice(found, ENTRIES_MAX) if not e.name.startswith(".")]


def folder_names(folder: int) -> list[str]:
    """As `names`, but only of real folders."""
    with os.scandir(folder) as found:
        return [e.name for e in itertools.islice(found, ENTRIES_MAX) if e.is_dir(follow_symlinks=False)]


def temporaries(folder: int) -> list[str]:
    """Temporary names in the folder: half-written entries, or what a killed process left."""
    with os.scandir(folder) as found:
        return [e.name for e in itertools.islice(found, ENTRIES_MAX) if e.name.startswith(".")]


def temporary(name: str) -> str:
    """A fresh temporary name from which `temporary_for` finds `name` again."""
    return f".{name}~{secrets.token_hex(4)}"


def temporary_for(name: str) -> str:
    """The entry that a temporary name was made for."""
    return name[1:].partition("~")[0]


def exists(folder: int, name: str) -> bool:
    """Whether there is any entry of this name, links not followed."""
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def write_document(folder: int, name: str, value: Any) -> None:
    """Write canonical JSON under a temporary name and rename it over `name`."""
    draft = temporary(name)
    try:
        write_file(folder, draft, canonical.encode(value))
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        remove(folder, draft)
        raise


def make_folder(folder: int, name: str) -> None:
    """Make the folder `name`, open to the group where the mailbox is shared with one."""
    os.mkdir(name, dir_fd=folder)
    with open_folder(name, folder) as inside:
        _share_alike(inside, folder)


def share_folder(folder: int, group: int) -> None:
    """Give a folder to a group, with the mark by which all that is made in it goes to that group too."""
    os.fchown(folder, -1, group)
    os.fchmod(folder, stat.S_ISGID | 0o770)


def _is_shared(folder: int) -> bool:
    """Whether agent and trainer meet here under two accounts of one group: setgid, and theirs to write.

    Both, because on shared systems folders are often setgid for other reasons.
    """
    marks = stat.S_ISGID | stat.S_IWGRP
    return os.fstat(folder).st_mode & marks == marks


def _share_alike(entry: int, folder: int) -> None:
    """Let the group have what was made in a shared folder; the maker's umask would keep it out."""
    if _is_shared(folder):
        mode = stat.S_IMODE(os.fstat(entry).st_mode)
        # Who may read may write, as the maker may; into folders as well.
        os.fchmod(entry, mode | (mode & 0o700) >> 3)


def put_folder(folder: int, name: str, document: str, data: bytes, add_file: Callable[[int], None]) -> bool:
    """Make the folder `name` with the file `document` and what `add_file` puts beside it.

    `add_file` is given the new folder's descriptor. Returns False, and leaves nothing, if there is
    an entry of this name already.
    """
    draft = temporary(name)
    try:
        make_folder(folder, draft)
        with open_folder(draft, folder) as inside:
            write_file(inside, document, data)
            add_file(inside)
        placed = move_entry(folder, draft, folder, name)
    except BaseException:
        remove(folder, draft)
        raise
    if not placed:
        remove(folder, draft)
    return placed


def move_entry(source: int, name: str, target: int, new_name: str = "") -> bool:
    """Rename between two folders; False if the target is taken (nothing there is replaced)."""
    try:
        os.rename(name, new_name or name, src_dir_fd=source, dst_dir_fd=target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def write_file(folder: int, name: str, data: bytes) -> None:
    """Create the file `name` with these bytes; it must not exist."""
    with open(os.open(name, _CREATE_FLAGS, 0o666, dir_fd=folder), "wb") as file:
        _share_alike(file.fileno(), folder)
        file.write(data)


def read_document(
    folder: int, name: str, kind: type[T], *, bytes_max: int = DOCUMENT_BYTES_MAX, alone: bool = False
) -> T:
    """The dataclass `kind` from the JSON file `name`; `BadMailbox` if it is anything else.

    With `alone` a file that has a second hard link is refused, as in `check_file`.
    """
    with _regular_file(folder, name, alone) as (descriptor, size):
        if size > bytes_max:
            raise BadMailbox(f"mailbox entry {name!r} has {size} bytes, at most {bytes_max} are read")
        with open(descriptor, "rb", closefd=False) as file:
            # One byte more than allowed, because the file may grow while it is read.
            data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise BadMailbox(f"mailbox entry {name!r} grew beyond {bytes_max} bytes while it was read")
    try:
        return canonical.decode(kind, data)
    except RemoteError as error:
        raise BadMailbox(f"mailbox entry {name!r} does not fit its schema: {error}") from error


def check_file(folder: int, name: str, size_bytes: int) -> None:
    """`BadMailbox` unless `name` is a regular file of this size with no other hard link.

    A second link would let the other side pass off a file of ours, or keep a hand on the bytes.
    """
    with _regular_file(folder, name, alone=True) as (_, size):
        if size != size_bytes:
            raise BadMailbox(f"mailbox file {name!r} has {size} bytes, its document declares {size_bytes}")


@contextlib.contextmanager
def _regular_file(folder: int, name: str, alone: bool) -> Iterator[tuple[int, int]]:
    """(descriptor, size in bytes) of a regular file; anything else is refused unread."""
    descriptor = _open(name, _READ_FLAGS, folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadMailbox(f"mailbox entry {name!r} is not a regular file")
        if alone and found.st_nlink != 1:
            raise BadMailbox(f"mailbox file {name!r} is linked from {found.st_nlink} places")
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def share_file(source: Path, folder: int, name: str) -> None:
    """Hard-link `source` as `name`; copy where the file system cannot link.

    In a shared mailbox a file that not everybody may read is copied: a link would keep its rights.
    """
    if _is_shared(folder) and not source.stat().st_mode & stat.S_IROTH:
        copy_file(source, folder, name)
        return
    try:
        os.link(source, name, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EDQUOT):
            raise
        copy_file(source, folder, name)


def move_file(source: Path, folder: int, name: str) -> None:
    """Rename `source` to `name`; copy and remove where it lies on another file system."""
    try:
        os.rename(source, name, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_file(source, folder, name)
        source.unlink()
        return
    with _regular_file(folder, name, alone=False) as (descriptor, _):
        _share_alike(descriptor, folder)


def copy_file(source: Path, folder: int, name: str) -> None:
    """Copy the bytes of `source` to the new file `name`, 1 MiB at a time."""
    with (
        open(source, "rb") as reader,
        open(os.open(name, _CREATE_FLAGS, 0o666, dir_fd=folder), "wb") as writer,
    ):
        _share_alike(writer.fileno(), folder)
        shutil.copyfileobj(reader, writer, COPY_BYTES)


def remove(folder: int, name: str) -> None:
    """Take the entry out of sight by one rename, then delete it; absent is fine.

    What cannot be deleted (another user's folder, a tree too deep to walk, a file that is written
    at this moment) stays under its temporary name, which no reader looks at, for the next sweep.
    """
    hidden = name if name.startswith(".") else temporary(name)
    if hidden != name:
        try:
            os.rename(name, hidden, src_dir_fd=folder, dst_dir_fd=folder)
        except FileNotFoundError:
            return
    with contextlib.suppress(OSError, RecursionError):
        if stat.S_ISDIR(os.lstat(hidden, dir_fd=folder).st_mode):
            shutil.rmtree(hidden, dir_fd=folder)
        else:
            os.unlink(hidden, dir_fd=folder)
