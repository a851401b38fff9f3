"""Verification of a journal, also of one that is being written: is it what it was?

The chain proves that rows belong together (`storage.tampering`); only signed heads prove that they are the
rows that were there: whoever can write the file can also recompute the whole chain, or cut off its end.
So heads that *others* kept count most, and two heads of one row that differ prove, by themselves, that
their signer told two histories.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fedtrain.storage.chain import Row, SignedHead
from fedtrain.storage.database import FAULTS, SELECT_HEADS, SELECT_ROWS, connect, translate
from fedtrain.storage.tampering import Examination, Problem, in_short

PROBLEMS_MAX = 100
"""Problems that are told one by one; a damaged file may have one per row."""

OWN = "the journal itself"
"""Who keeps the heads that lie in the journal."""

WITNESSED = "HeadWitnessed"
"""Kind of the rows in which a site's journal keeps the coordinator's heads."""

CheckSignature = Callable[[bytes, bytes, str], bool]
"""(message, signature, key id) -> whether that key signed that message."""


@dataclass(frozen=True)
class KeptHead:
    """A signed head and who showed it. `file` is where it was found."""

    signed: SignedHead
    witness: str
    file: str

    @property
    def place(self) -> tuple[int, str]:
        return self.signed.sequence, self.signed.hash


@dataclass(frozen=True)
class AuditReport:
    """What was found: `problems` is empty if and only if the journal holds.

    Attributes:
        rows: rows read.
        head: (sequence, hash) of the last one, (0, 64 zeros) if there is none.
        heads_checked: signed heads, own and foreign, that agree with the rows and verify.
        problems: oldest row first.
        witnesses: who keeps how many of the heads that were checked, and the newest of them.
    """

    rows: int
    head: tuple[int, str]
    heads_checked: int
    problems: tuple[Problem, ...]
    witnesses: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def verify(
    path: Path, check_signature: CheckSignature, foreign_heads: Iterable[KeptHead] = ()
) -> AuditReport:
    """Hold every row against the chain, and the chain against every signed head.

    Reads one snapshot, so a live journal may be appended to meanwhile. Problems are reported, not
    raised; `StorageError` only if there is no such file or the disk refuses.
    """
    problems: list[Problem] = []
    examination = Examination()
    heads = list(foreign_heads)
    hashes: dict[int, str] = {}
    with closing(connect(path, write=False)) as connection:
        try:
            connection.execute("BEGIN")
            heads += _own_heads(connection, path, problems)
            wanted = {head.signed.sequence for head in heads}
            for row in map(Row._make, connection.execute(f"{SELECT_ROWS} ORDER BY sequence")):
                examination.take(row)
                if type(row.sequence) is int and row.sequence in wanted:
                    hashes[row.sequence] = row.hash
        except FAULTS as error:
            last = examination.head[0]
            problems.append(Problem("damaged", last + 1, f"behind row {last}: {translate(path, error)}"))
    problems += examination.problems()
    signed, unsigned = _sorted_out(heads, check_signature)
    agreeing = [head for head in signed if hashes.get(head.signed.sequence) == head.signed.hash]
    problems += unsigned
    problems += equivocations(signed)
    problems += _cut_off(signed, examination.head[0])
    problems += _rewritten(signed, hashes, examination.head[0])
    problems.sort(key=lambda problem: problem.sequence)
    return AuditReport(
        examination.rows,
        examination.head,
        len(agreeing),
        in_short(problems, PROBLEMS_MAX),
        _witnesses(agreeing),
    )


def witnessed(path: Path, key_id: str, witness: str) -> Iterator[KeptHead]:
    """The coordinator's heads that a site's journal keeps in its rows.

    Args:
        key_id: of the coordinator's key, which the rows do not name.
        witness: the site.
    """
    with closing(connect(path, write=False)) as connection:
        query = f"{SELECT_ROWS} WHERE kind = ? ORDER BY sequence"
        try:
            for row in map(Row._make, connection.execute(query, (WITNESSED,))):
                signed = _head_in(row, key_id)
                if signed is not None:  # else the row was altered, which its hash tells
                    yield KeptHead(signed, witness, f"{path}, row {row.sequence}")
        except FAULTS:
            return  # `verify` says where the file is damaged


def _head_in(row: Row, key_id: str) -> SignedHead | None:
    """The head that a row tells of, None if it tells of none."""
    try:
        told = json.loads(row.payload)
        values = [told[name] for name in ("consortium", "sequence", "hash", "signed_ms", "signature")]
    except (ValueError, RecursionError, TypeError, LookupError):
        return None
    fits = [type(value) for value in values] == [str, int, str, int, str]
    return SignedHead(*[*values, key_id]) if fits else None


def check_witnessed(heads: Iterable[KeptHead], check_signature: CheckSignature) -> list[Problem]:
    """What is wrong with heads of another's journal that is not at hand: signatures, and two histories."""
    signed, unsigned = _sorted_out(list(heads), check_signature)
    return [*unsigned, *equivocations(signed)]


