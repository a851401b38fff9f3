"""A crowd at the coordinator's door: let in at a bounded rate, few commits, and no round lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from coordinator_world import Consortium, ScriptedSite, client_of, free_port, spec_of

from fedtrain import coordinator
from fedtrain.coordinator import hub as hub_module
from fedtrain.coordinator.clock import Clock
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.pulse import PulseWatch
from fedtrain.coordinator.sessions import WAITING_MAX, Conversation, Sessions
from fedtrain.core import events as ev, messages as msg, pacing
from fedtrain.core.liveness import Lost, Stalled
from fedtrain.core.orders import Progress
from fedtrain.core.ports import Entry
from fedtrain.errors import BusyError, RemoteError
from fedtrain.trust.folders import load_coordinator
from fedtrain.wire.values import Caller


class Frozen(Clock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.moment_ms = 1_000_000
        super().__init__()

    def monotonic_ms(self) -> int:  # type: ignore[override]
        return self.moment_ms


class Counted:
    """Counts a journal's commits, and the rows in them."""

    def __init__(self, append: Callable[[Sequence[Entry]], int]) -> None:
        self.kinds: list[list[str]] = []
        self._append = append

    def __call__(self, entries: Sequence[Entry]) -> int:
        self.kinds.append([entry.kind for entry in entries])
        return self._append(entries)


class Site:
    """One site at the door of `Sessions`, without a network."""

    def __init__(self, sessions: Sessions, name: str) -> None:
        self.name = name
        self.refusal: BusyError | None = None
        self.heard: list[msg.ToPeer] = []
        self._sessions = sessions
        self._said: asyncio.Queue[msg.FromPeer] = asyncio.Queue()

    async def attend(self) -> None:
        """Knock; stay if let in."""
        caller = Caller(self.name, "site", "", "", not_after_ms=1 << 60)
        self._said.put_nowait(msg.Hello(msg.PROTOCOL_VERSION, "1", f"s-{self.name}", (), ()))
        try:
            async with contextlib.aclosing(self._sessions.attend(caller, self._incoming())) as messages:
                async for _, message in messages:
                    self.heard.append(message)
        except BusyError as error:
            self.refusal = error

    async def _incoming(self) -> AsyncIterator[msg.FromPeer]:
        while True:
            yield await self._said.get()

    @property
    def attached(self) -> bool:
        return bool(self.heard) and isinstance(self.heard[0], msg.Welcome)


