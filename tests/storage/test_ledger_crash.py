"""The ledger after power losses, torn writes and kills: what was acknowledged is counted, always."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_ledger import charge

from fedtrain.errors import ConfigError, IntegrityError, StorageError
from fedtrain.storage.ledger import Ledger

CHARGES = 10
LOG_HEADER_BYTES = 32
FRAME_BYTES = 24 + 4096

PROGRAM = """
import sys
from pathlib import Path
from fedtrain.core.charges import Charge, Mechanism
from fedtrain.storage.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
mechanism = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.01, 20)
while True:
    order = f"run.{ledger.head.sequence}.1.north"
    head = ledger.charge([Charge(order, 1, "run", "c", name, mechanism) for name in ("one", "two")])
    print(*head, flush=True)
"""


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Path, list[int]]:
    """A ledger as a power loss leaves it: its folder, and the log's size at each acknowledged charge."""
    live, folder = tmp_path / "live", tmp_path / "crashed"
    live.mkdir()
    folder.mkdir()
    sizes = []
    with Ledger(live / "l") as ledger:
        for index in range(CHARGES):
            ledger.charge([charge(index, "one"), charge(index, "two")])
            sizes.append((live / "l-wal").stat().st_size)
        for name in ("l", "l-wal"):
            shutil.copy(live / name, folder / name)
    return folder, sizes


def reopened(folder: Path, target: Path, log: bytes) -> int:
    """Charges that a start finds with this log, each whole; it goes on charging."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(folder / "l", target / "l")
    (target / "l-wal").write_bytes(log)
    with Ledger(target / "l") as ledger:
        one, two = ledger.spending("one"), ledger.spending("two")
        assert [c.order for c in one] == [c.order for c in two] == [charge(i).order for i in range(len(one))]
        assert ledger.charge([charge(99)]).sequence == 2 * len(one) + 1
        return len(one)


def places(log: bytes) -> list[int]:
    """Every border of a frame and of the header, and the midst of each."""
    frames = range(LOG_HEADER_BYTES, len(log) + 1, FRAME_BYTES)
    found = {0, 8, 31, len(log)}
    return sorted(found | {min(start + more, len(log)) for start in frames for more in (0, 12, 24, 2000)})


def test_every_charge_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite syncs the log at each commit (FULL), and the commit is what `charge` returns after."""
    with Ledger(tmp_path / "l") as ledger:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        said: list[str] = []
        ledger._connection.set_trace_callback(said.append)
        ledger.charge([charge(1)])
        assert said[0] == "BEGIN IMMEDIATE" and said[-1] == "COMMIT"


def test_a_log_that_is_cut_off_counts_all_that_was_acknowledged(
    tmp_path: Path, crashed: tuple[Path, list[int]]
) -> None:
    """Wherever a power loss ends the log, every charge that returned before is there, with both its rows."""
    folder, sizes = crashed
    log = (folder / "l-wal").read_bytes()
    for cut in places(log):
        acknowledged = sum(size <= cut for size in sizes)
        try:
            found = reopened(folder, tmp_path / "found", log[:cut])
        except (IntegrityError, ConfigError):
            assert acknowledged == 0, f"cut at {cut}: {acknowledged} acknowledged charges are refused"
            continue
        assert found >= acknowledged, f"cut at {cut}: {found} of {acknowledged} charges are left"


def test_a_flipped_byte_in_the_log_hides_no_charge(tmp_path: Path, crashed: tuple[Path, list[int]]) -> None:
    """SQLite would forget all behind it without a word; the start refuses. Only the very last charge, which
    nobody can tell from a torn one, may be gone."""
    folder, sizes = crashed
    log = (folder / "l-wal").read_bytes()
    refused = 0
    for place in places(log)[:-1]:
        flipped = bytearray(log)
        flipped[place] ^= 0x40
        try:
            found = reopened(folder, tmp_path / "found", bytes(flipped))
        except IntegrityError as error:
            assert "fedtrain ledger repair" in str(error)
            refused += 1
            continue
        assert found >= CHARGES - 1, f"flipped at {place}: {found} of {CHARGES} charges are left"
    assert refused > 20 and sizes[-1] == len(log)


