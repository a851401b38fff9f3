"""Whether a journal is sound, asked at every start: the whole file, before anything is built on it.

SQLite's own check finds damaged pages; the chain finds a changed byte in any row and names the row;
the heads must be of these rows. Signatures are for `audit verify`, which has the keys.

The write-ahead log needs a look of our own. SQLite takes it up to the first frame whose checksum does
not hold and forgets the rest without a word, which is right for what a power loss tears: the last
transaction, whose append never returned. Commits behind that one were synced and acknowledged, so a log
that holds them was damaged later. (https://www.sqlite.org/fileformat2.html, sections 4.1 to 4.4, and
https://www.sqlite.org/walformat.html, section 2.1.) Damage to the very last transaction cannot be told
from a torn one.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from fedtrain.errors import IntegrityError
from fedtrain.storage.chain import GENESIS, Row, fault_of, follow
from fedtrain.storage.database import FAULTS, SELECT_ROWS, connect, database_errors, lenient_text
from fedtrain.storage.filesystem import disk_errors

_FOREIGN_HEAD = """
SELECT sequence FROM heads WHERE hash IS NOT (SELECT hash FROM rows WHERE rows.sequence = heads.sequence)
ORDER BY sequence LIMIT 1
"""


def check(connection: sqlite3.Connection, path: Path, remedy: str) -> tuple[int, str]:
    """(sequence, hash) of the last row of a sound journal; (0, 64 zeros) of an empty one.

    Raises `IntegrityError` that names file, row, the damaged thing and the remedy.
    """
    head = check_rows(connection, path, remedy)
    with database_errors(path, remedy):
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        foreign = connection.execute(_FOREIGN_HEAD).fetchone()
    if verdict != "ok":
        told = verdict.splitlines()[-1]
        raise IntegrityError(f"journal {path}: every row holds, but its file is damaged ({told}); {remedy}")
    if foreign is not None:
        raise IntegrityError(
            f"journal {path}: the signed head at row {foreign[0]} is not of that row, so it was changed; "
            f"{remedy}"
        )
    return head


def check_rows(connection: sqlite3.Connection, path: Path, remedy: str) -> tuple[int, str]:
    """As `check`, but only of the rows."""
    head = sound_rows(connection)
    rows = map(Row._make, _select(connection, head[0], path, remedy))
    try:
        for row in rows:
            if fault := fault_of(row, *head):
                raise IntegrityError(f"journal {path}: {fault}; {remedy}")
            head = row.sequence, row.hash
    except FAULTS as error:
        raise IntegrityError(
            f"journal {path}: what stands behind row {head[0]} cannot be read ({error}); {remedy}"
        ) from error
    return head


def sound_rows(connection: sqlite3.Connection) -> tuple[int, str]:
    """(sequence, hash) of the last row up to which the chain holds; damage behind it is not told."""
    head = 0, GENESIS
    # Plain text is decoded four times faster. Bytes that are none stop here, and are looked at again.
    connection.text_factory = str
    try:
        # TypeError: a value of another type, which its hash cannot be taken of.
        with suppress(*FAULTS, TypeError):
            for found in follow(connection.execute(f"{SELECT_ROWS} ORDER BY sequence")):
                head = found
    finally:
        connection.text_factory = lenient_text
    return head


def _select(connection: sqlite3.Connection, after: int, path: Path, remedy: str) -> sqlite3.Cursor:
    with database_errors(path, remedy):
        return connection.execute(f"{SELECT_ROWS} WHERE sequence > ? ORDER BY sequence", (after,))


_LOG_HEADER = struct.Struct(">8I")  # magic, version, page bytes, checkpoints, 2 salts, 2 checksums
_FRAME_HEADER = struct.Struct(">6I")  # page, pages after a commit or 0, 2 salts, 2 checksums
_LOG_MAGIC = 0x377F0682
_LAST_FRAME = slice(16, 20)
"""Where the shared index, whose integers are the machine's own, holds the last frame that is taken."""


def check_log(path: Path, remedy: str) -> None:
    """Hold that no acknowledged commit is left out of the log.

    Asked before a writer opens the journal: its connection would delete the log when it is closed.
    """
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if not path.is_file() or not log.is_file() or log.stat().st_size <= _LOG_HEADER.size:
        return
    with closing(connect(path, write=False)) as connection, database_errors(path, remedy):
        connection.execute("PRAGMA user_version").fetchone()  # has SQLite read the log
        with disk_errors(f"read {log}"), open(log, "rb") as file:
            taken = int.from_bytes(index.read_bytes()[_LAST_FRAME], sys.byteorder)
            lost = _commits_behind(file, taken)
    if lost:
        raise IntegrityError(
            f"journal {path}: its write-ahead log is damaged behind frame {taken}, and commits follow that "
            f"were acknowledged ({lost} at least); {remedy}"
        )


def _commits_behind(log: BinaryIO, taken: int) -> int:
    """Commits of this log behind frame `taken`, without the one that a power loss may have torn."""
    header = log.read(_LOG_HEADER.size)
    if len(header) < _LOG_HEADER.size:
        return 0
    _, _, page_bytes, _, *salts, _, _ = _LOG_HEADER.unpack(header)
    if not _header_holds(header):
        # It was synced before the first frame was written, so with frames behind it, it was whole.
        return 1 if any(log.read(1 << 16)) else 0
    frame_bytes = _FRAME_HEADER.size + page_bytes
    commits = 0
    log.seek(_LOG_HEADER.size + taken * frame_bytes)
    while len(frame := log.read(frame_bytes)) == frame_bytes:
        _, pages, *salted, _, _ = _FRAME_HEADER.unpack_from(frame)
        # An older frame that stands here has two other salts; a damaged one may have one of them.
        commits += (salted[0] == salts[0] or salted[1] == salts[1]) and pages > 0
    return max(0, commits - 1)


def _header_holds(header: bytes) -> bool:
    """Whether the log's header has its checksum, over words whose byte order its magic number tells."""
    (magic, *_, first, second) = _LOG_HEADER.unpack(header)
    if magic & ~1 != _LOG_MAGIC:
        return False
    words = struct.unpack((">" if magic & 1 else "<") + "6I", header[:24])
    one = two = 0
    for left, right in zip(words[::2], words[1::2], strict=True):
        one = (one + left + two) & 0xFFFFFFFF
        two = (two + right + one) & 0xFFFFFFFF
    return (one, two) == (first, second)
