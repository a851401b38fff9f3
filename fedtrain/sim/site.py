"""A site: the shell around `core.agent`, with its journal, its models and its outbox on disk."""

from __future__ import annotations

import random
from collections.abc import Mapping

from fedtrain.core import agent, messages as msg
from fedtrain.core.charges import Permit
from fedtrain.core.contract import Verdict, Word
from fedtrain.core.driver import Driver, replay
from fedtrain.core.judgement import Moment
from fedtrain.core.orders import Order, Progress
from fedtrain.core.ports import MemoryJournal
from fedtrain.sim.acts import NOTHING
from fedtrain.sim.asking import Calls, Question
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.calls import Envelope, Part, Piece, Request, Response
from fedtrain.sim.disk import TroubledJournal, journal_trouble
from fedtrain.sim.models import Models
from fedtrain.sim.network import Network
from fedtrain.sim.outbox import Outbox
from fedtrain.sim.plan import DATASET, SitePlan
from fedtrain.sim.process import CrashingActor, FusedJournal, Process
from fedtrain.sim.purse import Purse
from fedtrain.sim.scene import Scene
from fedtrain.sim.seats import Seats
from fedtrain.sim.trainer import Trainer

PATIENCE_MS = 3_000
HELD_COUNT = 1 << 20
"""Above any counter that the work itself has shown."""

BACKOFF_MS_MAX = 8_000