class Door:
    """Sessions over a real hub and journal, with a clock that stands still and nothing committed unasked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        coordinator.init(folder, "crowd", f"127.0.0.1:{free_port()}")
        self.hub = Hub(folder / "state", load_coordinator(folder / "state"))
        self.clock = self.hub.clock = Frozen()
        self.commits = Counted(self.hub.journal.append)
        monkeypatch.setattr(self.hub.journal, "append", self.commits)
        monkeypatch.setattr(hub_module, "SOON_S", 3_600.0)
        self.sessions = Sessions(self.hub)
        self.hub.submit(ev.Booted(self.clock.now_ms(), 1))
        self._tasks: list[asyncio.Task[None]] = []

    async def knock(self, *sites: Site) -> None:
        """All at once; returns when each of them waits or has been turned away."""
        for site in sites:
            site.refusal = None
            self._tasks.append(asyncio.create_task(site.attend()))
        for _ in range(10):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hub.close()


@pytest.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    made = Door(tmp_path / "coordinator", monkeypatch)
    yield made
    await made.close()


async def test_a_crowd_shares_its_commits(door: Door) -> None:
    """A burst of sites is one commit, and none is welcome before it."""
    sites = [Site(door.sessions, f"site-{index:03d}") for index in range(pacing.BURST)]
    before = len(door.commits.kinds)
    await door.knock(*sites)
    assert len(door.commits.kinds) == before
    assert not any(site.heard for site in sites)
    door.hub.submit()
    await door.knock()
    assert door.commits.kinds[before:] == [["SiteAttached"] * pacing.BURST]
    assert all(site.attached for site in sites)
    assert set(door.hub.state.attached) == {site.name for site in sites}


async def test_a_thousand_are_let_in_a_few_at_a_time(door: Door) -> None:
    """However they knock, each tick of 100 ms lets in ten, who share a commit; each knocks twice."""
    sites = [Site(door.sessions, f"site-{index:04d}") for index in range(1_000)]
    before = len(door.commits.kinds)
    await door.knock(*sites)
    waiting = [site for site in sites if site.refusal is not None]
    assert len(waiting) == len(sites) - pacing.BURST
    due = {site.name: door.clock.moment_ms + site.refusal.retry_after_ms for site in waiting if site.refusal}
    assert len(set(due.values())) == len(due), "no two were told the same moment"
    ticks = 0
    while waiting:
        ticks += 1
        door.clock.moment_ms += 100
        returning = [site for site in waiting if due[site.name] <= door.clock.moment_ms]
        assert len(returning) <= 100 // pacing.SLOT_MS + 1
        await door.knock(*returning)
        assert not any(site.refusal for site in returning)
        door.hub.submit()
        await door.knock()
        assert all(site.attached for site in returning)
        waiting = [site for site in waiting if site not in returning]
    assert len(door.hub.state.attached) == 1_000
    assert len(door.commits.kinds) - before <= ticks <= 1_000 * pacing.SLOT_MS // 100


async def test_who_works_is_not_held_up_by_the_crowd(door: Door) -> None:
    """While five hundred idle sites queue, the sites of an open run are let in at once."""
    spec = spec_of(sites=("works-1", "works-2"))
    door.hub.submit(ev.RunSubmitted(door.clock.now_ms(), spec, "operator"))
    crowd = [Site(door.sessions, f"idle-{index}") for index in range(500)]
    workers = [Site(door.sessions, name) for name in spec.sites]
    await door.knock(*crowd, *workers)
    assert sum(site.refusal is not None for site in crowd) == 500 - pacing.BURST
    assert [site.refusal for site in workers] == [None, None]


async def test_nobody_is_welcome_whose_attach_is_not_durable(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the shared commit fails, all who wait for it are let go, and the process is to stop."""

    def fail(entries: Sequence[Entry]) -> int:
        raise coordinator_error

    coordinator_error = hub_module.StorageError("the disk is full")
    monkeypatch.setattr(door.hub.journal, "append", fail)
    sites = [Site(door.sessions, name) for name in ("alpha", "beta")]
    knocking = [asyncio.create_task(site.attend()) for site in sites]
    await door.knock()
    with pytest.raises(hub_module.StorageError):
        door.hub.submit()
    ends = await asyncio.gather(*knocking, return_exceptions=True)
    assert ends == [coordinator_error, coordinator_error]
    assert not any(site.heard for site in sites)
    assert door.hub.failed.exception() is coordinator_error


async def test_a_site_that_reads_nothing_is_cut_off() -> None:
    """What waits for one site is bounded; it then ends with a reason, and more changes nothing."""
    conversation = Conversation(Caller("slow", "site", "", "", 0))
    for number in range(2 * WAITING_MAX):
        conversation.put(msg.Cancellation(f"tiny.{number}.1.slow", "over"))
    taken = await conversation.take()
    assert len(taken) == WAITING_MAX + 1
    assert isinstance(taken[-1], RemoteError) and "reads none" in str(taken[-1])


async def test_a_cut_link_is_one_piece_of_news() -> None:
    """A thousand leases that end together are told together, so that they share one commit."""
    told: list[tuple[Lost | Stalled, ...]] = []
    now_ms = 0
    pulse = PulseWatch(told.append, lambda: now_ms)
    for index in range(1_000):
        pulse.hear(f"site-{index}")
    now_ms = pacing.IDLE_PATIENCE_MS
    task = asyncio.create_task(pulse.run())
    async with asyncio.timeout(60):
        while not told:
            await asyncio.sleep(0)
    task.cancel()
    assert [len(verdicts) for verdicts in told] == [1_000]


