"""Conversations with sites: one session each, the newest wins.

A broken stream says nothing about its site: the lease does (`pulse`). What a session carries is
repeatable, so messages to a site that is not attached are dropped; the core hands out again what
still matters when the site comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import fedtrain
from fedtrain.coordinator.hub import Hub
from fedtrain.core import canonical, uploads
from fedtrain.core import events as ev
from fedtrain.core import messages as msg
from fedtrain.core.orders import Order, parse_order_id
from fedtrain.core.state import ENDED
from fedtrain.errors import BadSignature, FedtrainError, RefusedError, RemoteError, UnknownSite
from fedtrain.trust import statements
from fedtrain.wire.values import Caller

_log = logging.getLogger(__name__)

Outgoing = msg.ToPeer | FedtrainError | None
"""A message; an error that ends the stream with its status; None for a quiet end."""


@dataclass
class Conversation:
    """One open session and what waits to be sent in it."""

    caller: Caller
    session: str
    queue: asyncio.Queue[Outgoing] = field(default_factory=asyncio.Queue)


class Sessions:
    """Implements the wire's `SessionHandler`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: dict[str, Conversation] = {}
        self._answers: dict[tuple[str, str], asyncio.Future[msg.Answer]] = {}
        hub.send = self.send

    def send(self, site: str, message: msg.ToPeer) -> None:
        """Queue a message for a site; nothing happens while it is away."""
        conversation = self._open.get(site)
        if conversation is not None:
            conversation.queue.put_nowait(message)

    async def attend(
        self, caller: Caller, incoming: AsyncIterator[msg.FromPeer]
    ) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        """One session from hello to its end."""
        hello = await anext(incoming, None)
        if not isinstance(hello, msg.Hello):
            raise RemoteError("a session begins with a hello")
        _check_protocol(hello)
        conversation = Conversation(caller, hello.session)
        self._replace(conversation)
        yield self._hub.state.epoch, self._welcome()
        self._hub.pulse.hear(caller.name)
        now_ms = self._hub.clock.now_ms()
        self._hub.submit(ev.SiteAttached(now_ms, caller.name, hello.session, hello.version, hello.holding))
        _log.info("%s is attached (fedtrain %s)", caller.name, hello.version)
        listener = asyncio.create_task(self._listen(conversation, incoming))
        try:
            while (message := await conversation.queue.get()) is not None:
                if isinstance(message, FedtrainError):
                    raise message
                yield self._hub.state.epoch, message
        finally:
            listener.cancel()
            if self._open.get(caller.name) is conversation:
                del self._open[caller.name]

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
        """Tell every site that the coordinator goes down."""
        for conversation in self._open.values():
            conversation.queue.put_nowait(msg.Superseded(reason))
            conversation.queue.put_nowait(None)

    def _replace(self, conversation: Conversation) -> None:
        site = conversation.caller.name
        old = self._open.get(site)
        if old is not None:
            old.queue.put_nowait(msg.Superseded("a newer session of this site began"))
            old.queue.put_nowait(None)
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
                self._take(conversation.caller, message)
            conversation.queue.put_nowait(None)
        except FedtrainError as error:
            _log.warning("%s: session ended: %s", conversation.caller.name, error)
            conversation.queue.put_nowait(error)

    def _check_still_valid(self, caller: Caller) -> None:
        """A stream outlives its certificate unless somebody looks."""
        if self._hub.clock.now_ms() >= caller.not_after_ms:
            raise RefusedError(f"the certificate of {caller.name} expired: ask an operator for a new invite")

    def _take(self, caller: Caller, message: msg.FromPeer) -> None:
        now_ms, site = self._hub.clock.now_ms(), caller.name
        if not isinstance(message, msg.Goodbye):
            progress = message.progress if isinstance(message, msg.Heartbeat) else ()
            self._hub.pulse.hear(site, progress)
        match message:
            case msg.Heartbeat():
                self._hub.changes.tell()
            case msg.Consent():
                self._consent(site, message, now_ms)
            case msg.Failure():
                self._check_owner(site, message.order)
                self._hub.pulse.settle(site, message.order)
                self._hub.submit(ev.WorkFailed(now_ms, message.order, message.reason))
            case msg.Evaluation():
                self._check_owner(site, message.order)
                self._hub.pulse.settle(site, message.order)
                self._hub.submit(ev.EvaluationStored(now_ms, message.order, message.loss, message.count))
            case msg.Answer():
                waiting = self._answers.get((site, message.inquiry))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case msg.Goodbye():
                self._hub.pulse.forget(site)
                self._hub.submit(ev.SiteLost(now_ms, site, f"left: {message.reason}"))
            case msg.Hello():
                raise RemoteError("a session has one hello")

    def _consent(self, site: str, message: msg.Consent, now_ms: int) -> None:
        """A contract's answer, held against the signature before it is journaled."""
        order = self._order(site, message.order)
        if order is None:
            return  # the round is over; its answer means nothing any more
        statement = statements.Consent(
            order=order.id,
            order_digest=canonical.digest(order),
            accepted=message.accepted,
            reasons=message.reasons,
        )
        member = self._hub.state.members[site]
        try:
            signature = bytes.fromhex(message.signature)
        except ValueError as error:
            raise BadSignature(f"the consent to {order.id} carries no signature") from error
        statements.verify(statement, member.message_key, signature)
        if message.accepted:
            self._hub.submit_soon(ev.ConsentGiven(now_ms, order.id))
        else:
            _log.info("%s refuses %s: %s", site, order.id, "; ".join(message.reasons))
            self._hub.pulse.settle(site, order.id)
            self._hub.submit(ev.ConsentRefused(now_ms, order.id, message.reasons))

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


def _check_protocol(hello: msg.Hello) -> None:
    """Equal majors talk; the sentence names both sides' versions."""
    if hello.protocol[0] != msg.PROTOCOL_VERSION[0]:
        theirs, ours = (".".join(map(str, v)) for v in (hello.protocol, msg.PROTOCOL_VERSION))
        raise RefusedError(
            f"this site speaks protocol {theirs} (fedtrain {hello.version}), the coordinator {ours} "
            f"(fedtrain {fedtrain.__version__}): install a version with the same major protocol"
        )
