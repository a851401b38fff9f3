"""The conversation: it comes back after every break, gives way once, and ends when a person must act."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator

import pytest
from peer_world import HEARTBEAT_MS, FakeCoordinator, Site, an_order

from fedtrain.core import messages as msg
from fedtrain.core.orders import OrderKind
from fedtrain.errors import (
    BusyError,
    FedtrainError,
    RefusedError,
    StaleRound,
    StorageError,
    UnreachableError,
)
from fedtrain.peer import desk
from fedtrain.peer.backoff import Backoff, early_s
from fedtrain.peer.session import Session

WELCOME = msg.Welcome("vineyard", (1, 0), "1.0", 1, 20)
Script = list[msg.ToPeer | FedtrainError]


class Port:
    """Plays one script per session; after the last one it stays silent."""

    def __init__(self, *scripts: Script, epochs: tuple[int, ...] = ()) -> None:
        self.scripts = list(scripts)
        self.epochs = list(epochs)
        self.heard: list[msg.FromPeer] = []
        self.sessions = 0

    async def attend(self, outgoing: AsyncIterator[msg.FromPeer]) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        self.sessions += 1
        epoch = self.epochs.pop(0) if self.epochs else 1
        ended = asyncio.Event()
        listener = asyncio.create_task(self._listen(outgoing, ended))
        try:
            script = self.scripts.pop(0) if self.scripts else [WELCOME]
            for message in script:
                if isinstance(message, FedtrainError):
                    raise message
                yield epoch, message
            await ended.wait()
        finally:
            listener.cancel()

    async def _listen(self, outgoing: AsyncIterator[msg.FromPeer], ended: asyncio.Event) -> None:
        async for message in outgoing:
            self.heard.append(message)
        ended.set()


class Desk:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.received: list[msg.ToPeer] = []
        self.welcomes = 0
        self.highest = 0
        self.at_work = False

    def greet(self, session: str = "") -> msg.Hello:
        return msg.Hello((1, 0), "1.0", session or "s", (), ())

    def welcome(self, welcome: msg.Welcome) -> None:
        self.welcomes += 1

    def receive(self, message: msg.ToPeer) -> None:
        self.received.append(message)

    def admit_epoch(self, epoch: int) -> None:
        if epoch < self.highest:
            raise StaleRound(f"epoch {epoch} after {self.highest}")
        self.highest = epoch

    def explain(self, error: UnreachableError) -> str:
        return f"explained: {error}"


def start(port: Port) -> tuple[Session, Desk, asyncio.Task[None]]:
    desk = Desk()
    session = Session(port, desk, Backoff(0.001, 0.001, random.Random(1)))
    return session, desk, asyncio.create_task(session.keep())


async def sessions(port: Port, count: int) -> None:
    async with asyncio.timeout(5):
        while port.sessions < count:
            await asyncio.sleep(0.001)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_comes_back_after_every_break(caplog: pytest.LogCaptureFixture) -> None:
    """Breaks of every passing kind lead to a new session, and a long outage fills no log."""
    caplog.set_level(logging.INFO, "fedtrain.peer")
    faults = [UnreachableError("gone"), StorageError("full"), UnreachableError("cut"), StaleRound("odd")]
    port = Port([WELCOME, UnreachableError("cut")], *([fault] for fault in faults))
    session, desk, task = start(port)
    await sessions(port, 6)
    await session.attached.wait()
    assert desk.welcomes == session.number == 2
    assert session.failure == ""
    lines = [record.message for record in caplog.records]
    assert lines[0] == "the session broke; trying on"
    assert len(lines) == 2 and lines[1].endswith("explained: gone (trying on)")
    await end(task)


async def test_a_person_must_act_on_a_refusal() -> None:
    """A refusal ends the agent with its sentence instead of being tried for ever."""
    session, _, task = start(Port([RefusedError("the certificate expired")]))
    with pytest.raises(RefusedError, match="expired"):
        await task
    assert session.failure == "the certificate expired"


async def test_of_two_agents_with_one_name_one_leaves() -> None:
    """The first time it is superseded it returns, the second time in the same epoch it leaves."""
    superseded = msg.Superseded("a newer session of this site began")
    port = Port([WELCOME, superseded], [WELCOME, superseded])
    _, _, task = start(port)
    async with asyncio.timeout(5):
        await task
    assert port.sessions == 2


async def test_a_coordinator_that_restarts_is_no_rival() -> None:
    """It returns after any number of restarts, each of which brings a higher epoch."""
    superseded = msg.Superseded("the coordinator goes down")
    port = Port(*([WELCOME, superseded] for _ in range(3)), epochs=(1, 2, 3, 4))
    session, desk, task = start(port)
    await sessions(port, 4)
    await session.attached.wait()
    assert (desk.welcomes, desk.highest) == (4, 4)
    await end(task)


async def test_an_old_epoch_is_not_listened_to() -> None:
    """Nothing of a coordinator with a lower epoch reaches the desk."""
    order = msg.Cancellation("library.1.1.jsc", "over")
    port = Port([WELCOME, UnreachableError("cut")], [WELCOME, order], epochs=(5, 4, 5))
    session, desk, task = start(port)
    await sessions(port, 3)
    await session.attached.wait()
    assert desk.received == [] and desk.welcomes == 2
    await end(task)


async def test_a_session_begins_with_a_welcome() -> None:
    """Anything else in its place, or silence until the end, is a break."""
    port = Port([msg.Superseded("?")], [UnreachableError("nothing")])
    session, desk, task = start(port)
    await session.attached.wait()
    assert port.sessions == 3 and desk.welcomes == 1
    await end(task)


async def test_nothing_is_said_into_the_void() -> None:
    """Without a session a message is not queued, and the caller is told."""
    session = Session(Port(), Desk(), Backoff(0.001, 0.001))
    assert not session.say(msg.Heartbeat())
    assert not await session.leave("never came")


async def test_a_goodbye_ends_it_in_good_order() -> None:
    """Everything that was said arrives before the goodbye, and then the session is over for good."""
    port = Port()
    session, _, task = start(port)
    await session.attached.wait()
    assert session.say(msg.Heartbeat())
    assert await session.leave("is stopped")
    await task
    assert [type(message) for message in port.heard] == [msg.Hello, msg.Heartbeat, msg.Goodbye]
    assert port.sessions == 1


class Noted(Backoff):
    """Notes which pauses it was asked for, and waits for none of them."""

    def __init__(self) -> None:
        super().__init__(0.25, 8.0, random.Random(1))
        self.told: list[float] = []
        self.own = 0
        self.caps: list[float | None] = []

    def told_s(self, pause_s: float) -> float:
        self.told.append(pause_s)
        return 0.0

    def next_s(self, cap_s: float | None = None) -> float:
        self.own += 1
        self.caps.append(cap_s)
        return 0.0


async def test_a_busy_coordinator_says_when_to_come_back() -> None:
    """Its pause is kept in place of our own, as often as it asks; one that names none leaves us our own."""
    port = Port([BusyError("full", 1_500)], [BusyError("full", 700)], [BusyError("full", 0)])
    backoff = Noted()
    session = Session(port, Desk(), backoff)
    task = asyncio.create_task(session.keep())
    async with asyncio.timeout(60):
        await session.attached.wait()
    assert (backoff.told, backoff.own) == ([1.5, 0.7], 1)
    await end(task)


async def test_a_site_with_work_comes_back_sooner() -> None:
    """Its round waits for it; one without work takes its time, and leaves room at the door."""
    for at_work, cap_s in ((True, 2.0), (False, None)):
        backoff, desk = Noted(), Desk()
        desk.at_work = at_work
        session = Session(Port([UnreachableError("down")]), desk, backoff)
        task = asyncio.create_task(session.keep())
        async with asyncio.timeout(60):
            await session.attached.wait()
        assert backoff.caps == [cap_s]
        await end(task)
    worn = Backoff(0.25, 8.0, random.Random(2))
    assert max(worn.next_s(2.0) for _ in range(200)) <= 2.0 < max(worn.next_s() for _ in range(50))


def test_pauses_fill_the_whole_range_below_a_growing_ceiling() -> None:
    """Full jitter: each pause is drawn evenly from nothing to its ceiling, which doubles up to the cap."""
    ceilings = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
    chance = random.Random(20261123)
    courses = []
    for _ in range(2_000):
        backoff = Backoff(0.25, 8.0, chance)
        courses.append([backoff.next_s() for _ in ceilings])
    for number, ceiling in enumerate(ceilings):
        tenths = [0] * 10
        for course in courses:
            tenths[int(10 * course[number] / ceiling)] += 1
        assert min(tenths) > 140 and max(tenths) < 260, (number, tenths)


def test_a_thousand_sites_do_not_return_in_step() -> None:
    """After a long outage the knocks of a thousand sites spread over the cap: no 100 ms get 40 of them."""
    chance = random.Random(7)
    knocks = [0] * 80
    for _ in range(1_000):
        backoff = Backoff(0.25, 8.0, chance)
        for _ in range(8):
            pause_s = backoff.next_s()
        knocks[int(pause_s * 10)] += 1
    assert sum(knocks) == 1_000 and max(knocks) < 40


def test_a_told_pause_is_never_cut_short() -> None:
    """A little more than was asked for, never less; it leaves the own back-off where it is."""
    backoff = Backoff(0.25, 8.0, random.Random(3))
    pauses = [backoff.told_s(2.0) for _ in range(500)]
    assert 2.0 <= min(pauses) < 2.01 and 2.24 < max(pauses) <= 2.25
    assert backoff.next_s() <= 0.25


def test_regular_beats_drift_apart() -> None:
    """A beat comes up to a fifth early and never late."""
    chance = random.Random(3)
    paces = [early_s(20.0, chance) for _ in range(500)]
    assert 16.0 <= min(paces) < 16.1 and 19.9 < max(paces) <= 20.0


async def test_a_site_hurries_only_while_it_has_work(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At rest a sign of life is due every 20 s; an order in hand brings the next one forward."""
    paces: list[float] = []

    def noted(pause_s: float, chance: random.Random) -> float:
        paces.append(pause_s)
        return pause_s

    monkeypatch.setattr(desk, "early_s", noted)
    async with site.start() as agent:
        await agent.session.attached.wait()
        while paces[-1] != 20.0:
            await asyncio.sleep(0.001)
        assert not coordinator.of(msg.Heartbeat)
        coordinator.invite(an_order(0, OrderKind.SEED))
        await coordinator.until(lambda: coordinator.of(msg.Heartbeat))
        assert paces[-1] == HEARTBEAT_MS / 1000
