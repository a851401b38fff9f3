"""Content-addressed files: what is named by its SHA-256 is either whole and right, or not there.

    <folder>/<digest>            a blob, complete and verified
    <folder>/partial/<digest>    an upload, its first bytes in order

A blob appears by one rename after its bytes were verified and synced, so a crash leaves a partial
file or a whole blob and nothing between. A partial one is hashed again when its upload goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

from fedtrain.core.orders import DIGEST
from fedtrain.errors import IntegrityError, NotFoundError, RemoteError, StorageError
from fedtrain.storage.filesystem import disk_errors, sync_folder

FREE_BYTES_MIN = 256 << 20
"""Left free for the journal and for finishing what has begun."""

READ_BYTES = 1 << 20

_PARTIAL_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Blobs:
    """The blobs in `folder`, which is made if it is missing. Safe to call from several threads.

    Args:
        folder: for blobs only.
        durable: sync to the disk before a blob counts. A coordinator's blobs must survive a power
            loss; an agent's can be fetched again, so it may pass False and save the waiting.
        free_bytes_min: new uploads are refused if they would leave less than this free.
    """

    def __init__(self, folder: Path, *, durable: bool = True, free_bytes_min: int = FREE_BYTES_MIN) -> None:
        self.folder = folder
        self.durable = durable
        self.free_bytes_min = free_bytes_min
        self._partial = folder / "partial"
        self._guard = threading.RLock()
        self._uploads: dict[str, Upload] = {}
        with disk_errors(f"create the blob folder {folder}"):
            self._partial.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is or would be; `RemoteError` if this is no digest."""
        return self.folder / _checked(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole."""
        return _is_file(self.path(digest))

    def size(self, digest: str) -> int:
        """Its size in bytes; `NotFoundError` if it is not here."""
        with self.open(digest) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, digest: str) -> BinaryIO:
        """The blob, to be read and closed; `NotFoundError` if it is not here."""
        path = self.path(digest)
        with disk_errors(f"open blob {path}"):
            try:
                return open(os.open(path, _READ_FLAGS), "rb")
            except FileNotFoundError:
                raise NotFoundError(
                    f"blob {digest} is not in {self.folder}; it must be fetched first"
                ) from None

    def check(self, digest: str) -> None:
        """Read the blob against its name; one that the disk has changed is removed.

        Raises `IntegrityError` then, and the blob can be requested again under the same name.
        """
        with self.open(digest) as file, disk_errors(f"read blob {digest} in {self.folder}"):
            found = _hash_of(file.fileno()).hexdigest()
        if found != digest:
            with disk_errors(f"remove the damaged blob {digest} from {self.folder}"):
                self.path(digest).unlink(missing_ok=True)
            raise IntegrityError(f"blob {digest} in {self.folder} was damaged and removed; request it again")

    def begin(self, digest: str, size_bytes: int) -> Upload:
        """Begin or resume an upload; of two callers for one digest both get the same upload.

        Raises:
            StorageError: too little space would be left, or the disk refuses.
            RemoteError: the digest is none, or the size is not that of the upload under way.
        """
        path = self.path(digest)
        if size_bytes < 0:
            raise RemoteError(f"a blob cannot have {size_bytes} bytes; send its right size")
        with self._guard:
            upload = self._uploads.get(digest)
            if upload is not None:
                upload.check_size(size_bytes)
                return upload
            stored = _is_file(path)
            source = path if stored else self._partial / digest
            with disk_errors(f"begin the upload {source}"):
                upload = Upload(self, digest, size_bytes, os.open(source, _flags(stored), 0o644), stored)
            try:
                upload.check_size(size_bytes)
                if not stored:
                    self._check_space(size_bytes - upload.received)
            except BaseException:
                upload.abandon()
                raise
            self._uploads[digest] = upload
            return upload

    def adopt(self, path: Path, digest: str, *, trusted: bool = False) -> Path:
        """Move a finished local file in; returns where it is now.

        Args:
            path: a regular file, which is gone afterwards, also if its content is another.
            digest: what its content must have.
            trusted: the caller has just computed the digest itself, so it is not computed again.

        Raises `IntegrityError` if the content is another.
        """
        target = self.path(digest)
        draft = self._partial / f".{digest}~{secrets.token_hex(4)}"
        with disk_errors(f"take {path} into the blob folder {self.folder}"):
            if not _is_file(path):
                raise IntegrityError(f"{path} is missing or no regular file, so it cannot become a blob")
            try:
                self._move(path, draft)
                descriptor = os.open(draft, _READ_FLAGS)
                try:
                    if not trusted and _hash_of(descriptor).hexdigest() != digest:
                        raise IntegrityError(f"the content of {path} does not have the digest {digest}")
                    self.place(descriptor, draft, target)
                finally:
                    os.close(descriptor)
            finally:
                draft.unlink(missing_ok=True)
        return target

    def collect(self, keep: Container[str]) -> int:
        """Remove every blob and idle partial upload whose digest is not in `keep`; bytes freed.

        `keep` is asked for each file as its turn comes, so it may be a live view.
        """
        freed = 0
        with self._guard, disk_errors(f"collect blobs in {self.folder}"):
            for folder in (self.folder, self._partial):
                for path in folder.iterdir():
                    digest = path.name.lstrip(".").partition("~")[0]
                    if not DIGEST.fullmatch(digest) or digest in keep or digest in self._uploads:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        freed += path.lstat().st_size
                        path.unlink()
        return freed

    def place(self, descriptor: int, draft: Path, target: Path) -> None:
        """Turn a verified file into a blob: sync, rename, sync the folder."""
        if self.durable:
            os.fsync(descriptor)
        draft.rename(target)
        if self.durable:
            sync_folder(self.folder)

    def forget(self, digest: str) -> None:
        """The upload of this digest has ended."""
        with self._guard:
            self._uploads.pop(digest, None)

    def _move(self, source: Path, draft: Path) -> None:
        try:
            source.rename(draft)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with open(os.open(source, _READ_FLAGS), "rb") as reader, open(draft, "xb") as writer:
                self._check_space(os.fstat(reader.fileno()).st_size)
                shutil.copyfileobj(reader, writer, READ_BYTES)
            source.unlink()

    def _check_space(self, size_bytes: int) -> None:
        with disk_errors(f"ask for the free space of {self.folder}"):
            disk = os.statvfs(self.folder)
        promised = sum(upload.size_bytes - upload.received for upload in self._uploads.values())
        free = disk.f_bavail * disk.f_frsize - promised
        if free - size_bytes < self.free_bytes_min:
            raise StorageError(
                f"{self.folder} has {max(free, 0)} bytes to spare, {size_bytes} are needed and "
                f"{self.free_bytes_min} must stay free; free some space, then try again"
            )


class Upload:
    """The bytes of one blob, arriving in order; get it from `Blobs.begin`.

    Attributes:
        received: bytes from the start that are here without a gap.
    """

    def __init__(self, blobs: Blobs, digest: str, size_bytes: int, descriptor: int, stored: bool) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self._blobs = blobs
        self._descriptor = descriptor
        self._stored = stored
        self._guard = threading.Lock()
        self._closed = False
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(f"{blobs.folder}: {digest} is not a regular file; remove it")
            self.received = found.st_size
            if stored:
                self.size_bytes = found.st_size
                return
            if found.st_size > size_bytes:
                os.ftruncate(descriptor, 0)  # of another, wrongly declared upload
                self.received = 0
            self._hash = _hash_of(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def check_size(self, size_bytes: int) -> None:
        """`RemoteError` unless this is the size that the upload is known to have."""
        if size_bytes != self.size_bytes:
            raise RemoteError(
                f"blob {self.digest} is known with {self.size_bytes} bytes, not {size_bytes}; "
                "send it with its right size"
            )

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Take `data` as the bytes from `offset` on; returns `received`.

        Bytes that are here already must agree and are not written twice.

        Raises:
            RemoteError: a gap, a disagreement, or bytes outside the blob. Nothing is written.
            StorageError: the disk refuses; what it took before counts, and the rest may be sent again.
        """
        view = memoryview(data)
        with self._guard, self._disk_errors("write to"):
            if offset < 0 or offset + len(view) > self.size_bytes:
                raise RemoteError(
                    f"bytes {offset} to {offset + len(view)} are outside blob {self.digest} "
                    f"of {self.size_bytes} bytes"
                )
            if offset > self.received:
                raise RemoteError(
                    f"bytes {self.received} to {offset - 1} of blob {self.digest} are missing; "
                    f"send on from byte {self.received}"
                )
            known = min(self.received - offset, len(view))
            if os.pread(self._descriptor, known, offset) != view[:known]:
                raise RemoteError(
                    f"bytes from {offset} of blob {self.digest} differ from those received before; "
                    "send the same bytes, or an upload of another digest"
                )
            rest = view[known:]
            while rest:
                count = os.pwrite(self._descriptor, rest, self.received)
                self._hash.update(rest[:count])
                self.received += count
                rest = rest[count:]
            return self.received

    def commit(self) -> Path:
        """Verify size and digest and make it a blob; returns its path. The upload is then closed.

        Raises:
            RemoteError: bytes are missing; the upload stays open.
            IntegrityError: the bytes have another digest; they are thrown away.
            StorageError: the disk refuses. What it may have lost unseen is thrown away.
        """
        path = self._blobs.path(self.digest)
        with self._guard:
            if self._closed and _is_file(path):
                return path
            with self._disk_errors("finish"):
                if self.received != self.size_bytes:
                    raise RemoteError(
                        f"bytes {self.received} to {self.size_bytes - 1} of blob {self.digest} are missing; "
                        "send them before the commit"
                    )
                if not self._stored:
                    self._finish(path)
            self._close()
        return path

    def abandon(self) -> None:
        """Close the upload and keep what is here, so that a later `begin` goes on."""
        with self._guard:
            self._close()

    def _finish(self, path: Path) -> None:
        draft = self._blobs.folder / "partial" / self.digest
        found = self._hash.hexdigest()
        if found != self.digest:
            self._discard(draft)
            raise IntegrityError(
                f"the bytes sent as blob {self.digest} have the digest {found}; "
                "they are thrown away, send it anew"
            )
        try:
            self._blobs.place(self._descriptor, draft, path)
        except OSError:
            # After a failed sync the kernel calls lost pages clean, so trying again would prove nothing.
            self._discard(draft)
            raise

    def _discard(self, draft: Path) -> None:
        draft.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
            self._blobs.forget(self.digest)

    @contextlib.contextmanager
    def _disk_errors(self, action: str) -> Iterator[None]:
        if self._closed:
            raise StorageError(f"the upload of blob {self.digest} is closed; begin it again")
        with disk_errors(f"{action} blob {self.digest} in {self._blobs.folder}"):
            yield


def _checked(digest: str) -> str:
    if DIGEST.fullmatch(digest) is None:
        raise RemoteError(f"{digest[:80]!r} is not a digest (64 lower-case hexadecimal digits)")
    return digest


def _flags(stored: bool) -> int:
    return _READ_FLAGS if stored else _PARTIAL_FLAGS


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _hash_of(descriptor: int) -> hashlib._Hash:
    """SHA-256 of the whole file, ready to take more."""
    digest = hashlib.sha256()
    place = 0
    while chunk := os.pread(descriptor, READ_BYTES, place):
        digest.update(chunk)
        place += len(chunk)
    return digest
