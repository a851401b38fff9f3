"""A session that moves to a new stream, because its certificate was renewed: nobody notices."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import pytest
from test_peer_session import WELCOME, Desk, end

from fedtrain.core import messages as msg
from fedtrain.errors import BusyError, FedtrainError, RefusedError, Unauthenticated, UnreachableError
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.session import Session


class Coordinator:
    """Attends as a real one does: a newer stream supersedes the older, behind what waits there."""

    def __init__(self) -> None:
        self.queues: list[asyncio.Queue[msg.ToPeer | FedtrainError | None]] = []
        self.heard: list[list[msg.FromPeer]] = []
        self.refusal: FedtrainError | None = None
        self.silent = asyncio.Event()
        self.silent.set()

    async def attend(self, outgoing: AsyncIterator[msg.FromPeer]) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        queue: asyncio.Queue[msg.ToPeer | FedtrainError | None] = asyncio.Queue()
        heard = [await anext(outgoing)]
        await self.silent.wait()
        if self.refusal is not None:
            raise self.refusal
        for older in self.queues[-1:]:
            older.put_nowait(msg.Superseded("a newer session of this site began"))
            older.put_nowait(None)
        self.queues.append(queue)
        self.heard.append(heard)

        async def listen() -> None:
            async for message in outgoing:
                heard.append(message)

        listener = asyncio.create_task(listen())
        try:
            yield 1, WELCOME
            while (message := await queue.get()) is not None:
                if isinstance(message, FedtrainError):
                    raise message
                yield 1, message
        finally:
            listener.cancel()

    def say(self, order: str) -> None:
        self.queues[-1].put_nowait(msg.Cancellation(order, "over"))


async def moving() -> tuple[Coordinator, Session, Desk, asyncio.Task[None]]:
    coordinator, desk = Coordinator(), Desk()
    session = Session(coordinator, desk, Backoff(0.001, 0.001, random.Random(1)))
    task = asyncio.create_task(session.keep())
    await session.attached.wait()
    return coordinator, session, desk, task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_session_moves_without_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """Same name, never detached; what the old stream still holds comes before the new; nobody is a rival."""
    coordinator, session, desk, task = await moving()
    for number in range(5):
        coordinator.say(f"old-{number}")
        await session.renew()
        coordinator.say(f"new-{number}")
        await until(lambda n=number: len(desk.received) == 2 * n + 2)
        assert session.attached.is_set() and not task.done()
    assert [message.order for message in desk.received] == [
        f"{x}-{n}" for n in range(5) for x in ("old", "new")
    ]
    assert len({heard[0].session for heard in coordinator.heard}) == 1
    assert session.number == desk.welcomes == len(coordinator.heard) == 6
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    await end(task)


async def test_what_was_not_certainly_heard_is_said_again() -> None:
    """Answers with fewer than two signs of life behind them are repeated in the new stream, in order."""
    coordinator, session, _, task = await moving()
    answers = [msg.Answer(f"inquiry-{number}", True, ()) for number in range(3)]
    session.say(answers[0])
    session.say(msg.Heartbeat())
    session.say(answers[1])
    session.say(msg.Heartbeat())
    session.say(answers[2])
    await session.renew()
    await until(lambda: len(coordinator.heard[1]) == 3)
    assert coordinator.heard[1][1:] == answers[1:]
    assert session.say(msg.Heartbeat())
    await until(lambda: coordinator.heard[1][-1] == msg.Heartbeat())
    await end(task)


async def test_a_move_that_fails_leaves_the_session_where_it_is() -> None:
    """A busy coordinator refuses the new stream; the old one goes on, and the next try moves."""
    coordinator, session, desk, task = await moving()
    coordinator.refusal = BusyError("full", 10)
    with pytest.raises(BusyError):
        await session.renew()
    coordinator.refusal = None
    coordinator.say("still here")
    await until(lambda: len(desk.received) == 1)
    await session.renew()
    coordinator.say("there")
    await until(lambda: len(desk.received) == 2)
    assert session.attached.is_set() and not task.done()
    await end(task)


async def test_a_stream_that_breaks_while_the_session_moves_costs_nothing() -> None:
    """The old stream may end in any way once the new one is on its way."""
    coordinator, session, desk, task = await moving()
    coordinator.silent.clear()
    move = asyncio.create_task(session.renew())
    await asyncio.sleep(0.01)
    coordinator.queues[0].put_nowait(UnreachableError("cut"))
    await asyncio.sleep(0.01)
    assert session.say(msg.Answer("inquiry", True, ()))
    coordinator.silent.set()
    await move
    coordinator.say("there")
    await until(lambda: len(desk.received) == 1)
    await until(lambda: len(coordinator.heard[1]) == 2)
    assert desk.welcomes == 2 and not task.done()
    await end(task)


async def test_a_session_without_either_stream_comes_back_by_itself() -> None:
    """Old stream and new one both lost: that is a break as any other."""
    coordinator, session, desk, task = await moving()
    coordinator.silent.clear()
    coordinator.refusal = UnreachableError("cut")
    move = asyncio.create_task(session.renew())
    await asyncio.sleep(0.01)
    coordinator.queues[0].put_nowait(UnreachableError("cut"))
    coordinator.silent.set()
    with pytest.raises(UnreachableError):
        await move
    coordinator.refusal = None
    await until(lambda: desk.welcomes == 2)
    await end(task)


async def test_an_old_stream_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that does not supersede is heard for a while, then the new stream goes on."""
    monkeypatch.setattr("fedtrain.peer.session.DRAIN_S", 0.05)
    coordinator, session, desk, task = await moving()
    coordinator.queues[0] = asyncio.Queue()  # what ends the old stream goes nowhere
    await session.renew()
    coordinator.say("there")
    await until(lambda: len(desk.received) == 1)
    assert not task.done()
    await end(task)


async def test_a_rival_is_still_told_from_a_move() -> None:
    """After a move, an agent that supersedes twice within a minute ends this one as before."""
    coordinator, session, _, task = await moving()
    await session.renew()
    for number in (2, 3):
        coordinator.queues[-1].put_nowait(msg.Superseded("a newer session of this site began"))
        if number == 2:
            await until(lambda: len(coordinator.queues) == 3)
    async with asyncio.timeout(60):
        await task


async def test_a_revoked_site_stops_at_once() -> None:
    """The coordinator's words end the agent, and nothing is tried after them."""
    coordinator, session, _, task = await moving()
    words = "jsc: its membership was revoked by operator: keys were lost"
    coordinator.refusal = Unauthenticated(words)
    coordinator.queues[0].put_nowait(Unauthenticated(words))
    with pytest.raises(RefusedError, match="revoked by operator: keys were lost"):
        await task
    assert len(coordinator.heard) == 1 and session.failure == words


async def test_reattaching_takes_a_new_name_and_no_time() -> None:
    """The session ends in good order and begins anew at once, as another one."""
    coordinator, session, desk, task = await moving()
    session.reattach()
    coordinator.queues[0].put_nowait(None)
    await until(lambda: desk.welcomes == 2)
    assert session.failure == ""
    await end(task)
