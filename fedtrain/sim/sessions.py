"""A coordinator's sessions and leases: who is here, what they say, and whose patience is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedtrain.core import events as ev, liveness, messages as msg
from fedtrain.core.orders import Order, Progress
from fedtrain.core.state import ENDED, Declared
from fedtrain.core.uploads import seat_of
from fedtrain.sim.calls import Envelope
from fedtrain.sim.keys import said

if TYPE_CHECKING:
    from fedtrain.sim.coordinator import Coordinator

PATIENCE_MS = 10_000
HEARTBEAT_MS = 2_000
"""While no run says otherwise."""


class Sessions:
    """Of one life: after a restart nobody is attached. Leases live on the monotonic clock."""

    def __init__(self, owner: Coordinator) -> None:
        self._owner = owner
        self._open: dict[str, str] = {}
        self._pulses: liveness.Pulses = {}
        self._look_ms = -1

    # -- what sites say -----------------------------------------------------------------------------

    def hear(self, site: str, envelope: Envelope) -> None:
        """A session's message; one of a session that is not open here is answered with its end."""
        message = envelope.message
        if isinstance(message, msg.Hello):
            self._attach(site, message)
        elif self._open.get(site) == envelope.session:
            self._take(site, message)
        elif not isinstance(message, msg.Goodbye):
            self._tell(site, envelope.session, msg.Superseded("this session is not open here"))

    def _attach(self, site: str, hello: msg.Hello) -> None:
        owner = self._owner
        if site not in owner.state.members or self._open.get(site) == hello.session:
            return
        self._open[site] = hello.session
        welcome = msg.Welcome("sim", (1, 0), "sim", owner.now_ms, self._heartbeat_ms())
        self._tell(site, hello.session, welcome)
        self._hear(site)
        owner.submit(ev.SiteAttached(owner.now_ms, site, hello.session, hello.version, hello.holding))

    def _take(self, site: str, message: msg.FromPeer | msg.ToPeer) -> None:
        owner, now_ms = self._owner, self._owner.now_ms
        if not isinstance(message, msg.Goodbye):
            self._hear(site, message.progress if isinstance(message, msg.Heartbeat) else ())
        match message:
            case msg.Consent() if _owns(site, message.order):
                self._consent(site, message)
            case msg.Failure() if _owns(site, message.order):
                self.settle(site, message.order)
                owner.submit(ev.WorkFailed(now_ms, message.order, message.reason))
            case msg.Evaluation() if _owns(site, message.order):
                self.settle(site, message.order)
                owner.submit(ev.EvaluationStored(now_ms, message.order, message.loss, message.count))
            case msg.Statement() if _owns(site, message.order):
                self._statement(site, message)
            case msg.Withdrawal():
                self._withdrawal(site, message)
            case msg.Declaration():
                if owner.state.declared.get(site) != Declared(message.contract, message.examples):
                    owner.submit(ev.SiteDeclared(now_ms, site, message.contract, message.examples, ""))
            case msg.Goodbye():
                self._pulses = liveness.forget(self._pulses, site)
                del self._open[site]
                owner.submit(ev.SiteLost(now_ms, site, f"left: {message.reason}"))

    def _consent(self, site: str, message: msg.Consent) -> None:
        """As the real one: an answer to an order that holds no seat any more means nothing."""
        owner = self._owner
        run = owner.state.runs.get(message.order.split(".", 1)[0])
        if run is None or run.phase in ENDED:
            return
        busy = run.busy.get(site)
        if seat_of(run, message.order) is None and (busy is None or busy.id != message.order):
            return
        if message.accepted:
            owner.submit(ev.ConsentGiven(owner.now_ms, message.order))
        else:
            self.settle(site, message.order)
            owner.submit(ev.ConsentRefused(owner.now_ms, message.order, message.reasons))

    def _statement(self, site: str, message: msg.Statement) -> None:
        """As the real one: it counts with its signature, and where its order holds a seat."""
        owner = self._owner
        run = owner.state.runs.get(message.order.split(".", 1)[0])
        key = owner.state.members[site].message_key
        text = said(site, message.topic, message.order, message.document)
        if run is None or run.phase in ENDED or seat_of(run, message.order) is None:
            return
        if owner.scene.notary.holds(key, text, message.signature):
            fields = (message.topic, message.order, message.document, message.signature)
            owner.submit(ev.StatementHeard(owner.now_ms, site, *fields))

    def expel(self, site: str) -> None:
        """Its membership is over: the session is cut, and nothing is expected of it."""
        self._open.pop(site, None)
        self._pulses = liveness.forget(self._pulses, site)

    def _withdrawal(self, site: str, message: msg.Withdrawal) -> None:
        """What is said again in every session is journaled where something follows from it."""
        owner = self._owner
        run = owner.state.runs.get(message.run)
        if run is None or run.phase in ENDED:
            return
        found = run.excluded.get(site)
        attached = owner.state.attached.get(site)
        if found is None or attached is None or found.session != attached.session:
            owner.submit(ev.ConsentWithdrawn(owner.now_ms, site, message.run, message.reason, ""))

    def send(self, site: str, message: msg.ToPeer) -> None:
        """To a site that is here; nothing happens while it is away."""
        session = self._open.get(site)
        if session is not None:
            self._tell(site, session, message)

    def _tell(self, site: str, session: str, message: msg.ToPeer) -> None:
        owner = self._owner
        owner.network.send(owner.name, site, Envelope(session, owner.state.epoch, message))

    # -- leases -------------------------------------------------------------------------------------

    def wait_for_seats(self) -> None:
        """After a start every seated site has its patience to show itself."""
        for run in self._owner.state.runs.values():
            for site in run.round.seats if run.round else ():
                self._hear(site)

    def expect(self, order: Order) -> None:
        """From now on progress on this order is expected; bytes of its upload are progress too."""
        now_ms = self._owner.clock.monotonic_ms
        self._pulses = liveness.expect(self._pulses, order.site, order.id, now_ms, order.patience_ms)
        self._look_at(now_ms + order.patience_ms)

    def settle(self, site: str, order: str) -> None:
        """The order is answered or called off."""
        self._pulses = liveness.settle(self._pulses, site, order)

    def _patience_ms(self) -> int:
        return min(self._of_runs("patience_ms"), default=PATIENCE_MS)

    def _heartbeat_ms(self) -> int:
        return min(self._of_runs("heartbeat_ms"), default=HEARTBEAT_MS)

    def _of_runs(self, name: str) -> list[int]:
        runs = self._owner.state.runs.values()
        return [getattr(run.spec, name) for run in runs if run.phase not in ENDED]

    def _hear(self, site: str, progress: tuple[Progress, ...] = ()) -> None:
        now_ms, patience_ms = self._owner.clock.monotonic_ms, self._patience_ms()
        own = tuple(item for item in progress if _owns(site, item.order))
        self._pulses = liveness.hear(self._pulses, site, now_ms, patience_ms, own)
        self._look_at(now_ms + patience_ms)

    def _look_at(self, at_ms: int) -> None:
        """Look for verdicts then, unless a look is due before."""
        now_ms = self._owner.clock.monotonic_ms
        if now_ms < self._look_ms <= at_ms:
            return
        self._look_ms = at_ms
        self._owner.later(at_ms - now_ms, lambda: self._look(at_ms))

    def _look(self, at_ms: int) -> None:
        if at_ms != self._look_ms:
            return
        owner, now_ms = self._owner, self._owner.clock.monotonic_ms
        found, next_ms = liveness.verdicts(self._pulses, now_ms)
        for verdict in found:
            if isinstance(verdict, liveness.Lost):
                self._pulses = liveness.forget(self._pulses, verdict.site)
                self._open.pop(verdict.site, None)
                owner.submit(ev.SiteLost(owner.now_ms, verdict.site, verdict.reason))
            else:
                self.settle(verdict.site, verdict.order)
                owner.submit(ev.WorkFailed(owner.now_ms, verdict.order, verdict.reason))
        if next_ms is not None:
            self._look_at(max(next_ms, now_ms + 1))


def _owns(site: str, order: str) -> bool:
    """Whether an order of this id would be this site's."""
    return order.endswith(f".{site}")
