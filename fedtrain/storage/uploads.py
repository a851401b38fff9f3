"""The bytes of one blob on their way in: in order, resumable at the byte, verified at the end."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedtrain.errors import IntegrityError, RemoteError, StorageError
from fedtrain.storage.filesystem import check_free, disk_errors, hash_of, is_file

if TYPE_CHECKING:
    from fedtrain.storage.blobs import Blobs

WRITE_SHARE = 2
"""An upload that has begun may use half of what is left free: it was promised its place."""


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
            self._hash = hash_of(descriptor)
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
            if rest:
                check_free(self._blobs.folder, len(rest), self._blobs.free_bytes_min // WRITE_SHARE)
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
            if self._closed and is_file(path):
                return path
            with self._disk_errors("finish"):
                if self.received != self.size_bytes:
                    raise RemoteError(
                        f"bytes {self.received} to {self.size_bytes - 1} of blob {self.digest} are missing; "
                        "send them before the commit"
                    )
                if self._stored:
                    self._blobs.settle(path)
                else:
                    self._finish(path)
            self._close()
        return path

    def abandon(self) -> None:
        """Close the upload and keep what is here, so that a later `begin` goes on."""
        with self._guard:
            self._close()

    def discard(self) -> None:
        """Close the upload and throw away what is here: nobody will go on with it."""
        with self._guard, disk_errors(f"remove what came of blob {self.digest}"):
            if not self._closed and not self._stored:
                (self._blobs.folder / "partial" / self.digest).unlink(missing_ok=True)
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
