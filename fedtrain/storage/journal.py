"""The journal: every decision's event, durable before anything is done about it.

One SQLite file per coordinator and per agent, appended by one writer and readable by anyone at the
same time. `append` returns when its rows are on the disk, or raises and none of them is there. After
a failed write or sync nobody can know what the disk holds, so the journal then refuses everything:
the process must stop, and a restart reads what really is there.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Self

from fedtrain.core.ports import Entry
from fedtrain.errors import FedtrainError, IntegrityError, LocalError, StorageError
from fedtrain.storage.chain import GENESIS, Row, SignedHead, append_row, fault_of
from fedtrain.storage.database import (
    RESTORE,
    SELECT_HEADS,
    SELECT_ROWS,
    connect,
    database_errors,
    error_code,
    prepare,
    translate,
)
from fedtrain.storage.filesystem import disk_errors, network_type, sync_folder

__all__ = ["Entry", "Journal", "Row", "SignedHead"]

PAGE_ROWS = 1_000
"""Rows that `read` fetches at once: short statements, so that a reader never holds up a writer."""

_HARMLESS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)
"""Refusals after which SQLite has rolled back cleanly, so that a later append may succeed."""


class Journal:
    """An open journal; use `Journal.open`. Safe to call from several threads.

    Attributes:
        path: the file.
        note: what a person should know, e.g. that the file system is remote; "" if nothing.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None, note: str) -> None:
        self.path = path
        self.note = note
        self._connection = connection
        self._lock = lock
        self._guard = threading.Lock()
        self._poison = ""
        self._head = _last_row(connection)

    @classmethod
    def open(cls, path: Path, writer: bool = True, lock: Path | None = None) -> Self:
        """Open the journal at `path`; a writer makes it if there is none.

        Args:
            path: the file; its folder must exist.
            writer: take the lock and allow `append`. There is one writer at a time.
            lock: the lock's file, by default `path` with `.lock` behind it.

        Raises:
            StorageError: another process is the writer, or the disk refuses.
            IntegrityError: the file is damaged or is no journal.
        """
        path = Path(path)
        remote = network_type(path.parent)
        note = f"{path} lies on {remote}: a rollback journal is used, appends are slower" if remote else ""
        held = _take_lock(lock or path.with_name(path.name + ".lock"), path) if writer else None
        connection = None
        try:
            connection = connect(path, write=writer)
            with database_errors(path):
                if writer:
                    prepare(connection, path, rollback=bool(remote))
                    with disk_errors(f"sync the folder {path.parent}"):
                        sync_folder(path.parent)
                return cls(path, connection, held, note)
        except BaseException:
            if connection is not None:
                connection.close()
            if held is not None:
                os.close(held)
            raise

    @property
    def head(self) -> tuple[int, str]:
        """(sequence, hash) of the last row; (0, 64 zeros) of an empty journal."""
        with self._guard:
            if self._lock is None:
                with database_errors(self.path):
                    self._head = _last_row(self._connection)
            return self._head

    def append(self, entries: Sequence[Entry]) -> int:
        """Write all entries or none; returns the last sequence, when they are on the disk."""
        with self._guard:
            sequence, previous = self._head
            rows: list[Row] = []
            for entry in entries:
                row = append_row(entry, sequence + 1, previous)
                sequence, previous = row.sequence, row.hash
                rows.append(row)
            self._write("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._head = sequence, previous
            return sequence

    def add_head(self, head: SignedHead) -> None:
        """Keep a signed head of this journal; the same head twice is kept once."""
        if [row[::6] for row in self._page(head.sequence - 1, None, 1)] != [(head.sequence, head.hash)]:
            raise LocalError(f"the head at row {head.sequence} is not one of journal {self.path}")
        with self._guard:
            self._write("INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?)", [astuple(head)])

    def heads(self) -> list[SignedHead]:
        """All signed heads, oldest first."""
        with self._guard, database_errors(self.path):
            return [SignedHead(*values) for values in self._connection.execute(SELECT_HEADS)]

    def read(self, after: int = 0, kinds: Collection[str] | None = None) -> Iterator[Row]:
        """Rows behind sequence `after`, in order, of these kinds or of all.

        Every row is held against its hash on the way, and against the row before unless `kinds`
        leaves some out; the first one that does not fit is an `IntegrityError` that names it.
        """
        last = after
        last_hash = GENESIS if after == 0 else ""
        while page := self._page(last, kinds, PAGE_ROWS):
            for row in page:
                if kinds is not None:
                    last, last_hash = row.sequence - 1, row.previous
                fault = fault_of(row, last, last_hash or row.previous)
                if fault:
                    raise IntegrityError(f"journal {self.path}: {fault}; {RESTORE}")
                last, last_hash = row.sequence, row.hash
                yield row

    def backup(self, target: Path) -> None:
        """Copy a consistent state into the one file `target`, replacing it when it is whole."""
        draft = target.with_name(f".{target.name}.part")
        with disk_errors(f"back up the journal to {target}"):
            draft.unlink(missing_ok=True)
            source, copy = connect(self.path, write=False), connect(draft, write=True)
            try:
                with database_errors(self.path):
                    source.backup(copy)
                    # Without a write-ahead log, so that the one file is the whole copy.
                    copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                source.close()
                copy.close()
            draft.replace(target)
            sync_folder(target.parent)

    def close(self) -> None:
        """Give up the file and the lock; closing twice is fine."""
        with self._guard:
            self._poison = self._poison or f"journal {self.path} is closed"
            self._connection.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _page(self, after: int, kinds: Collection[str] | None, limit: int) -> list[Row]:
        wanted = f" AND kind IN ({','.join('?' * len(kinds))})" if kinds is not None else ""
        query = f"{SELECT_ROWS} WHERE sequence > ?{wanted} ORDER BY sequence LIMIT ?"
        with self._guard, database_errors(self.path):
            return [Row(*r) for r in self._connection.execute(query, (after, *(kinds or ()), limit))]

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """One durable transaction. The caller holds the guard."""
        if self._poison:
            raise StorageError(self._poison)
        if self._lock is None:
            raise LocalError(f"journal {self.path} was opened for reading only")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._give_up(error) from error

    def _give_up(self, error: sqlite3.Error) -> FedtrainError:
        """Roll back; unless that is clean, no later append may pretend to know the disk."""
        told = translate(self.path, error)
        clean = error_code(error) in _HARMLESS
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            clean = False
        if not clean:
            self._poison = f"an earlier write failed, so nothing more is written until a restart: {told}"
        return told


def _last_row(connection: sqlite3.Connection) -> tuple[int, str]:
    found = connection.execute("SELECT sequence, hash FROM rows ORDER BY sequence DESC LIMIT 1").fetchone()
    return (int(found[0]), str(found[1])) if found else (0, GENESIS)


def _take_lock(lock: Path, path: Path) -> int:
    """Descriptor of the locked file, which names our process for whoever comes second."""
    with disk_errors(f"open the lock {lock}"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise StorageError(
                f"another process (pid {holder if holder.isdigit() else 'unknown'}) already writes journal "
                f"{path}; stop it, or use another folder"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
