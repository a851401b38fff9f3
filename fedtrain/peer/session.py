"""The conversation with the coordinator: attend, speak, listen, and come back after every break.

A break decides nothing. Whatever was on its way is repeatable: the coordinator hands out again what
still matters when the site is back, and the agent says again what was not certainly heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Protocol

from fedtrain.core.messages import FromPeer, Goodbye, Hello, Superseded, ToPeer, Welcome
from fedtrain.errors import (
    BusyError,
    FedtrainError,
    IntegrityError,
    LocalError,
    RemoteError,
    StorageError,
    UnreachableError,
)
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.jobs import closing
from fedtrain.trust.certificates import utc_text
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

WELCOME_S = 30.0
"""From the hello to the welcome; a coordinator that folds a long journal answers within it."""

FAREWELL_S = 3.0
"""How long a goodbye may take to arrive before the agent goes without."""

RIVAL_S = 60.0
"""A session that is superseded twice within so long has a rival: another agent with our name."""

REMIND_S = 600.0
"""Between two lines about an outage that goes on."""

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
LONGEST_PAUSE_AT_WORK_S = 2.0
"""A thousand sites then knock about two hundred and fifty times a second. How many of those are let in is
the coordinator's to say (`core.pacing`). A site with work in hand comes sooner, because its round waits."""

TEMPORARY = (UnreachableError, StorageError, LocalError, RemoteError, IntegrityError)
"""After these a new try may succeed. Everything else a person has to change first."""


class Desk(Protocol):
    """What a session needs of its agent."""

    def greet(self) -> Hello:
        """The hello of a new session."""

    def welcome(self, welcome: Welcome) -> None:
        """A session is open."""

    def receive(self, message: ToPeer) -> None:
        """Any other message, in order."""

    def admit_epoch(self, epoch: int) -> None:
        """Hold a message's epoch against the highest one seen; `StaleRound` if it is lower."""

    @property
    def at_work(self) -> bool:
        """Whether anything is in hand that the coordinator waits for."""

    def explain(self, error: UnreachableError) -> str:
        """The sentence for a person: why nobody answered, what to check."""


class AttendPort(Protocol):
    """The wire's part: `wire.client.CoordinatorClient`, or a test's own."""

    def attend(self, outgoing: AsyncIterator[FromPeer]) -> AsyncIterator[tuple[int, ToPeer]]:
        """A session: sends what `outgoing` yields, yields (epoch, message)."""


class Session:
    """Keeps one conversation going for as long as the agent lives.

    Attributes:
        attached: set while a session is open.
        number: counts sessions that were opened.
        failure: why the last try failed, in words; "" while attached.
    """

    def __init__(self, port: AttendPort, desk: Desk, backoff: Backoff | None = None) -> None:
        self.attached = asyncio.Event()
        self.number = 0
        self.failure = ""
        self._port = port
        self._desk = desk
        self._backoff = backoff or Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._outgoing: asyncio.Queue[FromPeer | None] | None = None
        self._leaving = False
        self._ended = asyncio.Event()
        self._down_since = ""
        self._told_s = 0.0
        self._superseded_in = -1

    def say(self, message: FromPeer) -> bool:
        """Queue a message; False, and nothing happens, while there is no session."""
        if self._outgoing is None or not self.attached.is_set():
            return False
        self._outgoing.put_nowait(message)
        return True

    async def keep(self) -> None:
        """Attend until told to leave, or until another agent of this site has taken over.

        Raises `RefusedError` and `ConfigError`: a person has to do something before a new try.
        """
        while not self._leaving:
            told_ms = 0
            try:
                if not await self._attend():
                    return
            except BusyError as error:
                told_ms = error.retry_after_ms
                self._tell_failure(error)
            except TEMPORARY as error:
                self._tell_failure(error)
            if not self._leaving:
                cap_s = LONGEST_PAUSE_AT_WORK_S if self._desk.at_work else None
                pause_s = self._backoff.told_s(told_ms / 1000) if told_ms else self._backoff.next_s(cap_s)
                await asyncio.sleep(pause_s)

    async def leave(self, reason: str) -> bool:
        """Say goodbye and wait for the coordinator to end the session.

        True if it did: then it has heard all that was said in this session.
        """
        self._leaving = True
        if not self.say(Goodbye(reason)):
            return False
        assert self._outgoing is not None, "a session that speaks has a queue"
        self._outgoing.put_nowait(None)
        ended = self._ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await ended.wait()
        return ended.is_set() and not self.failure

    async def _attend(self) -> bool:
        """One session from hello to end; False if there is to be no other."""
        self._outgoing = asyncio.Queue()
        self._outgoing.put_nowait(self._desk.greet())
        self._ended = asyncio.Event()
        began = time.monotonic()
        try:
            async with closing(self._port.attend(_drain(self._outgoing))) as incoming:
                epoch = await self._open(incoming)
                async for at_epoch, message in incoming:
                    self._desk.admit_epoch(at_epoch)
                    if isinstance(message, Superseded):
                        return self._give_way(message, epoch, time.monotonic() - began)
                    self._desk.receive(message)
            if not self._leaving:
                self._tell_failure(UnreachableError("the coordinator ended the session"))
            return True
        except FedtrainError as error:
            self.failure = str(error)
            if self.attached.is_set() and isinstance(error, UnreachableError):
                # That a connection broke says nothing about why; what the next try meets does.
                _log.warning("the session broke; trying on")
                return True
            raise
        finally:
            self.attached.clear()
            self._outgoing = None
            self._ended.set()

    async def _open(self, incoming: AsyncIterator[tuple[int, ToPeer]]) -> int:
        """The epoch of the session, once the coordinator has said welcome."""
        try:
            async with asyncio.timeout(WELCOME_S):
                epoch, first = await anext(incoming, (0, None))
        except TimeoutError as error:
            raise UnreachableError(
                f"the coordinator did not answer the hello in {WELCOME_S:.0f} s"
            ) from error
        if first is None:
            raise UnreachableError("the coordinator ended the session before it began")
        self._desk.admit_epoch(epoch)
        if not isinstance(first, Welcome):
            raise RemoteError(f"a session began with {type(first).__name__} instead of a welcome")
        self._backoff.reset()
        self._down_since = self.failure = ""
        self.number += 1
        self.attached.set()
        self._desk.welcome(first)
        return epoch

    def _give_way(self, message: Superseded, epoch: int, lasted_s: float) -> bool:
        """Whether to come back. A coordinator that goes down returns with a higher epoch; within one
        epoch only another agent of this site supersedes, and of two that keep returning one must go.
        """
        _log.warning("the session was ended by the coordinator: %s", printable(message.reason))
        if self._superseded_in == epoch and lasted_s < RIVAL_S:
            _log.error("another agent of this site is attached; this one ends. Stop one of the two")
            return False
        self._superseded_in = epoch
        self.failure = message.reason
        return True

    def _tell_failure(self, error: FedtrainError) -> None:
        """One line when the trouble begins, and one now and then while it lasts."""
        why = self._desk.explain(error) if isinstance(error, UnreachableError) else str(error)
        self.failure = printable(why)
        now_s = time.monotonic()
        if not self._down_since:
            self._down_since, self._told_s = utc_text(time.time_ns() // 1_000_000), -REMIND_S
        if now_s - self._told_s >= REMIND_S:
            self._told_s = now_s
            _log.warning("no session since %s: %s (trying on)", self._down_since, self.failure)


async def _drain(queue: asyncio.Queue[FromPeer | None]) -> AsyncIterator[FromPeer]:
    while (message := await queue.get()) is not None:
        yield message
