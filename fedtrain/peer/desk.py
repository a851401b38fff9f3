"""What the agent says to the coordinator, and what it makes of what it hears."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

import fedtrain
from fedtrain.core import agent as core, messages as msg
from fedtrain.core.agent import AgentEvent, AgentState
from fedtrain.core.budget import Spending
from fedtrain.core.contract import Word
from fedtrain.core.judgement import Moment, judge
from fedtrain.core.orders import Order, Progress, Result
from fedtrain.core.pacing import beat_ms
from fedtrain.errors import (
    BadSignature,
    FedtrainError,
    IntegrityError,
    RefusedError,
    RemoteError,
    StaleEpoch,
    UnreachableError,
)
from fedtrain.methods.codecs import CODECS
from fedtrain.peer.assent import Assent, moment_at
from fedtrain.peer.backoff import early_s
from fedtrain.peer.charging import Charging
from fedtrain.peer.jobs import in_thread
from fedtrain.peer.masking import Masking
from fedtrain.peer.results import report
from fedtrain.peer.session import Session
from fedtrain.peer.settings import AgentSettings
from fedtrain.peer.witness import Witness
from fedtrain.trust import statements
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_unreachable, not_admitted
from fedtrain.trust.folders import MemberKeys
from fedtrain.wire import versions
from fedtrain.wire.memory import Epochs
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

HEARTBEAT_MS = 5_000
"""Until a welcome says otherwise."""

HEARTBEAT_MS_MIN = 20
"""A coordinator that asks for more than this is answered at this pace."""

_CHANCE = random.SystemRandom()

_CONTRACTS_SINCE = (1, 1)
"""The protocol that speaks of contracts, withdrawals and rosters."""

CLOCKS_APART_MS = 60_000
"""From here on the two clocks are said to differ: more than any round trip explains."""


class Owner(Protocol):
    """What the desk needs of its agent."""

    session: Session
    charging: Charging
    masking: Masking

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something run beside."""


