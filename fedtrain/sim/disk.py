"""Disks: a journal whose writes may fail, blobs with their partial transfers, and what power loss takes.

What production syncs before it counts (journal rows, blobs of the coordinator, versions) survives
everything but a flipped bit. What it does not sync (partial transfers, a site's models and results)
survives a killed process and may be cut short by a loss of power.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

from fedtrain.core.ports import Entry, MemoryJournal
from fedtrain.errors import IntegrityError, RemoteError, StorageError
from fedtrain.sim.numbers import Version, digest_of
from fedtrain.sim.scene import Scene


class Trouble(enum.StrEnum):
    """What a journal's disk may answer instead of taking a batch."""

    FULL = "no space is left, the batch was not written"
    LOST = "the sync failed, and the batch is gone"
    KEPT = "the sync failed, and the batch is there"


class TroubledJournal:
    """A journal on a disk that may refuse. A batch is there whole or not at all, as SQLite promises.

    Args:
        trouble: asked before every append.
    """

    def __init__(self, inner: MemoryJournal, trouble: Callable[[], Trouble | None]) -> None:
        self._inner = inner
        self._trouble = trouble

    def append(self, entries: Sequence[Entry]) -> int:
        """Append all; `StorageError` if the disk refuses, and then nobody knows what it holds."""
        trouble = self._trouble()
        if trouble is None:
            return self._inner.append(entries)
        if trouble is Trouble.KEPT:
            self._inner.append(entries)
        raise StorageError(trouble.value)

    def read(self) -> Iterator[Entry]:
        """All rows, oldest first."""
        return self._inner.read()


def journal_trouble(scene: Scene, name: str) -> Trouble | None:
    """Whether the disk below this process's journal refuses now, and how."""
    rates = scene.plan.rates
    if scene.strikes(rates.journal_full, "journal finds no space", name):
        return Trouble.FULL
    how = scene.strikes(rates.sync_fails, "journal's sync fails", name)
    return how.choice((Trouble.LOST, Trouble.KEPT)) if how else None


class Store:
    """Blobs by digest and the first bytes of those that are on their way, as `storage.blobs` keeps them.

    Attributes:
        blobs: whole ones.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._partial: dict[str, bytes] = {}

    def received(self, digest: str) -> int:
        """Bytes from the start that are here without a gap."""
        return len(self.blobs.get(digest) or self._partial.get(digest, b""))

    def write(self, digest: str, size_bytes: int, offset: int, data: bytes) -> int:
        """Take `data` as the bytes from `offset` on; returns what is here now.

        Bytes that are here already must agree. `RemoteError` for a gap, a disagreement, or bytes outside.
        """
        here = self.blobs.get(digest) or self._partial.get(digest, b"")
        if offset < 0 or offset + len(data) > size_bytes or offset > len(here):
            raise RemoteError(f"bytes {offset} to {offset + len(data)} do not follow the {len(here)} here")
        known = here[offset : offset + len(data)]
        if known != data[: len(known)]:
            raise RemoteError(f"bytes from {offset} differ from those received before")
        rest = data[len(known) :]
        if rest:
            self._partial[digest] = here + rest
        return len(here) + len(rest)

    def commit(self, digest: str, size_bytes: int) -> None:
        """Make a blob of it. `RemoteError` if bytes are missing, `IntegrityError` if they are others."""
        if digest in self.blobs:
            return
        here = self._partial.get(digest, b"")
        if len(here) != size_bytes:
            raise RemoteError(f"{len(here)} of {size_bytes} bytes are here")
        del self._partial[digest]
        if digest_of(here) != digest:
            raise IntegrityError("the bytes have another digest, they are thrown away")
        self.blobs[digest] = here

    def discard_partial(self, digest: str) -> None:
        """The disk would not finish it: what it may have lost unseen is thrown away."""
        self._partial.pop(digest, None)

    def collect(self, keep: Container[str]) -> None:
        """Remove what is not in `keep`, partial or whole."""
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in keep}
        self._partial = {digest: data for digest, data in self._partial.items() if digest in keep}

    def check(self, digest: str) -> str:
        """What is wrong with this blob, "" for nothing. A damaged one is removed."""
        data = self.blobs.get(digest)
        if data is None:
            return "gone"
        if digest_of(data) == digest:
            return ""
        del self.blobs[digest]
        return "damaged"

    def flip(self, digest: str, how: random.Random) -> None:
        """One bit of this blob turns over."""
        self.blobs[digest] = flipped(self.blobs[digest], how)

    def lose_power(self, how: random.Random) -> None:
        """Partial transfers are cut short somewhere."""
        self._partial = {d: data[: how.randint(0, len(data))] for d, data in self._partial.items()}

    def copy(self) -> Store:
        """Another disk with the same content."""
        twin = Store()
        twin.blobs, twin._partial = dict(self.blobs), dict(self._partial)
        return twin


@dataclass
class CoordinatorDisk:
    """A coordinator's folder.

    Attributes:
        place: where it lies; a copy lies somewhere else.
        damaged_row: index of a journal's row that no longer verifies, None while all do.
    """

    place: str
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    store: Store = field(default_factory=Store)
    versions: dict[tuple[str, int], Version] = field(default_factory=dict)
    damaged_row: int | None = None

    def copy(self, place: str) -> CoordinatorDisk:
        """The folder as it is now, somewhere else."""
        twin = CoordinatorDisk(place, MemoryJournal(), self.store.copy(), dict(self.versions))
        twin.journal.entries = list(self.journal.entries)
        return twin


def flipped(data: bytes, how: random.Random) -> bytes:
    """The bytes with one bit turned over."""
    changed = bytearray(data)
    changed[how.randrange(len(data))] ^= 1 << how.randrange(8)
    return bytes(changed)