def equivocations(heads: Iterable[KeptHead]) -> list[Problem]:
    """Rows of which two heads with different hashes were signed: their signer has told two histories."""
    by_row: dict[int, dict[str, KeptHead]] = {}
    for head in heads:
        by_row.setdefault(head.signed.sequence, {}).setdefault(head.signed.hash, head)
    problems = []
    for sequence, found in sorted(by_row.items()):
        if len(found) > 1:
            kept = [f"{head.witness} keeps one of hash {head.signed.hash[:12]}" for head in found.values()]
            what = f"two different heads of row {sequence} were signed: {' and '.join(kept)}"
            files = ", ".join(head.file for head in found.values())
            problems.append(Problem("equivocation", sequence, what, files))
    return problems


def _own_heads(connection: sqlite3.Connection, path: Path, problems: list[Problem]) -> Iterator[KeptHead]:
    for values in connection.execute(SELECT_HEADS):
        if [type(value) for value in values] == [str, int, str, int, str, str]:
            yield KeptHead(SignedHead(*values), OWN, str(path))
        else:
            what = "a signed head in the journal holds values of another type: it was altered"
            problems.append(Problem("signature", 0, what))


def _sorted_out(
    heads: list[KeptHead], check_signature: CheckSignature
) -> tuple[list[KeptHead], list[Problem]]:
    """Heads that their key has signed, by row; and the others as problems.

    A head that its key did not sign proves nothing about the rows, so it is not held against them.
    """
    known: dict[SignedHead, bool] = {}  # of a thousand sites' heads of one row, one is looked at
    good, problems = [], []
    for head in sorted(heads, key=lambda head: head.signed.sequence):
        signed = head.signed
        if signed not in known:
            known[signed] = _is_signed(signed, check_signature)
        if known[signed]:
            good.append(head)
        else:
            what = f"the head of row {signed.sequence} that {head.witness} keeps proves nothing"
            why = f"its signature does not verify under key {signed.key_id!r}"
            problems.append(Problem("signature", signed.sequence, f"{what}: {why}", head.file))
    return good, problems


def _is_signed(signed: SignedHead, check_signature: CheckSignature) -> bool:
    try:
        signature = bytes.fromhex(signed.signature)
    except ValueError:
        return False
    return check_signature(signed.message(), signature, signed.key_id)


def _cut_off(heads: list[KeptHead], last: int) -> list[Problem]:
    """Rows behind the journal's end, of which somebody keeps a head."""
    beyond = [head for head in heads if head.signed.sequence > last]
    if not beyond:
        return []
    far = beyond[-1]
    end = far.signed.sequence
    rows = f"row {end} is" if end == last + 1 else f"rows {last + 1} to {end} at least are"
    what = f"the journal ends at row {last}, and {rows} missing"
    why = f"{far.witness} keeps a signed head of row {end}"
    return [Problem("truncated", last + 1, f"{what}: {why}", far.file)]


def _rewritten(heads: list[KeptHead], hashes: Mapping[int, str], last: int) -> list[Problem]:
    """Where this journal parts from the one that heads were signed of.

    Only a witness's own heads bound its history from below: another's that agree may be of a history
    that has parted already.
    """
    bounds: dict[str, tuple[int, KeptHead]] = {}
    agreed: dict[str, int] = {}

    def agrees(head: KeptHead) -> bool:
        return hashes.get(head.signed.sequence) == head.signed.hash

    for head in sorted(heads, key=lambda head: (head.signed.sequence, agrees(head))):
        if head.signed.sequence > last or head.witness in bounds:
            continue
        if agrees(head):
            agreed[head.witness] = head.signed.sequence
        else:
            bounds[head.witness] = (agreed.get(head.witness, 0) + 1, head)
    if not bounds:
        return []
    low = max(first for first, _ in bounds.values())
    high = min(head.signed.sequence for _, head in bounds.values())
    if low <= high:  # one parting explains them all
        closest = min((head for _, head in bounds.values()), key=lambda head: head.signed.sequence)
        return [_parting(low, closest, sorted(bounds))]
    return [_parting(first, head, [name]) for name, (first, head) in sorted(bounds.items())]


def _parting(first: int, head: KeptHead, witnesses: list[str]) -> Problem:
    sequence = head.signed.sequence
    where = f"at row {first}" if first == sequence else f"between rows {first} and {sequence}"
    others = len(witnesses) - 1
    also = f" ({others} more {'keeps' if others == 1 else 'keep'} such heads)" if others else ""
    what = (
        f"there are two histories, which part {where}: {head.witness} keeps a signed head of row {sequence} "
        f"with hash {head.signed.hash[:12]}, and the row that stands here has another{also}"
    )
    return Problem("rewritten", first, what, head.file)


def _witnesses(agreeing: list[KeptHead]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for head in agreeing:
        count, newest = found.get(head.witness, (0, 0))
        found[head.witness] = (count + 1, max(newest, head.signed.sequence))
    return dict(sorted(found.items()))
