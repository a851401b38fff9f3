"""What was done to the rows of a journal: altered, replaced, exchanged, put in or taken out, and where.

One pass over the rows, oldest first, then `problems`. A row that does not give its own hash may give it in
another place, because a row's place is part of its hash: so a row that was moved tells where it came
from. Only the chain is looked at here; what signed heads say is `storage.audit`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedtrain.core.ports import Entry
from fedtrain.storage.chain import GENESIS, ROW_TYPES, Row, hash_row

NEAR = 16
"""Places to either side where a row that does not fit its own is tried at once."""

STRAYS_MAX = 200
"""Rows that fit nowhere near and are tried in one another's places: 40,000 hashes take 0.3 s."""


@dataclass(frozen=True)
class Problem:
    """One thing that does not hold.

    Attributes:
        kind: altered | replaced | reordered | inserted | missing, of rows; truncated | rewritten |
            equivocation | signature | unreadable, of signed heads; damaged, of the file.
        sequence: the first row that is concerned, 0 if none is.
        sentence: what was found, for people.
        witness: the file of the head that shows it, "" if the journal shows it by itself.
    """

    kind: str
    sequence: int
    sentence: str
    witness: str = ""

    def __str__(self) -> str:
        return self.sentence


@dataclass
class _Moved:
    """Rows `first` to `last` of the file, which once stood `shift` places further on."""

    first: int
    last: int
    shift: int


class Examination:
    """Takes rows in and says what was done to them.

    Attributes:
        rows: how many were taken in.
        head: (sequence, hash) of the last one as it stands there; (0, 64 zeros) before the first.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.head: tuple[int, str] = (0, GENESIS)
        self._told: list[Problem] = []
        self._moved: list[_Moved] = []
        self._strays: dict[int, Row] = {}
        self._true_hash = ""
        self._fits = True

    def take(self, row: Row) -> None:
        """The next row of the file. Fields may have any type, since the file may have been edited."""
        self.rows += 1
        last = self.head[0]
        if type(row.sequence) is not int or row.sequence <= last:
            self._tell(
                "reordered", last, f"row {row.sequence!r} stands behind row {last}: rows were reordered"
            )
            self._fits = False
        elif list(map(type, row)) != ROW_TYPES:
            self._check_gap(row.sequence)
            self._tell("altered", row.sequence, f"row {row.sequence} was altered: a value is of another type")
            self._fits = False
        else:
            self._examine(row)
        if type(row.sequence) is int:
            self.head = (row.sequence, row.hash)

    def problems(self) -> list[Problem]:
        """What was found, oldest row first. Asked once, behind the last row."""
        self._match_strays()
        put_in = {
            sequence
            for moved in self._moved
            if moved.shift < 0 and self._is_shift(moved)
            for sequence in range(moved.first + moved.shift, moved.first)
        }
        told = [*self._told, *self._of_moved()]
        told += [Problem("altered", here, _altered(here)) for here in self._strays]
        # Of rows that were put in, it is no news that they do not fit.
        told = [problem for problem in told if problem.kind == "inserted" or problem.sequence not in put_in]
        return sorted(told, key=lambda problem: problem.sequence)

    def _tell(self, kind: str, sequence: int, sentence: str) -> None:
        self._told.append(Problem(kind, sequence, sentence))

    def _check_gap(self, sequence: int) -> bool:
        first, last = self.head[0] + 1, sequence - 1
        if first <= last:
            self._tell("missing", first, f"{_rows(first, last)} missing")
        return first <= last

    def _examine(self, row: Row) -> None:
        gap = self._check_gap(row.sequence)
        before, before_hash = self.head
        true_hash = _hash_at(row, row.sequence)
        # A row at fault is told once: that the next one does not follow it is no news.
        if true_hash != row.hash:
            self._place(row)
        elif not gap and self._fits and row.previous != before_hash:
            if before:
                what = (
                    f"row {row.sequence} was not written behind this row {before}: one of them was replaced"
                )
            else:
                what = "row 1 was not written as the first one: it was replaced"
            self._tell("replaced", max(1, before), f"{what} and its hash made anew")
        elif not self._fits and row.previous == self._true_hash and before in self._strays:
            del self._strays[before]
            self._tell("altered", before, f"row {before} was altered: its hash, and nothing else of it")
        self._fits, self._true_hash = true_hash == row.hash, true_hash

    def _place(self, row: Row) -> None:
        """Where a row that does not give its hash here would give it."""
        here = row.sequence
        moved = self._moved[-1] if self._moved else None
        if moved and moved.last == here - 1 and _hash_at(row, here + moved.shift) == row.hash:
            moved.last = here
            return
        near = (shift for step in range(1, NEAR + 1) for shift in (step, -step) if here + shift > 0)
        for shift in near:
            if _hash_at(row, here + shift) == row.hash:
                self._moved.append(_Moved(here, here, shift))
                return
        if len(self._strays) < STRAYS_MAX:
            self._strays[here] = row
        else:
            self._tell("altered", here, _altered(here))

    def _match_strays(self) -> None:
        """Rows that changed places far apart."""
        for here, row in list(self._strays.items()):
            for there in self._strays:
                if there != here and _hash_at(row, there) == row.hash:
                    self._moved.append(_Moved(here, here, there - here))
        for moved in self._moved:
            self._strays.pop(moved.first, None)

    def _is_shift(self, moved: _Moved) -> bool:
        """Whether the rows moved because rows before them were put in or taken out."""
        return moved.last > moved.first or moved.last == self.head[0]

    def _of_moved(self) -> list[Problem]:
        places = {(moved.first, moved.last): moved.shift for moved in self._moved}
        problems = []
        for moved in self._moved:
            first, last, shift = moved.first, moved.last, moved.shift
            if places.get((first + shift, last + shift)) == -shift:
                if shift > 0:
                    what = f"{_span(first, last)} and {_span(first + shift, last + shift)} changed places"
                    problems.append(Problem("reordered", first, what))
            elif not self._is_shift(moved):
                what = f"row {first} holds what was row {first + shift}"
                problems.append(Problem("reordered", first, what))
            elif shift > 0:
                what = f"{_rows(first, first + shift - 1)} missing, and those behind were numbered anew"
                problems.append(Problem("missing", first, what))
            else:
                was = "was" if shift == -1 else "were"
                what = f"{_span(first + shift, first - 1)} {was} put in, and those behind numbered anew"
                problems.append(Problem("inserted", first + shift, what))
        return problems


def in_short(problems: Iterable[Problem], most: int) -> tuple[Problem, ...]:
    """At most so many problems, and how many more there are."""
    told = tuple(problems)
    if len(told) <= most:
        return told
    left = len(told) - most
    return (*told[:most], Problem(told[most].kind, told[most].sequence, f"and {left} more problems"))


def _hash_at(row: Row, sequence: int) -> str:
    return hash_row(sequence, Entry(*row[1:5]), row.previous)


def _altered(sequence: int) -> str:
    return f"row {sequence} was altered: what it holds does not give its hash"


def _span(first: int, last: int) -> str:
    return f"row {first}" if first == last else f"rows {first} to {last}"


def _rows(first: int, last: int) -> str:
    return f"{_span(first, last)} {'is' if first == last else 'are'}"