class Desk:
    """The agent's end of the session.

    An answer without a file (a failure, an evaluation) has no receipt. It counts as delivered when
    its session has outlived it by one heartbeat, or was ended in good order; a session that breaks
    before takes it with it, and the next one carries it again. Should it be lost all the same, the
    coordinator still holds the seat open and hands the order out anew.
    """

    def __init__(self, owner: Owner, settings: AgentSettings, keys: MemberKeys) -> None:
        self._owner = owner
        self._settings = settings
        self._assent = Assent(settings.state, keys)
        self.facts = read_certificate(keys.certificate_pem)
        self._consortium = keys.membership.consortium
        self.epochs = Epochs(owner, statements.epoch_check(self._consortium, keys.coordinator_public))
        self._witness = Witness(settings.state / "heads", self._consortium, keys.coordinator_public)
        self._heartbeat_ms = HEARTBEAT_MS
        self._protocol = (1, 0)
        self._retimed = asyncio.Event()
        self._beats = 0
        self._told: dict[str, tuple[int, int]] = {}
        self._invitation: Order | None = None
        self._published: list[core.RoundPublished] = []
        self._unread: deque[msg.ToPeer] = deque()
        self._reading = False

    # -- what the session asks --------------------------------------------------------------------

    def greet(self, session: str = "") -> msg.Hello:
        """The hello of a new session, or of one that moves and keeps its name, with the orders in hand."""
        return msg.Hello(
            protocol=msg.PROTOCOL_VERSION,
            version=fedtrain.__version__,
            session=session or secrets.token_hex(8),
            tasks=self._owner.state.contract.tasks,
            codecs=tuple(CODECS),
            holding=tuple(self._owner.state.held),
        )

    def admit_epoch(self, epoch: int) -> None:
        """Remember the highest epoch for good; refuse a lower one."""
        self.epochs.admit(epoch)

    def welcome(self, welcome: msg.Welcome) -> None:
        """A session is open: say again what the last one may not have carried."""
        if welcome.consortium != self._consortium:
            raise BadSignature(
                f"this is consortium {welcome.consortium}, our certificate is of {self._consortium}"
            )
        self._heartbeat_ms = max(HEARTBEAT_MS_MIN, welcome.heartbeat_ms or HEARTBEAT_MS)
        self._protocol = versions.negotiate(
            welcome.protocol, welcome.version, "coordinator", fedtrain.__version__
        )
        self._retimed.set()
        _log.info(
            "attached to %s at %s (fedtrain %s, protocol %s), epoch %d",
            welcome.consortium,
            self._settings.coordinator,
            printable(welcome.version),
            versions.text(self._protocol),
            self._owner.state.epoch,
        )
        self._compare_clocks(welcome.at_ms - _now_ms())
        self.declare()
        for run, verdict in self._owner.state.verdicts.items():
            if verdict.word is Word.WITHDRAWN:
                self.withdraw(run, verdict.reason)
        for held in self._owner.state.held.values():
            if held.execution:
                self._owner.background(self.tell_account(held.order))
        for effect in core.resume(self._owner.state):
            if isinstance(effect, core.Report):
                self.report(effect.result)

    @staticmethod
    def _compare_clocks(behind_ms: int) -> None:
        """Leases do not care, but certificates and the contract's hours are judged by this clock."""
        if abs(behind_ms) >= CLOCKS_APART_MS:
            way = "behind" if behind_ms > 0 else "ahead of"
            _log.warning(
                "this machine's clock is %d s %s the coordinator's: set it (NTP); certificates and the "
                "contract's hours are judged by it",
                abs(behind_ms) // 1000,
                way,
            )

    def receive(self, message: msg.ToPeer) -> None:
        """A message of the coordinator, in its turn: one whose cost is being reckoned holds up the rest."""
        if self._reading:
            self._unread.append(message)
        elif isinstance(message, (msg.Invitation, msg.Inquiry)) and self._owner.charging.concerns(
            message.order
        ):
            self._reading = True
            self._unread.append(message)
            self._owner.background(self._read())
        else:
            self._take(message)

    async def _read(self) -> None:
        """Take what waits, each invitation and inquiry with what it would cost."""
        try:
            while self._unread:
                message = self._unread.popleft()
                spending = None
                if isinstance(message, (msg.Invitation, msg.Inquiry)):
                    spending = await self._owner.charging.spending(message.order)
                self._take(message, spending)
        finally:
            self._reading = False

    def _take(self, message: msg.ToPeer, spending: Spending | None = None) -> None:
        match message:
            case msg.Invitation(order):
                self._invited(order, spending)
            case msg.Cancellation(order_id, reason):
                if order_id in self._owner.state.held:
                    _log.info("%s is called off: %s", order_id, printable(reason))
                    self._owner.submit(core.OrderCancelled(_now_ms(), order_id, reason))
            case msg.Inquiry(inquiry, order):
                state = self._owner.state
                now = core.circumstances(state, self.moment(), spending)
                decision = judge(state.contract, order, now)
                self._owner.session.say(msg.Answer(inquiry, decision.accepted, decision.reasons))
            case msg.Publication():
                outcome = printable(message.outcome)
                _log.info(
                    "%s: version %d is out; our part in round %d: %s",
                    message.run,
                    message.version,
                    message.round,
                    outcome,
                )
                self._published.append(core.RoundPublished(_now_ms(), message.run, message.round))
            case msg.Head():
                self._owner.background(self._keep(message))
            case msg.Roster():
                self._take_roster(message)
            case msg.Statement(topic="ledger"):
                self._take_ledger(message)
            case msg.Statement():
                self._owner.masking.receive(message)

    @property
    def at_work(self) -> bool:
        """Whether an order is in hand."""
        return bool(self._owner.state.in_hand)

    def explain(self, error: UnreachableError) -> str:
        """Why nobody answered, from what is known here.

        Raises `RefusedError` if that is our expired certificate: a new try ends in the same way.
        """
        if isinstance(error, StaleEpoch):
            return str(error)
        settings = self._settings
        why = explain_unreachable(self.facts, settings.coordinator, str(error), _now_ms(), settings.proxy)
        if not_admitted(self.facts, str(error), _now_ms()):
            raise RefusedError(why) from error
        return why

    # -- what the agent says ----------------------------------------------------------------------

    def consent(self, reply: core.Reply) -> None:
        """The contract's answer, signed."""
        order = self._invitation
        if order is None or order.id != reply.order:
            return  # only an invitation is answered
        if reply.accepted:
            _log.info("%s is accepted: %s, %d steps", order.id, order.kind, order.steps)
        else:
            _log.warning("%s is refused: %s", order.id, printable("; ".join(reply.reasons)))
        contract = self._owner.state.contract if self._protocol >= _CONTRACTS_SINCE else None
        self._owner.session.say(self._assent.answer(order, reply, contract))

    def declare(self) -> None:
        """The contract and the counts of what may be known of; the journal has a row where they are new."""
        state = self._owner.state
        said, news = self._assent.declare(state.contract, state.examples)
        if news:
            self._owner.submit(core.ContractSigned(_now_ms(), said.contract, said.examples, said.signature))
        if self._protocol >= _CONTRACTS_SINCE:
            self._owner.session.say(said)

    def withdraw(self, run: str, reason: str) -> None:
        """Take the consent to a run back. A coordinator of protocol 1.0 hears a refusal to each order."""
        if self._protocol >= _CONTRACTS_SINCE:
            self._owner.session.say(self._assent.withdrawal(run, reason))

    def moment(self) -> Moment:
        """The time by the contract's clock."""
        return moment_at(self._owner.state.contract, _now_ms())

    def report(self, result: Result) -> None:
        """An answer without a file; once in each session."""
        number = self._owner.session.number
        if self._told.get(result.order, (0, 0))[0] != number and self._owner.session.say(report(result)):
            self._told[result.order] = (number, self._beats)

    async def tell_account(self, order: Order) -> None:
        """What this order's run has cost here so far, signed, for the coordinator to keep."""
        if self._protocol < _CONTRACTS_SINCE:
            return
        held = self._owner.state.held.get(order.id)
        result = held.result if held is not None else None
        try:
            account = await self._owner.charging.account(
                order, held.execution if held is not None else 0, result.within if result else None
            )
        except FedtrainError as error:
            _log.error("%s: its charge is in the ledger and could not be told: %s", order.id, error)
            return
        self._owner.session.say(self._assent.charge(order.id, account))

    async def next_beat(self) -> None:
        """Returns when the next sign of life is due; a welcome or an order may bring that forward."""
        began_s = time.monotonic()
        while True:
            patiences_ms = [held.order.patience_ms for held in self._owner.state.in_hand.values()]
            pace_ms = beat_ms(self._heartbeat_ms, patiences_ms, self._protocol)
            left_s = began_s + early_s(pace_ms / 1000, _CHANCE) - time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    await self._retimed.wait()
            except TimeoutError:
                return
            self._retimed.clear()

    def beat(self, progress: tuple[Progress, ...]) -> None:
        """A sign of life; answers that this session has outlived are delivered."""
        if not self._owner.session.say(msg.Heartbeat(progress)):
            return
        number = self._owner.session.number
        self._beats += 1
        self._delivered([o for o, (n, beat) in self._told.items() if n == number and beat + 1 < self._beats])

    def ended_well(self) -> None:
        """The coordinator ended the session after our goodbye: it has heard everything."""
        number = self._owner.session.number
        self._delivered([order for order, (n, _) in self._told.items() if n == number])

    def _delivered(self, orders: list[str]) -> None:
        for order in orders:
            del self._told[order]
            if order in self._owner.state.held:
                self._owner.submit(core.AnswerDelivered(_now_ms(), order))

    def _invited(self, order: Order, spending: Spending | None) -> None:
        if order.site != self._settings.site:
            _log.error("an order for %s came here and is left alone", order.site)
            return
        self._invitation = order
        try:
            now = self.moment()
            self._owner.submit(core.OrderReceived(_now_ms(), order, now.day, now.minute, spending))
        finally:
            self._invitation = None
        self._retimed.set()

    def _take_roster(self, roster: msg.Roster) -> None:
        """Who belongs to whom, if the coordinator has signed it; else the roster before stays."""
        if dict(roster.members) == self._owner.state.roster:
            return
        try:
            self._owner.submit(self._assent.check_roster(roster, _now_ms()))
        except BadSignature as error:
            _log.error("the coordinator's roster is refused, the one before stays: %s", error)

    def _take_ledger(self, statement: msg.Statement) -> None:
        """Our own newest account, back from the coordinator: our ledger has to hold what it was signed at."""
        try:
            account = self._assent.own_charge(statement)
        except (BadSignature, RemoteError) as error:
            _log.error("what the coordinator says of our privacy ledger is left alone: %s", error)
            return
        self._owner.charging.told(account.sequence, account.hash)

    async def _keep(self, head: msg.Head) -> None:
        """A head becomes a file first, then an event: the file is what others ask this site for."""
        try:
            signed = self._witness.check(head)
            new = await in_thread(self._witness.keep, signed)
        except (BadSignature, IntegrityError) as error:
            _log.error("the coordinator's journal: %s", error)
            return
        witnessed = core.HeadWitnessed(
            _now_ms(), head.consortium, head.sequence, head.hash, head.at_ms, head.signature
        )
        # The news came just before its head: one write of the journal for both.
        published, self._published = self._published, []
        if new or published:
            self._owner.submit(*published, *([witnessed] if new else []))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
