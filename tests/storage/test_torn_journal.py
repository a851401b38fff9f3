"""The journal's file, killed, torn and flipped: it opens with every acknowledged row, or refuses in words."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtrain.errors import ConfigError, IntegrityError
from fedtrain.storage.chain import Row
from fedtrain.storage.journal import Entry, Journal

WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
PAGE_BYTES = 4096
APPENDS = 12

PROGRAM = """
import sys
from pathlib import Path
from fedtrain.storage.chain import Snapshot
from fedtrain.storage.journal import Entry, Journal
journal = Journal.open(Path(sys.argv[1]))
print("rows", journal.head[0], flush=True)
while True:
    last = journal.append([Entry(1, "run", "kind", '{"filler":"' + "x" * 700 + '"}')] * 3)
    print("rows", last, flush=True)
    if last % 4 == 0:
        journal.keep_snapshot(Snapshot(*journal.head, "format", b"y" * 9000, "digest"))
"""


def entry(index: int) -> Entry:
    return Entry(1_000 + index, "run", "joined", f'{{"index":{index},"filler":"{"x" * 500}"}}')


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Path, list[Row], list[int]]:
    """A journal as a power loss leaves it: (folder, its rows, size of the log at each acknowledgement)."""
    live = tmp_path / "live"
    live.mkdir()
    journal = Journal.open(live / "j")
    sizes = []
    for index in range(APPENDS):
        journal.append([entry(2 * index), entry(2 * index + 1)])
        sizes.append((live / "j-wal").stat().st_size)
    folder = tmp_path / "crashed"
    folder.mkdir()
    for name in ("j", "j-wal"):
        shutil.copy(live / name, folder / name)
    rows = list(journal.read())
    journal.close()
    return folder, rows, sizes


def reopened(folder: Path, target: Path, log: bytes) -> list[Row]:
    """What a start finds with this log beside the file."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(folder / "j", target / "j")
    (target / "j-wal").write_bytes(log)
    journal = Journal.open(target / "j")
    try:
        found = list(journal.read())
        assert journal.append([entry(99)]) == len(found) + 1
        return found
    finally:
        journal.close()


def positions(log: bytes) -> list[int]:
    """One of every class of place: file header, frame headers, page starts, middles and ends, each border."""
    frame = FRAME_HEADER_BYTES + PAGE_BYTES
    frames = (len(log) - WAL_HEADER_BYTES) // frame
    assert frames * frame + WAL_HEADER_BYTES == len(log)
    chosen = {0, 4, 8, 16, 24, 31, len(log) - 1}
    for index in (0, 1, frames // 2, frames - 2, frames - 1):
        start = WAL_HEADER_BYTES + index * frame
        chosen |= {start + offset for offset in (0, 4, 8, 16, 23, 24, 32, 2000, frame - 1)}
    return sorted(chosen)


def test_a_log_that_is_cut_off_is_a_prefix(
    tmp_path: Path, crashed: tuple[Path, list[Row], list[int]]
) -> None:
    """Wherever the log ends, the rows are the first ones, with all that were synced before that place."""
    folder, rows, sizes = crashed
    log = (folder / "j-wal").read_bytes()
    for cut in positions(log):
        acknowledged = 2 * sum(size <= cut for size in sizes)
        try:
            found = reopened(folder, tmp_path / "found", log[:cut])
        except (IntegrityError, ConfigError):
            assert acknowledged == 0, f"cut at {cut}: {acknowledged} acknowledged rows are refused"
            continue
        assert found == rows[: len(found)] and len(found) >= acknowledged, f"cut at {cut}"


def test_a_flipped_byte_in_the_log_loses_no_acknowledged_append(
    tmp_path: Path, crashed: tuple[Path, list[Row], list[int]]
) -> None:
    """SQLite would silently forget all behind the flip, so the start refuses. The last append, hit alone,
    looks like one that a power loss has torn."""
    folder, rows, sizes = crashed
    log = (folder / "j-wal").read_bytes()
    refused = 0
    for place in positions(log):
        flipped = bytearray(log)
        flipped[place] ^= 0x40
        try:
            found = reopened(folder, tmp_path / "found", bytes(flipped))
        except IntegrityError as error:
            assert "damaged behind frame" in str(error) and place < sizes[-2]
            refused += 1
            continue
        assert found == rows[: len(found)], f"flip at {place}"
        assert len(found) == len(rows) or place >= sizes[-2], f"flip at {place}: acknowledged rows are lost"
    assert refused > 20


def test_a_flipped_byte_in_the_file_is_found_at_the_start(tmp_path: Path) -> None:
    """Any byte of a closed journal's file: the start refuses with the remedy, or no row was changed."""
    journal = Journal.open(tmp_path / "j")
    journal.append([entry(index) for index in range(60)])
    journal.close()
    data = (tmp_path / "j").read_bytes()
    expected = None
    refused = 0
    for place in random.Random(5).sample(range(len(data)), 150):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        path = tmp_path / "copy" / "j"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(flipped)
        try:
            again = Journal.open(path, remedy="run the remedy")
        except IntegrityError as error:
            assert "run the remedy" in str(error) and str(path) in str(error)
            refused += 1
            continue
        except ConfigError:  # the byte of the schema's number
            refused += 1
            continue
        found = list(again.read())
        again.close()
        expected = expected or found
        assert found == expected and len(found) == 60
    assert refused > 60


def test_every_append_waits_for_the_disk(tmp_path: Path) -> None:
    """A writer's connection syncs the log at each commit, whatever SQLite's default is."""
    journal = Journal.open(tmp_path / "j")
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal.close()


@pytest.mark.slow
def test_kills_in_a_loop_lose_no_acknowledged_row(tmp_path: Path) -> None:
    """Thirty lives, each killed at another moment: the chain holds and every printed row is there."""
    path = tmp_path / "j"
    acknowledged = 0
    for life in range(30):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(1 + life % 7):
                line = child.stdout.readline().split()
            child.send_signal(signal.SIGKILL)
            rest = [
                rest.split() for rest in child.stdout.read().splitlines(keepends=True) if rest[-1] == "\n"
            ]
        last = int((rest[-1] if rest else line)[1])
        assert last >= acknowledged
        acknowledged = last
        journal = Journal.open(path)
        assert journal.head[0] >= acknowledged and journal.head[0] % 3 == 0
        assert sum(1 for _ in journal.read()) == journal.head[0]
        assert all(len(snapshot.payload) == 9000 for snapshot in journal.snapshots())
        acknowledged = journal.head[0]
        journal.close()
    assert acknowledged >= 90
