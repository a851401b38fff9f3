"""The conversation with the coordinator: attend, speak, listen, and come back after every break.

A break decides nothing. Whatever was on its way is repeatable: the coordinator hands out again what
still matters when the site is back, and the agent says again what was not certainly heard.

A session outlives its certificate, because it can move (`Session.renew`): the same session attends once
more, in a new stream over the new channel, while the old stream is still open. The coordinator ends the
old one behind the last message that it has put there. That one is heard to its end first, so nothing is
heard twice, late or out of turn; what was said in it last is said again in the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from fedtrain.core.messages import FromPeer, Goodbye, Heartbeat, Hello, Superseded, ToPeer, Welcome
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
from fedtrain.trust.certificates import utc_text
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

WELCOME_S = 30.0
"""From the hello to the welcome; a coordinator that folds a long journal answers within it."""

DRAIN_S = 10.0
"""How long the old stream of a session that has moved is heard, before the new one goes on without it."""

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

    def greet(self, session: str = "") -> Hello:
        """The hello of a new session, or of one that moves and keeps its name."""

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
        """The sentence for a person: why nobody answered, what to check.

        Raises `RefusedError` if no new try can succeed, because our certificate has expired.
        """


class AttendPort(Protocol):
    """The wire's part: `wire.client.CoordinatorClient`, or a test's own."""

    def attend(self, outgoing: AsyncIterator[FromPeer]) -> AsyncIterator[tuple[int, ToPeer]]:
        """A session: sends what `outgoing` yields, yields (epoch, message)."""


class _Stream:
    """One stream: a queue of what is to be said, the messages that come, and a limit for hearing it out."""

    def __init__(self, port: AttendPort, hello: Hello) -> None:
        self.session = hello.session
        self.epoch = 0
        self.limit: asyncio.Timeout | None = None
        self._outgoing: asyncio.Queue[FromPeer | None] = asyncio.Queue()
        self._outgoing.put_nowait(hello)
        self.incoming = port.attend(_drain(self._outgoing))

    def put(self, message: FromPeer) -> None:
        """Say this as soon as all before it is said."""
        self._outgoing.put_nowait(message)

    def end(self) -> None:
        """Say nothing more."""
        self._outgoing.put_nowait(None)

    async def close(self) -> None:
        """End it here, however far it has come."""
        if isinstance(self.incoming, AsyncGenerator):
            await self.incoming.aclose()


class Session:
    """Keeps one conversation going for as long as the agent lives.

    Attributes:
        attached: set while a session is open.
        number: counts streams that were opened.
        failure: why the last try failed, in words; "" while attached.
    """

    def __init__(self, port: AttendPort, desk: Desk, backoff: Backoff | None = None) -> None:
        self.attached = asyncio.Event()
        self.number = 0
        self.failure = ""
        self._port = port
        self._desk = desk
        self._backoff = backoff or Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._stream: _Stream | None = None
        self._successor: asyncio.Future[_Stream | None] | None = None
        self._said: tuple[list[FromPeer], list[FromPeer]] = ([], [])
        self._leaving = self._anew = False
        self._ended = asyncio.Event()
        self._down_since = ""
        self._told_s = 0.0
        self._superseded_in = -1

    def say(self, message: FromPeer) -> bool:
        """Queue a message; False, and nothing happens, while there is no session."""
        if self._stream is None or not self.attached.is_set():
            return False
        if isinstance(message, Heartbeat):
            # What has two signs of life behind it was heard: nobody says it again.
            self._said = (self._said[1], [])
        else:
            self._said[1].append(message)
        self._stream.put(message)
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
                if self._anew:
                    continue
            except BusyError as error:
                told_ms = error.retry_after_ms
                self._tell_failure(error)
            except TEMPORARY as error:
                self._tell_failure(error)
            if not self._leaving:
                cap_s = LONGEST_PAUSE_AT_WORK_S if self._desk.at_work else None
                pause_s = self._backoff.told_s(told_ms / 1000) if told_ms else self._backoff.next_s(cap_s)
                await asyncio.sleep(pause_s)

    async def renew(self) -> None:
        """Move the session to a new stream, which takes the port's newest way. One that leaves stays.

        Raises what kept the new stream from being opened; the old one then goes on, if it still can.
        """
        old = self._stream
        if self._leaving:
            return
        if old is None or not self.attached.is_set():
            raise UnreachableError("there is no session with the coordinator")
        if self._successor is not None:
            raise UnreachableError("the session still moves to the stream before this one")
        successor = self._successor = asyncio.get_running_loop().create_future()
        stream = _Stream(self._port, self._desk.greet(old.session))
        try:
            welcome = await self._open(stream)
            if self._stream is not old:
                raise UnreachableError("the session ended while it moved")
            self._replace(old, stream, welcome)
            successor.set_result(stream)
        except BaseException:
            # Whoever has heard the old stream to its end by now learns that there is no other.
            self._successor = None
            successor.set_result(None)
            await stream.close()
            raise

    def reattach(self) -> None:
        """End the session in good order and attend anew at once, under a new name; nothing without one."""
        if self._stream is not None:
            self._anew = True
            self._stream.end()

    async def leave(self, reason: str) -> bool:
        """Say goodbye and wait for the coordinator to end the session.

        True if it did: then it has heard all that was said in this session.
        """
        self._leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                if self._successor is not None:
                    await asyncio.shield(self._successor)
        if not self.say(Goodbye(reason)):
            return False
        assert self._stream is not None, "a session that speaks has a stream"
        self._stream.end()
        ended = self._ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await ended.wait()
        return ended.is_set() and not self.failure

    async def _attend(self) -> bool:
        """One session from hello to end, over all its streams; False if there is to be no other."""
        self._ended = asyncio.Event()
        self._said = ([], [])
        self._anew = False
        stream: _Stream | None = _Stream(self._port, self._desk.greet())
        began_s = time.monotonic()
        try:
            assert stream is not None, "just made"
            self._enter(stream, await self._open(stream))
            while stream is not None:
                again = await self._hear(stream, began_s)
                last, stream = stream, await self._next_stream()
                await last.close()
            return again
        except FedtrainError as error:
            self.failure = str(error)
            if self.attached.is_set() and isinstance(error, UnreachableError):
                # That a connection broke says nothing about why; what the next try meets does.
                _log.warning("the session broke; trying on")
                return True
            raise
        finally:
            self.attached.clear()
            self._stream = None
            self._ended.set()
            if stream is not None:
                await stream.close()

    async def _open(self, stream: _Stream) -> Welcome:
        """The welcome with which the coordinator opens a stream."""
        try:
            async with asyncio.timeout(WELCOME_S):
                stream.epoch, first = await anext(stream.incoming, (0, None))
        except TimeoutError as error:
            raise UnreachableError(
                f"the coordinator did not answer the hello in {WELCOME_S:.0f} s"
            ) from error
        if first is None:
            raise UnreachableError("the coordinator ended the session before it began")
        self._desk.admit_epoch(stream.epoch)
        if not isinstance(first, Welcome):
            raise RemoteError(f"a session began with {type(first).__name__} instead of a welcome")
        return first

    def _enter(self, stream: _Stream, welcome: Welcome) -> None:
        """From now on this stream is the session."""
        self._backoff.reset()
        self._down_since = self.failure = ""
        self.number += 1
        self._stream = stream
        self.attached.set()
        self._desk.welcome(welcome)

    def _replace(self, old: _Stream, stream: _Stream, welcome: Welcome) -> None:
        """The session goes on in `stream`, behind what the coordinator still has to say in the old one."""
        for message in (*self._said[0], *self._said[1]):
            stream.put(message)
        try:
            self._enter(stream, welcome)
        except FedtrainError:
            self._stream = old
            raise
        old.end()
        if self._anew:
            stream.end()
        if old.limit is not None:
            old.limit.reschedule(asyncio.get_running_loop().time() + DRAIN_S)

    async def _hear(self, stream: _Stream, began_s: float) -> bool:
        """Listen until the stream ends; False if there is to be no other session.

        How the old stream of a session that moves ends does not matter: the new one goes on.
        """
        try:
            async with asyncio.timeout(None) as stream.limit:
                async for at_epoch, message in stream.incoming:
                    self._desk.admit_epoch(at_epoch)
                    if not isinstance(message, Superseded):
                        self._desk.receive(message)
                    elif self._successor is None:
                        return self._give_way(message, stream.epoch, time.monotonic() - began_s)
        except TimeoutError:
            if stream.limit is None or not stream.limit.expired():
                raise
            _log.info("the old stream of the session did not end; it is left")
        except FedtrainError:
            if self._successor is None:
                raise
        finally:
            stream.limit = None
        if self._successor is None and not (self._leaving or self._anew):
            self._tell_failure(UnreachableError("the coordinator ended the session"))
        return True

    async def _next_stream(self) -> _Stream | None:
        """The stream in which the session goes on; None if it has ended."""
        if self._successor is None:
            return None
        stream = await asyncio.shield(self._successor)
        self._successor = None
        return stream

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
