"""The site's privacy ledger: charges are kept for good, by several agents, and no altered row passes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtrain.core.charges import CLOSED, Charge, Mechanism
from fedtrain.errors import IntegrityError, LocalError, StorageError
from fedtrain.storage import ledger as room
from fedtrain.storage.chain import GENESIS
from fedtrain.storage.ledger import Head, Ledger

MECHANISM = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.01, 20, {"x": 0.5})
LIMIT_S = 60

AGENT = """
import sys
from pathlib import Path
from fedtrain.core.charges import Charge, Mechanism
from fedtrain.storage.ledger import Ledger
name, count = sys.argv[2], int(sys.argv[3])
mechanism = Mechanism("gaussian", "site", 1.0, 2.0)
ledger = Ledger(Path(sys.argv[1]))
print("open", flush=True)
for index in range(count):
    rows = [Charge(f"r.{index}.1.{name}", 1, "r", name, data, mechanism) for data in ("one", "two")]
    print(*ledger.charge(rows), flush=True)
ledger.close()
"""


def charge(index: int, dataset: str = "corpus", execution: int = 1) -> Charge:
    return Charge(f"run.{index}.1.north", execution, "run", "consortium", dataset, MECHANISM)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", clock=lambda: 1_700_000_000_000) as opened:
        yield opened


def agent(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", AGENT, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_charges_come_back_as_they_were_written(ledger: Ledger) -> None:
    """Per data set, in order, over a restart, with the time of the row."""
    first = ledger.charge([charge(1), charge(2, "other")])
    second = ledger.charge([charge(1, execution=2)])
    assert (first.sequence, second.sequence) == (2, 3) and ledger.head == second
    assert ledger.spending("corpus") == (charge(1), charge(1, execution=2))
    assert ledger.spending("other") == (charge(2, "other"),) and ledger.spending("none") == ()
    rows = ledger.rows()
    ledger.close()
    with Ledger(ledger.path) as again:
        assert again.rows() == rows and again.head == second == again.verify()
    assert {row.at_ms for row in rows} == {1_700_000_000_000}


def test_an_empty_ledger_has_the_first_head(ledger: Ledger) -> None:
    """No rows: sequence 0 and 64 zeros; it holds that and nothing else."""
    assert ledger.head == Head(0, GENESIS) == ledger.verify()
    assert ledger.holds(0, GENESIS) and not ledger.holds(1, GENESIS)


def test_heads_are_told_apart(ledger: Ledger) -> None:
    """A row is held by its number and hash together, and by no other number or hash."""
    first, second = ledger.charge([charge(1)]), ledger.charge([charge(2)])
    assert ledger.holds(*first) and ledger.holds(*second)
    assert not ledger.holds(1, second.hash) and not ledger.holds(3, second.hash)
    assert not ledger.holds(-1, second.hash)


def test_equal_rows_share_one_mechanism(ledger: Ledger) -> None:
    """Ten thousand charges of one kind are ten thousand small objects, not as many mechanisms."""
    ledger.charge([charge(index) for index in range(5)])
    ledger.close()
    with Ledger(ledger.path) as again:
        assert len({id(one.mechanism) for one in again.spending("corpus")}) == 1


def test_a_repair_closes_one_data_set(ledger: Ledger) -> None:
    """It is a row of the chain whose mechanism bounds nothing; other data sets are as they were."""
    ledger.charge([charge(1), charge(2, "other")])
    head = ledger.repair("corpus", "restored from an old backup")
    row = ledger.rows()[-1]
    assert row.reason == "restored from an old backup" and (row.sequence, row.hash) == head
    assert [one.mechanism.kind for one in ledger.spending("corpus")] == ["poisson-gaussian", CLOSED]
    assert [one.mechanism.kind for one in ledger.spending("other")] == ["poisson-gaussian"]


def test_a_reader_writes_nothing(ledger: Ledger) -> None:
    """It sees what writers append, and may not charge; without a file there is nothing to read."""
    with Ledger(ledger.path, writer=False) as reader:
        ledger.charge([charge(1)])
        assert reader.spending("corpus") == (charge(1),)
        with pytest.raises(LocalError, match="reading only"):
            reader.charge([charge(2)])
    with pytest.raises(StorageError, match="check the path"):
        Ledger(ledger.path.with_name("none"), writer=False)
    assert not ledger.path.with_name("none").exists()


def test_a_closed_ledger_takes_nothing(ledger: Ledger) -> None:
    """Whoever holds on to it is told so; closing twice is fine."""
    ledger.close()
    ledger.close()
    with pytest.raises(StorageError, match="is closed"):
        ledger.charge([charge(1)])


# -- several writers -----------------------------------------------------------------------------------


def test_two_in_one_process_see_each_other(ledger: Ledger) -> None:
    """Both append to one chain, and each reads what the other wrote before it decides."""
    with Ledger(ledger.path) as other:
        ledger.charge([charge(1)])
        assert other.spending("corpus") == (charge(1),)
        assert other.charge([charge(2)]).sequence == 2
        assert ledger.head.sequence == 2 and ledger.charge([charge(3)]).sequence == 3
        assert other.verify() == ledger.verify()


def test_threads_append_one_chain(ledger: Ledger) -> None:
    """Four threads, forty charges: none lost, none twice, the chain holds."""
    threads = [
        threading.Thread(target=lambda base=base: [ledger.charge([charge(base + i)]) for i in range(10)])
        for base in (0, 100, 200, 300)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert ledger.verify().sequence == 40 == len({one.order for one in ledger.spending("corpus")})


@pytest.mark.slow
def test_agents_of_one_site_share_a_ledger(tmp_path: Path) -> None:
    """Three processes charge at once: every acknowledged head is a row, a charge's rows stand together."""
    path = tmp_path / "ledger.sqlite"
    agents = [agent(path, name, 40) for name in ("a", "b", "c")]
    told = []
    for child in agents:
        out, _ = child.communicate(timeout=LIMIT_S)
        assert child.returncode == 0
        told += [line.split() for line in out.splitlines() if line != "open"]
    with Ledger(path) as ledger:
        assert ledger.verify().sequence == 240
        assert len(told) == 120 and all(ledger.holds(int(number), row) for number, row in told)
        rows = ledger.rows()
        pairs = zip(rows[::2], rows[1::2], strict=True)
        assert all(one.charge.order == two.charge.order for one, two in pairs)
        assert {one.consortium for one in ledger.spending("two")} == {"a", "b", "c"}


