"""Verification: every way of rewriting a journal is found, at the exact row."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from fedtrain.errors import StorageError
from fedtrain.storage.audit import OWN, PROBLEMS_MAX, KeptHead, check_witnessed, verify, witnessed
from fedtrain.storage.chain import GENESIS, Entry, append_row, head_message
from fedtrain.storage.journal import Journal, SignedHead

KEYS = {"coordinator-1": b"secret"}


def sign(sequence: int, row_hash: str, consortium: str = "c") -> SignedHead:
    message = head_message(consortium, sequence, row_hash, 77)
    signature = hmac.digest(KEYS["coordinator-1"], message, "sha256").hex()
    return SignedHead(consortium, sequence, row_hash, 77, signature, "coordinator-1")


def kept(*heads: SignedHead, by: str = "north") -> list[KeptHead]:
    """What a site shows."""
    return [KeptHead(head, by, f"{by}/{head.sequence}.json") for head in heads]


def head_of(path: Path, sequence: int) -> SignedHead:
    """The head that was signed when this row was the last one."""
    with sqlite3.connect(path) as connection:
        (found,) = connection.execute("SELECT hash FROM rows WHERE sequence=?", (sequence,)).fetchone()
    return sign(sequence, found)


def told(path: Path, *heads: KeptHead) -> list[tuple[str, int]]:
    """(kind, row) of each problem."""
    return [(problem.kind, problem.sequence) for problem in verify(path, check, heads).problems]


def check(message: bytes, signature: bytes, key_id: str) -> bool:
    return key_id in KEYS and hmac.compare_digest(hmac.digest(KEYS[key_id], message, "sha256"), signature)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal of ten rows, with signed heads at rows 4 and 8."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(i, "run", "kind", f'{{"i":{i}}}') for i in range(1, 11)])
    for row in list(journal.read())[3:8:4]:
        journal.add_head(sign(row.sequence, row.hash))
    journal.close()
    return tmp_path / "j"


def edit(path: Path, script: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(script)


def rewrite(path: Path, start: int, *, drop_heads: bool) -> None:
    """What a patient forger does: change row `start` and make every hash behind it fit again."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT * FROM rows ORDER BY sequence").fetchall()
        previous = GENESIS
        for sequence, *fields in rows:
            entry = Entry(*fields[:4])
            if sequence == start:
                entry = entry._replace(payload='{"i":"forged"}')
            row = append_row(entry, sequence, previous)
            connection.execute(
                "UPDATE rows SET payload=?, previous=?, hash=? WHERE sequence=?",
                (row.payload, row.previous, row.hash, sequence),
            )
            previous = row.hash
        if drop_heads:
            connection.execute("DELETE FROM heads")


def test_an_untouched_journal_holds(path: Path) -> None:
    """No problems, all heads counted, own and foreign."""
    with sqlite3.connect(path) as connection:
        last = connection.execute("SELECT sequence, hash FROM rows WHERE sequence=10").fetchone()
    report = verify(path, check, kept(sign(*last)))
    assert (report.rows, report.head, report.heads_checked, report.problems) == (10, last, 3, ())
    assert report.witnesses == {"north": (1, 10), OWN: (2, 8)}


def test_an_empty_journal_holds(tmp_path: Path) -> None:
    """A coordinator that has decided nothing yet has nothing to hide."""
    Journal.open(tmp_path / "j").close()
    assert verify(tmp_path / "j", check).head == (0, GENESIS)
    with pytest.raises(StorageError, match="no journal"):
        verify(tmp_path / "absent", check)


def swap(first: int, second: int) -> str:
    """SQL that has two rows change places."""
    return (
        f"UPDATE rows SET sequence=99 WHERE sequence={first};"
        f"UPDATE rows SET sequence={first} WHERE sequence={second};"
        f"UPDATE rows SET sequence={second} WHERE sequence=99;"
    )


