"""What is done to copies of a coordinator's journal, and whether the heads that sites keep give it away.

    python -m benchmarks.tamper DIR [--coordinator NAME]

DIR holds a consortium's folders, as `fedtrain demo --dir DIR` makes them. Each row of the table is one
deed on a fresh copy of the journal, and what `audit verify --heads DIR/sites` then says: the kind, the
row, and who showed it. The journal in DIR is only read.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.consortium import Consortium, Work
from fedtrain.cli.audit import examine
from fedtrain.core.ports import Entry
from fedtrain.storage.audit import AuditReport
from fedtrain.storage.chain import Row, append_row
from fedtrain.storage.journal import Journal

Rows = list[Row]


@dataclass(frozen=True)
class Deed:
    """One way to tamper. `kind` and `first` to `last` are what an audit has to say of it."""

    name: str
    do: Callable[[sqlite3.Connection, Rows], None]
    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Finding:
    """What the audit said of a deed."""

    deed: Deed
    kind: str
    sequence: int
    sentence: str

    @property
    def right(self) -> bool:
        """Whether it is the deed, at its row or in the bounds that heads can give."""
        return self.kind == self.deed.kind and self.deed.first <= self.sequence <= self.deed.last


def flip_byte(sequence: int) -> Callable[[sqlite3.Connection, Rows], None]:
    """One character of a row's payload."""

    def do(connection: sqlite3.Connection, rows: Rows) -> None:
        payload = rows[sequence - 1].payload
        middle = len(payload) // 2
        flipped = payload[:middle] + chr(ord(payload[middle]) ^ 1) + payload[middle + 1 :]
        connection.execute("UPDATE rows SET payload = ? WHERE sequence = ?", (flipped, sequence))

    return do


def drop_last(count: int) -> Callable[[sqlite3.Connection, Rows], None]:
    """The last rows, with the coordinator's own heads of them."""

    def do(connection: sqlite3.Connection, rows: Rows) -> None:
        last = len(rows) - count
        connection.execute("DELETE FROM rows WHERE sequence > ?", (last,))
        connection.execute("DELETE FROM heads WHERE sequence > ?", (last,))

    return do


def swap(first: int, second: int) -> Callable[[sqlite3.Connection, Rows], None]:
    """Two rows change places, with their hashes."""

    def do(connection: sqlite3.Connection, rows: Rows) -> None:
        for before, after in ((first, -1), (second, first), (-1, second)):
            connection.execute("UPDATE rows SET sequence = ? WHERE sequence = ?", (after, before))

    return do


def rehash(sequence: int) -> Callable[[sqlite3.Connection, Rows], None]:
    """A row gets other contents, and every hash behind it is made anew: needs no key."""

    def do(connection: sqlite3.Connection, rows: Rows) -> None:
        other = rows[sequence - 1]._replace(payload='{"at_ms":0}')
        _write_from(connection, [*rows[: sequence - 1], other, *rows[sequence:]], sequence)

    return do


def fork(sequence: int) -> Callable[[sqlite3.Connection, Rows], None]:
    """History as it was up to a row, and another one behind it, as a copy of the folder would write it."""

    def do(connection: sqlite3.Connection, rows: Rows) -> None:
        others = [row._replace(at_ms=row.at_ms + 1) for row in rows[sequence - 1 :]]
        _write_from(connection, [*rows[: sequence - 1], *others], sequence)

    return do


def _write_from(connection: sqlite3.Connection, rows: Rows, first: int) -> None:
    """Write the rows from `first` on with hashes that fit, and drop the heads that do not any more."""
    previous = rows[first - 1].previous
    for row in rows[first - 1 :]:
        made = append_row(Entry(*row[1:5]), row.sequence, previous)
        connection.execute("DELETE FROM rows WHERE sequence = ?", (row.sequence,))
        connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", made)
        previous = made.hash
    connection.execute("DELETE FROM heads WHERE sequence >= ?", (first,))


