"""The agent: one driver over the site's own journal, and the work that its effects ask for.

What comes from the coordinator, the trainer or a piece of work becomes an event; `submit` hands it to
the driver, which journals it, steps, and calls `perform` for each effect. Decisions are `core.agent`'s;
here is only how they are carried out, again if need be.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from fedtrain.core import agent as core
from fedtrain.core.agent import AgentEffect, AgentEvent, AgentState, Stage
from fedtrain.core.driver import Driver, replay
from fedtrain.core.orders import Order, Progress
from fedtrain.core.ports import JournalPort
from fedtrain.errors import (
    BadMailbox,
    FedtrainError,
    IntegrityError,
    StorageError,
)
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.charging import Charging
from fedtrain.peer.clock import monotonic_ms, now_ms as now_ms
from fedtrain.peer.counting import count, uncounted
from fedtrain.peer.decisions import Decision, LetterBox, event_of
from fedtrain.peer.desk import Desk
from fedtrain.peer.egress import Account
from fedtrain.peer.errands import RETRY_FIRST_S, RETRY_LONGEST_S, Errands
from fedtrain.peer.jobs import closing, in_thread
from fedtrain.peer.launching import trainer_command
from fedtrain.peer.masking import Masking
from fedtrain.peer.models import BlobSource, PublicModels
from fedtrain.peer.outbox import Outbox, UpdateSink
from fedtrain.peer.probing import prepare_mailbox, require_walls
from fedtrain.peer.progress import MASKS_PHASE, RECKONING_PHASE, ProgressBook
from fedtrain.peer.results import judge_result, reason_text
from fedtrain.peer.session import AttendPort, Session
from fedtrain.peer.settings import AgentSettings
from fedtrain.peer.trainers import Trainers
from fedtrain.storage.mailbox import Mailbox
from fedtrain.storage.snapshots import Snapshots
from fedtrain.storage.watching import changes
from fedtrain.trust.folders import MemberKeys
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

LOOK_AGAIN_S = 1.0
"""Between two looks whether time has made a refused order acceptable."""


class Coordinator(AttendPort, BlobSource, UpdateSink, Protocol):
    """All that the agent asks of the other side: `wire.client.CoordinatorClient`, or a test's own."""


