"""The journal: durable, ordered, written by one, readable by all."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fedtrain.errors import ConfigError, IntegrityError, LocalError, StorageError
from fedtrain.storage import filesystem
from fedtrain.storage.chain import GENESIS, head_message
from fedtrain.storage.journal import PAGE_ROWS, Entry, Journal, SignedHead


def entry(index: int = 0, kind: str = "joined") -> Entry:
    return Entry(at_ms=1_000 + index, run="run", kind=kind, payload=f'{{"index":{index}}}')


def test_what_was_appended_is_read_back_after_a_restart(tmp_path: Path) -> None:
    """Entries keep their order and content, and the chain goes on where it stopped."""
    path = tmp_path / "journal.db"
    journal = Journal.open(path)
    assert journal.head == (0, GENESIS)
    assert journal.append([entry(1), entry(2)]) == 2
    first = journal.head
    journal.close()
    journal = Journal.open(path)
    assert journal.head == first
    assert journal.append([entry(3)]) == 3
    rows = list(journal.read())
    assert [row.sequence for row in rows] == [1, 2, 3]
    assert [Entry(*row[1:5]) for row in rows] == [entry(1), entry(2), entry(3)]
    assert [row.previous for row in rows] == [GENESIS, rows[0].hash, rows[1].hash]
    journal.close()


def test_the_hash_of_a_row_can_be_made_by_hand(tmp_path: Path) -> None:
    """A golden row: SHA-256 of the JSON list of its other fields, which any tool can repeat."""
    journal = Journal.open(tmp_path / "j")
    journal.append([Entry(5, "", "started", "{}")])
    text = '[1,5,"","started","{}","' + "0" * 64 + '"]'
    expected = subprocess.run(["sha256sum"], input=text.encode(), capture_output=True, check=True).stdout[:64]
    assert journal.head == (1, expected.decode())
    journal.close()


def test_reading_selects_by_place_and_kind(tmp_path: Path) -> None:
    """`after` and `kinds` leave out what is not asked for, across page borders."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(i, "even" if i % 2 == 0 else "odd") for i in range(1, 2 * PAGE_ROWS + 11)])
    assert [row.sequence for row in journal.read(after=2 * PAGE_ROWS + 8)] == [2009, 2010]
    assert [row.sequence for row in journal.read(kinds=["even"])] == list(range(2, 2011, 2))
    assert [row.sequence for row in journal.read(after=2007, kinds=("even", "odd"))] == [2008, 2009, 2010]
    assert list(journal.read(kinds=())) == []
    assert sum(1 for _ in journal.read()) == 2010
    journal.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.text(max_size=8), st.text(max_size=8), st.text(max_size=20)))
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, fields: list[tuple[Any, ...]]) -> None:
    """Quotes, zero bytes, emoji and empty strings come back as they went in, and the chain holds."""
    journal = Journal.open(tmp_path_factory.mktemp("any") / "j")
    entries = [Entry(*values) for values in fields]
    journal.append(entries)
    assert [Entry(*row[1:5]) for row in journal.read()] == entries
    journal.close()


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    """If one entry of a batch cannot be stored, none is, and the head stays."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(1)])
    head = journal.head
    with pytest.raises(StorageError):
        journal.append([entry(2), entry(3)._replace(kind=None)])  # type: ignore[arg-type]
    assert journal.head == head
    assert len(list(journal.read())) == 1
    journal.close()


def test_a_second_writer_is_refused_in_words(tmp_path: Path) -> None:
    """The second one learns who holds the journal; after the first has closed it may write."""
    first = Journal.open(tmp_path / "j")
    with pytest.raises(StorageError, match=rf"another process \(pid {os.getpid()}\) already writes"):
        Journal.open(tmp_path / "j")
    with pytest.raises(StorageError, match="another process"):
        Journal.open(tmp_path / "other", lock=tmp_path / "j.lock")
    first.close()
    first.close()
    Journal.open(tmp_path / "j").close()


def test_a_reader_sees_committed_rows_while_the_writer_goes_on(tmp_path: Path) -> None:
    """A reader beside the writer follows its head, reads its rows, and may not write."""
    writer = Journal.open(tmp_path / "j")
    writer.append([entry(i) for i in range(1, PAGE_ROWS + 1)])
    reader = Journal.open(tmp_path / "j", writer=False)
    rows = reader.read()
    assert next(rows).sequence == 1
    writer.append([entry(0)])
    assert reader.head == writer.head
    assert sum(1 for _ in rows) == PAGE_ROWS
    with pytest.raises(LocalError, match="reading only"):
        reader.append([entry(1)])
    reader.close()
    writer.close()


def test_a_killed_writer_leaves_every_acknowledged_row(tmp_path: Path) -> None:
    """After SIGKILL the rows that `append` returned for are there, the chain holds, the lock is free."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedtrain.storage.journal import Entry, Journal\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(journal.append([Entry(1, '', 'k', '{}')] * 3), flush=True)\n"
    )
    path = tmp_path / "j"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(5):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split(b"\n")[:-1]
    acknowledged = int(rest[-1]) if rest else acknowledged
    journal = Journal.open(path)
    rows = list(journal.read())
    assert len(rows) >= acknowledged
    assert len(rows) % 3 == 0
    journal.close()


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """SQLite's own "full" leaves nothing half-done, and the journal goes on when there is room."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(1)])
    (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(StorageError, match="disk is full; free some space"):
        journal.append([entry(i)._replace(payload="x" * 5000) for i in range(20)])
    assert journal.head[0] == 1
    journal._connection.execute("PRAGMA max_page_count=1000000")
    assert journal.append([entry(2)]) == 2
    assert len(list(journal.read())) == 2
    journal.close()


class FailingConnection:
    """A connection whose commit ends as it does when the disk fails to sync."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self.real.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_after_a_failed_sync_nothing_more_is_written(tmp_path: Path) -> None:
    """A failed sync is never acknowledged, and poisons the journal although the disk recovers."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(1)])
    real = journal._connection
    journal._connection = FailingConnection(real)  # type: ignore[assignment]
    with pytest.raises(StorageError, match="failed to read, write or sync"):
        journal.append([entry(2)])
    journal._connection = real
    with pytest.raises(StorageError, match="until a restart"):
        journal.append([entry(2)])
    assert journal.head[0] == 1
    journal.close()
    again = Journal.open(tmp_path / "j")
    assert again.append([entry(2)]) == 2
    again.close()


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    """Using a journal behind its end is a sentence, not a crash of SQLite."""
    journal = Journal.open(tmp_path / "j")
    journal.close()
    with pytest.raises(StorageError, match="closed"):
        journal.append([entry(1)])


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    """Foreign files, foreign databases, other schemas and absent files each end in their own sentence."""
    text = tmp_path / "text"
    text.write_text("hello, this is no database at all" * 100)
    with pytest.raises(IntegrityError, match="restore the file"):
        Journal.open(text)
    with pytest.raises(IntegrityError, match="restore the file"):
        Journal.open(text, writer=False)
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    with pytest.raises(IntegrityError, match="no journal"):
        Journal.open(foreign, writer=False)
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(ConfigError, match="schema 9"):
        Journal.open(newer)
    with pytest.raises(StorageError, match="there is no journal"):
        Journal.open(tmp_path / "absent", writer=False)
    with pytest.raises(StorageError, match="absent"):
        Journal.open(tmp_path / "absent" / "j")


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        ("UPDATE rows SET payload='{}' WHERE sequence=7", "row 7"),
        ("UPDATE rows SET kind=CAST(x'ff00fe' AS TEXT) WHERE sequence=7", "row 7"),
        ("UPDATE rows SET hash='00' WHERE sequence=7", "row 7"),
        ("DELETE FROM rows WHERE sequence=7", "rows 7 to 7"),
        ("DELETE FROM rows WHERE sequence<3", "rows 1 to 2"),
    ],
)
def test_replay_stops_at_the_damaged_row(tmp_path: Path, edit: str, place: str) -> None:
    """Whoever folds the journal at a start learns the exact row that is wrong, and what to do."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(i) for i in range(1, 11)])
    journal.close()
    with sqlite3.connect(tmp_path / "j") as connection:
        connection.execute(edit)
    reader = Journal.open(tmp_path / "j", writer=False)
    with pytest.raises(IntegrityError, match=f"{place} .*restore the file from its last backup"):
        list(reader.read())
    reader.close()
    with pytest.raises(IntegrityError, match=f"journal .*: {place} .*; run the command"):
        Journal.open(tmp_path / "j", remedy="run the command")


