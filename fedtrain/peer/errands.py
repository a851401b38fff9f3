"""What the agent's machine asks to be done for an order: prepare it, deliver its answer, clear up.

Each errand can be repeated, one at a time per order (`jobs`). An order that costs privacy is charged for
between its model and the mailbox; whenever it comes into the mailbox again, it is charged for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from fedtrain.core import messages as msg
from fedtrain.core.agent import AgentEvent, AgentState, Stage, UpdateMasked, UploadRefused
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.errors import (
    BadMailbox,
    BusyError,
    FedtrainError,
    IntegrityError,
    LocalError,
    StorageError,
    UnreachableError,
)
from fedtrain.peer.assent import moment_at
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.charging import Charging
from fedtrain.peer.clock import now_ms
from fedtrain.peer.jobs import Jobs, in_thread
from fedtrain.peer.masking import Masking
from fedtrain.peer.models import PublicModels
from fedtrain.peer.outbox import Outbox, acknowledgement
from fedtrain.peer.results import reason_text
from fedtrain.peer.session import Session
from fedtrain.storage.mailbox import Mailbox

_log = logging.getLogger("fedtrain.peer")

RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 30.0
"""Between two tries of one transfer while the session is open."""


class Owner(Protocol):
    """What the errands need of their agent."""

    session: Session

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""

    def has_posted(self, order: str) -> None:
        """The order lies in the mailbox."""

    def give_up(self, order_id: str, reason: str) -> None:
        """The order cannot be done here."""

    def broke(self, error: BaseException) -> None:
        """The agent cannot go on."""


class Errands:
    """Runs them.

    Args:
        charging: what an order costs, and the permit that it then has.
        masking: puts masks on updates.
    """

    def __init__(
        self,
        owner: Owner,
        mailbox: Mailbox,
        models: PublicModels,
        outbox: Outbox,
        charging: Charging,
        masking: Masking,
    ) -> None:
        self._owner = owner
        self._mailbox = mailbox
        self._models = models
        self._outbox = outbox
        self._charging = charging
        self._masking = masking
        self._jobs = Jobs(owner.broke)

    async def stop(self) -> None:
        """End what can be ended, and wait for the rest."""
        await self._jobs.stop()

    def prepare(self, order: Order) -> None:
        """Bring the model up to the order's version and post the order, if it is not posted."""
        self._jobs.start(order.id, "prepare", partial(self._prepare, order))

    def deliver(self, order: Order, result: Result) -> None:
        """Upload the result's file and commit it."""
        self._jobs.start(order.id, "submit", partial(self._deliver, order, result))

    def mask(self, order: Order, result: Result) -> None:
        """Put the masks on the result's file."""
        self._jobs.start(order.id, "mask", partial(self._mask, order, result), to_end=True)

    def clear(self, order_id: str, over: bool) -> None:
        """Take the order out of the mailbox; what is left in the outbox too, once it is over."""
        kind = "discard" if over else "shelve"
        self._jobs.start(order_id, kind, partial(self._clear, order_id, over), to_end=True)

    def post_again(self, order_id: str) -> None:
        """A claim was given back. An order with a permit is gone with it, and gets a new one."""
        held = self._owner.state.held.get(order_id)
        if held is not None and held.stage is Stage.WORKING and held.execution:
            self.prepare(held.order)

    async def look(self, working: Iterable[str]) -> None:
        """As `post_again`, for those that a trainer gave back by itself."""
        for order_id in working:
            held = self._owner.state.held.get(order_id)
            if held is not None and held.execution and not await in_thread(self._lies_in_mailbox, order_id):
                self.post_again(order_id)

    async def _prepare(self, order: Order) -> None:
        """Model, then mailbox, then somebody to work on it."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_LONGEST_S)
        while True:
            try:
                if not await in_thread(self._lies_in_mailbox, order.id):
                    await self._post(order)
                break
            except (UnreachableError, BusyError) as error:
                _log.info("%s: what it needs has not come yet: %s", order.id, error)
                await self._wait_for_link(backoff)
            except FedtrainError as error:
                self._owner.give_up(order.id, str(error))
                return
        self._owner.has_posted(order.id)

    async def _post(self, order: Order) -> None:
        if order.kind is OrderKind.SEED:
            await in_thread(self._mailbox.post, order, None)
            return
        if order.model is None:
            raise BadMailbox(f"the order to {order.kind} {order.id} names no model")
        async with self._models.at(order.run, order.model) as path:
            permit = await self._charging.permit(order)
            await in_thread(self._mailbox.post, order, path, permit)

    def _lies_in_mailbox(self, order_id: str) -> bool:
        return not self._mailbox.withdrawn(order_id) or order_id in self._mailbox.results()

    async def _deliver(self, order: Order, result: Result) -> None:
        """The upload, tried until the coordinator has taken it or will not."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_LONGEST_S)
        while True:
            try:
                receipt = await self._outbox.deliver(order, result)
                break
            except (UnreachableError, StorageError, BusyError) as error:
                _log.warning("%s: its upload goes on later: %s", order.id, error)
                await self._wait_for_link(backoff)
            except FedtrainError as error:
                _log.error("%s: its upload is given up: %s", order.id, error)
                if isinstance(error, (IntegrityError, BadMailbox, LocalError)):
                    # The coordinator did not say this, so it does not know yet.
                    self._owner.session.say(msg.Failure(order.id, reason_text(str(error))))
                self._owner.submit(UploadRefused(now_ms(), order.id, str(error)))
                return
        _log.info("%s: uploaded %d bytes, %s", order.id, result.size_bytes, receipt.outcome)
        self._owner.submit(acknowledgement(receipt, now_ms()))

    async def _mask(self, order: Order, result: Result) -> None:
        try:
            path = await in_thread(self._outbox.hold, result)
            masked = await self._masking.mask(order, result, path)
        except FedtrainError as error:
            self._refuse(order.id, f"its update cannot be masked: {error}")
            return
        if masked is None:
            _log.info("%s: its masks go on when the coordinator says again with whom", order.id)
            return
        _log.info("%s: the masks are on its update, %d bytes", order.id, masked[1])
        at_ms = now_ms()
        day = moment_at(self._owner.state.contract, at_ms).day
        self._owner.submit(UpdateMasked(at_ms, order.id, *masked, day))

    def _refuse(self, order_id: str, reason: str) -> None:
        """The coordinator did not say this, so it does not know yet."""
        _log.error("%s: %s", order_id, reason)
        self._owner.session.say(msg.Failure(order_id, reason_text(reason)))
        self._owner.submit(UploadRefused(now_ms(), order_id, reason))

    async def _wait_for_link(self, backoff: Backoff) -> None:
        """Until a session is open, and a jittered pause more: a session says little about transfers."""
        await self._owner.session.attached.wait()
        await asyncio.sleep(backoff.next_s())

    async def _clear(self, order_id: str, over: bool) -> None:
        held = self._owner.state.held.get(order_id)
        try:
            if held is not None and held.stage is Stage.HELD and held.result is not None:
                await in_thread(self._outbox.take_over, held.result)
                _log.warning("%s is held: look with `fedtrain egress inspect`, then release it", order_id)
            elif held is not None and held.stage is Stage.MASKING and held.result is not None:
                await in_thread(self._outbox.hold, held.result)
            await in_thread(self._mailbox.discard, order_id)
            if over:
                await in_thread(self._outbox.forget, order_id)
        except BadMailbox as error:  # there is nothing to hold any more
            self._owner.session.say(msg.Failure(order_id, reason_text(str(error))))
            self._owner.submit(UploadRefused(now_ms(), order_id, str(error)))
        except FedtrainError as error:
            _log.warning("%s leaves files behind until the next start: %s", order_id, error)
