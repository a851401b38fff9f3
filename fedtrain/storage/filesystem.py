"""What this room needs to know of disks: which are remote, and what their refusals mean.

Everything that touches a disk does so inside `disk_errors`, so that no `OSError` leaves the room:
a person reads a sentence that names the folder and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fedtrain.errors import StorageError

NETWORK_TYPES = ("nfs", "lustre", "gpfs", "cifs", "smb", "beegfs", "ceph", "9p", "afs", "glusterfs", "fuse.")
"""Prefixes of file system types whose locks, memory maps or notifications cannot be relied on."""

READ_BYTES = 1 << 20

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


def check_free(folder: Path, size_bytes: int, bytes_min: int, files_min: int = 0) -> None:
    """`StorageError` if `size_bytes` more leave less than so much free, or so few files can be made.

    A file system without a fixed number of files (btrfs) tells 0 of them and is never out of them.
    """
    with disk_errors(f"ask for the free space of {folder}"):
        disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free - size_bytes < bytes_min:
        raise StorageError(
            f"{folder} has {free} bytes to spare, {size_bytes} are needed and {bytes_min} must stay free; "
            "free some space, then try again"
        )
    if disk.f_files and disk.f_favail < files_min:
        raise StorageError(
            f"the file system of {folder} can make only {disk.f_favail} more files and {files_min} must stay "
            "free; delete some files, then try again"
        )


def is_file(path: Path) -> bool:
    """Whether there is a regular file, links not followed."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def hash_of(descriptor: int) -> hashlib._Hash:
    """SHA-256 of the whole file, ready to take more."""
    digest = hashlib.sha256()
    place = 0
    while chunk := os.pread(descriptor, READ_BYTES, place):
        digest.update(chunk)
        place += len(chunk)
    return digest


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


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make the folder and those above it that are missing, and make their names durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode)
        sync_folder(folder.parent)


def take_lock(lock: Path, claim: str) -> int:
    """Descriptor of the locked file, which names our process for whoever comes second.

    Args:
        claim: what its holder does, as in "another process already <claim>".
    """
    with disk_errors(f"open the lock {lock}"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise StorageError(
                f"another process (pid {holder if holder.isdigit() else 'unknown'}) already {claim}; "
                "stop it, or use another folder"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextlib.contextmanager
def lock_file(lock: Path, claim: str) -> Iterator[None]:
    """Hold `take_lock` for a while."""
    descriptor = take_lock(lock, claim)
    try:
        yield
    finally:
        os.close(descriptor)