def test_a_flipped_byte_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    """Whatever single byte of the file is flipped, replay is either right or refused."""
    path = tmp_path / "j"
    journal = Journal.open(path)
    journal.append([entry(i) for i in range(1, 41)])
    good = list(journal.read())
    journal.backup(tmp_path / "copy")
    journal.close()
    data = (tmp_path / "copy").read_bytes()
    refused = 0
    for place in range(0, len(data), 97):
        (tmp_path / "bad").write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        try:
            bad = Journal.open(tmp_path / "bad", writer=False)
        except (IntegrityError, StorageError):
            refused += 1
            continue
        try:
            assert list(bad.read()) in (good, good[: bad.head[0]])
        except (IntegrityError, StorageError):
            refused += 1
        bad.close()
    assert refused > 10


def test_signed_heads_are_kept_once(tmp_path: Path) -> None:
    """Heads come back in order; a repeated one changes nothing; one of another journal is our bug."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(1), entry(2)])
    heads = [SignedHead("c", row.sequence, row.hash, 9, "00ff", "key") for row in journal.read()]
    journal.add_head(heads[1])
    journal.add_head(heads[0])
    journal.add_head(heads[1])
    assert journal.heads() == heads
    with pytest.raises(LocalError, match="row 2"):
        journal.add_head(SignedHead("c", 2, heads[0].hash, 9, "00", "key"))
    with pytest.raises(LocalError, match="row 3"):
        journal.add_head(SignedHead("c", 3, heads[0].hash, 9, "00", "key"))
    journal.close()
    assert heads[0].message() == head_message("c", 1, heads[0].hash, 9)
    assert heads[0].message().startswith(b'{"at_ms":9,"consortium":"c","hash":"')


def test_a_backup_is_one_whole_file(tmp_path: Path) -> None:
    """A copy taken beside a live writer opens alone, holds the chain, and replaces an older copy."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(1)])
    target = tmp_path / "copies" / "j"
    target.parent.mkdir()
    journal.backup(target)
    journal.append([entry(2)])
    journal.backup(target)
    journal.append([entry(3)])
    assert list(target.parent.iterdir()) == [target]
    copy = Journal.open(target, writer=False)
    assert [row.sequence for row in copy.read()] == [1, 2]
    copy.close()
    with pytest.raises(StorageError, match="check that its folder exists"):
        journal.backup(tmp_path / "absent" / "j")
    journal.close()


