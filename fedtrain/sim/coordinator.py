"""A coordinator's shell, modelled small: one driver, its effects, its timers, and who asks what.

Every decision is the production core's. What outlives a crash lies on its disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from fedtrain.core import effects as fx, events as ev, messages as msg, transitions
from fedtrain.core.driver import Driver, replay
from fedtrain.core.epochs import next_epoch
from fedtrain.core.state import State
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.calls import Envelope, Request, Response
from fedtrain.sim.clock import LifeClock
from fedtrain.sim.disk import CoordinatorDisk, TroubledJournal, journal_trouble
from fedtrain.sim.intake import Intake
from fedtrain.sim.keys import said
from fedtrain.sim.making import Making
from fedtrain.sim.network import Network
from fedtrain.sim.process import CrashingActor, FusedJournal, Process
from fedtrain.sim.scene import Scene
from fedtrain.sim.seats import COORDINATOR
from fedtrain.sim.sessions import Sessions

CHANCE_BITS = 62
DAMAGE_DEPTH = 12
"""How far back from the journal's end a damaged row may lie: older rows lie in older backups too."""


class Coordinator(Process):
    """One coordinator, life after life.

    Attributes:
        disk: its folder; another one after a restore.
        history: the auditor's account of what this folder's journal says.
        refuses: told when a start is refused and a person has to decide.
        sessions, intake, making: its parts, new in every life.
    """

    def __init__(
        self, name: str, scene: Scene, network: Network, auditor: Auditor, disk: CoordinatorDisk
    ) -> None:
        super().__init__(name, scene, scene.plan.clock_offsets_ms.get(name, 0))
        self.network = network
        self.auditor = auditor
        self.refuses: Callable[[str], None] = lambda reason: None
        self.take_over = False
        self._buried = False
        self._driver: Driver[State, ev.Event, fx.Effect] | None = None
        self.settle_on(disk)
        network.connect(self)

    @property
    def kind(self) -> str:
        """What faults are counted by."""
        return "coordinator"

    def settle_on(self, disk: CoordinatorDisk) -> None:
        """From the next life on this is the folder; its journal may hold rows already."""
        self.disk = disk
        self.history = self.auditor.watch_coordinator(self.name, disk.journal)

    # -- a life -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Verify, replay, raise the epoch, and ask again for whatever was under way."""
        if self.disk.damaged_row is not None:
            self._refuse(f"row {self.disk.damaged_row} of the journal is damaged: restore it")
            return
        state = replay(self.disk.journal, transitions.step, State(), ev.EVENTS)
        self.history.restarted(state)
        if not self.take_over and (state.fenced or state.place not in ("", self.disk.place)):
            self._refuse(f"epoch {state.fenced} has taken over" if state.fenced else "this is a copy")
            return
        chance = None
        if self.take_over:
            chance = self.scene.chance.stream("take-over", self.name).getrandbits(CHANCE_BITS)
        epoch = next_epoch(max(state.epoch, state.fenced) if self.take_over else state.epoch, chance)
        self.clock = LifeClock(self.wall, state.now_ms)
        self.sessions, self.intake, self.making = Sessions(self), Intake(self), Making(self)
        self._timers: dict[tuple[str, str], int] = {}
        journal = TroubledJournal(self.disk.journal, lambda: journal_trouble(self.scene, self.name))
        self._driver = Driver(
            FusedJournal(journal, self.fuse), CrashingActor(self, self.fuse), self._step, state
        )
        self.auditor.reigns(epoch, self.history)
        self.submit(ev.Booted(self.now_ms, epoch, self.disk.place))
        self.take_over = False  # only now: a start that never came so far is repeated as it was asked for
        self.sessions.wait_for_seats()

    def _refuse(self, reason: str) -> None:
        self.scene.note(self.name, "refuses", f"to start: {reason}")
        self.scene.faults["start refused"] += 1
        self.end()
        self.refuses(reason)

    @property
    def serving(self) -> bool:
        """Whether it is up and has not been told that another one is obeyed."""
        return self.up and self._driver is not None and not self.state.fenced

    @property
    def state(self) -> State:
        """What the coordinator knows now."""
        assert self._driver is not None, "only a coordinator that has started is asked"
        return self._driver.state

    @property
    def now_ms(self) -> int:
        """UTC, for events."""
        return self.clock.now_ms

    def submit(self, *events: ev.Event) -> None:
        """Journal, step, act."""
        assert self._driver is not None, "only a coordinator that has started is told anything"
        self._driver.handle(*events)

    def _step(self, state: State, event: ev.Event) -> tuple[State, tuple[fx.Effect, ...]]:
        """The production step, watched."""
        self.scene.events += 1
        self.scene.note(self.name, "event", event)
        state, effects = transitions.step(state, event)
        for effect in effects:
            self.scene.note(self.name, "  effect", effect)
        self.history.stepped(event, state, effects)
        return state, effects

    def lose_power(self, how: random.Random) -> None:
        """Rows, blobs and versions are synced before they count; partial uploads are not."""
        self.disk.store.lose_power(how)

    def bury(self) -> None:
        """This machine never comes back."""
        self.end()
        self._buried = True

    def start(self) -> None:
        """Begin a life, unless one is under way or there is to be none."""
        if not self._buried:
            super().start()

    def damage_journal(self, how: random.Random) -> None:
        """A bit flips in one of the newest rows; the next start finds it."""
        rows = len(self.disk.journal.entries)
        if rows > 1 and self.disk.damaged_row is None:
            self.disk.damaged_row = rows - how.randint(1, min(rows - 1, DAMAGE_DEPTH))
            self.scene.note(self.name, "disk", f"row {self.disk.damaged_row} of the journal is damaged")
            self.crash("and its journal is damaged")

    def damage_update(self, how: random.Random) -> None:
        """A bit flips in an update that waits to be counted."""
        waiting = self.making.counted_blobs() if self.serving else []
        if waiting:
            digest = how.choice(waiting)
            self.disk.store.flip(digest, how)
            self.auditor.spoils(digest)
            self.scene.note(self.name, "disk", f"blob {digest[:12]} is damaged")

    # -- what comes in ------------------------------------------------------------------------------

    def receive(self, source: str, body: object) -> None:
        """A session's message, or a call. Whoever proves a higher epoch ends this coordinator's reign."""
        assert isinstance(body, (Envelope, Request)), "a coordinator gets nothing else"
        if self.state.fenced:
            return
        if body.epoch > self.state.epoch:
            if body.proven:
                self.submit(ev.Fenced(self.now_ms, body.epoch, source))
            return
        member = self.state.members.get(source)
        if member is not None and member.revoked:
            return  # its calls fail in the handshake or at the gate
        if isinstance(body, Request):
            if member is not None:
                self.intake.answer(source, body)
        else:
            self.sessions.hear(source, body)

    # -- what goes out ------------------------------------------------------------------------------

    def respond(self, site: str, body: Response) -> None:
        """The answer to a call."""
        self.network.send(self.name, site, body)

    def perform(self, effect: fx.Effect) -> None:
        """Start carrying an effect out."""
        match effect:
            case fx.Invite():
                self.sessions.expect(effect.order)
                self.sessions.send(effect.order.site, msg.Invitation(effect.order))
            case fx.Cancel():
                self.sessions.settle(effect.site, effect.order)
                self.sessions.send(effect.site, msg.Cancellation(effect.order, effect.reason))
            case fx.Speak():
                self._speak(effect)
            case fx.Acknowledge():
                self.sessions.settle(effect.site, effect.order)
            case fx.SetTimer():
                self._set_timer(effect)
            case fx.Aggregate():
                self.making.aggregate(effect)
            case fx.Publish():
                self._publish(effect)
            case fx.Collect():
                self.making.collect(effect)
            case fx.Restore():
                self.making.restore(effect)
            case fx.Expel():
                self.sessions.expel(effect.name)
            case fx.Retire():
                self.later(0, self._retire)

    def _speak(self, effect: fx.Speak) -> None:
        text = said(effect.site, effect.topic, effect.order, effect.document)
        signature = self.scene.notary.sign(COORDINATOR, text)
        told = msg.Statement(effect.topic, effect.order, effect.document, signature)
        self.sessions.send(effect.site, told)

    def _set_timer(self, effect: fx.SetTimer) -> None:
        key = (effect.run, effect.timer)
        self._timers[key] = effect.at_ms

        def fire() -> None:
            if self._timers.get(key) == effect.at_ms:
                del self._timers[key]
                self.submit(ev.TimerFired(self.now_ms, effect.run, effect.timer))

        self.later(max(0, effect.at_ms - self.now_ms), fire)

    def _publish(self, effect: fx.Publish) -> None:
        """The news and the journal's head, to the round's sites."""
        run = self.state.runs[effect.run]
        assert run.model is not None, "what is published exists"
        head = msg.Head("sim", len(self.disk.journal.entries), "", self.now_ms, "")
        for site, outcome in effect.outcomes:
            digest = run.model.ref.digest
            news = msg.Publication(effect.run, run.records[-1].index, effect.version, digest, outcome)
            self.sessions.send(site, news)
            self.sessions.send(site, head)

    def _retire(self) -> None:
        """Another coordinator is obeyed: this process has nothing more to say."""
        self.scene.faults["coordinator fenced"] += 1
        self.scene.note(self.name, "retires", f"epoch {self.state.fenced} has taken over")
        self.end()
        self.refuses("fenced")
