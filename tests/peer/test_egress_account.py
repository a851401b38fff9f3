"""The account of what leaves: a row per transfer, small talk summed, nothing lost or doubled by a crash."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_world import RUN, Bookkeeper, an_order

from fedtrain.core.agent import BytesSent
from fedtrain.core.contract import Approval, Contract, Verdict, Word
from fedtrain.core.driver import entry_of
from fedtrain.core.orders import OrderKind, Result
from fedtrain.errors import UnreachableError
from fedtrain.peer import egress
from fedtrain.peer.egress import Account, Unwritten, allowing
from fedtrain.storage.journal import Journal

SIZE = 3 << 20
ORDER = an_order(1, task='{"name": "synthetic", "data": "corpus"}')
RESULT = Result(ORDER.id, "", "update.bin", "d" * 64, SIZE, 10, 5, norm=1.5)


class Link:
    """A connection to a port of our own, over which bytes can be sent that the kernel counts."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.near = socket.create_connection(self.server.getsockname())
        self.far, _ = self.server.accept()

    def send(self, size_bytes: int) -> None:
        """Send, and have it read at the other end."""
        while size_bytes:
            piece = min(size_bytes, 1 << 16)
            self.near.sendall(b"b" * piece)
            left = piece
            while left:
                left -= len(self.far.recv(left))
            size_bytes -= piece

    def close(self) -> None:
        for one in (self.near, self.far, self.server):
            one.close()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


@pytest.fixture
def books() -> Bookkeeper:
    return Bookkeeper(Contract(runs=("lib*",), tasks=("synthetic",), cohort_min=2))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.db")
    yield opened
    opened.close()


def rows(books: Bookkeeper) -> list[BytesSent]:
    return [event for event in books.events if isinstance(event, BytesSent)]


def test_an_upload_is_a_row_and_the_rest_adds_up_to_the_kernels_count(link: Link, books: Bookkeeper) -> None:
    """Update, messages and the connection's own bytes are rows whose sum is what the socket sent."""
    account = Account(books, link.address)
    account.tally.note("Session.Heartbeat", 40)
    link.send(5_000)
    with account.upload(ORDER, RESULT, 0) as reach:
        link.send(SIZE + 10_000)
        reach(SIZE)
    account.close()
    upload, connection, heartbeat = rows(books)[0], rows(books)[-1], rows(books)[1]
    assert (upload.kind, upload.order, upload.run, upload.digest) == ("update", ORDER.id, RUN, "d" * 64)
    assert (upload.norm, upload.messages, upload.counted) == (1.5, 3, "kernel")
    assert SIZE < upload.size_bytes < SIZE * 1.01
    assert (heartbeat.kind, heartbeat.messages, heartbeat.size_bytes) == ("Session.Heartbeat", 1, 76)
    assert connection.kind == "connection"
    assert sum(row.size_bytes for row in rows(books)) == SIZE + 15_000


def test_every_time_the_bytes_leave_is_a_row(link: Link, books: Bookkeeper) -> None:
    """A transfer that broke counts what the kernel sent of it, and the one that goes on counts its own."""
    account = Account(books, link.address)
    with pytest.raises(UnreachableError), account.upload(ORDER, RESULT, 0) as reach:
        link.send(1_500_000)
        reach(1 << 20)
        raise UnreachableError("the connection broke")
    assert rows(books) == []
    with account.upload(ORDER, RESULT, 1_490_000) as reach:
        link.send(SIZE - 1_490_000 + 9_000)
        reach(SIZE)
    account.close()
    resumed, broken = rows(books)[:2]
    assert broken.size_bytes == pytest.approx(1_500_000, rel=0.01)
    assert resumed.size_bytes == pytest.approx(SIZE - 1_490_000, rel=0.01)
    assert {broken.order, resumed.order} == {ORDER.id}
    assert sum(row.size_bytes for row in rows(books)) == SIZE + 10_000 + 9_000


def test_what_grpc_still_held_when_it_broke_has_not_left(link: Link, books: Bookkeeper) -> None:
    """A file that was handed over whole, of which the kernel sent a third, counts as a third."""
    account = Account(books, link.address)
    with pytest.raises(UnreachableError), account.upload(ORDER, RESULT, 0) as reach:
        link.send(1 << 20)
        reach(SIZE)
        raise UnreachableError("the connection broke")
    account.close()
    assert [row.size_bytes for row in rows(books)] == [1 << 20]