def test_a_network_file_system_gets_a_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where shared memory cannot be relied on there is no write-ahead log, and the journal says so."""
    table = tmp_path / "mounts"
    table.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", table)
    journal = Journal.open(tmp_path / "j")
    assert "nfs4" in journal.note
    journal.append([entry(1)])
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert not (tmp_path / "j-wal").exists()
    journal.close()
    monkeypatch.undo()
    local = Journal.open(tmp_path / "j")
    assert local.note == ""
    assert local._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert len(list(local.read())) == 1
    local.close()


def test_the_deepest_and_latest_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces in mount points, mounts over mounts and look-alike prefixes are told apart."""
    table = tmp_path / "mounts"
    table.write_text(
        "none / ext4 rw 0 0\n"
        "s:/ /data\\040sets lustre rw 0 0\n"
        "none /data\\040sets/local xfs rw 0 0\n"
        "none /home ext4 rw 0 0\n"
        "s:/ /home nfs rw 0 0\n"
        "broken\n"
    )
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", table)
    assert filesystem.network_type(Path("/data sets/a")) == "lustre"
    assert filesystem.network_type(Path("/data sets/local/a")) == ""
    assert filesystem.network_type(Path("/data setsx")) == ""
    assert filesystem.network_type(Path("/home/me")) == "nfs"
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", tmp_path / "absent")
    assert filesystem.network_type(Path("/home/me")) == ""