def test_a_wait_for_another_agent_ends(ledger: Ledger) -> None:
    """One that hangs in the midst of a charge is named with its process; afterwards all goes on."""
    with Ledger(ledger.path, wait_s=0.05) as other:
        with (
            ledger._locked(),
            pytest.raises(
                StorageError, match=rf"ledger\.sqlite: pid {os.getpid()} has kept it locked for 0.05 s"
            ),
        ):
            other.charge([charge(1)])
        assert other.charge([charge(1)]).sequence == 1


def test_a_lock_of_the_database_ends_too(ledger: Ledger) -> None:
    """A foreign program that keeps SQLite's own lock is waited for, then named; nothing is written."""
    ledger._connection.execute("PRAGMA busy_timeout=50")
    foreign = sqlite3.connect(ledger.path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"ledger\.sqlite: another process keeps it locked"):
        ledger.charge([charge(1)])
    foreign.execute("ROLLBACK")
    foreign.close()
    assert ledger.charge([charge(1)]).sequence == 1


def test_the_log_is_not_looked_at_while_it_is_open_here(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a descriptor of an open database drops SQLite's locks on it, so a second one does not."""
    looked: list[Path] = []
    monkeypatch.setattr(room.integrity, "check_log", lambda path, remedy: looked.append(path))
    with Ledger(ledger.path):
        assert looked == []
    ledger.close()
    with Ledger(ledger.path):
        assert looked == [ledger.path]


# -- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "UPDATE rows SET payload = replace(payload, '1.1', '9.9') WHERE sequence = 2",
            "row 2 does not match",
        ),
        ("UPDATE rows SET at_ms = 5 WHERE sequence = 1", "row 1 does not match"),
        ("DELETE FROM rows WHERE sequence = 2", "rows 2 to 2 are missing"),
        ("DELETE FROM rows WHERE sequence = 1", "rows 1 to 1 are missing"),
        ("DROP TABLE rows", "damaged or no journal"),
    ],
)
def test_an_altered_ledger_is_refused(ledger: Ledger, change: str, told: str) -> None:
    """With the row, the file and what to do; also by a reader."""
    ledger.charge([charge(index) for index in range(3)])
    ledger.close()
    with sqlite3.connect(ledger.path) as foreign:
        foreign.execute(change)
    foreign.close()
    for writer in (True, False):
        with pytest.raises(IntegrityError, match=told) as raised:
            Ledger(ledger.path, writer=writer)
        assert str(ledger.path) in str(raised.value) and "fedtrain ledger repair" in str(raised.value)


def test_a_change_under_an_open_ledger_is_found(ledger: Ledger) -> None:
    """A row that was rewritten or dropped while the agent runs stops the next charge, and `verify`."""
    ledger.charge([charge(index) for index in range(3)])
    with sqlite3.connect(ledger.path) as foreign:
        foreign.execute("UPDATE rows SET at_ms = 5 WHERE sequence = 1")
    with pytest.raises(IntegrityError, match="row 1 does not match"):
        ledger.verify()
    with foreign:
        foreign.execute("DELETE FROM rows WHERE sequence = 3")
    foreign.close()
    for ask in (lambda: ledger.charge([charge(9)]), lambda: ledger.head, lambda: ledger.spending("corpus")):
        with pytest.raises(IntegrityError, match="row 3 is not there any more"):
            ask()


def test_a_replaced_file_takes_no_charge(ledger: Ledger, tmp_path: Path) -> None:
    """Rows written to a file that nobody sees any more would never be counted."""
    ledger.charge([charge(1)])
    shutil.copy(ledger.path, tmp_path / "copy")
    (tmp_path / "copy").rename(ledger.path)
    with pytest.raises(IntegrityError, match="moved or replaced"):
        ledger.charge([charge(2)])
    with pytest.raises(StorageError, match="moved or replaced"):
        ledger.charge([charge(3)])


@pytest.mark.parametrize(
    ("kind", "payload"), [("refund", "{}"), ("charge", "{}"), ("charge", '{"order":1}'), ("repair", "[]")]
)
def test_a_row_that_is_not_understood_is_not_passed_over(ledger: Ledger, kind: str, payload: str) -> None:
    """It may be a charge of a newer version, so it is not counted as nothing."""
    ledger.charge([charge(1)])
    row = room.append_row(room.Entry(1, "run", kind, payload), 2, ledger.head.hash)
    with sqlite3.connect(ledger.path) as foreign:
        foreign.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    foreign.close()
    with pytest.raises(IntegrityError, match=r"row 2 cannot be read .*version of fedtrain that wrote it"):
        ledger.spending("corpus")
