"""Content-addressed files: what is named by its SHA-256 is either whole and right, or not there.

    <folder>/<digest>            a blob, complete and verified
    <folder>/partial/<digest>    an upload, its first bytes in order
    <folder>/damaged/<digest>    a blob that the disk has changed: evidence, never read again

A blob appears by one rename after its bytes were verified and synced, so a crash leaves a partial
file or a whole blob and nothing between. A partial one is hashed again when its upload goes on. A blob
counts only when its name is on the disk too: one that is found in its place may have been renamed by a
process that was killed before it could sync the folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Container
from pathlib import Path
from typing import BinaryIO

from fedtrain.core.orders import DIGEST
from fedtrain.errors import IntegrityError, NotFoundError, RemoteError
from fedtrain.storage.filesystem import (
    READ_BYTES,
    check_free,
    disk_errors,
    hash_of,
    is_file,
    make_folder,
    sync_folder,
)
from fedtrain.storage.uploads import Upload

_log = logging.getLogger(__name__)

FREE_BYTES_MIN = 256 << 20
"""Left free for the journal and for finishing what has begun."""

FREE_FILES_MIN = 256
"""As `FREE_BYTES_MIN`, of files that the file system can still make."""

PROOF_S = 600.0
"""How long a proof holds: far longer than the sites of a round take to fetch a version one by one."""

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
        self._proving = threading.Lock()
        self._proved_s: dict[str, float] = {}
        with disk_errors(f"create the blob folder {folder}"):
            if durable:
                make_folder(self._partial)
            self._partial.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is or would be; `RemoteError` if this is no digest."""
        return self.folder / _checked(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole."""
        return is_file(self.path(digest))

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
        """Read the blob against its name; one that the disk has changed is moved aside.

        Raises `IntegrityError` then, and the blob can be requested again under the same name.
        """
        with self.open(digest) as file, disk_errors(f"read blob {digest} in {self.folder}"):
            found = hash_of(file.fileno()).hexdigest()
        if found != digest:
            aside = self.folder / "damaged"
            with disk_errors(f"move the damaged blob {digest} aside in {self.folder}"):
                aside.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    self.path(digest).rename(aside / digest)
            raise IntegrityError(
                f"blob {digest} is damaged and lies in {aside} now: check the disk, and request it again or "
                f"copy it back from objects/{digest} of a backup"
            )

    def prove(self, digest: str) -> None:
        """Before a blob leaves: `check` it, unless this process has made or checked it just now.

        A disk that changes bytes is found within `PROOF_S` of being read, at the price of one pass per
        version and coordinator's life. Of many who ask at once, one reads and the others wait for it.
        """
        with self._proving:
            proved_s = self._proved_s.get(digest)
            if proved_s is None or time.monotonic() - proved_s >= PROOF_S:
                self._proved_s.pop(digest, None)
                try:
                    self.check(digest)
                except IntegrityError as error:
                    _log.error("%s", error)
                    raise
                self._proved_s[digest] = time.monotonic()

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
            stored = is_file(path)
            source = path if stored else self._partial / digest
            if not stored:
                self.check_space(size_bytes - _size_of(source))
            with disk_errors(f"begin the upload {source}"):
                upload = Upload(self, digest, size_bytes, os.open(source, _flags(stored), 0o644), stored)
            try:
                upload.check_size(size_bytes)
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
            if not is_file(path):
                raise IntegrityError(f"{path} is missing or no regular file, so it cannot become a blob")
            try:
                self._move(path, draft)
                descriptor = os.open(draft, _READ_FLAGS)
                try:
                    if not trusted and hash_of(descriptor).hexdigest() != digest:
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
            for folder in (self.folder, self._partial, self.folder / "damaged"):
                for path in folder.iterdir() if folder.is_dir() else ():
                    digest = path.name.lstrip(".").partition("~")[0]
                    if not DIGEST.fullmatch(digest) or digest in keep or digest in self._uploads:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        freed += path.lstat().st_size
                        path.unlink()
                        self._proved_s.pop(digest, None)
        return freed

    def place(self, descriptor: int, draft: Path, target: Path) -> None:
        """Turn a verified file into a blob: sync, rename, sync the folder."""
        if self.durable:
            os.fsync(descriptor)
        draft.rename(target)
        self.settle(target)
        self._proved_s[target.name] = time.monotonic()

    def settle(self, target: Path) -> None:
        """Make the blob's name durable. If that fails it is taken away again: nobody may count on it."""
        if self.durable:
            try:
                sync_folder(self.folder)
            except OSError:
                target.unlink(missing_ok=True)
                raise

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
                self.check_space(os.fstat(reader.fileno()).st_size)
                shutil.copyfileobj(reader, writer, READ_BYTES)
            source.unlink()

    def check_space(self, size_bytes: int) -> None:
        """`StorageError` if so many new bytes, or one more file, would leave too little free."""
        with self._guard:
            promised = sum(upload.size_bytes - upload.received for upload in self._uploads.values())
        check_free(self.folder, size_bytes + promised, self.free_bytes_min, FREE_FILES_MIN)


def _checked(digest: str) -> str:
    if DIGEST.fullmatch(digest) is None:
        raise RemoteError(f"{digest[:80]!r} is not a digest (64 lower-case hexadecimal digits)")
    return digest


def _flags(stored: bool) -> int:
    return _READ_FLAGS if stored else _PARTIAL_FLAGS


def _size_of(path: Path) -> int:
    """Size of the file, 0 if there is none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
