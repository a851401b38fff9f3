"""The coordinator's epoch on every call, over a real loopback server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from hypothesis import given, strategies as st
from wire_loopback import (
    SERVER_NAME,
    ZERO_DIGEST,
    Recorder,
    a_commit,
    a_spec,
    authority,
    blob,
    collect,
    connect,
    fetch_all,
    judge,
    saying,
)

from fedtrain.core import messages as core
from fedtrain.errors import BadSignature, FedtrainError, RemoteError, StaleEpoch, StaleRound
from fedtrain.wire import epochs, options
from fedtrain.wire.calls import CALLS, call
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.server import open_server
from fedtrain.wire.values import (
    Caller,
    EpochProof,
    InviteLine,
    InviteOrder,
    InviteRequest,
    Registration,
    SigningRequest,
    Verdict,
)

pytestmark = pytest.mark.timeout(60)


def a_proof(epoch: int) -> EpochProof:
    return EpochProof(epoch, 1_700_000_000_000, "ab" * 64)


class Throne:
    """A coordinator's side of the epochs that notes what it was shown."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.shown: list[tuple[str, int]] = []
        self.fenced = False

    def proof(self) -> EpochProof:
        return a_proof(self.epoch)

    def hear(self, caller: Caller, shown: EpochProof) -> None:
        self.shown.append((caller.name, shown.epoch))
        if shown.epoch > self.epoch:
            self.fenced = True
        self.check()

    def check(self) -> None:
        if self.fenced:
            raise StaleEpoch("another has taken over")


class Book:
    """A member's memory of epochs."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.seen: list[int | None] = []

    def epoch_shown(self) -> EpochProof | None:
        return a_proof(self.epoch) if self.epoch else None

    def epoch_seen(self, proof: EpochProof | None) -> None:
        self.seen.append(None if proof is None else proof.epoch)
        if proof is None or proof.epoch < self.epoch:
            raise StaleEpoch(f"{proof and proof.epoch} after {self.epoch}")
        self.epoch = proof.epoch


class Bench:
    """A server with a throne and a client with a book."""

    def __init__(self, folder: Path, throne: Throne | None, book: Book) -> None:
        self.recorder, self.throne, self.book = Recorder(folder), throne, book
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> CoordinatorClient:
        key, certificate = authority().issue(SERVER_NAME)
        credentials = options.server_credentials(key, certificate, authority().pem)
        handlers = Handlers(*[self.recorder] * 5, self.throne)
        server, port = await open_server("127.0.0.1:0", credentials, handlers, judge)
        self._stack.push_async_callback(server.stop, 0)
        client = await self._stack.enter_async_context(connect(port))
        client.follow(self.book)
        return client

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


CALLS_BY_NAME: dict[str, Callable[[CoordinatorClient, Path], Awaitable[object]]] = {
    "Check": lambda client, _: client.connect(5),
    "Enrol": lambda client, _: client.enrol(SigningRequest(b"csr", "ab" * 32)),
    "Attend": lambda client, _: collect(client.attend(saying(core.Goodbye("bye")))),
    "Fetch": lambda client, folder: fetch_all(client, blob(folder, 100)[0]),
    "Offer": lambda client, _: client.offer(core.Offer("lm.3.0.jsc", ZERO_DIGEST, 5)),
    "Send": lambda client, folder: _send(client, folder),
    "Commit": lambda client, _: client.commit(a_commit()),
    "MakeInvite": lambda client, _: client._ask(
        call("Operations", "MakeInvite"), InviteRequest("jsc", "site", 5), InviteLine
    ),
    "Renew": lambda client, _: client.renew(SigningRequest(b"csr", "ab" * 32)),
    "Invite": lambda client, _: client.invite(InviteOrder("jsc", "site", 5)),
    "Revoke": lambda client, _: client.revoke(Verdict("jsc", "lost")),
    "Quarantine": lambda client, _: client.quarantine(Verdict("jsc", "odd")),
    "Release": lambda client, _: client.release(Verdict("jsc", "even")),
    "Register": lambda client, _: client.register(Registration(b"certificate", "ab" * 32)),
    "RollOver": lambda client, _: client.roll_over(),
    "Rollback": lambda client, _: client.roll_back("lm", 1),
    "Lineage": lambda client, _: client.lineage("lm"),
    "Start": lambda client, _: client.start(a_spec()),
    "Check run": lambda client, _: client.check(a_spec()),
    "Pause": lambda client, _: client.pause("lm"),
    "Resume": lambda client, _: client.resume("lm"),
    "Stop": lambda client, _: client.stop("lm"),
    "Runs": lambda client, _: client.runs(),
    "Run": lambda client, _: client.run("lm"),
    "Rounds": lambda client, _: client.rounds("lm"),
    "Members": lambda client, _: client.members(),
    "Member": lambda client, _: client.member("jsc"),
    "Models": lambda client, _: client.models("lm"),
    "Watch": lambda client, _: collect(client.watch("lm")),
    "Export": lambda client, _: _export(client),
    "Journal": lambda client, _: collect(client.journal()),
}


async def _send(client: CoordinatorClient, folder: Path) -> None:
    digest, data = blob(folder, 100)
    await client.send_file(folder / digest, digest, len(data))


async def _export(client: CoordinatorClient) -> None:
    export = await client.export("lm")
    await collect(export.pieces)


def test_the_table_names_every_call() -> None:
    """A call that is added to the protos is added here, and so tested."""
    assert len(CALLS_BY_NAME) == len(CALLS)


@pytest.mark.parametrize("name", CALLS_BY_NAME)
async def test_every_call_carries_the_epoch_both_ways(tmp_path: Path, name: str) -> None:
    """The coordinator hears the highest epoch that the member has seen, and the member hears its own."""
    throne, book = Throne(5), Book(4)
    async with Bench(tmp_path, throne, book) as client:
        await CALLS_BY_NAME[name](client, tmp_path)
    assert throne.shown[0] == ("jsc", 4) and throne.shown[-1][0] == "jsc"
    assert set(book.seen) == {5}


@pytest.mark.parametrize("name", CALLS_BY_NAME)
async def test_no_answer_of_an_earlier_epoch_counts(tmp_path: Path, name: str) -> None:
    """Whatever a coordinator of a lower epoch answers, its caller gets `StaleEpoch` and nothing else."""
    throne, book = Throne(5), Book(6)
    throne.hear = lambda caller, shown: None  # type: ignore[method-assign]  # it goes on as if it were alone
    async with Bench(tmp_path, throne, book) as client:
        with pytest.raises(StaleEpoch, match="5 after 6"):
            await CALLS_BY_NAME[name](client, tmp_path)


async def test_a_refusal_of_an_earlier_epoch_is_not_believed(tmp_path: Path) -> None:
    """An old coordinator's "your round is over" is no reason to throw an update away."""
    bench = Bench(tmp_path, Throne(5), Book(6))
    bench.throne.hear = lambda caller, shown: None  # type: ignore[union-attr, method-assign]
    bench.recorder.raises = StaleRound("your round is over")
    async with bench as client:
        with pytest.raises(StaleEpoch):
            await client.run("lm")


