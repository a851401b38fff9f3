"""Verification: every way of rewriting a journal is found, at the exact row."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from fedtrain.errors import StorageError
from fedtrain.storage.audit import PROBLEMS_MAX, verify
from fedtrain.storage.chain import GENESIS, Entry, append_row, head_message
from fedtrain.storage.journal import Journal, SignedHead

KEYS = {"coordinator-1": b"secret"}


def sign(sequence: int, row_hash: str, consortium: str = "c") -> SignedHead:
    message = head_message(consortium, sequence, row_hash, 77)
    signature = hmac.digest(KEYS["coordinator-1"], message, "sha256").hex()
    return SignedHead(consortium, sequence, row_hash, 77, signature, "coordinator-1")


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
    report = verify(path, check, [sign(*last)])
    assert (report.rows, report.head, report.heads_checked, report.problems) == (10, last, 3, ())


def test_an_empty_journal_holds(tmp_path: Path) -> None:
    """A coordinator that has decided nothing yet has nothing to hide."""
    Journal.open(tmp_path / "j").close()
    assert verify(tmp_path / "j", check).head == (0, GENESIS)
    with pytest.raises(StorageError, match="no journal"):
        verify(tmp_path / "absent", check)


@pytest.mark.parametrize(
    ("script", "problems"),
    [
        ("UPDATE rows SET payload='{}' WHERE sequence=6", ["row 6 does not match its hash: it was changed"]),
        ("UPDATE rows SET at_ms=0 WHERE sequence=1", ["row 1 does not match its hash: it was changed"]),
        ("UPDATE rows SET run='x' WHERE sequence=10", ["row 10 does not match its hash: it was changed"]),
        ("DELETE FROM rows WHERE sequence=6", ["rows 6 to 6 are missing"]),
        ("DELETE FROM rows WHERE sequence<3", ["rows 1 to 2 are missing"]),
        (
            "UPDATE rows SET sequence=99 WHERE sequence=5; UPDATE rows SET sequence=5 WHERE sequence=6;"
            "UPDATE rows SET sequence=6 WHERE sequence=99",
            [
                "row 5 does not match its hash: it was changed",
                "row 6 does not match its hash: it was changed",
            ],
        ),
        (
            "DELETE FROM rows WHERE sequence=5; UPDATE rows SET sequence=sequence-1 WHERE sequence>5",
            [f"row {i} does not match its hash: it was changed" for i in range(5, 10)],
        ),
    ],
)
def test_tampering_is_found_at_the_exact_row(path: Path, script: str, problems: list[str]) -> None:
    """Changed, deleted and reordered rows are named; rows that were left alone are not."""
    edit(path, script)
    found = verify(path, check).problems
    assert [p for p in found if not p.startswith("head")] == problems


def test_a_single_rewritten_row_with_a_fitting_hash_is_found(path: Path) -> None:
    """A forger who mends the hash of one row only breaks the link to the next."""
    with sqlite3.connect(path) as connection:
        row = connection.execute("SELECT * FROM rows WHERE sequence=6").fetchone()
        forged = append_row(Entry(0, "", "x", "{}"), 6, row[5])
        connection.execute("DELETE FROM rows WHERE sequence=6")
        connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", forged)
    assert verify(path, check).problems == ("row 7 does not follow row 6: one of them was rewritten",)


def test_a_wholly_rewritten_chain_is_found_by_heads(path: Path) -> None:
    """A forger who recomputes everything is caught by the first signed head behind the change."""
    rewrite(path, 6, drop_heads=False)
    (problem,) = verify(path, check).problems
    assert problem.startswith("head signed at row 8")
    assert "row 8 has another hash" in problem


def test_a_rewritten_chain_without_heads_is_found_by_a_site(path: Path) -> None:
    """Dropping the coordinator's own heads does not help against one that a site kept."""
    with sqlite3.connect(path) as connection:
        kept = sign(*connection.execute("SELECT sequence, hash FROM rows WHERE sequence=8").fetchone())
    rewrite(path, 6, drop_heads=True)
    assert verify(path, check).problems == ()
    assert "row 8 has another hash" in verify(path, check, [kept]).problems[0]


def test_a_cut_off_end_is_found_by_a_site(path: Path) -> None:
    """Truncation leaves a perfect chain; only a later head shows that there was more."""
    with sqlite3.connect(path) as connection:
        kept = sign(*connection.execute("SELECT sequence, hash FROM rows WHERE sequence=10").fetchone())
    edit(path, "DELETE FROM rows WHERE sequence>8")
    assert verify(path, check).problems == ()
    (problem,) = verify(path, check, [kept]).problems
    assert "row 10" in problem
    assert "the journal ends at row 8, so the rows behind it were cut off" in problem


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
    report = verify(path, check, bad)
    assert report.heads_checked == 2
    assert len(report.problems) == 5
    assert all("signature" in problem for problem in report.problems)


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
    problems = "\n".join(verify(path, check).problems)
    for words in (
        "row 2 holds values of another type",
        "row 3 holds values of another type",
        "row 4 stands behind row 4",
        "rows 5 to 5 are missing",
        "row 9 holds values of another type",
        "row 'x' stands behind",
        "a signed head holds values of another type",
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
    assert any(
        "damaged" in problem or "changed" in problem or "missing" in problem for problem in report.problems
    )


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    """A wholly damaged journal does not produce a report of its own size."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(1, "", "k", "{}")] * (PROBLEMS_MAX + 50))
    journal.close()
    edit(tmp_path / "j", "UPDATE rows SET kind='x'")
    problems = verify(tmp_path / "j", check).problems
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[-1] == "and 50 more problems"


def test_a_live_journal_is_read_in_one_snapshot(tmp_path: Path) -> None:
    """Verification beside an open writer sees what was committed, and does not disturb it."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(1, "", "k", "{}")] * 5)

    def check_and_append(message: bytes, signature: bytes, key_id: str) -> bool:
        journal.append([Entry(2, "", "k", "{}")])
        return check(message, signature, key_id)

    report = verify(tmp_path / "j", check_and_append, [sign(*journal.head)])
    assert (report.rows, report.problems) == (5, ())
    assert journal.head[0] == 6
    journal.close()