def deeds(heads: Sequence[int]) -> list[Deed]:
    """What is tried on a journal of which sites keep heads at these rows.

    The last rows and the ones in the middle are taken where heads reach: behind the last head nobody
    can know what there was.
    """
    newest, middle = heads[-1], heads[len(heads) // 2]
    before = max((row for row in heads if row < middle), default=0)
    place = (before + middle + 1) // 2
    return [
        Deed("flip a byte", flip_byte(place), "altered", place, place),
        Deed("drop the last row", drop_last(1), "truncated", newest, newest),
        Deed("drop the last 5 rows", drop_last(5), "truncated", newest - 4, newest - 4),
        Deed("swap two rows", swap(place, place + 1), "reordered", place, place),
        Deed("swap far rows", swap(2, place + 1), "reordered", 2, 2),
        Deed("alter a row, rehash the chain", rehash(place), "rewritten", before + 1, place),
        Deed("fork from a copy", fork(place), "rewritten", before + 1, place),
    ]


def witnessed_rows(journal: Path, sites: Path) -> list[int]:
    """Rows of this journal of which some site keeps a head, oldest first."""
    with closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        last = connection.execute("SELECT max(sequence) FROM rows").fetchone()[0]
    kept = {int(file.stem) for file in sites.rglob("heads/*.json") if file.stem.isdigit()}
    return sorted(row for row in kept if row <= last)


def try_all(journal: Path, sites: Path, scratch: Path) -> list[Finding]:
    """Do every deed on a copy that ends with the newest row that a site has a head of."""
    heads = witnessed_rows(journal, sites)
    if len(heads) < 2:
        raise SystemExit(f"{sites} holds heads of {len(heads)} rows: let a run of two rounds end first")
    return [_try(deed, journal, sites, scratch, heads[-1]) for deed in deeds(heads)]


def _try(deed: Deed, journal: Path, sites: Path, scratch: Path, newest: int) -> Finding:
    copy = scratch / "journal.db"
    book = Journal.open(journal, writer=False)
    try:
        book.backup(copy)
    finally:
        book.close()
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("DELETE FROM rows WHERE sequence > ?", (newest,))
        connection.execute("DELETE FROM heads WHERE sequence > ?", (newest,))
        connection.commit()
    sound = audit(copy, journal, sites)
    if sound.problems:
        raise SystemExit(f"{journal} is not sound before anything is done to it: {sound.problems[0]}")
    with closing(sqlite3.connect(copy)) as connection:
        rows = [Row(*row) for row in connection.execute("SELECT * FROM rows ORDER BY sequence")]
        deed.do(connection, rows)
        connection.commit()
    problems = audit(copy, journal, sites).problems
    if not problems:
        return Finding(deed, "nothing", 0, "not found")
    found = problems[0]
    return Finding(deed, found.kind, found.sequence, found.sentence)


def audit(copy: Path, journal: Path, sites: Path) -> AuditReport:
    """`audit verify COPY --heads SITES`, with the coordinator's public key."""
    return examine(copy, [sites], journal.with_name("message.pub"))


def run_some_rounds(folder: Path) -> None:
    """A real consortium of three, and a run of five rounds."""
    folder.mkdir()
    with Consortium(folder, 3) as consortium:
        consortium.measure(Work("tampered", 10_000, 5))
        names = consortium.names
    (folder / "sites").mkdir()
    for name in names:
        consortium.site(name).rename(folder / "sites" / name)


def main() -> int:
    """Print the table; 1 if anything was not found where it was done."""
    parser = argparse.ArgumentParser(description="Tamper with copies of a journal.")
    parser.add_argument("folder", type=Path, nargs="?", help="a consortium's; without, one is made and run")
    parser.add_argument("--coordinator", default="coordinator", help="the coordinator's folder in it")
    parser.add_argument("--quick", action="store_true", help="as without: it takes seconds")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, coordinator = given.folder, given.coordinator
        if folder is None:
            folder, coordinator = Path(scratch) / "made", "coordinator"
            run_some_rounds(folder)
        journal = folder / coordinator / "state" / "journal.db"
        findings = try_all(journal, folder / "sites", Path(scratch))
    print("| what was done                 | at row    | found       | at row | right | what the audit says")
    print(f"|{'-' * 31}|{'-' * 11}|{'-' * 13}|{'-' * 8}|{'-' * 7}|{'-' * 20}")
    for finding in findings:
        deed = finding.deed
        where = str(deed.first) if deed.first == deed.last else f"{deed.first}-{deed.last}"
        right = "yes" if finding.right else "NO"
        print(
            f"| {deed.name:<30}| {where:<10}| {finding.kind:<12}| {finding.sequence:<7}| {right:<6}| "
            f"{finding.sentence}"
        )
    return 0 if all(finding.right for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
