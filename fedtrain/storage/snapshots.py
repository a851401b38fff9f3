"""Snapshots of a machine's state, so that a start after years folds only the last rows.

A snapshot is read if it is of this chain, undamaged, and of a state with today's shape; else the one
before it, else the rows from the first one on. So a snapshot can be lost, damaged or written by
another version, and costs time, never the state. It is a shortcut and no evidence: whoever can write
the journal's file could forge one, which is why an audit looks at rows and signed heads only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from fedtrain.core import canonical
from fedtrain.core.driver import Timed, fold
from fedtrain.errors import RemoteError
from fedtrain.storage.chain import Snapshot, digest_of
from fedtrain.storage.journal import Journal

S = TypeVar("S")
E = TypeVar("E", bound=Timed)
F = TypeVar("F")

_log = logging.getLogger(__name__)

SPACING_ROWS = 2_000
"""Rows between two snapshots: 0.2 s of folding at a start."""

SPACING_SHARE = 50
"""In a long journal, one such part of it: a state grows with its rows, so all snapshots of n rows
together cost O(n) instead of O(n²). At 100,000 rows a start folds at most 2,000."""

COMPRESSION = 1
"""zlib's fastest: a tenth of the bytes in 50 ms for 11 MB, so the journal is held up less."""

_spell = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Not sorted: a mapping comes back in its own order, so a fold goes on exactly as it would have."""


class Snapshots(Generic[S]):
    """The snapshots of one machine in its journal.

    Args:
        journal: open, by its writer.
        kind: the machine's state, a frozen dataclass.
    """

    def __init__(self, journal: Journal, kind: type[S]) -> None:
        self._journal = journal
        self._kind = kind
        self._format = canonical.shape(kind)
        self._newest = 0

    def recover(
        self, step: Callable[[S, E], tuple[S, tuple[F, ...]]], empty: S, kinds: Mapping[str, type[E]]
    ) -> S:
        """The state after everything that the journal holds."""
        with _collector_at_rest():
            found = self._newest_fit()
            if found is not None:
                self._newest, empty = found
            return fold(self._journal.read(after=self._newest), step, empty, kinds)

    @property
    def due(self) -> bool:
        """Whether so many rows stand behind the newest snapshot that a new one is worth its price."""
        return self.rows_behind >= max(SPACING_ROWS, self._journal.head[0] // SPACING_SHARE)

    @property
    def rows_behind(self) -> int:
        """Rows that the next start would have to fold."""
        return self._journal.head[0] - self._newest

    def keep(self, state: S, head: tuple[int, str] | None = None) -> None:
        """Keep `state`, which is that of the row `head` (sequence, hash), by default of the last one.

        May run in a thread; then the caller has taken state and head together. Raises `StorageError`
        if the disk refuses; the older snapshot is still there then.
        """
        head = head or self._journal.head
        payload = zlib.compress(_spell(canonical.to_plain(state)).encode(), COMPRESSION)
        sequence, row_hash = head
        digest = digest_of(sequence, row_hash, self._format, payload)
        self._journal.keep_snapshot(Snapshot(sequence, row_hash, self._format, payload, digest))
        self._newest = max(self._newest, sequence)

    def _newest_fit(self) -> tuple[int, S] | None:
        for snapshot in self._journal.snapshots():
            if fault := self._fault_of(snapshot):
                _log.warning(
                    "%s: the snapshot at row %s is passed over: %s",
                    self._journal.path,
                    snapshot.sequence,
                    fault,
                )
                continue
            try:
                return snapshot.sequence, canonical.decode(self._kind, zlib.decompress(snapshot.payload))
            except (RemoteError, zlib.error) as error:
                _log.warning(
                    "%s: the snapshot at row %d cannot be read: %s",
                    self._journal.path,
                    snapshot.sequence,
                    error,
                )
        return None

    def _fault_of(self, snapshot: Snapshot) -> str:
        """Why a snapshot is not the state of this journal, "" if it is."""
        if list(map(type, snapshot)) != [int, str, str, bytes, str]:
            return "it holds values of another type"
        if digest_of(*snapshot[:4]) != snapshot.digest:
            return "it is damaged"
        if snapshot.format != self._format:
            return "another version of fedtrain wrote it"
        if self._journal.hash_at(snapshot.sequence) != snapshot.hash:
            return "it is of another journal"
        return ""


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Without the cycle collector: a state has no cycles and many objects (0.35 against 0.55 s)."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
