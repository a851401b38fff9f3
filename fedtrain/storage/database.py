"""SQLite as the journal uses it: the schema, connections, and its errors in our words."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path

from fedtrain.errors import ConfigError, FedtrainError, IntegrityError, StorageError

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE rows (
    sequence INTEGER PRIMARY KEY,
    at_ms    INTEGER NOT NULL,
    run      TEXT NOT NULL,
    kind     TEXT NOT NULL,
    payload  TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash     TEXT NOT NULL
) STRICT;
CREATE TABLE heads (
    consortium TEXT NOT NULL,
    sequence   INTEGER NOT NULL,
    hash       TEXT NOT NULL,
    at_ms      INTEGER NOT NULL,
    signature  TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    PRIMARY KEY (sequence, key_id)
) STRICT;
"""

SCHEMA_OF_SNAPSHOTS = """
CREATE TABLE snapshots (
    sequence INTEGER PRIMARY KEY,
    hash     TEXT NOT NULL,
    format   TEXT NOT NULL,
    payload  BLOB NOT NULL,
    digest   TEXT NOT NULL
) STRICT;
"""
"""Since schema 2."""

STEPS = (SCHEMA, SCHEMA_OF_SNAPSHOTS)
"""What to execute to get from each schema to the next, beginning with an empty file."""

SELECT_ROWS = "SELECT sequence, at_ms, run, kind, payload, previous, hash FROM rows"
SELECT_SNAPSHOTS = "SELECT sequence, hash, format, payload, digest FROM snapshots ORDER BY sequence DESC"
SELECT_HEADS = (
    "SELECT consortium, sequence, hash, at_ms, signature, key_id FROM heads ORDER BY sequence, key_id"
)

BUSY_S = 30.0
"""How long to wait for another process' lock: longer than an audit of a long journal takes."""

_PHRASES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space, then try again",
    sqlite3.SQLITE_IOERR: "the disk failed to read, write or sync; check the disk, then restart",
    sqlite3.SQLITE_READONLY: "it is read-only; give this user the right to write it",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and is writable",
    sqlite3.SQLITE_PERM: "access is denied; give this user the right to read and write it",
    sqlite3.SQLITE_BUSY: "another process keeps it locked; wait until that one is done",
}

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)

RESTORE = "restore the file from its last backup"
"""What to do about a damaged journal, where the owner names no command for it."""


lenient_text = methodcaller("decode", "utf-8", "surrogateescape")
"""Bytes that are no UTF-8 must reach the hash check, which names their row."""


FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite's module raises. The second is a damaged schema, whose bytes it cannot put into its message."""


def error_code(error: Exception) -> int:
    """SQLite's primary result code, 0 if the error did not come from SQLite itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def translate(path: Path, error: Exception, remedy: str = RESTORE) -> FedtrainError:
    """`IntegrityError` for a damaged or foreign file, `StorageError` for everything else."""
    code = error_code(error)
    # A table or column that is not there means that somebody else made or edited the file.
    missing = code == sqlite3.SQLITE_ERROR and "no such" in str(error)
    if missing or code in _DAMAGED or isinstance(error, UnicodeDecodeError):
        return IntegrityError(f"{path} is damaged or no journal ({error}); {remedy}")
    return StorageError(f"journal {path}: {_PHRASES.get(code, f'SQLite refused ({error})')}")


@contextlib.contextmanager
def database_errors(path: Path, remedy: str = RESTORE) -> Iterator[None]:
    """Translate what SQLite raises inside the block."""
    try:
        yield
    except FAULTS as error:
        raise translate(path, error, remedy) from error


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; without `write` the file must exist and stays untouched."""
    if not write and not path.is_file():
        raise StorageError(f"there is no journal at {path}; check the path")
    mode = "rwc" if write else "ro"
    with database_errors(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
    connection.text_factory = lenient_text
    return connection


def prepare(connection: sqlite3.Connection, path: Path, *, rollback: bool) -> None:
    """Set the durability of a writer's connection, and make the tables that are missing."""
    connection.execute(f"PRAGMA journal_mode={'DELETE' if rollback else 'WAL'}")
    connection.execute("PRAGMA synchronous=FULL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= SCHEMA_VERSION:
        raise ConfigError(
            f"is a journal of schema {version}, this fedtrain reads schemas up to {SCHEMA_VERSION}; "
            "use the version of fedtrain that wrote it",
            file=str(path),
        )
    if version < SCHEMA_VERSION:
        missing = " ".join(STEPS[version:])
        connection.executescript(f"BEGIN; {missing} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
