"""`fedtrain audit`: journals shown and proven, without a network."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fedtrain.core import canonical
from fedtrain.storage.chain import Entry, SignedHead
from fedtrain.storage.journal import Journal
from fedtrain.trust.keys import MessageKey


@pytest.fixture
def key() -> MessageKey:
    return MessageKey.generate()


@pytest.fixture
def journal(tmp_path: Path, key: MessageKey) -> Path:
    """A coordinator's journal of ten rows and a signed head, the public key beside it."""
    path = tmp_path / "state" / "journal.db"
    path.parent.mkdir()
    book = Journal.open(path)
    book.append([Entry(1_700_000_000_000 + i, f"run-{i % 2}", "Tick", f'{{"i":{i}}}') for i in range(10)])
    book.add_head(signed(key, *book.head))
    book.close()
    (path.parent / "message.pub").write_text(key.public + "\n")
    return path


def signed(key: MessageKey, sequence: int, row_hash: str) -> SignedHead:
    bare = SignedHead("test", sequence, row_hash, 5, "", key.key_id)
    signature = key.sign("head", bare.message()).hex()
    return SignedHead("test", sequence, row_hash, 5, signature, key.key_id)


def witness(folder: Path, head: SignedHead) -> None:
    """What a site keeps of `head`."""
    folder.mkdir(parents=True)
    (folder / f"{head.sequence}.json").write_bytes(canonical.encode(head))


def cut(journal: Path, after: int) -> None:
    with sqlite3.connect(journal) as connection:
        connection.execute("DELETE FROM rows WHERE sequence > ?", (after,))
        connection.execute("DELETE FROM heads")
    connection.close()


def test_true_journal_verifies(fedtrain: Any, journal: Path) -> None:
    """An untouched journal verifies with the key that lies beside it."""
    outcome = fedtrain("audit", "verify", journal, "--json")
    assert outcome.code == 0 and outcome.err == ""
    found = outcome.document
    assert (found["verified"], found["rows"], found["heads_checked"], found["problems"]) == (True, 10, 1, [])
    assert "10 rows, 1 signed heads" in fedtrain("audit", "verify", journal).out


def test_changed_row_is_named(fedtrain: Any, journal: Path) -> None:
    """A changed row ends with 5 and is named, and the document still comes out."""
    with sqlite3.connect(journal) as connection:
        connection.execute("UPDATE rows SET payload = '{}' WHERE sequence = 4")
    connection.close()
    outcome = fedtrain("audit", "verify", journal, "--json")
    assert outcome.code == 5 and "row 4" in outcome.err and "Traceback" not in outcome.err
    assert outcome.document["verified"] is False and outcome.document["problems"] == [
        {
            "kind": "altered",
            "sequence": 4,
            "sentence": "row 4 was altered: what it holds does not give its hash",
            "witness": "",
        }
    ]


def test_cut_off_journal_is_found_by_what_a_site_kept(
    fedtrain: Any, journal: Path, tmp_path: Path, key: MessageKey
) -> None:
    """A journal whose end was cut off looks whole until a site's kept head is held against it."""
    book = Journal.open(journal, writer=False)
    head = signed(key, *book.head)
    book.close()
    witness(tmp_path / "sites" / "north" / "heads", head)
    assert (
        fedtrain("audit", "verify", journal, "--heads", tmp_path / "sites", "--json").document[
            "heads_checked"
        ]
        == 2
    )
    cut(journal, 6)
    alone = fedtrain("audit", "verify", journal)
    assert alone.code == 0 and "only the chain is proven" in alone.err
    outcome = fedtrain("audit", "verify", journal, "--heads", tmp_path / "sites")
    assert outcome.code == 5 and "10" in outcome.err


def test_head_under_another_key_is_refused(fedtrain: Any, journal: Path, tmp_path: Path) -> None:
    """Heads are held against the key that is named; another one's does not do."""
    file = tmp_path / "other.pub"
    file.write_text(MessageKey.generate().public)
    assert fedtrain("audit", "verify", journal, "--key", file).code == 5


