"""A coordinator that asks for what it may not have: real gRPC and mutual TLS, the product's wire, a script.

It holds the consortium's true keys, so nothing but a site's contract stands between it and the data.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from coordinator_world import free_port

from fedtrain import coordinator
from fedtrain.core import canonical, messages as msg
from fedtrain.core.contract import Contract, Rights
from fedtrain.core.orders import ModelRef, Order, OrderKind
from fedtrain.core.ports import MemoryJournal
from fedtrain.errors import NotFoundError
from fedtrain.peer.agent import Agent, now_ms
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.mailbox import Mailbox
from fedtrain.trust import statements
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import (
    CoordinatorKeys,
    MemberKeys,
    begin_join,
    finish_join,
    load_coordinator,
)
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import make_invite
from fedtrain.wire.chunks import frame
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.options import channel_credentials, server_credentials
from fedtrain.wire.server import open_server
from fedtrain.wire.values import Caller

SITE, RUN = "jsc", "library-lm"
PATIENCE_S = 60.0
LAYOUT = "c" * 64

CONTRACT = Contract(
    runs=("library-*",),
    tasks=("tiny",),
    cohort_min=3,
    datasets={"corpus": Rights(discoverable=True, execute=("tiny",)), "hidden": Rights()},
)
"""What the stock agent under test acts by; cases tighten it."""


def an_order(**changes: Any) -> Order:
    """An order that `CONTRACT` allows; `task` may be given as a mapping that is laid over the usual one."""
    task = changes.pop("task", {})
    usual = {"name": "tiny", "data": "corpus", "model": {"layers": 2}, "training": {}}
    order = Order(
        id=f"{RUN}.1.1.{SITE}",
        kind=OrderKind.SEED,
        run=RUN,
        round=1,
        attempt=1,
        site=SITE,
        seed=1,
        model=None,
        steps=0,
        evaluate=False,
        parent="",
        returned=(),
        cohort=(SITE, "north", "south"),
        task=task if isinstance(task, str) else canonical.encode({**usual, **task}).decode(),
        codec="float32",
        block_elements=4096,
        patience_ms=60_000,
    )
    order = replace(order, **changes)
    return replace(order, id=f"{order.run}.{order.round}.{order.attempt}.{order.site}")


def a_model(size_bytes: int = 40, layout: str = LAYOUT, *deltas: tuple[int, str, int]) -> ModelRef:
    """A model of which no bit exists: whoever fetches it is caught."""
    return ModelRef(0, "d" * 64, layout, 0, ((0, "b" * 64, size_bytes), *deltas))


@dataclass
class Malice:
    """The other end of the wire. `heard` is all that the site says, `fetched` and `offered` what it moves.

    `files` can be had. With `stalls` no offer is answered before it is `over`, so orders stay in hand.
    """

    keys: CoordinatorKeys
    epoch: int = 5
    heard: list[msg.FromPeer] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    offered: list[msg.Offer] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stalls: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _script: asyncio.Queue[tuple[int, msg.ToPeer]] = field(default_factory=asyncio.Queue)

    def say(self, message: msg.ToPeer, epoch: int | None = None) -> None:
        """Say this in the open session, or in the next one."""
        self._script.put_nowait((self.epoch if epoch is None else epoch, message))

    def roster(self, members: dict[str, str]) -> msg.Roster:
        """A roster that the coordinator really signs."""
        consortium = self.keys.membership.consortium
        statement = statements.Roster(consortium, tuple(sorted(members.items())), now_ms())
        signature = statements.sign(statement, self.keys.message_key).hex()
        return msg.Roster(members, statement.at_ms, signature)

    async def until(self, holds: Callable[[], Any]) -> Any:
        """Wait until what was heard makes it true."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := holds()):
                self._moved.clear()
                await self._moved.wait()
        return found

    def of(self, kind: type) -> list[Any]:
        """All messages of a kind that were heard."""
        return [message for message in self.heard if isinstance(message, kind)]

    # -- the wire's handlers ------------------------------------------------------------------------

    async def attend(
        self, caller: Caller, incoming: AsyncIterator[msg.FromPeer]
    ) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        self.heard.append(await anext(incoming))
        listener = asyncio.create_task(self._listen(incoming))
        consortium = self.keys.membership.consortium
        try:
            yield self.epoch, msg.Welcome(consortium, msg.PROTOCOL_VERSION, "0.1", now_ms(), 20)
            while True:
                yield await self._script.get()
        finally:
            listener.cancel()

    async def _listen(self, incoming: AsyncIterator[msg.FromPeer]) -> None:
        async for message in incoming:
            self.heard.append(message)
            self._moved.set()

    async def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        self.fetched.append(digest)
        if digest not in self.files:
            raise NotFoundError("nothing is here")
        yield frame(offset, self.files[digest][offset:], digest)

    async def offer(self, caller: Caller, offer: msg.Offer) -> msg.Missing:
        self.offered.append(offer)
        self._moved.set()
        if self.stalls:
            await self.over.wait()
        raise NotFoundError("nothing was asked for")