MOVE_UP = (
    "UPDATE rows SET sequence=-sequence-1 WHERE sequence>={0};"
    "UPDATE rows SET sequence=-sequence WHERE sequence<0;"
)


@pytest.mark.parametrize(
    ("script", "problems"),
    [
        (
            "UPDATE rows SET payload='{}' WHERE sequence=6",
            {("altered", 6): "row 6 was altered: what it holds does not give its hash"},
        ),
        (
            "UPDATE rows SET at_ms=0 WHERE sequence=1",
            {("altered", 1): "row 1 was altered: what it holds does not give its hash"},
        ),
        (
            "UPDATE rows SET run='x' WHERE sequence=10",
            {("altered", 10): "row 10 was altered: what it holds does not give its hash"},
        ),
        (
            f"UPDATE rows SET hash='{'ab' * 32}' WHERE sequence=6",
            {("altered", 6): "row 6 was altered: its hash, and nothing else of it"},
        ),
        ("DELETE FROM rows WHERE sequence=6", {("missing", 6): "row 6 is missing"}),
        ("DELETE FROM rows WHERE sequence<3", {("missing", 1): "rows 1 to 2 are missing"}),
        (swap(5, 6), {("reordered", 5): "row 5 and row 6 changed places"}),
        (swap(2, 9), {("reordered", 2): "row 2 and row 9 changed places"}),
        (
            "DELETE FROM rows WHERE sequence=5; UPDATE rows SET sequence=sequence-1 WHERE sequence>5",
            {("missing", 5): "row 5 is missing, and those behind were numbered anew"},
        ),
        (
            MOVE_UP.format(7) + "INSERT INTO rows SELECT 7, at_ms, run, kind, payload, previous, hash "
            "FROM rows WHERE sequence=3",
            {("inserted", 7): "row 7 was put in, and those behind numbered anew"},
        ),
        (
            "DELETE FROM rows WHERE sequence=4; INSERT INTO rows SELECT 4, at_ms, run, kind, payload, "
            "previous, hash FROM rows WHERE sequence=9",
            {("reordered", 4): "row 4 holds what was row 9"},
        ),
    ],
)
def test_tampering_is_found_at_the_exact_row(
    path: Path, script: str, problems: dict[tuple[str, int], str]
) -> None:
    """What was done is named, with the row; rows that were left alone are not."""
    edit(path, "DELETE FROM heads;" + script)
    found = {(problem.kind, problem.sequence): str(problem) for problem in verify(path, check).problems}
    assert found == problems


