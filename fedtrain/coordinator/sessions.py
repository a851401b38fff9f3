"""Conversations with sites: one session each, the newest wins.

A broken stream says nothing about its site: the lease does (`pulse`). What a session carries is
repeatable, so messages to a site that is not attached are dropped; the core hands out again what
still matters when the site comes back. When many come at once (`core.pacing`), they are let in at a
bounded rate and share their commits; the others are told when to come, those with work by a queue of
their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import fedtrain
from fedtrain.coordinator.hub import SOON_S, Hub
from fedtrain.coordinator.testimony import ROSTERS_SINCE, STATEMENTS_SINCE, Rosters, Testimony
from fedtrain.core import events as ev, messages as msg, uploads
from fedtrain.core.allowance import ATTACHES, Allowance, spend
from fedtrain.core.orders import Order, parse_order_id
from fedtrain.core.pacing import Door, has_part, knock
from fedtrain.core.state import ENDED
from fedtrain.core.transitions import step
from fedtrain.errors import (
    BusyError,
    FedtrainError,
    RefusedError,
    RemoteError,
    UnknownSite,
)
from fedtrain.wire import versions
from fedtrain.wire.status import printable
from fedtrain.wire.values import Caller

_log = logging.getLogger(__name__)

Outgoing = msg.ToPeer | FedtrainError | None
"""A message; an error that ends the stream with its status; None for a quiet end."""

WAITING_MAX = 1_000
"""Messages that may wait for one site. A round has a few for each: who reads none of so many is cut off."""


class Conversation:
    """One open session and what waits to be sent in it.

    A list and at most one future: `asyncio.Queue` is four deques, 2.5 KB for every idle site.
    """

    __slots__ = ("_reader", "_waiting", "caller", "protocol", "roster_ms")

    def __init__(self, caller: Caller, protocol: versions.Version = msg.PROTOCOL_VERSION) -> None:
        self.caller = caller
        self.protocol = protocol
        self.roster_ms = 0
        self._waiting: list[Outgoing] = []
        self._reader: asyncio.Future[None] | None = None

    def put(self, message: Outgoing) -> None:
        """Queue a message, or the end."""
        if len(self._waiting) == WAITING_MAX:
            message = RemoteError(
                f"{WAITING_MAX} messages wait for this site, which reads none: attach again"
            )
        if len(self._waiting) <= WAITING_MAX:
            self._waiting.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[Outgoing]:
        """All that waits, as soon as there is something."""
        if not self._waiting:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            self._reader = None
        taken, self._waiting = self._waiting, []
        return taken


class Sessions:
    """Implements the wire's `SessionHandler`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: dict[str, Conversation] = {}
        self._answers: dict[tuple[str, str], asyncio.Future[msg.Answer]] = {}
        self._attaches: dict[str, Allowance] = {}
        self._testimony = Testimony(hub)
        self._rosters = Rosters(hub)
        self._doors = {True: Door(), False: Door()}
        hub.send = self.send

    def send(self, site: str, message: msg.ToPeer | FedtrainError) -> None:
        """Queue a message for a site, or the error that ends its session; nothing while it is away."""
        conversation = self._open.get(site)
        if conversation is None:
            return
        if isinstance(message, (msg.Invitation, msg.Inquiry)):
            self._tell_roster(conversation)
        if not isinstance(message, msg.Statement) or conversation.protocol >= STATEMENTS_SINCE:
            conversation.put(message)

    def _tell_roster(self, conversation: Conversation) -> None:
        """Who belongs to whom, if that has changed since this session heard of it: before each order, and
        now and then. A thousand sites that join would else be told of a thousand rosters each.
        """
        roster = self._rosters.current()
        if conversation.protocol >= ROSTERS_SINCE and conversation.roster_ms != roster.at_ms:
            conversation.roster_ms = roster.at_ms
            conversation.put(roster)

    async def attend(
        self, caller: Caller, incoming: AsyncIterator[msg.FromPeer]
    ) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        """One session from hello to its end."""
        attached, protocol = await self._greet(caller, incoming)
        conversation = Conversation(caller, protocol)
        self._tell_roster(conversation)  # heard before any order that comes of the attaching
        self._replace(conversation)
        listener = asyncio.create_task(self._listen(conversation, incoming))
        try:
            self._hub.pulse.hear(caller.name)
            await self._hub.submit_together(attached)
            if self._hub.head is not None:
                conversation.put(self._hub.head)  # what was signed while the site was away
            yield self._hub.state.epoch, self._welcome()
            while True:
                for message in await conversation.take():
                    if message is None:
                        return
                    if isinstance(message, FedtrainError):
                        raise message
                    yield self._hub.state.epoch, message
        finally:
            listener.cancel()
            if self._open.get(caller.name) is conversation:
                del self._open[caller.name]

    async def _greet(
        self, caller: Caller, incoming: AsyncIterator[msg.FromPeer]
    ) -> tuple[ev.SiteAttached, versions.Version]:
        """What the hello amounts to, if both sides understand each other and there is room.

        The hello itself is let go here: of a thousand sites it would be a megabyte.
        """
        hello = await anext(incoming, None)
        if not isinstance(hello, msg.Hello):
            raise RemoteError("a session begins with a hello")
        protocol, spoken = _agree(caller, hello)
        self._let_in(caller.name)
        _log.info("%s is attached (%s)", caller.name, spoken)
        now_ms = self._hub.clock.now_ms()
        return ev.SiteAttached(now_ms, caller.name, hello.session, hello.version, hello.holding), protocol

    def _let_in(self, site: str) -> None:
        """Raises `BusyError` while too many come at once. Who has a part in an open round has a queue of
        its own, so that no crowd of idle sites holds up a round."""
        now_ms = self._hub.clock.monotonic_ms()
        self._attaches[site], journaled = spend(self._attaches.get(site, Allowance()), ATTACHES, now_ms)
        if not journaled:
            raise BusyError(
                f"{site} attaches again and again: stay, or come less often", ATTACHES.row_every_ms
            )
        works = has_part(self._hub.state, site)
        self._doors[works], wait_ms = knock(self._doors[works], site, now_ms)
        if wait_ms:
            raise BusyError(
                f"many sites return at once and are let in one by one: come back in {wait_ms / 1000:.1f} s",
                wait_ms,
            )

    async def ask(self, site: str, inquiry: msg.Inquiry, patience_s: float) -> msg.Answer | None:
        """A site's answer to an inquiry; None if it is away or silent for too long."""
        if site not in self._open:
            return None
        key = (site, inquiry.inquiry)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self.send(site, inquiry)
        try:
            return await asyncio.wait_for(answer, patience_s)
        except TimeoutError:
            return None
        finally:
            del self._answers[key]

    def close(self, reason: str) -> None:
        """Tell every site that the coordinator goes down, and leave it the journal's last head."""
        self._hub.sign_off()
        for conversation in self._open.values():
            conversation.put(msg.Superseded(reason))
            conversation.put(None)

    def _replace(self, conversation: Conversation) -> None:
        site = conversation.caller.name
        old = self._open.get(site)
        if old is not None:
            old.put(msg.Superseded("a newer session of this site began"))
            old.put(None)
        self._open[site] = conversation

    def _welcome(self) -> msg.Welcome:
        return msg.Welcome(
            consortium=self._hub.keys.membership.consortium,
            protocol=msg.PROTOCOL_VERSION,
            version=fedtrain.__version__,
            at_ms=self._hub.clock.now_ms(),
            heartbeat_ms=self._hub.heartbeat_ms(),
        )

    async def _listen(self, conversation: Conversation, incoming: AsyncIterator[msg.FromPeer]) -> None:
        """Take what the site says until it stops; a message that breaks the rules ends the session."""
        try:
            async for message in incoming:
                self._check_still_valid(conversation.caller)
                self._take(conversation, message)
                if isinstance(message, msg.Goodbye):
                    break
            conversation.put(None)
        except FedtrainError as error:
            _log.warning("%s: session ended: %s", conversation.caller.name, error)
            conversation.put(error)

    def _check_still_valid(self, caller: Caller) -> None:
        """A stream outlives its certificate unless somebody looks."""
        if self._hub.clock.now_ms() >= caller.not_after_ms:
            raise RefusedError(f"the certificate of {caller.name} expired: ask an operator for a new invite")

    def _take(self, conversation: Conversation, message: msg.FromPeer) -> None:
        now_ms, site = self._hub.clock.now_ms(), conversation.caller.name
        if not isinstance(message, msg.Goodbye):
            progress = message.progress if isinstance(message, msg.Heartbeat) else ()
            self._hub.pulse.hear(site, progress)
        match message:
            case msg.Heartbeat():
                self._tell_roster(conversation)
                if message.progress:
                    self._hub.changes.tell()
            case msg.Consent() | msg.Agreement():
                self._consent(site, message, now_ms)
            case msg.Declaration():
                self._tell(self._testimony.declared(site, message, now_ms))
            case msg.Withdrawal():
                if (withdrawn := self._testimony.withdrawn(site, message, now_ms)) is not None:
                    self._tell(withdrawn)
            case msg.Failure():
                self._check_owner(site, message.order)
                self._hub.pulse.settle(site, message.order)
                self._tell(ev.WorkFailed(now_ms, message.order, message.reason))
            case msg.Evaluation():
                self._check_owner(site, message.order)
                self._hub.pulse.settle(site, message.order)
                self._tell(ev.EvaluationStored(now_ms, message.order, message.loss, message.count))
            case msg.Statement():
                self._check_owner(site, message.order)
                self._tell(self._testimony.said(site, message, now_ms), within_s=0)
            case msg.Answer():
                waiting = self._answers.get((site, message.inquiry))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case msg.Goodbye():
                self._hub.pulse.forget(site)
                self._hub.submit(ev.SiteLost(now_ms, site, f"left: {message.reason}"))
            case msg.Hello():
                raise RemoteError("a session has one hello")

    def _tell(self, event: ev.Event, *, within_s: float | None = None) -> None:
        """Submit what a site says, unless nothing follows from it: what is said twice, or of an order that
        is over, is no row of the journal."""
        state = self._hub.state
        after, _ = step(state, event)
        if replace(state, now_ms=after.now_ms) == after:
            return
        if within_s is None:
            self._hub.submit(event)
        else:
            self._hub.submit_soon(event, within_s)

    def _consent(self, site: str, message: msg.Consent | msg.Agreement, now_ms: int) -> None:
        """A contract's answer, held against the signature before it is journaled."""
        order = self._order(site, message.order)
        if order is None:
            return  # the round is over; its answer means nothing any more
        answer = self._testimony.answered(site, message, order, now_ms)
        if isinstance(answer, ev.ConsentGiven):
            self._tell(answer, within_s=SOON_S)
        else:
            _log.info("%s refuses %s: %s", site, order.id, "; ".join(message.reasons))
            self._hub.pulse.settle(site, order.id)
            self._tell(answer)

    def _order(self, site: str, order_id: str) -> Order | None:
        self._check_owner(site, order_id)
        run = self._hub.state.runs.get(parse_order_id(order_id)[0])
        if run is None or run.phase in ENDED:
            return None
        found = uploads.seat_of(run, order_id)
        if found is not None:
            return found[1].order
        late = run.busy.get(site)
        return late if late is not None and late.id == order_id else None

    @staticmethod
    def _check_owner(site: str, order_id: str) -> None:
        if parse_order_id(order_id)[3] != site:
            raise UnknownSite(f"{site} answered {order_id}, which is not its order")


def _agree(caller: Caller, hello: msg.Hello) -> tuple[versions.Version, str]:
    """What both sides speak, also in words; `RefusedError` if they are too far apart."""
    try:
        version = versions.negotiate(hello.protocol, hello.version, "site", fedtrain.__version__)
    except RefusedError as error:
        _log.warning("%s is turned away: %s", caller.name, error)
        raise
    words = f"fedtrain {printable(hello.version)}, protocol {versions.text(version)}"
    missing = versions.unspoken(version)
    return version, f"{words}, without {' and '.join(missing)}" if missing else words