def test_a_flipped_byte_in_the_file_is_found(tmp_path: Path, crashed: tuple[Path, list[int]]) -> None:
    """In any page that holds rows, once the log is written back."""
    folder, _ = crashed
    with Ledger(folder / "l") as ledger:
        head = ledger.head
    data = (folder / "l").read_bytes()
    place = data.index(b"poisson-gaussian")
    flipped = bytearray(data)
    flipped[place] ^= 0x01
    (folder / "l").write_bytes(flipped)
    with pytest.raises(IntegrityError, match=r"row \d+ does not match its hash"):
        Ledger(folder / "l")
    (folder / "l").write_bytes(data)
    with Ledger(folder / "l") as ledger:
        assert ledger.verify() == head


def test_an_older_copy_does_not_hold_the_newest_head(tmp_path: Path, crashed: tuple[Path, list[int]]) -> None:
    """A ledger that was put back is sound in itself; the heads that were told of it are what shows it."""
    folder, _ = crashed
    with Ledger(folder / "l") as ledger:
        newest = ledger.head
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(folder / "l", tmp_path / "old")
        later = ledger.charge([charge(50)])
    with Ledger(tmp_path / "old") as old:
        assert old.verify() == newest and old.holds(*newest) and not old.holds(*later)
        other = old.charge([charge(51)])
        assert other.sequence == later.sequence and not old.holds(*later)


class FailingConnection:
    """A connection whose commit fails as a full or a dying disk makes it fail."""

    def __init__(self, real: sqlite3.Connection, code: int) -> None:
        self._real = real
        self._code = code

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("the disk said no")
            error.sqlite_errorcode = self._code
            raise error
        return self._real.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_full_disk_refuses_one_charge(tmp_path: Path) -> None:
    """Nothing of it is there, nothing is counted, and with space again the next one is taken."""
    with Ledger(tmp_path / "l") as ledger:
        real = ledger._connection
        ledger._connection = FailingConnection(real, sqlite3.SQLITE_FULL)  # type: ignore[assignment]
        with pytest.raises(StorageError, match="disk is full"):
            ledger.charge([charge(1)])
        ledger._connection = real
        assert ledger.head.sequence == 0 and ledger.charge([charge(1)]).sequence == 1


def test_after_a_failed_sync_nothing_more_is_charged(tmp_path: Path) -> None:
    """Nobody can know what the disk holds then, so the agent starts again; the rows before are sound."""
    with Ledger(tmp_path / "l") as ledger:
        ledger.charge([charge(1)])
        real = ledger._connection
        ledger._connection = FailingConnection(real, sqlite3.SQLITE_IOERR)  # type: ignore[assignment]
        with pytest.raises(StorageError, match="the disk failed"):
            ledger.charge([charge(2)])
        ledger._connection = real
        with pytest.raises(StorageError, match="nothing more is charged until a restart"):
            ledger.charge([charge(2)])
    with Ledger(tmp_path / "l") as again:
        assert again.charge([charge(2)]).sequence == 2


@pytest.mark.slow
def test_kills_in_a_loop_lose_no_acknowledged_charge(tmp_path: Path) -> None:
    """Twenty lives, each killed at another moment: every head that was printed is held, and both rows are."""
    path = tmp_path / "l"
    told: list[tuple[int, str]] = []
    for life in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(1 + 3 * life % 7)]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.read().splitlines(keepends=True)
        told += [
            (int(number), row) for number, row in (line.split() for line in lines if line.endswith("\n"))
        ]
        with Ledger(path) as ledger:
            assert all(ledger.holds(*head) for head in told)
            assert len(ledger.spending("one")) == len(ledger.spending("two"))
    assert len(told) >= 20