def test_where_nobody_counts_the_protocol_does(books: Bookkeeper) -> None:
    """Without the kernel's count rows are what the messages take, and say so; hellos stand for handshakes."""
    account = Account(books, "127.0.0.1:1")
    account.tally.note("Session.Hello", 100)
    with account.upload(ORDER, RESULT, 0) as reach:
        reach(SIZE)
    account.close()
    assert {row.counted for row in rows(books)} == {"model"}
    assert [row.kind for row in rows(books)] == ["update", "Session.Hello", "connection"]
    assert SIZE < rows(books)[0].size_bytes < SIZE * 1.01


def test_an_update_names_the_clauses_that_let_it_go(books: Bookkeeper) -> None:
    """Run, task, data set, cohort, bounds, and who approved: a reader needs no other file."""
    contract = Contract(
        runs=("lib*",), tasks=("synthetic",), cohort_min=2, upload_max_per_day_bytes=10_000_000,
        approval=Approval.MANUAL,
    )  # fmt: skip
    manual = Bookkeeper(contract)
    object.__setattr__(manual.state, "verdicts", {RUN: Verdict(Word.APPROVED, "", "anna")})
    told = allowing(manual.state, ORDER)
    for clause in ("runs (library)", "tasks (synthetic)", "datasets.corpus.rights.execute", "cohort_min 2",
                   "upload_max_per_day 10000000", "approved by anna"):  # fmt: skip
        assert clause in told
    assert "approval" not in allowing(books.state, ORDER)


async def test_a_crash_loses_nothing_that_was_kept(
    link: Link, books: Bookkeeper, journal: Journal, tmp_path: Path
) -> None:
    """What lies in the file when an agent dies gets into the journal of the next one, transfers too."""
    file = tmp_path / egress.FILE
    account = Account(books, link.address)
    account.keep_in(file, journal)
    account.tally.note("Session.Heartbeat", 40)
    with account.upload(ORDER, RESULT, 0) as reach:
        link.send(1 << 20)
        reach(1 << 20)
        await account._keep()
        kept = file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(kept)
    after = Bookkeeper()
    Account(after, link.address).keep_in(file, journal)
    assert [(row.kind, row.order) for row in rows(after)] == [("Session.Heartbeat", ""), ("update", ORDER.id)]
    assert not file.exists()


async def test_what_was_written_before_the_crash_is_not_written_twice(
    link: Link, journal: Journal, tmp_path: Path
) -> None:
    """A file that is older than the journal's rows of the same things adds nothing."""
    heartbeat = BytesSent(1, "", "", "Session.Heartbeat", 2, 100, "", "membership")
    update = BytesSent(1, RUN, ORDER.id, "update", 1, 5_000, "d" * 64, "")
    other = BytesSent(1, RUN, an_order(2).id, "update", 1, 700, "e" * 64, "")
    file = tmp_path / egress.FILE
    egress._keep_file(file, Unwritten(journal.head[0], (heartbeat, update, other)))
    journal.append([entry_of(heartbeat), entry_of(update)])
    after = Bookkeeper()
    Account(after, link.address).keep_in(file, journal)
    assert rows(after) == [other]


@pytest.mark.parametrize("content", [b"", b"{", b'{"after":0,"rows":[{"kind":"x"}]}', b"\xff\xfe"])
def test_a_spoilt_file_is_told_and_thrown_away(
    content: bytes, books: Bookkeeper, journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that a power loss has spoilt keeps no agent from starting."""
    file = tmp_path / egress.FILE
    file.write_bytes(content)
    Account(books, "127.0.0.1:1").keep_in(file, journal)
    assert rows(books) == [] and not file.exists()
    assert "a part of the egress account is lost" in caplog.text


def test_initial_weights_are_a_model(link: Link, books: Bookkeeper) -> None:
    """The first file of a run is no update, and has no norm of one."""
    order = an_order(0, OrderKind.SEED)
    account = Account(books, link.address)
    with account.upload(order, Result(order.id, "", "model.bin", "e" * 64, 100), 0) as reach:
        link.send(200)
        reach(100)
    assert (rows(books)[0].kind, rows(books)[0].norm) == ("model", 0.0)
