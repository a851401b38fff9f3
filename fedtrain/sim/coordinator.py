"""The coordinator's shell, modelled small: sessions, leases, uploads, timers, aggregation.

Every decision is the production core's. The disk (journal, blobs, versions) outlives a crash.
"""

from __future__ import annotations

import math

from fedtrain.core import effects as fx
from fedtrain.core import events as ev
from fedtrain.core import liveness, transitions
from fedtrain.core import messages as msg
from fedtrain.core.cohort import expected_sites
from fedtrain.core.driver import Driver, replay
from fedtrain.core.orders import Order, OrderKind, Progress
from fedtrain.core.state import ENDED, Phase, State
from fedtrain.core.uploads import Admission, admit, seat_of
from fedtrain.core.versions import blobs_needed
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.network import COORDINATOR, Blob, Envelope, Fetch, Network, Refusal, Request, Response
from fedtrain.sim.numbers import Version, aggregate, digest_of, norm_of, to_vector
from fedtrain.sim.process import CrashingActor, FusedJournal, Process
from fedtrain.sim.scene import Scene

PATIENCE_MS = 10_000
HEARTBEAT_MS = 2_000
"""While no run says otherwise."""


class Coordinator(Process):
    """One coordinator, life after life."""

    def __init__(self, scene: Scene, network: Network, auditor: Auditor) -> None:
        super().__init__(COORDINATOR, scene)
        self._network = network
        self._auditor = auditor
        self._blobs: dict[str, bytes] = {}
        self._versions: dict[tuple[str, int], Version] = {}
        network.connect(self)
        auditor.watch_coordinator(self.journal)

    # -- a life ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Replay, raise the epoch, and ask again for whatever was under way."""
        self._sessions: dict[str, str] = {}
        self._pulses: liveness.Pulses = {}
        self._look_ms = 0
        self._timers: dict[tuple[str, str], int] = {}
        self._computing: set[tuple[str, int, int]] = set()
        self._held: set[str] = set()
        state = replay(self.journal, transitions.step, State(), ev.EVENTS)
        self._auditor.restarted(state)
        self._driver: Driver[State, ev.Event, fx.Effect] = Driver(
            FusedJournal(self.journal, self.fuse), CrashingActor(self, self.fuse), self._step, state
        )
        self.submit(ev.Booted(self._now_ms, state.epoch + 1))
        for run in self.state.runs.values():
            for site in run.round.seats if run.round else ():
                self._hear(site)

    @property
    def state(self) -> State:
        """What the coordinator knows now."""
        return self._driver.state

    @property
    def _now_ms(self) -> int:
        return self.scene.clock.now_ms

    def submit(self, event: ev.Event) -> None:
        """Journal, step, act."""
        self._driver.handle(event)

    def _step(self, state: State, event: ev.Event) -> tuple[State, tuple[fx.Effect, ...]]:
        """The production step, watched."""
        self.scene.events += 1
        self.scene.note(self.name, "event", event)
        state, effects = transitions.step(state, event)
        for effect in effects:
            self.scene.note(self.name, "  effect", effect)
        self._auditor.stepped(event, state, effects)
        return state, effects

    # -- sessions -------------------------------------------------------------------------------

    def receive(self, source: str, body: object) -> None:
        """A session's message, or a call."""
        if isinstance(body, Request):
            self._answer(source, body)
            return
        assert isinstance(body, Envelope), "the coordinator gets nothing else"
        message = body.message
        if isinstance(message, msg.Hello):
            self._attach(source, message)
        elif self._sessions.get(source) == body.session:
            self._take(source, message)
        elif not isinstance(message, msg.Goodbye):
            self._tell(source, body.session, msg.Superseded("this session is not open here"))

    def _attach(self, site: str, hello: msg.Hello) -> None:
        if site not in self.state.members or self._sessions.get(site) == hello.session:
            return
        self._sessions[site] = hello.session
        welcome = msg.Welcome("sim", (1, 0), "sim", self._now_ms, self._heartbeat_ms())
        self._tell(site, hello.session, welcome)
        self._hear(site)
        self.submit(ev.SiteAttached(self._now_ms, site, hello.session, hello.version, hello.holding))

    def _take(self, site: str, message: msg.FromPeer | msg.ToPeer) -> None:
        now_ms = self._now_ms
        if not isinstance(message, msg.Goodbye):
            self._hear(site, message.progress if isinstance(message, msg.Heartbeat) else ())
        match message:
            case msg.Consent():
                self._consent(site, message)
            case msg.Failure():
                self._settle(site, message.order)
                self.submit(ev.WorkFailed(now_ms, message.order, message.reason))
            case msg.Evaluation():
                self._settle(site, message.order)
                self.submit(ev.EvaluationStored(now_ms, message.order, message.loss, message.count))
            case msg.Goodbye():
                self._pulses = liveness.forget(self._pulses, site)
                del self._sessions[site]
                self.submit(ev.SiteLost(now_ms, site, f"left: {message.reason}"))

    def _consent(self, site: str, message: msg.Consent) -> None:
        """As the real one: an answer to an order that holds no seat any more means nothing."""
        run = self.state.runs.get(message.order.split(".", 1)[0])
        if run is None or run.phase in ENDED or not self._known(site, message.order):
            return
        if message.accepted:
            self.submit(ev.ConsentGiven(self._now_ms, message.order))
        else:
            self._settle(site, message.order)
            self.submit(ev.ConsentRefused(self._now_ms, message.order, message.reasons))

    def _known(self, site: str, order: str) -> bool:
        run = self.state.runs[order.split(".", 1)[0]]
        busy = run.busy.get(site)
        return seat_of(run, order) is not None or (busy is not None and busy.id == order)

    def _tell(self, site: str, session: str, message: msg.ToPeer) -> None:
        self._network.send(self.name, site, Envelope(session, self.state.epoch, message))

    def _send(self, site: str, message: msg.ToPeer) -> None:
        """To a site that is here; nothing happens while it is away."""
        session = self._sessions.get(site)
        if session is not None:
            self._tell(site, session, message)

    # -- leases -----------------------------------------------------------------------------------

    def _patience_ms(self) -> int:
        return min(self._of_runs("patience_ms"), default=PATIENCE_MS)

    def _heartbeat_ms(self) -> int:
        return min(self._of_runs("heartbeat_ms"), default=HEARTBEAT_MS)

    def _of_runs(self, name: str) -> list[int]:
        return [getattr(run.spec, name) for run in self.state.runs.values() if run.phase not in ENDED]

    def _hear(self, site: str, progress: tuple[Progress, ...] = ()) -> None:
        self._pulses = liveness.hear(self._pulses, site, self._now_ms, self._patience_ms(), progress)
        self._look_at(self._now_ms + self._patience_ms())

    def _expect(self, order: Order) -> None:
        self._pulses = liveness.expect(self._pulses, order.site, order.id, self._now_ms, order.patience_ms)
        self._look_at(self._now_ms + order.patience_ms)

    def _settle(self, site: str, order: str) -> None:
        self._pulses = liveness.settle(self._pulses, site, order)

    def _look_at(self, at_ms: int) -> None:
        """Look for verdicts then, unless a look is due before."""
        if self._now_ms < self._look_ms <= at_ms:
            return
        self._look_ms = at_ms
        self.later(at_ms - self._now_ms, lambda: self._look(at_ms))

    def _look(self, at_ms: int) -> None:
        if at_ms != self._look_ms:
            return
        found, next_ms = liveness.verdicts(self._pulses, self._now_ms)
        for verdict in found:
            if isinstance(verdict, liveness.Lost):
                self._pulses = liveness.forget(self._pulses, verdict.site)
                self._sessions.pop(verdict.site, None)
                self.submit(ev.SiteLost(self._now_ms, verdict.site, verdict.reason))
            else:
                self._settle(verdict.site, verdict.order)
                self.submit(ev.WorkFailed(self._now_ms, verdict.order, verdict.reason))
        if next_ms is not None:
            self._look_at(max(next_ms, self._now_ms + 1))

    # -- calls ------------------------------------------------------------------------------------

    def _answer(self, site: str, request: Request) -> None:
        match request.body:
            case Fetch():
                data = self._blobs.get(request.body.digest) if self._on_offer(site, request.body) else None
                if data is None:
                    self._auditor.lacks(request.body.digest)
                    self._respond(site, request, Refusal("no such blob"))
                else:
                    self._respond(site, request, Blob(request.body.digest, data))
            case msg.Offer():
                self._offered(site, request, request.body)
            case msg.Commit():
                self._committed(site, request, request.body)

    def _respond(self, site: str, request: Request, body: Blob | msg.Missing | msg.Receipt | Refusal) -> None:
        self._network.send(self.name, site, Response(request.call, self.state.epoch, body))

    def _on_offer(self, site: str, fetch: Fetch) -> bool:
        return any(
            run.model is not None
            and site in expected_sites(self.state, run.spec)
            and any(blob == fetch.digest for _, blob, _ in run.model.ref.chain)
            for run in self.state.runs.values()
        )

    def _offered(self, site: str, request: Request, offer: msg.Offer) -> None:
        answer = admit(self.state, site, offer.order, offer.digest)
        if answer.admission is Admission.WELCOME:
            assert answer.order is not None, "a welcome upload has its order"
            self._expect(answer.order)
        self._admitted(site, request, offer.order, offer.digest, msg.Missing(0, offer.size_bytes))

    def _admitted(
        self, site: str, request: Request, order: str, digest: str, welcome: msg.Missing | None
    ) -> Order | None:
        """The order if the upload is welcome; else the call is answered and None returned."""
        answer = admit(self.state, site, order, digest)
        if answer.admission is Admission.WELCOME:
            if welcome is not None:
                self._respond(site, request, welcome)
            return answer.order
        if answer.admission is Admission.REPEATED and welcome is not None:
            self._respond(site, request, welcome)
        elif answer.admission is Admission.REPEATED:
            self._receipt(site, request, order)
        else:
            if answer.admission is Admission.EQUIVOCATION:
                self.submit(ev.UpdateRejected(self._now_ms, order, digest, answer.reason))
            self._respond(site, request, Refusal(answer.reason))
        return None

    def _committed(self, site: str, request: Request, commit: msg.Commit) -> None:
        """Take the bytes in, look at every value, ask again, journal, and only then acknowledge."""
        self._auditor.uploaded(request.payload)
        if self._admitted(site, request, commit.order, commit.digest, None) is None:
            return
        self._held.add(commit.digest)
        self._blobs[commit.digest] = request.payload

        def inspected() -> None:
            self._held.discard(commit.digest)
            order = self._admitted(site, request, commit.order, commit.digest, None)
            if order is None:
                return
            values = to_vector(request.payload)
            if not math.isfinite(norm_of(values)):
                self.submit(
                    ev.UpdateRejected(self._now_ms, commit.order, commit.digest, "a value is not finite")
                )
                self._respond(site, request, Refusal("a value is not finite"))
                return
            self.submit(self._stored(order, commit, norm_of(values)))
            self._receipt(site, request, commit.order)

        self.later(self.scene.chance.randint(1, 200), inspected)

    def _stored(self, order: Order, commit: msg.Commit, norm: float) -> ev.Event:
        if order.kind is OrderKind.SEED:
            values = to_vector(self._blobs[commit.digest])
            self._versions[order.run, 0] = Version(values, values)
            return ev.ModelSeeded(
                at_ms=self._now_ms,
                order=order.id,
                blob=commit.digest,
                size_bytes=commit.size_bytes,
                model_digest=commit.digest,
                layout=commit.layout,
                layout_digest=digest_of(commit.layout.encode()),
                num_elements=len(values),
            )
        return ev.UpdateStored(
            at_ms=self._now_ms,
            order=order.id,
            blob=commit.digest,
            size_bytes=commit.size_bytes,
            weight=commit.weight,
            steps=commit.steps,
            norm=norm,
            train_loss=commit.train_loss,
            eval_loss=commit.eval_loss,
            eval_count=commit.eval_count,
            seconds=commit.seconds,
            signature=commit.signature,
        )

    def _receipt(self, site: str, request: Request, order: str) -> None:
        kept = self.state.runs[order.split(".", 1)[0]].receipts.get(site)
        if kept is None or kept.order != order:
            self._auditor.unanswered(order)
            return
        receipt = msg.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms, "")
        self._auditor.receipt(receipt)
        self._respond(site, request, receipt)

    # -- effects ----------------------------------------------------------------------------------

    def perform(self, effect: fx.Effect) -> None:
        """Start carrying an effect out."""
        match effect:
            case fx.Invite():
                self._expect(effect.order)
                self._send(effect.order.site, msg.Invitation(effect.order))
            case fx.Cancel():
                self._settle(effect.site, effect.order)
                self._send(effect.site, msg.Cancellation(effect.order, effect.reason))
            case fx.Acknowledge():
                self._settle(effect.site, effect.order)
            case fx.SetTimer():
                self._set_timer(effect)
            case fx.Aggregate():
                self._aggregate(effect)
            case fx.Publish():
                for site, _ in effect.outcomes:
                    self._send(site, msg.Head("sim", len(self.journal.entries), "", self._now_ms, ""))
            case fx.Collect():
                self._collect(effect)

    def _set_timer(self, effect: fx.SetTimer) -> None:
        key = (effect.run, effect.timer)
        self._timers[key] = effect.at_ms

        def fire() -> None:
            if self._timers.get(key) == effect.at_ms:
                del self._timers[key]
                self.submit(ev.TimerFired(self._now_ms, effect.run, effect.timer))

        self.later(max(0, effect.at_ms - self._now_ms), fire)

    def _aggregate(self, effect: fx.Aggregate) -> None:
        """Compute for a while; the answer is an event. One computation of a kind at a time."""
        place = (effect.run, effect.round, effect.attempt)
        if place in self._computing:
            return
        self._computing.add(place)

        def computed() -> None:
            self._computing.discard(place)
            if self.state.runs[effect.run].phase is not Phase.AGGREGATING:
                return
            if self.scene.strikes(self.scene.plan.rates.aggregation_fails, "aggregation failed"):
                self.submit(ev.AggregationFailed(self._now_ms, *place, "no space left"))
            else:
                self.submit(self._make_version(effect))

        self.later(self.scene.chance.randint(20, 1_500), computed)

    def _make_version(self, effect: fx.Aggregate) -> ev.RoundAggregated:
        """The version on disk before anybody hears of it; made again, it is the same again."""
        spec = self.state.runs[effect.run].spec
        base = self._versions[effect.run, effect.base_version]
        read_in = list(range(len(effect.contributions)))
        self.scene.chance.shuffle(read_in)
        made = aggregate(spec, effect, base, self._blobs, read_in)
        public = made.version.public.tobytes()
        self._versions[effect.run, effect.base_version + 1] = made.version
        delta, snapshot = digest_of(made.delta), digest_of(public) if effect.snapshot else ""
        self._blobs[delta] = made.delta
        if snapshot:
            self._blobs[snapshot] = public
        return ev.RoundAggregated(
            at_ms=self._now_ms,
            run=effect.run,
            round=effect.round,
            attempt=effect.attempt,
            model_digest=digest_of(public),
            delta=delta,
            delta_bytes=len(made.delta),
            snapshot=snapshot,
            snapshot_bytes=len(public) if snapshot else 0,
            update_norm=made.update_norm,
        )

    def _collect(self, effect: fx.Collect) -> None:
        needed = set(self._held).union(*(blobs_needed(run) for run in self.state.runs.values()))
        self._blobs = {digest: data for digest, data in self._blobs.items() if digest in needed}
        for run, version in tuple(self._versions):
            if run == effect.run and version < effect.keep_version:
                del self._versions[run, version]