class Agent:
    """One site's agent. Lives on the event loop's thread.

    Attributes:
        session: the conversation with the coordinator.
        desk: what is said and heard in it.
        account: what leaves the site.
        charging: what its privacy costs.
        masking: its part in masked rounds.
        posted: orders that lie in the mailbox.
        failed: gets the error that the agent cannot go on after.

    `snapshots` are those in the journal; None for a journal that is not on a disk.
    """

    def __init__(
        self,
        settings: AgentSettings,
        keys: MemberKeys,
        coordinator: Coordinator,
        journal: JournalPort,
        snapshots: Snapshots[AgentState] | None = None,
    ) -> None:
        self.posted: set[str] = set()
        self._stopping = threading.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._mailbox = Mailbox(settings.mailbox)
        self._models = PublicModels(settings.state / "models", coordinator)
        self.account = Account(self, settings.proxy or settings.coordinator)
        outbox, public = settings.state / "outbox", keys.coordinator_public
        self._outbox = Outbox(outbox, self._mailbox, coordinator, keys.message_key, public, self.account)
        self.charging = Charging(self, settings, keys.membership.consortium, self._stopping)
        self.masking = Masking(self, settings.state, keys)
        self._errands = Errands(self, self._mailbox, self._models, self._outbox, self.charging, self.masking)
        self._trainers = Trainers(
            self._mailbox,
            trainer_command(settings) if settings.launch == "process" else (),
            settings.folder,
            settings.state / "trainer.log",
            self.give_up,
            self._errands.post_again,
        )
        self._decisions = LetterBox(settings.state)
        self._counting = False
        self._progress = ProgressBook(self._mailbox, now_ms())
        self.desk = Desk(self, settings, keys)
        self.session = Session(coordinator, self.desk)
        self._snapshots = snapshots
        machine = (core.step, AgentState(), core.AGENT_EVENTS)
        folded = snapshots.recover(*machine) if snapshots else replay(journal, *machine)
        self._driver: Driver[AgentState, AgentEvent, AgentEffect] = Driver(journal, self, core.step, folded)

    @property
    def state(self) -> AgentState:
        """What the agent knows now."""
        return self._driver.state

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act. A journal that fails ends the agent: what is not durable did not happen."""
        try:
            self._driver.handle(*events)
        except (StorageError, IntegrityError) as error:
            self.broke(error)
            raise
        finally:
            self._changed.set()
        if self._snapshots and self._snapshots.due:
            self._keep_snapshot(self._snapshots)

    def _keep_snapshot(self, snapshots: Snapshots[AgentState]) -> None:
        """For the next start: an agent lives for years. Its state is small, so nothing waits long."""
        if self._driver.settled:
            try:
                snapshots.keep(self.state)
            except FedtrainError as error:
                _log.warning("no snapshot of the state is kept, so the next start takes longer: %s", error)

    async def start(self) -> None:
        """Take up whatever the journal says was in hand, and begin to attend."""
        await in_thread(prepare_mailbox, self._settings)
        await in_thread(require_walls, self._settings)
        self._outbox.create()
        await in_thread(self._decisions.create)
        known = frozenset(self.state.held)
        await in_thread(self._mailbox.sweep, known)
        await in_thread(self._outbox.sweep, known)
        await in_thread(self.masking.create)
        await self._trainers.give_back_claims()
        self.submit(core.AgentBooted(now_ms(), self._settings.contract))
        await self._decisions.empty(self._heed)
        looks = self.account.watch(quiet=self.session.attached.is_set)
        for work in (
            self._watch_results(),
            self._decisions.listen(self._heed),
            self._beat(),
            self._look_again(),
            looks,
        ):
            self.background(work)

    async def stop(self) -> None:
        """End everything that runs; the journal holds what the next start goes on with."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._errands.stop()
        await self.masking.stop()
        await self._trainers.stop()
        self.charging.close()
        if not self.failed.done():
            self.account.close()
        if self._snapshots and self._snapshots.rows_behind and not self.failed.done():
            self._keep_snapshot(self._snapshots)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is looked at after every event."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    @property
    def progress_count(self) -> int:
        """Grows while any order in hand moves."""
        return self._progress.counter + self._models.fetched_bytes

    @property
    def at_rest(self) -> bool:
        """Whether all that can be done now is done: the site's own trainers, or its people, have the rest."""
        external = self._settings.launch == "external"
        owes = bool(self.owes_shares) or self.masking.speaking
        return not owes and all(
            held.stage is Stage.HELD or (external and held.stage is Stage.WORKING and order in self.posted)
            for order, held in self.state.in_hand.items()
        )

    @property
    def owes_shares(self) -> tuple[str, ...]:
        """Orders whose masked updates are delivered, and whose sum cannot be had before this site opens its
        shares."""
        held = self.state.held
        return tuple(
            order
            for order, seat in self.state.masks.items()
            if seat.stage in (core.SeatStage.READY, core.SeatStage.AFFIRMED)
            and order in held
            and held[order].stage is Stage.DELIVERED
        )

    # -- effects ----------------------------------------------------------------------------------

    def perform(self, effect: AgentEffect) -> None:
        """Start carrying an effect out."""
        match effect:
            case core.Reply():
                self.desk.consent(effect)
            case core.Prepare(order):
                self._errands.prepare(order)
            case core.Submit(order, result):
                self._errands.deliver(order, result)
            case core.Report(_, result):
                self.desk.report(result)
            case core.Withdraw(run, reason):
                self.desk.withdraw(run, reason)
            case core.Reattach(reason):
                _log.info("a new session is opened: %s", printable(reason))
                self.session.reattach()
            case core.Shelve(order_id) | core.Discard(order_id):
                self._trainers.forget(order_id)
                self.posted.discard(order_id)
                self._errands.clear(order_id, isinstance(effect, core.Discard))
                if isinstance(effect, core.Discard):
                    self.masking.burn(order_id)
            case core.SayMasked(order_id, topic):
                self.masking.say(order_id, topic)
            case core.MaskUpdate(order, result):
                self._errands.mask(order, result)
            case core.BurnMasks(order_id, reason):
                _log.error("%s: %s", order_id, printable(reason))
                self.masking.burn(order_id)

    def give_up(self, order_id: str, reason: str) -> None:
        """The order cannot be done here. An agent whose journal failed decides nothing more."""
        if self.failed.done():
            return
        _log.error("%s cannot be done here: %s", order_id, reason)
        self.submit(core.WorkAbandoned(now_ms(), order_id, reason_text(reason)))

    def has_posted(self, order: str) -> None:
        """The order lies in the mailbox: somebody has to work on it."""
        self.posted.add(order)
        self._trainers.want(order)
        self._changed.set()

    def has_spoken(self) -> None:
        """A word of a masked session is said."""
        self._changed.set()

    def has_charged(self, order: Order) -> None:
        """The coordinator hears what the run has cost here."""
        self.background(self.desk.tell_account(order))

    # -- the mailbox ------------------------------------------------------------------------------

    async def _watch_results(self) -> None:
        """A result is looked at as soon as the kernel tells of it. A shared disk may stumble meanwhile."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_LONGEST_S)
        while True:
            try:
                async with closing(changes([self._mailbox.results_folder])) as ticks:
                    async for _ in ticks:
                        await self._look_for_results()
                        backoff.reset()
            except StorageError as error:
                _log.error("the mailbox cannot be read: %s", error)
                await asyncio.sleep(backoff.next_s())

    async def _look_for_results(self) -> None:
        for order_id in await in_thread(self._mailbox.results):
            held = self.state.held.get(order_id)
            if held is None:
                await in_thread(self._mailbox.discard, order_id)
            elif held.stage is Stage.WORKING:
                await self._take(held.order)

    async def _take(self, order: Order) -> None:
        try:
            found, _ = await in_thread(self._mailbox.take_result, order.id)
            result = judge_result(order, found)
        except BadMailbox as error:
            await in_thread(self._mailbox.discard, order.id)
            self.give_up(order.id, str(error))
            return
        self._trainers.forget(order.id)
        for note in result.notes:
            _log.info("%s: the trainer notes: %s", order.id, note)
        said = f"a failure: {result.failure}" if result.failure else f"done in {result.seconds:.2f} s"
        _log.info("%s: the trainer's work is %s", order.id, said)
        self.submit(core.ResultTaken(now_ms(), result, self.desk.moment().day))
        if result.within is not None:
            self.background(self.desk.tell_account(order))
        if not self._counting and uncounted(self.state):
            self._counting = True
            self.background(self._count())

    async def _count(self) -> None:
        """Once in an agent's life, and only what is not counted yet."""
        examples = await count(self._settings, self.state.examples, self._stopping)
        if examples != self.state.examples:
            self.submit(core.DataCounted(now_ms(), examples))
            self.desk.declare()

    async def _beat(self) -> None:
        """Signs of life, and a look for trainers that show none."""
        while True:
            await self.desk.next_beat()
            progress: tuple[Progress, ...] = ()
            try:
                working, waiting, masking = (
                    [name for name, held in self.state.held.items() if held.stage is stage]
                    for stage in (Stage.WORKING, Stage.HELD, Stage.MASKING)
                )
                reckoning = self.charging.reckoning.intersection(working)
                fetched, moment = self._models.fetched_bytes, monotonic_ms()
                moving = [name for name in working if name not in reckoning]
                progress = await in_thread(self._progress.read, moving, fetched, moment)
                progress += self._progress.waiting(waiting) + self._progress.waiting(masking, MASKS_PHASE)
                progress += self._progress.waiting(reckoning, RECKONING_PHASE)
                await self._trainers.look(moment)
                await self._errands.look(working)
            except FedtrainError as error:
                _log.warning("the mailbox cannot be looked at: %s", error)
            self.desk.beat(progress)

    async def _look_again(self) -> None:
        """What was refused for its hour, or for what this day has carried, may be allowed by now."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            moment = self.desk.moment()
            if self.state.refused and core.allowed_by_now(self.state, moment):
                self.submit(core.Reconsidered(now_ms(), moment.day, moment.minute))

    def _heed(self, decision: Decision) -> None:
        self.submit(event_of(decision, now_ms(), self.desk.moment().day))

    # -- plumbing ---------------------------------------------------------------------------------

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something run until the agent stops; if it breaks, the agent cannot go on."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broke(error)

    def broke(self, error: BaseException) -> None:
        """Ours is a bug, or a journal that failed: the agent cannot go on."""
        if not self.failed.done():
            self.failed.set_exception(error)