async def test_leases_follow_the_work() -> None:
    """Without work a site may be silent for a minute; an order begins a lease of its own patience, and its
    end gives the minute back."""
    told: list[Any] = []
    clock = Frozen()
    pulse = PulseWatch(told.extend, clock.monotonic_ms)
    began_ms = clock.moment_ms

    async def look(after_ms: int) -> list[Any]:
        clock.moment_ms = began_ms + after_ms
        told.clear()
        task = asyncio.create_task(pulse.run())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        return list(told)

    pulse.hear("site")
    assert await look(50_000) == []
    pulse.move("site", "tiny.1.1.site", 10_000)
    assert await look(59_999) == []
    pulse.hear("site", (Progress("tiny.1.1.site", 1),))
    pulse.settle("site", "tiny.1.1.site")
    assert await look(59_999 + 59_999) == []
    pulse.move("site", "tiny.1.2.site", 10_000)
    assert await look(59_999 + 59_999 + 9_999) == []
    assert [type(verdict) for verdict in await look(59_999 + 59_999 + 10_000)] == [Lost]


async def test_a_refusal_says_when_over_the_wire(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through real gRPC the refused site gets the same error, with the moment in it, and is let in then."""
    monkeypatch.setattr(pacing, "BURST", 1)
    clock = consortium.serving.hub.clock = Frozen()
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await first.attend()
    with pytest.raises(BusyError, match="come back in") as refused:
        await knock_once(second)
    assert refused.value.retry_after_ms == pacing.SLOT_MS
    clock.moment_ms += pacing.SLOT_MS
    assert isinstance(await second.attend(), msg.Welcome)


async def knock_once(site: ScriptedSite) -> None:
    async def outgoing() -> AsyncIterator[msg.FromPeer]:
        yield msg.Hello(msg.PROTOCOL_VERSION, "0.1.0", "once", (), ())
        await asyncio.Event().wait()

    async for _ in site.client.attend(outgoing()):
        return


async def test_a_round_outlives_the_storm(consortium: Consortium) -> None:
    """The coordinator restarts in the middle of a round and five hundred strangers to the run come first:
    its sites get their orders again, and the round closes with both at its first attempt."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await first.attend()
    await second.attend()
    await consortium.operator.start(spec_of(sites=("alpha", "beta"), rounds=1))
    seed = await next_order(first, second)
    await seed[0].answer(seed[1], 0.0)
    orders = {site.name: await site.order() for site in (first, second)}
    await consortium.restart()
    serving = consortium.serving
    serving.hub.clock = Frozen()
    crowd = [Site(serving.sessions, f"idle-{index:03d}") for index in range(500)]
    storm = [asyncio.create_task(site.attend()) for site in crowd]
    returned = []
    for old in (first, second):
        site = ScriptedSite(old.keys, old.folder, client_of(old.keys))
        consortium.sites.append(site)
        await site.attend("second", (orders[site.name].id,))
        assert await site.order() == orders[site.name]
        returned.append(site)
    assert sum(site.refusal is not None for site in crowd) == 500 - pacing.BURST
    for site in returned:
        await site.answer(orders[site.name], 1.0)
    await consortium.until(lambda: serving.hub.state.runs["tiny"].rounds_done == 1)
    record = serving.hub.state.runs["tiny"].records[-1]
    assert (record.attempt, len(record.counted)) == (1, 2)
    for task in storm:
        task.cancel()
    await asyncio.gather(*storm, return_exceptions=True)


async def next_order(*sites: ScriptedSite) -> tuple[ScriptedSite, Any]:
    """The first invitation that comes to any of them."""
    waiting = {asyncio.create_task(site.order()): site for site in sites}
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    one = done.pop()
    return waiting[one], one.result()
