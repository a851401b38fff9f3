"""A coordinator in memory that speaks `core.messages`, and a site that was really enrolled by it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedtrain.core import messages as msg
from fedtrain.core.agent import AgentEvent, AgentState
from fedtrain.core.contract import Contract
from fedtrain.core.orders import ModelRef, Order, OrderKind, Result, order_id
from fedtrain.core.ports import MemoryJournal
from fedtrain.errors import FedtrainError, IntegrityError, NotFoundError, UnreachableError
from fedtrain.methods.codecs import codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.peer.agent import Agent, now_ms
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.chain import head_message
from fedtrain.storage.mailbox import Claim, Mailbox
from fedtrain.trust import statements
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.keys import MessageKey

CONSORTIUM, SITE, RUN = "vineyard", "jsc", "library"
HEARTBEAT_MS = 20
LAYOUT = Layout((Entry("a", (300,)), Entry("b", (17, 4))))
PATIENCE_S = 10.0
"""No test waits for it: it only ends one that hangs."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def join_site(state: Path, coordinator: MessageKey) -> MemberKeys:
    """A site's identity folder, made as `join` makes it, without a network."""
    now_ms = time.time_ns() // 1_000_000
    authority = Authority(*create_authority(CONSORTIUM, now_ms))
    invite = make_invite(authority, SITE, Role.SITE, "localhost:7443", now_ms, 60_000)
    application = begin_join(state, invite)
    public = application.message_key.public
    enrolled = enrol(authority, invite.facts, Role.SITE, application.csr_pem, public, now_ms)
    return finish_join(state, invite, application, enrolled.certificate_pem, coordinator.public)


class Versions:
    """A run's public models, with the blobs that lead to them: `blobs` by digest."""

    def __init__(self, folder: Path, count: int = 3, snapshots: tuple[int, ...] = (0,)) -> None:
        self.blobs: dict[str, bytes] = {}
        self.digests: list[str] = []
        self.files: list[bytes] = []
        self._links: dict[int, tuple[int, str, int]] = {}
        self._snapshots = snapshots
        values = np.zeros(LAYOUT.num_elements, np.float32)
        for version in range(count):
            change = np.random.default_rng(version).standard_normal(len(values)).astype(np.float32)
            values = values + change
            self._add_model(folder / f"model-{version}", values, version)
            if version:
                self._links[version] = (version, *self._add_delta(folder / "delta", change, version))

    def _add_model(self, path: Path, values: np.ndarray, version: int) -> None:
        writer = ModelWriter(path, LAYOUT, RUN, version)
        writer.write(values)
        self.digests.append(writer.close()[0])
        self.files.append(path.read_bytes())

    def _add_delta(self, path: Path, change: np.ndarray, version: int) -> tuple[str, int]:
        header = UpdateHeader(
            RUN, version, "", "down", version - 1, LAYOUT.digest, "float32", 4096, len(change), None
        )
        writer = UpdateWriter(path, header)
        writer.write_block(codec("float32").encode(change, b"\0" * 32))
        digest, size_bytes = writer.close()
        self.blobs[digest] = path.read_bytes()
        return digest, size_bytes

    def ref(self, version: int) -> ModelRef:
        """The version with the newest snapshot before it, and all deltas."""
        snapshot = max(v for v in self._snapshots if v <= version)
        data = self.files[snapshot]
        self.blobs[sha256(data)] = data
        chain = ((snapshot, sha256(data), len(data)), *(self._links[v] for v in range(1, version + 1)))
        return ModelRef(version, self.digests[version], LAYOUT.digest, snapshot, chain)


def an_order(round_index: int = 1, kind: OrderKind = OrderKind.TRAIN, **changes: Any) -> Order:
    """An order that the usual contract allows."""
    attempt = changes.get("attempt", 1)
    order = Order(
        id=order_id(RUN, round_index, attempt, SITE),
        kind=kind,
        run=RUN,
        round=round_index,
        attempt=attempt,
        site=SITE,
        seed=1,
        model=None,
        steps=5 if kind is OrderKind.TRAIN else 0,
        evaluate=False,
        parent="",
        returned=(),
        cohort=(SITE, "other"),
        task='{"name": "synthetic"}',
        codec="float32",
        block_elements=4096,
        patience_ms=60_000,
    )
    return replace(order, **changes)