class Site(Process):
    """One site. Its trainer is a process of its own and outlives it.

    Attributes:
        home: name of the coordinator that its file names.
        notary: makes and checks the world's signatures.
        calls, outbox: parts of one life; models, seats, purse and trainer outlive it.
    """

    def __init__(self, scene: Scene, plan: SitePlan, network: Network, auditor: Auditor, home: str) -> None:
        super().__init__(plan.name, scene, scene.plan.clock_offsets_ms.get(plan.name, 0))
        self.plan = plan
        self.home = home
        self.auditor = auditor
        self.journal = MemoryJournal()
        self.notary = scene.notary
        self.models, self.seats, self.purse = Models(self), Seats(self), Purse(self)
        self.trainer = Trainer(scene, plan, self)
        self._network = network
        self._acts = scene.plan.acts.get(plan.name, NOTHING)
        self._sessions = 0
        self._calls = 0
        network.connect(self)
        auditor.watch_site(plan.name, self.journal)

    @property
    def kind(self) -> str:
        """What faults are counted by."""
        return "site"

    # -- a life ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Replay, read the contract as it is now, take what the trainer left, and call home."""
        self.session = ""
        self._open = False
        self.calls, self.outbox = Calls(self), Outbox(self)
        state = replay(self.journal, agent.step, agent.AgentState(), agent.AGENT_EVENTS)
        self.auditor.site_restarted(self.name, state)
        journal = TroubledJournal(self.journal, lambda: journal_trouble(self.scene, self.name))
        self._driver: Driver[agent.AgentState, agent.AgentEvent, agent.AgentEffect] = Driver(
            FusedJournal(journal, self.fuse), CrashingActor(self, self.fuse), self._step, state
        )
        self.seats.sweep()
        self.purse.wake()
        late = self.scene.clear
        contract = self._acts.contract(self.plan.later_contract if late else self.plan.contract, late)
        self.submit(agent.AgentBooted(self.now_ms, contract))
        for order in tuple(self.trainer.results):
            self.has_result(order)
        self._call_home(500)

    @property
    def now_ms(self) -> int:
        """UTC as this machine believes, for events: told, never decided from."""
        return self.wall.now_ms

    @property
    def moment(self) -> Moment:
        """The time as this machine's calendar tells it."""
        minutes = self.now_ms // 60_000
        return Moment(minutes // 1_440, minutes % 1_440)

    @property
    def state(self) -> agent.AgentState:
        """What the agent knows."""
        return self._driver.state

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What its people have said about runs."""
        return self._driver.state.verdicts

    @property
    def held(self) -> dict[str, agent.Held]:
        """Orders in hand."""
        return dict(self._driver.state.held)

    def word_on(self, run: str) -> Word | None:
        """What its people have said about a run, as far as the agent knows."""
        verdict = self._driver.state.verdicts.get(run)
        return None if verdict is None else verdict.word

    @property
    def epoch(self) -> int:
        """The highest that it has seen."""
        return self._driver.state.epoch

    def submit(self, event: agent.AgentEvent) -> None:
        """Journal, step, act."""
        self._driver.handle(event)

    def _step(
        self, state: agent.AgentState, event: agent.AgentEvent
    ) -> tuple[agent.AgentState, tuple[agent.AgentEffect, ...]]:
        """The production step, watched."""
        self.scene.events += 1
        self.scene.note(self.name, "event", event)
        state, effects = agent.step(state, event)
        self.auditor.site_stepped(self.name, event, state, effects)
        return state, effects

    def reconsider(self) -> None:
        """The site's owner may have another contract now; it takes a restart of the agent."""
        changes = self.plan.later_contract != self.plan.contract or self._acts.opens_ms is not None
        if changes and self.up:
            self.scene.note(self.name, "restarts", "with another contract")
            self.restart(500)

    def move(self, home: str) -> None:
        """The site's owner names another coordinator, which takes a restart of the agent."""
        self.scene.note(self.name, "moves", f"to {home}")
        self.home = home
        if self.up:
            self.restart(500)

    def lose_power(self, how: random.Random) -> None:
        """Models and results are not synced; the journal is."""
        self.models.lose_power(how)
        self.seats.lose_power(how)
        self.purse.file.lose_tail()
        for order in list(self.trainer.results):
            if how.random() < 0.3:
                self.trainer.lose(order)

    def damage_model(self, how: random.Random) -> None:
        """A bit flips in a model that lies here."""
        if self.models.runs:
            self.models.flip(how.choice(self.models.runs), how)

    # -- the session ----------------------------------------------------------------------------

    def leave(self, how: random.Random) -> None:
        """Say goodbye and come back after a while; being away is not an error."""
        if not self.up or not self._open:
            return
        self.say(msg.Goodbye("going for a while"))
        self._open = False
        self.session = ""
        self.later(how.randint(500, 25_000), lambda: self._call_home(500))

    def _call_home(self, backoff_ms: int) -> None:
        """Open a new session, and another one if nobody answers: capped back-off, full jitter."""
        self._sessions += 1
        self._open = False
        session = self.session = f"{self.name}/{self._sessions}"
        self.say(msg.Hello((1, 0), "sim", session, ("tiny",), ("float32",), tuple(self.held)))

        def check() -> None:
            if self.session == session and not self._open:
                self._call_home(min(2 * backoff_ms, BACKOFF_MS_MAX))

        self.later(PATIENCE_MS + self.jitter_ms(backoff_ms), check)

    def jitter_ms(self, most_ms: int) -> int:
        """Some time up to `most_ms`."""
        return self.scene.chance.stream("jitter", self.name).randint(0, most_ms)

    def say(self, message: msg.FromPeer) -> None:
        """In the session, with the highest epoch that was seen."""
        self._network.send(self.name, self.home, Envelope(self.session, self.epoch, message))

    def receive(self, source: str, body: object) -> None:
        """A session's message or a call's answer; a lower epoch than the highest seen is refused."""
        assert isinstance(body, (Envelope, Response)), "sites get nothing else"
        if body.epoch < self.epoch:
            self.scene.faults["old epoch refused"] += 1
            return
        if body.epoch > self.epoch:
            self.submit(agent.EpochSeen(self.now_ms, body.epoch))
        if source != self.home:
            return  # the stream to a coordinator that is not ours any more is closed
        self.auditor.obeys(self.name, self.epoch, body.epoch)
        if isinstance(body, Response):
            if isinstance(body.body, Part):
                self.models.take(body.body)
            self.calls.answer(body)
        elif body.session == self.session:
            self._hear(body.message)

    def _hear(self, message: msg.FromPeer | msg.ToPeer) -> None:
        now_ms = self.now_ms
        match message:
            case msg.Welcome():
                if not self._open:
                    self._open = True
                    self._beat(self.session, message.heartbeat_ms)
                    self._introduce()
                    for effect in agent.resume(self._driver.state):
                        self.perform(effect)
            case msg.Invitation():
                moment = self.moment
                told = (message.order, moment.day, moment.minute, self.purse.spending(message.order))
                self.submit(agent.OrderReceived(now_ms, *told))
            case msg.Cancellation():
                self.submit(agent.OrderCancelled(now_ms, message.order, message.reason))
            case msg.Publication():
                self.submit(agent.RoundPublished(now_ms, message.run, message.round))
            case msg.Head():
                self.submit(
                    agent.HeadWitnessed(
                        now_ms, message.consortium, message.sequence, message.hash, message.at_ms, ""
                    )
                )
            case msg.Statement():
                self.seats.hear(message)
            case msg.Superseded():
                self._open = False
                self.session = ""
                self.later(self.jitter_ms(500), lambda: self._call_home(500))

    def _introduce(self) -> None:
        """Every session begins with what its data hold, and with every consent that was taken back."""
        self.say(msg.Declaration("contract", {DATASET: self.plan.weight}, ""))
        for run, verdict in self.verdicts.items():
            if verdict.word is Word.WITHDRAWN:
                self.say(msg.Withdrawal(run, verdict.reason, ""))

    def _beat(self, session: str, heartbeat_ms: int) -> None:
        if self.session != session:
            return
        self.auditor.keeps(self.name, len(self.trainer.results))
        self.auditor.secrecy.kept(self.name, self.seats.sessions)
        working = (name for name, held in self.held.items() if held.stage is agent.Stage.WORKING)
        progress = self.trainer.progress(tuple(working), self.models.fetched_bytes)
        self.say(msg.Heartbeat((*progress, *self._looked_at())))
        if agent.allowed_by_now(self._driver.state, self.moment):
            self.submit(agent.Reconsidered(self.now_ms, self.moment.day, self.moment.minute))
        self.later(heartbeat_ms, lambda: self._beat(session, heartbeat_ms))

    def _looked_at(self) -> tuple[Progress, ...]:
        """Signs of life of updates that a person looks at: they wait for the deadline, not for patience."""
        return tuple(
            Progress(name, HELD_COUNT + self.scene.clock.now_ms)
            for name, held in self.held.items()
            if held.stage is agent.Stage.HELD
        )

    # -- calls ----------------------------------------------------------------------------------

    def next_call(self) -> int:
        """A number that no call of this site had before."""
        self._calls += 1
        return self._calls

    def call(self, number: int, question: Question) -> None:
        """Ask once, at the coordinator that the site's file names."""
        self._network.send(self.name, self.home, Request(number, self.epoch, question))

    def transfer_ms(self, question: Question) -> int:
        """How long the bytes of this call take on this site's link, there or back."""
        size_bytes = len(question.data) if isinstance(question, Piece) else self.plan.piece_bytes
        rate = self.plan.link_bytes_per_s
        return 3 * size_bytes * 1_000 // rate if rate else 0

    # -- effects --------------------------------------------------------------------------------

    def perform(self, effect: agent.AgentEffect) -> None:
        """Start carrying an effect out. A shelved result's file stays where it is."""
        match effect:
            case agent.Reply():
                if self._open:
                    self.say(msg.Consent(effect.order, effect.accepted, effect.reasons, ""))
            case agent.Prepare():
                self.models.prepare(effect.order)
            case agent.Submit():
                self.outbox.deliver(effect.order)
            case agent.Report():
                self._report(effect)
            case agent.Withdraw():
                if self._open:
                    self.say(msg.Withdrawal(effect.run, effect.reason, ""))
            case agent.Reattach():
                self.later(0, lambda: self._call_home(500))
            case agent.SayMasked():
                if self._open:
                    self.seats.say(effect.order, effect.topic)
            case agent.MaskUpdate():
                self.seats.mask(effect.order, effect.result)
            case agent.BurnMasks():
                self.seats.burn(effect.order)
            case agent.Discard():
                self.calls.forget(effect.order)
                self.trainer.discard(effect.order)
                self.seats.discard(effect.order)

    def _report(self, effect: agent.Report) -> None:
        """An answer without a file goes through the session, now or once there is one."""
        if not self._open:
            return
        order, result = effect.order, effect.result
        if result.failure or result.eval_loss is None:
            self.say(msg.Failure(order.id, result.failure or "no evaluation came"))
        else:
            self.say(msg.Evaluation(order.id, result.eval_loss, result.eval_count))
        self.submit(agent.AnswerDelivered(self.now_ms, order.id))

    # -- what the trainer tells ---------------------------------------------------------------------

    def begins(self, order: Order, permit: Permit | None) -> None:
        """An execution begins."""
        self.auditor.expenses.begins(self.name, order, permit.execution if permit else None)

    def has_result(self, order: str) -> None:
        """The trainer published a result; while the agent is down it waits in the mailbox."""
        if self.up:
            result = self.trainer.results[order].result
            self.run(lambda: self.submit(agent.ResultTaken(self.now_ms, result, self.moment.day)))

    def gave_back(self, order: str) -> None:
        """A claim has expired, and its permit with it: what is done again is charged for again."""
        held = self.held.get(order) if self.up else None
        if held is not None and held.stage is agent.Stage.WORKING:
            self.run(lambda: self.models.prepare(held.order))

    def gave_up(self, order: str, reason: str) -> None:
        """The trainer keeps dying."""
        if self.up:
            self.run(lambda: self.submit(agent.WorkAbandoned(self.now_ms, order, reason)))