def test_a_row_that_moved_far_is_found_in_its_old_place(tmp_path: Path) -> None:
    """Two rows that changed places over hundreds of others are told as that."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(i, "run", "kind", f'{{"i":{i}}}') for i in range(500)])
    journal.close()
    edit(tmp_path / "j", swap(20, 460).replace("99", "9999"))
    (problem,) = verify(tmp_path / "j", check).problems
    assert str(problem) == "row 20 and row 460 changed places"


def test_a_single_rewritten_row_with_a_fitting_hash_is_found(path: Path) -> None:
    """A forger who mends the hash of one row only breaks the link to the next."""
    with sqlite3.connect(path) as connection:
        row = connection.execute("SELECT * FROM rows WHERE sequence=6").fetchone()
        forged = append_row(Entry(0, "", "x", "{}"), 6, row[5])
        connection.execute("DELETE FROM rows WHERE sequence=6")
        connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", forged)
    (problem,) = verify(path, check).problems
    assert (problem.kind, problem.sequence) == ("replaced", 6)
    assert "row 7 was not written behind this row 6" in str(problem)


def test_a_wholly_rewritten_chain_is_found_by_heads(path: Path) -> None:
    """A forger who recomputes everything is caught by the first signed head behind the change."""
    rewrite(path, 6, drop_heads=False)
    (problem,) = verify(path, check).problems
    assert (problem.kind, problem.sequence) == ("rewritten", 5)
    assert f"part between rows 5 and 8: {OWN} keeps a signed head of row 8" in str(problem)


def test_a_rewritten_chain_without_heads_is_found_by_a_site(path: Path) -> None:
    """Dropping the coordinator's own heads does not help against those that a site kept; the closer they
    are, the closer the row is told."""
    heads = kept(*(head_of(path, row) for row in (4, 5, 6, 8)))
    rewrite(path, 6, drop_heads=True)
    assert told(path) == []
    assert told(path, *heads[::3]) == [("rewritten", 5)]
    (problem,) = verify(path, check, heads).problems
    assert "part at row 6: north keeps a signed head of row 6" in str(problem)
    assert (problem.sequence, problem.witness) == (6, "north/6.json")


def test_a_fork_is_told_between_what_a_witness_saw_of_both(path: Path) -> None:
    """Heads that another site has of the fork do not narrow down where the histories part."""
    north = kept(head_of(path, 4), head_of(path, 9))
    edit(path, "DELETE FROM rows WHERE sequence>5; DELETE FROM heads WHERE sequence>5")
    book = Journal.open(path)
    book.append([Entry(i, "run", "other", "{}") for i in range(6)])
    book.close()
    west = kept(head_of(path, 4), head_of(path, 7), by="west")
    (problem,) = verify(path, check, [*west, *north]).problems
    assert (problem.kind, problem.sequence) == ("rewritten", 5)
    assert "between rows 5 and 9: north keeps" in str(problem)


def test_two_heads_of_one_row_prove_two_histories(path: Path) -> None:
    """Whoever signed both cannot deny it, whichever of them this journal is."""
    other = sign(8, "ef" * 32)
    report = verify(path, check, kept(other, by="west"))
    assert [(problem.kind, problem.sequence) for problem in report.problems] == [
        ("rewritten", 1),
        ("equivocation", 8),
    ]
    assert "west keeps one of hash efefefefefef" in str(report.problems[1])
    assert report.problems[1].witness == f"west/8.json, {path}"


def test_a_cut_off_end_is_found_by_a_site(path: Path) -> None:
    """Truncation leaves a perfect chain; only a later head shows that there was more."""
    heads = kept(head_of(path, 9), head_of(path, 10))
    edit(path, "DELETE FROM rows WHERE sequence=10")
    assert told(path) == []
    (problem,) = verify(path, check, heads).problems
    assert (problem.kind, problem.sequence, problem.witness) == ("truncated", 10, "north/10.json")
    assert "the journal ends at row 9, and row 10 is missing: north keeps" in str(problem)
    edit(path, "DELETE FROM rows WHERE sequence>8")
    (problem,) = verify(path, check, heads).problems
    assert problem.sequence == 9 and "rows 9 to 10 at least are missing" in str(problem)


def test_a_journal_that_grows_verifies(path: Path) -> None:
    """While a writer holds it open, with rows that are in its log only, what is there is verified."""
    book = Journal.open(path)
    book.append([Entry(11, "run", "kind", "{}")])
    assert verify(path, check).problems == ()
    book.append([Entry(12, "run", "kind", "{}")])
    report = verify(path, check, kept(head_of(path, 11)))
    assert (report.rows, report.problems) == (12, ())
    book.close()


def test_heads_in_a_sites_journal_are_checked(tmp_path: Path) -> None:
    """A site's journal holds the coordinator's heads: one that was never signed is told, and two of a row."""
    good, second, forged = sign(8, "aa" * 32), sign(8, "bb" * 32), replace(sign(9, "cc" * 32), at_ms=1)
    book = Journal.open(tmp_path / "j")
    for head in (good, second, forged):
        payload = (
            f'{{"consortium":"c","sequence":{head.sequence},"hash":"{head.hash}",'
            f'"signed_ms":{head.at_ms},"signature":"{head.signature}"}}'
        )
        book.append([Entry(1, "", "HeadWitnessed", payload), Entry(1, "", "HeadWitnessed", "[]")])
    book.close()
    heads = list(witnessed(tmp_path / "j", "coordinator-1", "north"))
    assert [head.signed for head in heads] == [good, second, forged]
    problems = check_witnessed(heads, check)
    assert [(problem.kind, problem.sequence) for problem in problems] == [
        ("signature", 9),
        ("equivocation", 8),
    ]


def test_a_head_with_a_bad_signature_is_told(path: Path) -> None:
    """Forged, foreign-key, other-consortium and unreadable signatures each fail, and are not counted."""
    with sqlite3.connect(path) as connection:
        good = sign(*connection.execute("SELECT sequence, hash FROM rows WHERE sequence=10").fetchone())
    bad = [
        replace(good, signature="00" * 32),
        replace(good, key_id="stranger"),
        replace(good, consortium="other"),
        replace(good, signature="not hex"),
        replace(good, at_ms=78),
    ]
    report = verify(path, check, kept(*bad))
    assert report.heads_checked == 2
    assert len(report.problems) == 5
    assert all(problem.kind == "signature" for problem in report.problems)


def test_an_edited_schema_does_not_confuse_the_audit(path: Path) -> None:
    """Rows and heads of other types, and sequences that do not grow, are problems and no crash."""
    edit(
        path,
        "CREATE TABLE r AS SELECT * FROM rows; DROP TABLE rows; ALTER TABLE r RENAME TO rows;"
        "UPDATE rows SET payload=x'00' WHERE sequence=2; UPDATE rows SET at_ms='soon' WHERE sequence=3;"
        "UPDATE rows SET hash=NULL WHERE sequence=9;"
        "INSERT INTO rows SELECT * FROM rows WHERE sequence=4; UPDATE rows SET sequence='x' WHERE sequence=5;"
        "CREATE TABLE h AS SELECT * FROM heads; DROP TABLE heads; ALTER TABLE h RENAME TO heads;"
        "UPDATE heads SET sequence='eight' WHERE sequence=8",
    )
    problems = "\n".join(map(str, verify(path, check).problems))
    for words in (
        "row 2 was altered: a value is of another type",
        "row 3 was altered: a value is of another type",
        "row 4 stands behind row 4",
        "row 5 is missing",
        "row 9 was altered: a value is of another type",
        "row 'x' stands behind",
        "a signed head in the journal holds values of another type",
    ):
        assert words in problems


def test_damage_of_the_file_is_a_problem_with_its_place(path: Path) -> None:
    """A page of noise is told with the last row that could be read before it."""
    journal = Journal.open(path)
    journal.append([Entry(1, "", "k", "x" * 3000)] * 20)
    journal.backup(path.with_name("copy"))
    journal.close()
    data = bytearray(path.with_name("copy").read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = hashlib.shake_128(b"noise").digest(4096)
    path.with_name("copy").write_bytes(data)
    report = verify(path.with_name("copy"), check)
    assert report.rows < 30
    assert {"damaged", "altered", "missing"} & {problem.kind for problem in report.problems}


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    """A wholly damaged journal does not produce a report of its own size."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(1, "", "k", "{}")] * (PROBLEMS_MAX + 50))
    journal.close()
    edit(tmp_path / "j", "UPDATE rows SET kind='x'")
    problems = verify(tmp_path / "j", check).problems
    assert len(problems) == PROBLEMS_MAX + 1
    assert str(problems[-1]) == "and 50 more problems"


def test_a_live_journal_is_read_in_one_snapshot(tmp_path: Path) -> None:
    """Verification beside an open writer sees what was committed, and does not disturb it."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(1, "", "k", "{}")] * 5)

    def check_and_append(message: bytes, signature: bytes, key_id: str) -> bool:
        journal.append([Entry(2, "", "k", "{}")])
        return check(message, signature, key_id)

    report = verify(tmp_path / "j", check_and_append, kept(sign(*journal.head)))
    assert (report.rows, report.problems) == (5, ())
    assert journal.head[0] == 6
    journal.close()