class FakeCoordinator:
    """The other end of the agent's port, with faults to switch on.

    Attributes:
        heard: everything that sites said, of all sessions.
        blobs: what can be fetched.
        received: digest -> bytes of uploads.
        commits: those that were answered with a receipt.
        away: refuse every call, as if nobody listened.
        cut_fetch_at, cut_send_at: byte at which the next transfer breaks, once.
        refusal: raised by the next commit, once.
        clock_ms: what its clock says, None for the right time.
    """

    def __init__(self) -> None:
        self.key = MessageKey.generate()
        self.epoch = 1
        self.clock_ms: int | None = None
        self.heard: list[msg.FromPeer] = []
        self.sessions = 0
        self.blobs: dict[str, bytes] = {}
        self.fetched: list[tuple[str, int]] = []
        self.received: dict[str, bytearray] = {}
        self.commits: list[msg.Commit] = []
        self.away = False
        self.cut_fetch_at = self.cut_send_at = -1
        self.refusal: FedtrainError | None = None
        self._outgoing: asyncio.Queue[msg.ToPeer | FedtrainError | None] = asyncio.Queue()
        self._moved = asyncio.Event()

    def send(self, message: msg.ToPeer | FedtrainError | None) -> None:
        """Say something in the open session; an error breaks it, None ends it."""
        self._outgoing.put_nowait(message)

    def invite(self, order: Order) -> None:
        self.send(msg.Invitation(order))

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until what was heard or received makes the condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                self._moved.clear()
                await self._moved.wait()
        return found

    def of(self, kind: type) -> list[Any]:
        """All messages of a kind that were heard."""
        return [message for message in self.heard if isinstance(message, kind)]

    def head(self, sequence: int, row_hash: str) -> msg.Head:
        """A signed head of this coordinator's journal."""
        signature = self.key.sign("head", head_message(CONSORTIUM, sequence, row_hash, 5)).hex()
        return msg.Head(CONSORTIUM, sequence, row_hash, 5, signature)

    # -- the port -----------------------------------------------------------------------------

    async def attend(self, outgoing: AsyncIterator[msg.FromPeer]) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        if self.away:
            raise UnreachableError("Connection refused")
        queue = self._outgoing = asyncio.Queue()
        listener = asyncio.create_task(self._listen(outgoing, queue))
        self.sessions += 1
        try:
            yield (
                self.epoch,
                msg.Welcome(CONSORTIUM, msg.PROTOCOL_VERSION, "1.0", self._now_ms(), HEARTBEAT_MS),
            )
            while (message := await queue.get()) is not None:
                if isinstance(message, FedtrainError):
                    raise message
                yield self.epoch, message
        finally:
            listener.cancel()

    async def _listen(self, outgoing: AsyncIterator[msg.FromPeer], queue: asyncio.Queue[Any]) -> None:
        async for message in outgoing:
            self.heard.append(message)
            self._moved.set()
        queue.put_nowait(None)

    async def fetch(self, digest: str, offset: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        self._check_reachable()
        if digest not in self.blobs:
            raise NotFoundError(f"no blob {digest}")
        self.fetched.append((digest, offset))
        data = self.blobs[digest]
        for at in range(offset, len(data), 100):
            if 0 <= self.cut_fetch_at <= at:
                self.cut_fetch_at = -1
                raise UnreachableError("the connection broke")
            yield at, data[at : at + 100]

    async def offer(self, offer: msg.Offer) -> msg.Missing:
        self._check_reachable()
        return msg.Missing(len(self.received.setdefault(offer.digest, bytearray())), offer.size_bytes)

    async def send_file(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        offset: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> msg.Missing:
        self._check_reachable()
        data = path.read_bytes()
        if sha256(data) != digest:
            raise IntegrityError("it is not the file that was announced")
        end = len(data)
        if self.cut_send_at >= 0:
            end, self.cut_send_at = self.cut_send_at, -1
        self.received[digest] += data[offset:end]
        if progress is not None:
            progress(end)
        if end < len(data):
            raise UnreachableError("the connection broke")
        return msg.Missing(end, size_bytes)

    async def commit(self, commit: msg.Commit) -> msg.Receipt:
        self._check_reachable()
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.commits.append(commit)
        self._moved.set()
        statement = statements.Receipt(commit.order, commit.digest, "stored", self.epoch, 7)
        signature = statements.sign(statement, self.key).hex()
        return msg.Receipt(commit.order, commit.digest, "stored", self.epoch, 7, signature)

    def _now_ms(self) -> int:
        return now_ms() if self.clock_ms is None else self.clock_ms

    def _check_reachable(self) -> None:
        if self.away:
            raise UnreachableError("Connection refused")


class Site:
    """A site's folder and journal, which outlive its agents."""

    def __init__(self, folder: Path, coordinator: FakeCoordinator, contract: Contract | None = None) -> None:
        self.coordinator = coordinator
        self.journal = MemoryJournal()
        self.keys = join_site(folder / "state", coordinator.key)
        self.settings = AgentSettings(
            folder=folder,
            site=SITE,
            coordinator="localhost:7443",
            proxy=None,
            state=folder / "state",
            mailbox=folder / "mailbox",
            launch="external",
            contract=contract or Contract(runs=("lib*",), tasks=("synthetic",), cohort_min=2),
            data_file=folder / "peer.yaml",
        )
        self.mailbox = Mailbox(folder / "mailbox")
        self._numbers = itertools.count()

    def start(self) -> AgentRun:
        """An agent in this folder, to be entered."""
        return AgentRun(Agent(self.settings, self.keys, self.coordinator, self.journal))

    async def claim(self) -> Claim:
        """The next order, as a trainer gets it."""
        async with asyncio.timeout(PATIENCE_S):
            while (claim := self.mailbox.claim("trainer-1")) is None:
                await asyncio.sleep(0.005)
        return claim

    def hand_in(self, order: Order, data: bytes = b"u" * 500, **changes: Any) -> Result:
        """A trainer's result with a file."""
        file = self.mailbox.checkpoints / f"made-{next(self._numbers)}"
        file.write_bytes(data)
        name = "model.bin" if order.kind is OrderKind.SEED else "update.bin"
        result = Result(order.id, "", name, sha256(data), len(data), 80, 5, 0.5, 2.0, seconds=0.1)
        result = replace(result, **changes)
        assert self.mailbox.publish(result, file)
        return result

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """Payloads of the journal's rows of these kinds."""
        return [json.loads(entry.payload) for entry in self.journal.entries if entry.kind in kinds]


class Bookkeeper:
    """Stands in for an agent: keeps the events that it is told of."""

    def __init__(self, contract: Contract | None = None) -> None:
        self.state = AgentState(contract=contract or Contract())
        self.events: list[AgentEvent] = []

    def submit(self, *events: AgentEvent) -> None:
        self.events += events


class AgentRun:
    """`async with`: the agent attends and works inside, and is gone without a goodbye behind it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def __aenter__(self) -> Agent:
        await self.agent.start()
        self._session = asyncio.create_task(self.agent.session.keep())
        return self.agent

    async def __aexit__(self, *_: object) -> None:
        self._session.cancel()
        await asyncio.gather(self._session, return_exceptions=True)
        await self.agent.stop()
        if self.agent.failed.done():
            self.agent.failed.result()


async def settled(agent: Agent) -> None:
    """Nothing is in hand any more."""
    async with asyncio.timeout(PATIENCE_S):
        await agent.until(lambda: not agent.state.in_hand)


def model_digest(path: Path) -> str:
    with ModelReader(path) as reader:
        return reader.verify(LAYOUT)
