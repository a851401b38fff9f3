"""The coordinator's hub: one driver, its effects, and what the services share.

Events come from the services; `submit` hands them to the driver, which journals them, steps, and
calls `perform` for each effect. Nothing here decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import fedtrain
from fedtrain.coordinator.changes import Changes
from fedtrain.coordinator.clock import Clock
from fedtrain.coordinator.lineage import Lineages, code_digest
from fedtrain.coordinator.making import Making
from fedtrain.coordinator.pulse import PulseWatch, Verdicts
from fedtrain.coordinator.versions import Versions
from fedtrain.core import effects as fx, events as ev, messages as msg, transitions
from fedtrain.core.driver import Driver
from fedtrain.core.liveness import Lost
from fedtrain.core.state import ENDED, State
from fedtrain.core.versions import blobs_needed
from fedtrain.errors import FedtrainError, RefusedError, StorageError, Unauthenticated, UnreachableError
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.chain import SignedHead, head_message
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots
from fedtrain.trust.folders import CoordinatorKeys
from fedtrain.trust.statements import said, sign, sign_head

_log = logging.getLogger(__name__)

HEARTBEAT_MS = 5_000
"""While no run says otherwise."""

SOON_S = 0.05


def restore_command(folder: Path) -> str:
    """What a person is told to do when the journal in `folder` is damaged."""
    return (
        f"run `fedtrain coordinator restore BACKUP NEW --log {folder}`: it makes the folder NEW of the last "
        "backup and of every row here that still holds"
    )


Send = Callable[[str, msg.ToPeer | FedtrainError], None]
Cut = Callable[[str, FedtrainError], object]


class Hub:
    """What the services share. Lives on the event loop's thread.

    Attributes:
        keys: the consortium's keys.
        blobs, versions, lineages: the coordinator's files.
        head: the newest signed head of the journal, None before the first.
        pulse: who is alive.
        changes: wakes watchers.
        send: hands a message, or the error that ends it, to a site's session; set by the sessions.
        cut: ends every call of a member with an error; set by the process.
        acknowledged: order -> the acknowledgement that the last submitted event led to.
        held: blobs that are being taken in right now and must not be collected.
    """

    def __init__(self, state: Path, keys: CoordinatorKeys) -> None:
        self.keys = keys
        self.journal = Journal.open(
            state / "journal.db", lock=state / "lock", remedy=restore_command(state.parent)
        )
        self.blobs = Blobs(state / "blobs")
        self.versions = Versions(state / "models", self.blobs)
        self._making = Making(self)
        self.pulse = PulseWatch(self._on_verdicts)
        self.changes = Changes()
        self.send: Send = lambda site, message: None
        self.cut: Cut = lambda name, error: None
        self.acknowledged: dict[str, fx.Acknowledge] = {}
        self.held: set[str] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._soon: list[ev.Event] = []
        self._shared: asyncio.Future[None] | None = None
        self._keeping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._snapshots = Snapshots(self.journal, State)
        state_now = self._snapshots.recover(transitions.step, State(), ev.EVENTS)
        self.lineages = Lineages(
            state / "lineage", self.journal, keys.membership.consortium, keys.message_key
        )
        self.lineages.recover(state_now)
        self.head = next((_message(signed) for signed in reversed(self.journal.heads())), None)
        self.clock = Clock(state_now.now_ms)
        self._driver: Driver[State, ev.Event, fx.Effect] = Driver(
            self.journal, self, transitions.step, state_now
        )

    @property
    def state(self) -> State:
        """What the coordinator knows now."""
        return self._driver.state

    def boot(self, epoch: int, place: str) -> None:
        """Begin a new epoch: whatever was under way is asked for again."""
        self.submit(ev.Booted(self.clock.now_ms(), epoch, place, fedtrain.__version__, code_digest()))
        for run in self.state.runs.values():
            for site in run.round.seats if run.round else ():
                self.pulse.hear(site)
        self._start(self.pulse.run())

    def submit_soon(self, event: ev.Event, within_s: float = SOON_S) -> None:
        """Submit with the next event, or in a moment: for news that nobody waits for.

        A round has a consent per site; each on its own would be a sync of the disk. Within 0 s is with all
        that has come while the disk was busy with what came before.
        """
        if not self._soon or not within_s:
            asyncio.get_running_loop().call_later(within_s, self._submit_rest)
        self._soon.append(event)

    async def submit_together(self, event: ev.Event) -> None:
        """As `submit_soon`, and returns when the event is durable and its effects have begun.

        A thousand sites that attach within ten seconds are two hundred commits, not a thousand.
        """
        if self._shared is None:
            self._shared = asyncio.get_running_loop().create_future()
        self.submit_soon(event)
        await asyncio.shield(self._shared)

    def _submit_rest(self) -> None:
        if self._soon:
            self.submit()

    def submit(self, *events: ev.Event) -> None:
        """Journal, step, act. A journal that fails ends the process: nothing may be acknowledged.

        Raises `StorageError`, and lets `failed` say so to the process.
        """
        events = (*self._soon, *events)
        self._soon.clear()
        self.lineages.observe(events)
        shared, self._shared = self._shared, None
        try:
            self._driver.handle(*events)
        except StorageError as error:
            if not self.failed.done():
                self.failed.set_exception(error)
            if shared is not None:
                shared.set_exception(error)
            raise
        if shared is not None:
            shared.set_result(None)
        self.lineages.follow(self.state)
        self.changes.tell()
        if self._snapshots.due and not self._keeping:
            self._keeping = True
            self._start(self._keep_snapshot())

    async def _keep_snapshot(self) -> None:
        """For the next start. Begins between two events, so state and head belong together."""
        try:
            await asyncio.to_thread(self._snapshots.keep, self.state, self.journal.head)
        except FedtrainError as error:
            _log.warning("no snapshot of the state is kept, so the next start takes longer: %s", error)
        finally:
            self._keeping = False

    async def close(self) -> None:
        """End what runs in the background and give the journal up."""
        self._soon.clear()  # not durable, so it did not happen; whoever waited for it was cancelled
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._snapshots.rows_behind and not self.failed.done():
            await self._keep_snapshot()
        await asyncio.to_thread(self.lineages.close)
        self.journal.close()

    def heartbeat_ms(self) -> int:
        """How often sites with work show themselves: the shortest wish among the runs that go on."""
        beats = [run.spec.heartbeat_ms for run in self.state.runs.values() if run.phase not in ENDED]
        return min(beats, default=HEARTBEAT_MS)

    # -- effects ----------------------------------------------------------------------------------

    def perform(self, effect: fx.Effect) -> None:
        """Start carrying an effect out."""
        _PERFORM[type(effect)](self, effect)

    def _invite(self, effect: fx.Invite) -> None:
        self.pulse.expect(effect.order)
        self.send(effect.order.site, msg.Invitation(effect.order))

    def _cancel(self, effect: fx.Cancel) -> None:
        self.pulse.settle(effect.site, effect.order)
        self.send(effect.site, msg.Cancellation(effect.order, effect.reason))

    def _speak(self, effect: fx.Speak) -> None:
        consortium = self.keys.membership.consortium
        statement = said(consortium, effect.site, effect.topic, effect.order, effect.document)
        signature = sign(statement, self.keys.message_key).hex()
        self.send(effect.site, msg.Statement(effect.topic, effect.order, effect.document, signature))

    def _acknowledge(self, effect: fx.Acknowledge) -> None:
        self.pulse.settle(effect.site, effect.order)
        self.acknowledged[effect.order] = effect

    def _set_timer(self, effect: fx.SetTimer) -> None:
        key = (effect.run, effect.timer)
        old = self._timers.pop(key, None)
        if old is not None:
            old.cancel()

        def fire() -> None:
            del self._timers[key]
            self.submit(ev.TimerFired(self.clock.now_ms(), effect.run, effect.timer))

        self._timers[key] = self.clock.call_at(effect.at_ms, fire)

    def _aggregate(self, effect: fx.Aggregate) -> None:
        self.lineages.plan(effect)
        self._start(self._making.aggregate(effect))

    def _restore(self, effect: fx.Restore) -> None:
        self._start(self._making.restore(effect))

    def _expel(self, effect: fx.Expel) -> None:
        """Nothing more is said to it or expected of it, and every call that it has under way is cut."""
        _log.warning("%s is out: %s", effect.name, effect.reason)
        self.pulse.forget(effect.name)
        self.cut(effect.name, Unauthenticated(f"{effect.name}: {effect.reason}"))

    def _retire(self, effect: fx.Retire) -> None:
        """Another coordinator is obeyed: this process has nothing more to say."""
        if not self.failed.done():
            self.failed.set_exception(
                RefusedError(f"a coordinator of epoch {effect.epoch} has taken over; this one is not obeyed")
            )

    def _publish(self, effect: fx.Publish) -> None:
        """Tell the round's sites, and hand every site the journal's head."""
        run = self.state.runs[effect.run]
        record, model = run.records[-1], run.model
        assert model is not None, "what is published exists"
        _log.info("%s: version %d is out (%s)", effect.run, effect.version, record.reason)
        for site, outcome in effect.outcomes:
            news = msg.Publication(effect.run, record.index, effect.version, model.ref.digest, outcome)
            self.send(site, news)
        self.hand_out_head()

    def hand_out_head(self) -> None:
        """Sign the journal's head and hand it to every site that is attached: all are witnesses."""
        self.head = self._sign_head()
        for site in self.state.attached:
            self.send(site, self.head)

    def sign_off(self) -> None:
        """Before an end in good order: the sites get the head of all that was done."""
        if self.state.fenced or self.failed.done():
            return
        try:
            self.hand_out_head()
        except FedtrainError as error:
            _log.warning("the last head is not signed: %s", error)

    def _sign_head(self) -> msg.Head:
        sequence, row_hash = self.journal.head
        if self.head is not None and self.head.sequence == sequence:
            return self.head
        consortium, at_ms = self.keys.membership.consortium, self.clock.now_ms()
        key = self.keys.message_key
        signature = sign_head(head_message(consortium, sequence, row_hash, at_ms), key).hex()
        signed = SignedHead(consortium, sequence, row_hash, at_ms, signature, key.key_id)
        self.journal.add_head(signed)
        return _message(signed)

    def _collect(self, effect: fx.Collect) -> None:
        self._start(self._free(effect))

    async def _free(self, effect: fx.Collect) -> None:
        def free() -> None:
            self.blobs.collect(_Needed(self))
            self.versions.collect(effect.run, effect.keep_version)

        try:
            await asyncio.to_thread(free)
        except FedtrainError as error:
            _log.warning("old files stay for now: %s", error)

    def _finish(self, effect: fx.Finish) -> None:
        _log.info("%s: %s (%s)", effect.run, effect.phase, effect.reason)
        self.hand_out_head()

    # -- plumbing -----------------------------------------------------------------------------------

    def _on_verdicts(self, verdicts: Verdicts) -> None:
        """One durable write for all: a link that breaks takes many sites at once."""
        now_ms = self.clock.now_ms()
        for verdict in verdicts:
            _log.warning("%s: %s", verdict.site, verdict.reason)
        self.submit(
            *(
                ev.SiteLost(now_ms, verdict.site, verdict.reason)
                if isinstance(verdict, Lost)
                else ev.WorkFailed(now_ms, verdict.order, verdict.reason)
                for verdict in verdicts
            )
        )
        for verdict in verdicts:
            if isinstance(verdict, Lost):
                # A stopped process that goes on would speak in this session for ever, and not be heard.
                self.send(verdict.site, UnreachableError(f"{verdict.reason}: attach again"))

    def run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run until the hub closes; if it breaks, the process ends and says so."""
        self._start(work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A background task that broke is our bug: the process says so instead of going on without it."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self.failed.done():
            self.failed.set_exception(task.exception() or RuntimeError("unknown"))


def _message(signed: SignedHead) -> msg.Head:
    return msg.Head(signed.consortium, signed.sequence, signed.hash, signed.at_ms, signed.signature)


class _Needed:
    """The blobs that may not be collected, as of the moment of asking.

    A blob is held from before it appears until its event is journaled, so at no moment is one that
    still counts in neither account.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __contains__(self, digest: object) -> bool:
        held = digest in self._hub.held
        return held or any(digest in blobs_needed(run) for run in self._hub.state.runs.values())


_PERFORM: dict[type[fx.Effect], Callable[[Hub, Any], Awaitable[None] | None]] = {
    fx.Invite: Hub._invite,
    fx.Cancel: Hub._cancel,
    fx.Speak: Hub._speak,
    fx.Acknowledge: Hub._acknowledge,
    fx.SetTimer: Hub._set_timer,
    fx.Aggregate: Hub._aggregate,
    fx.Publish: Hub._publish,
    fx.Collect: Hub._collect,
    fx.Finish: Hub._finish,
    fx.Retire: Hub._retire,
    fx.Expel: Hub._expel,
    fx.Restore: Hub._restore,
}