def test_missing_key_and_files_are_named(
    fedtrain: Any, journal: Path, tmp_path: Path, key: MessageKey
) -> None:
    """A missing key, journal or folder of heads is named with what to give instead."""
    (journal.parent / "message.pub").unlink()
    outcome = fedtrain("audit", "verify", journal)
    assert outcome.code == 2 and "--key" in outcome.err
    (journal.parent / "message.pub").write_text("not a key")
    assert fedtrain("audit", "verify", journal).code == 2
    assert fedtrain("audit", "verify", tmp_path / "absent.db").code == 2
    (tmp_path / "empty").mkdir()
    outcome = fedtrain("audit", "verify", journal, "--heads", tmp_path / "empty")
    assert outcome.code == 2 and "no heads" in outcome.err
    (journal.parent / "message.pub").write_text(key.public)
    (tmp_path / "empty" / "1.json").write_text("[]")
    assert fedtrain("audit", "verify", journal, "--heads", tmp_path / "empty").code == 5


def test_heads_of_several_sites_are_grouped(
    fedtrain: Any, journal: Path, tmp_path: Path, key: MessageKey
) -> None:
    """Each site's heads count under its name, from folders and from a site's journal; evidence of two
    histories is told with its file."""
    book = Journal.open(journal, writer=False)
    hashes = {row.sequence: row.hash for row in book.read()}
    book.close()
    north, west = tmp_path / "north" / "state" / "heads", tmp_path / "west" / "state" / "journal.db"
    witness(north, signed(key, 4, hashes[4]))
    west.parent.mkdir(parents=True)
    site_book = Journal.open(west)
    head = signed(key, 7, hashes[7])
    told = {
        "consortium": "test",
        "sequence": 7,
        "hash": head.hash,
        "signed_ms": 5,
        "signature": head.signature,
    }
    site_book.append([Entry(1, "", "HeadWitnessed", canonical.encode(told).decode())])
    site_book.close()
    words = ("audit", "verify", journal, "--heads", north, "--heads", west, "--json")
    found = fedtrain(*words).document["witnesses"]
    assert (found["north"], found["west"]) == ({"heads": 1, "newest": 4}, {"heads": 1, "newest": 7})
    (west.parent / "coordinator.pub").write_text(key.public)
    own = fedtrain("audit", "verify", west, "--json")
    assert own.code == 0 and own.document["heads_checked"] == 1
    second = signed(key, 4, "ef" * 32)
    (north / f"4.{'ef' * 8}.json").write_bytes(canonical.encode(second))
    outcome = fedtrain(*words)
    assert outcome.code == 5
    kinds = {problem["kind"]: problem for problem in outcome.document["problems"]}
    assert set(kinds) == {"equivocation", "rewritten"} and kinds["equivocation"]["sequence"] == 4
    assert "north" in kinds["equivocation"]["witness"]


def test_show_filters_rows(fedtrain: Any, journal: Path) -> None:
    """Rows can be chosen by site, kind, place and time; each comes with its sentence."""
    book = Journal.open(journal)
    book.append(
        [
            Entry(1_800_000_000_000, "run-1", "WorkFailed", '{"order":"run-1.2.1.east","reason":"it broke"}'),
            Entry(1_800_000_000_001, "", "SiteLost", '{"site":"west","reason":"gone"}'),
        ]
    )
    book.close()

    def rows(*words: object) -> list[int]:
        return [
            row["sequence"] for row in fedtrain("audit", "show", journal, "--json", *words).document["rows"]
        ]

    assert rows("--site", "east") == [11] and rows("--site", "west") == [12]
    assert rows("--kind", "SiteLost", "--kind", "WorkFailed") == rows("--after", 10) == [11, 12]
    assert rows("--since", "2027-01-15") == [11, 12] and rows("--since", "2030-01-01T00:00:00+01:00") == []
    assert "run-1: run-1.2.1.east is not done: it broke" in fedtrain("audit", "show", journal).out
    assert fedtrain("audit", "show", journal, "--since", "yesterday").code == 2


def test_show_prints_rows(fedtrain: Any, journal: Path) -> None:
    """`audit show` prints every row, or one run's, as lines or as one document."""
    assert len(fedtrain("audit", "show", journal).out.splitlines()) == 10
    document = fedtrain("audit", "show", journal, "--run", "run-1", "--json").document
    assert [row["payload"]["i"] for row in document["rows"]] == [1, 3, 5, 7, 9]


def test_file_that_is_no_journal_is_told(fedtrain: Any, tmp_path: Path) -> None:
    """Another file in a journal's place ends with a sentence, not with a traceback."""
    file = tmp_path / "journal.db"
    file.write_bytes(b"not a database at all" * 100)
    outcome = fedtrain("audit", "show", file)
    assert outcome.code == 5 and "Traceback" not in outcome.err
