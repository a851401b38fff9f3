"""A site: the shell around `core.agent`, with its journal, its models and its outbox on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedtrain.core import agent
from fedtrain.core import messages as msg
from fedtrain.core.driver import Driver, replay
from fedtrain.core.orders import ModelRef, Order, OrderKind
from fedtrain.errors import IntegrityError
from fedtrain.methods.vectors import Floats
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.network import COORDINATOR, Blob, Envelope, Fetch, Network, Refusal, Request, Response
from fedtrain.sim.numbers import digest_of, to_vector
from fedtrain.sim.plan import SitePlan
from fedtrain.sim.process import CrashingActor, FusedJournal, Process
from fedtrain.sim.scene import Scene
from fedtrain.sim.trainer import Trainer

PATIENCE_MS = 3_000
BACKOFF_MS_MAX = 8_000
CALL_MS = 4_000
"""After so long without an answer a call is made again."""

Answered = Callable[[object], None]


class Site(Process):
    """One site. Its trainer is a process of its own and outlives it."""

    def __init__(self, scene: Scene, plan: SitePlan, network: Network, auditor: Auditor) -> None:
        super().__init__(plan.name, scene)
        self.plan = plan
        self._network = network
        self._auditor = auditor
        self._trainer = Trainer(scene, plan, self._result_lies_ready, self._trainer_gave_up)
        self._models: dict[str, tuple[ModelRef, Floats]] = {}
        self._sessions = 0
        self._calls = 0
        network.connect(self)
        auditor.watch_site(plan.name, self.journal)

    # -- a life ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Replay, read the contract as it is now, take what the trainer left, and call home."""
        self._session = ""
        self._open = False
        self._waiting: dict[int, Answered] = {}
        self._busy: set[str] = set()
        state = replay(self.journal, agent.step, agent.AgentState(), agent.AGENT_EVENTS)
        self._auditor.site_restarted(self.name, state)
        self._driver: Driver[agent.AgentState, agent.AgentEvent, agent.AgentEffect] = Driver(
            FusedJournal(self.journal, self.fuse), CrashingActor(self, self.fuse), self._step, state
        )
        late = self.scene.clear
        contract = self.plan.later_contract if late else self.plan.contract
        self._submit(agent.AgentBooted(self._now_ms, contract))
        for order in tuple(self._trainer.results):
            self._result_lies_ready(order)
        self._call_home(500)

    @property
    def _now_ms(self) -> int:
        return self.scene.clock.now_ms

    @property
    def _held(self) -> dict[str, agent.Held]:
        return dict(self._driver.state.held)

    def _submit(self, event: agent.AgentEvent) -> None:
        self._driver.handle(event)

    def _step(
        self, state: agent.AgentState, event: agent.AgentEvent
    ) -> tuple[agent.AgentState, tuple[agent.AgentEffect, ...]]:
        """The production step, watched."""
        self.scene.events += 1
        self.scene.note(self.name, "event", event)
        state, effects = agent.step(state, event)
        self._auditor.site_stepped(self.name, state)
        return state, effects

    def reconsider(self) -> None:
        """The site's owner may have another contract now; it takes a restart of the agent."""
        if self.plan.later_contract != self.plan.contract and self.up:
            self.scene.note(self.name, "restarts", "with another contract")
            self.restart(500)

    # -- the session ----------------------------------------------------------------------------

    def leave(self) -> None:
        """Say goodbye and come back after a while; being away is not an error."""
        if not self.up or not self._open:
            return
        self.scene.faults["site left"] += 1
        self._say(msg.Goodbye("going for a while"))
        self._open = False
        self._session = ""
        self.later(self.scene.chance.randint(500, 25_000), lambda: self._call_home(500))

    def _call_home(self, backoff_ms: int) -> None:
        """Open a new session, and another one if nobody answers: capped back-off, full jitter."""
        self._sessions += 1
        self._open = False
        session = self._session = f"{self.name}/{self._sessions}"
        self._say(msg.Hello((1, 0), "sim", session, ("tiny",), ("float32",), tuple(self._held)))

        def check() -> None:
            if self._session == session and not self._open:
                self._call_home(min(2 * backoff_ms, BACKOFF_MS_MAX))

        self.later(PATIENCE_MS + self.scene.chance.randint(0, backoff_ms), check)

    def _say(self, message: msg.FromPeer) -> None:
        self._network.send(self.name, COORDINATOR, Envelope(self._session, 0, message))

    def receive(self, source: str, body: object) -> None:
        """A session's message or a call's answer; a lower epoch than the highest seen is refused."""
        assert isinstance(body, (Envelope, Response)), "sites get nothing else"
        if body.epoch < self._driver.state.epoch:
            self.scene.faults["old epoch refused"] += 1
            return
        if body.epoch > self._driver.state.epoch:
            self._submit(agent.EpochSeen(self._now_ms, body.epoch))
        if isinstance(body, Response):
            answered = self._waiting.pop(body.call, None)
            if answered is not None:
                answered(body.body)
        elif body.session == self._session:
            self._hear(body.message)

    def _hear(self, message: msg.FromPeer | msg.ToPeer) -> None:
        now_ms = self._now_ms
        match message:
            case msg.Welcome():
                if not self._open:
                    self._open = True
                    self._beat(self._session, message.heartbeat_ms)
                    for effect in agent.resume(self._driver.state):
                        self.perform(effect)
            case msg.Invitation():
                self._submit(agent.OrderReceived(now_ms, message.order))
            case msg.Cancellation():
                self._submit(agent.OrderCancelled(now_ms, message.order, message.reason))
            case msg.Head():
                self._submit(
                    agent.HeadWitnessed(
                        now_ms, message.consortium, message.sequence, message.hash, message.at_ms, ""
                    )
                )
            case msg.Superseded():
                self._open = False
                self._session = ""
                self.later(self.scene.chance.randint(0, 500), lambda: self._call_home(500))

    def _beat(self, session: str, heartbeat_ms: int) -> None:
        if self._session != session:
            return
        self._say(msg.Heartbeat(self._trainer.progress(tuple(self._held))))
        self.later(heartbeat_ms, lambda: self._beat(session, heartbeat_ms))

    # -- effects --------------------------------------------------------------------------------

    def perform(self, effect: agent.AgentEffect) -> None:
        """Start carrying an effect out."""
        match effect:
            case agent.Reply():
                if self._open:
                    self._say(msg.Consent(effect.order, effect.accepted, effect.reasons, ""))
            case agent.Prepare():
                self._prepare(effect.order)
            case agent.Submit():
                self._upload(effect.order, effect.result.digest)
            case agent.Report():
                self._report(effect)
            case agent.Discard():
                self._trainer.discard(effect.order)

    def _report(self, effect: agent.Report) -> None:
        """An answer without a file goes through the session, now or once there is one."""
        if not self._open:
            return
        order, result = effect.order, effect.result
        if result.failure or result.eval_loss is None:
            self._say(msg.Failure(order.id, result.failure or "no evaluation came"))
        else:
            self._say(msg.Evaluation(order.id, result.eval_loss, result.eval_count))
        self._submit(agent.AnswerDelivered(self._now_ms, order.id))

    def _result_lies_ready(self, order: str) -> None:
        """The trainer published a result; while the agent is down it waits in the mailbox."""
        if self.up:
            result = self._trainer.results[order].result
            self.run(lambda: self._submit(agent.ResultTaken(self._now_ms, result)))

    def _trainer_gave_up(self, order: str, reason: str) -> None:
        if self.up:
            self.run(lambda: self._submit(agent.WorkAbandoned(self._now_ms, order, reason)))

    # -- models ---------------------------------------------------------------------------------

    def _prepare(self, order: Order) -> None:
        """Bring the model up to the order's version, one fetch at a time, then let the trainer work."""
        if order.id in self._busy or order.id not in self._held:
            return
        if order.kind is OrderKind.SEED or order.model is None:
            self._trainer.post(order)
            return
        missing = self._missing(order.run, order.model)
        if missing:
            self._fetch(order, missing[0])
            return
        self._trainer.post(order)

    def _missing(self, run: str, wanted: ModelRef) -> tuple[tuple[int, str, int], ...]:
        """Links of the chain still to be fetched: deltas from what is here, or the snapshot first."""
        here = self._models.get(run)
        version = here[0].version if here else -1
        if version == wanted.version:
            return ()
        snapshot, *deltas = wanted.chain
        ahead = tuple(link for link in deltas if link[0] > version)
        if here and ahead and ahead[0][0] == version + 1:
            return ahead
        return (snapshot, *(link for link in deltas if link[0] > snapshot[0]))

    def _fetch(self, order: Order, link: tuple[int, str, int]) -> None:
        version, digest, _ = link
        self._busy.add(order.id)

        def answered(body: object) -> None:
            self._busy.discard(order.id)
            if order.id not in self._held:
                return
            if isinstance(body, Blob):
                self._apply(order, version, digest, body.data)
                self._prepare(order)
            else:
                reason = body.reason if isinstance(body, Refusal) else "no blob came"
                self._submit(agent.WorkAbandoned(self._now_ms, order.id, reason))

        self._call(order.id, Fetch(digest), answered)

    def _apply(self, order: Order, version: int, digest: str, data: bytes) -> None:
        """A snapshot replaces the model; a delta is added to the version below, bit for bit."""
        assert order.model is not None, "only orders with a model fetch"
        if digest_of(data) != digest:
            raise IntegrityError(f"{self.name}: blob {digest[:12]} came with other bytes")
        here = self._models.get(order.run)
        if version == order.model.snapshot_version and digest == order.model.chain[0][1]:
            values = to_vector(data)
        elif here is not None and here[0].version == version - 1:
            values = np.add(here[1], to_vector(data))
        else:
            return  # another order of this run fetched the same meanwhile
        model_digest = digest_of(values.tobytes())
        ref = ModelRef(version, model_digest, "", version, ())
        self._models[order.run] = (ref, values)
        self._auditor.site_holds(self.name, order.run, version, model_digest)

    # -- uploads --------------------------------------------------------------------------------

    def _upload(self, order: Order, digest: str) -> None:
        """Offer, then commit, again and again until a receipt or a refusal comes."""
        if order.id in self._busy or order.id not in self._held:
            return
        finished = self._trainer.results.get(order.id)
        assert finished is not None, "an answered order keeps its file until it is discarded"
        self._busy.add(order.id)

        def offered(body: object) -> None:
            self._busy.discard(order.id)
            if order.id not in self._held:
                return
            if isinstance(body, msg.Missing):
                self._busy.add(order.id)
                self._call(order.id, self._commit(order, digest), committed, finished.payload)
            elif isinstance(body, Refusal):
                self._submit(agent.UploadRefused(self._now_ms, order.id, body.reason))

        def committed(body: object) -> None:
            self._busy.discard(order.id)
            if order.id not in self._held:
                return
            if isinstance(body, msg.Receipt):
                self._submit(
                    agent.UploadAcknowledged(
                        self._now_ms, order.id, body.digest, body.outcome, body.epoch, body.at_ms, ""
                    )
                )
            elif isinstance(body, Refusal):
                self._submit(agent.UploadRefused(self._now_ms, order.id, body.reason))

        self._call(order.id, msg.Offer(order.id, digest, len(finished.payload)), offered)

    def _commit(self, order: Order, digest: str) -> msg.Commit:
        result = self._trainer.results[order.id].result
        return msg.Commit(
            order=order.id,
            digest=digest,
            size_bytes=result.size_bytes,
            weight=result.weight,
            steps=result.steps,
            norm=result.norm,
            train_loss=result.train_loss,
            eval_loss=result.eval_loss,
            eval_count=result.eval_count,
            seconds=result.seconds,
            layout=result.layout,
            signature="",
        )

    def _call(self, order: str, body: Any, answered: Answered, payload: bytes = b"") -> None:
        """Ask, and ask again while nobody answers and the order is still held."""
        self._calls += 1
        call = self._calls
        self._waiting[call] = answered
        self._network.send(self.name, COORDINATOR, Request(call, body, payload))

        def check() -> None:
            if self._waiting.pop(call, None) is None:
                return
            if order in self._held:
                self._call(order, body, answered, payload)
            else:
                self._busy.discard(order)

        self.later(CALL_MS + self.scene.chance.randint(0, 1_000), check)
