"""Verification of a journal, also of one that is being written: is it what it was?

The chain proves that rows belong together; only signed heads prove that they are the rows that
were there: whoever can write the file can also recompute the whole chain, or cut off its end. So
heads that *others* kept count most.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fedtrain.storage.chain import GENESIS, Row, SignedHead, fault_of
from fedtrain.storage.database import FAULTS, SELECT_HEADS, SELECT_ROWS, connect, translate

PROBLEMS_MAX = 100
"""Problems that are told one by one; a damaged file may have one per row."""

CheckSignature = Callable[[bytes, bytes, str], bool]
"""(message, signature, key id) -> whether that key signed that message."""


@dataclass(frozen=True)
class AuditReport:
    """What was found: `problems` is empty if and only if the journal holds.

    Attributes:
        rows: rows read.
        head: (sequence, hash) of the last one, (0, 64 zeros) if there is none.
        heads_checked: signed heads, own and foreign, that agree with the rows and verify.
        problems: one sentence each, oldest row first.
    """

    rows: int
    head: tuple[int, str]
    heads_checked: int
    problems: tuple[str, ...]


def verify(
    path: Path, check_signature: CheckSignature, foreign_heads: Iterable[SignedHead] = ()
) -> AuditReport:
    """Hold every row against the chain, and the chain against every signed head.

    Reads one snapshot, so a live journal may be appended to meanwhile. Problems are reported, not
    raised; `StorageError` only if there is no such file or the disk refuses.
    """
    scan = _Scan(list(foreign_heads))
    with closing(connect(path, write=False)) as connection:
        try:
            connection.execute("BEGIN")
            scan.read_heads(connection)
            scan.read_rows(connection)
        except FAULTS as error:
            scan.problems.append(f"behind row {scan.head[0]}: {translate(path, error)}")
    checked = 0
    for signed in sorted(scan.heads, key=lambda head: head.sequence):
        fault = _fault_of_head(signed, scan, check_signature)
        if fault:
            scan.problems.append(fault)
        else:
            checked += 1
    return AuditReport(scan.rows, scan.head, checked, _shorten(scan.problems))


class _Scan:
    """What one pass over the file has seen so far."""

    def __init__(self, foreign_heads: list[SignedHead]) -> None:
        self.heads = foreign_heads
        self.rows = 0
        self.head: tuple[int, str] = (0, GENESIS)
        self.hashes: dict[int, str] = {}
        self.problems: list[str] = []

    def read_heads(self, connection: sqlite3.Connection) -> None:
        for values in connection.execute(SELECT_HEADS):
            if [type(value) for value in values] == [str, int, str, int, str, str]:
                self.heads.append(SignedHead(*values))
            else:
                self.problems.append("a signed head holds values of another type: it was changed")

    def read_rows(self, connection: sqlite3.Connection) -> None:
        wanted = {head.sequence for head in self.heads}
        fault = ""
        for row in map(Row._make, connection.execute(f"{SELECT_ROWS} ORDER BY sequence")):
            self.rows += 1
            # A row at fault is told once: that the next one does not follow it is no news.
            fault = fault_of(row, self.head[0], row.previous if fault else self.head[1])
            if fault:
                self.problems.append(fault)
            if type(row.sequence) is int:
                self.head = (row.sequence, row.hash)
                if row.sequence in wanted:
                    self.hashes[row.sequence] = row.hash


def _fault_of_head(signed: SignedHead, scan: _Scan, check_signature: CheckSignature) -> str:
    """What is wrong with one signed head, "" if nothing."""
    place = f"head signed at row {signed.sequence} by key {signed.key_id!r}"
    try:
        signature = bytes.fromhex(signed.signature)
    except ValueError:
        return f"{place}: its signature is not hexadecimal"
    # A head that its key did not sign proves nothing about the rows, so it is not held against them.
    if not check_signature(signed.message(), signature, signed.key_id):
        return f"{place}: the signature does not verify"
    if signed.sequence > scan.head[0]:
        return f"{place}: the journal ends at row {scan.head[0]}, so the rows behind it were cut off"
    if scan.hashes.get(signed.sequence) != signed.hash:
        return f"{place}: row {signed.sequence} has another hash, so it or a row before it was rewritten"
    return ""


def _shorten(problems: list[str]) -> tuple[str, ...]:
    if len(problems) <= PROBLEMS_MAX:
        return tuple(problems)
    return (*problems[:PROBLEMS_MAX], f"and {len(problems) - PROBLEMS_MAX} more problems")