@dataclass
class Victim:
    """A stock agent that attends it, with a folder and a mailbox of its own."""

    agent: Agent
    settings: AgentSettings
    keys: MemberKeys
    journal: MemoryJournal
    mailbox: Mailbox

    @property
    def untouched(self) -> bool:
        """Whether nothing was accepted, handed to a trainer, or brought for it."""
        models = self.settings.state / "models"
        return (
            not self.agent.state.held
            and not list(self.mailbox.orders_folder.iterdir())
            and not (models.exists() and list(models.iterdir()))
        )

    def rows(self, kind: str) -> int:
        return sum(entry.kind == kind for entry in self.journal.entries)


@asynccontextmanager
async def malice_in(folder: Path, contract: Contract = CONTRACT) -> AsyncIterator[tuple[Malice, Victim]]:
    """The served double, and one attached agent under this contract."""
    address = f"127.0.0.1:{free_port()}"
    coordinator.init(folder / "home", "vineyard", address)
    keys = load_coordinator(folder / "home" / "state")
    malice = Malice(keys)

    def judge(context: object, service: str, method: str) -> Caller:
        return Caller(SITE, "site", "", "", 1 << 50)

    credentials = server_credentials(
        keys.server_key_pem, keys.server_certificate_pem, keys.authority.certificate_pem
    )
    transfer = Mock(fetch=malice.fetch, offer=malice.offer)
    handlers = Handlers(Mock(), malice, transfer, Mock(), Mock())
    server, _ = await open_server(address, credentials, handlers, judge)
    member = _enrolled(folder / "site" / "state", keys, address)
    settings = AgentSettings(
        folder=folder / "site",
        site=SITE,
        coordinator=address,
        proxy=None,
        state=folder / "site" / "state",
        mailbox=folder / "site" / "mailbox",
        launch="external",
        contract=contract,
        data_file=folder / "site" / "peer.yaml",
    )
    trusted = channel_credentials(member.tls_key_pem, member.certificate_pem, member.ca_pem)
    journal = MemoryJournal()
    try:
        async with CoordinatorClient(address, trusted, member.membership.server_name) as client:
            agent = Agent(settings, member, client, journal)
            await agent.start()
            session = asyncio.create_task(agent.session.keep())
            try:
                yield malice, Victim(agent, settings, member, journal, Mailbox(settings.mailbox))
            finally:
                malice.over.set()
                session.cancel()
                await asyncio.gather(session, return_exceptions=True)
                await agent.stop()
    finally:
        await server.stop(None)


def _enrolled(state: Path, keys: CoordinatorKeys, address: str) -> MemberKeys:
    invite = make_invite(keys.authority, SITE, Role.SITE, address, now_ms(), 60_000)
    application = begin_join(state, invite)
    public = application.message_key.public
    enrolled = enrol(keys.authority, invite.facts, Role.SITE, application.csr_pem, public, now_ms())
    return finish_join(state, invite, application, enrolled.certificate_pem, keys.message_key.public)