async def test_a_coordinator_that_steps_down_takes_its_answers_with_it(tmp_path: Path) -> None:
    """A commit that is under way when a later epoch is shown is not acknowledged."""
    throne = Throne(5)
    bench = Bench(tmp_path, throne, Book())
    async with bench as client:
        bench.recorder.commit_may_end.clear()
        commit = asyncio.create_task(client.commit(a_commit()))
        await bench.recorder.commit_begun.wait()
        throne.fenced = True
        bench.recorder.commit_may_end.set()
        with pytest.raises(StaleEpoch, match="taken over"):
            await commit
        with pytest.raises(StaleEpoch, match="taken over"):
            await client.run("lm")
        bench.recorder.raises = StaleRound("over")
        with pytest.raises(StaleEpoch, match="taken over"):
            await client.run("lm")


async def test_a_server_without_epochs_is_noticed(tmp_path: Path) -> None:
    """A member's book hears that an answer carries no epoch, as from protocol 1.0, and decides."""
    book = Book()
    async with Bench(tmp_path, None, book) as client:
        with pytest.raises(StaleEpoch):
            await client.run("lm")
    assert book.seen == [None]


async def test_a_broken_transport_is_no_answer_of_an_old_coordinator(tmp_path: Path) -> None:
    """Where nobody answers, the book hears nothing."""
    book = Book(3)
    async with connect(1) as client:
        client.follow(book)
        with pytest.raises(FedtrainError, match="nobody answered"):
            await client.run("lm")
    assert book.seen == []


async def test_a_forged_spelling_is_refused(tmp_path: Path) -> None:
    """Metadata that is no epoch refuses the call with a sentence, and the handler never sees it."""
    bench = Bench(tmp_path, Throne(5), Book())
    async with bench as client:
        for forged in ("7", "7.1." + "zz" * 64, "-7.1." + "ab" * 64, "9" * 19 + ".1." + "ab" * 64):
            rpc = client._line.channel.unary_stream("/fedtrain.wire.v1.Operations/Run")
            call = rpc(b"\n\x02lm", metadata=((epochs.KEY, forged),), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "not an epoch" in (caught.value.details() or "")
    assert bench.throne is not None and bench.throne.shown == []


async def test_an_epoch_that_is_refused_is_refused_in_words(tmp_path: Path) -> None:
    """What the coordinator's desk raises reaches the member as it is."""
    throne = Throne(5)

    def hear(caller: Caller, shown: EpochProof) -> None:
        raise BadSignature("made up")

    throne.hear = hear  # type: ignore[method-assign]
    async with Bench(tmp_path, throne, Book(5)) as client:
        with pytest.raises(BadSignature, match="made up"):
            await client.runs()


@given(st.integers(0, 1 << 53), st.integers(0, 1 << 53), st.binary(min_size=64, max_size=64))
def test_what_is_written_is_read(epoch: int, at_ms: int, signature: bytes) -> None:
    """An epoch crosses unchanged."""
    proof = EpochProof(epoch, at_ms, signature.hex())
    assert epochs.read(epochs.write(proof)) == proof
    assert epochs.read(()) is epochs.read(epochs.write(None)) is None


@given(st.text(max_size=200))
def test_anything_else_is_a_remote_error(text: str) -> None:
    """No other text is taken for an epoch; two are one too many."""
    with pytest.raises(RemoteError):
        epochs.read(((epochs.KEY, text),))
    proof = epochs.write(a_proof(1))
    with pytest.raises(RemoteError):
        epochs.read((*proof, *proof))


async def test_a_refusal_whose_beginning_was_lost_still_shows_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc.aio may end a refused stream before its initial metadata has come; the end says it as well."""
    throne, book = Throne(4), Book(3)
    throne.fenced = True
    monkeypatch.setattr(grpc.aio.AioRpcError, "initial_metadata", lambda _: None)
    async with Bench(tmp_path, throne, book) as client:
        for refused in (
            client.run("lm"),
            client.pause("lm"),
            client.offer(core.Offer("a.1.1.b", ZERO_DIGEST, 5)),
        ):
            with pytest.raises(StaleEpoch, match="another has taken over"):
                await refused
    assert book.seen == [4, 4, 4]
