"""What this room needs to know of disks: which are remote, and what their refusals mean.

Everything that touches a disk does so inside `disk_errors`, so that no `OSError` leaves the room:
a person reads a sentence that names the folder and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fedtrain.errors import StorageError

NETWORK_TYPES = ("nfs", "lustre", "gpfs", "cifs", "smb", "beegfs", "ceph", "9p", "afs", "glusterfs", "fuse.")
"""Prefixes of file system types whose locks, memory maps or notifications cannot be relied on."""

MOUNT_TABLE = Path("/proc/mounts")

ADVICE = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "the quota is used up: free some space or raise it",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EIO: "the disk is failing: replace it, then restore from a backup",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: close some or raise the limit",
    errno.EACCES: "give this user the right to read and write there",
    errno.EPERM: "give this user the right to read and write there",
    errno.ENOENT: "check that the folder exists and is mounted",
}


@contextlib.contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Translate any `OSError` of the block into a `StorageError`: "cannot <action>: ..."."""
    try:
        yield
    except OSError as error:
        raise storage_error(action, error) from error


def storage_error(action: str, error: OSError) -> StorageError:
    """The sentence for a disk's refusal: what was tried, what it said, what to do next."""
    said = error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0, "check the disk and its permissions")
    return StorageError(f"cannot {action}: {said}; {advice}")


def network_type(path: Path) -> str:
    """The file system type of `path` if it is a network or user-space one, else "".

    Reads the kernel's mount table; where there is none (not Linux) every disk counts as local.
    """
    kind = _mounted_type(path.resolve())
    return kind if kind.startswith(NETWORK_TYPES) else ""


def _mounted_type(path: Path) -> str:
    """Type of the deepest mount that holds `path`; of two on one point, the later one counts."""
    try:
        lines = MOUNT_TABLE.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, best_depth = "", -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = Path(_unescape(fields[1]))
        depth = len(mount.parts)
        if depth >= best_depth and path.is_relative_to(mount):
            best, best_depth = fields[2], depth
    return best


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash of a mount point in octal."""
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, plain)
    return text


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
