"""The bad network itself: what a link carries, holds, loses and cuts, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator

import pytest

from benchmarks.chaos.link import PIECE_BYTES, Gate, Link, Weather
from benchmarks.chaos.matrix import CELLS, choose
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.schedule import LINK_DEEDS, PROCESS_DEEDS, Harm, blows

NEVER_S = 60.0
"""Longer than anything here takes on the slowest machine."""

FAIR = Weather()

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                writer.write(data)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def linked(weather: Weather = FAIR) -> AsyncIterator[tuple[Link, int]]:
    """A link to an echo, and the port to dial."""
    async with echo() as port:
        link = Link(random.Random(1), ("127.0.0.1", port), weather)
        try:
            yield link, await link.open()
        finally:
            await link.close()


async def dial(port: int) -> Ends:
    """A connection to the link."""
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(ends: Ends, data: bytes) -> bytes:
    """What comes back for `data`, as far as it does."""
    reader, writer = ends
    writer.write(data)
    async with asyncio.timeout(NEVER_S):
        try:
            return await reader.readexactly(len(data))
        except asyncio.IncompleteReadError as short:
            return short.partial


async def test_fair_link_carries_every_byte() -> None:
    """Bytes come through whole and in order, also late and slowly."""
    data = random.Random(2).randbytes(20 * PIECE_BYTES + 7)
    for weather in (Weather(), Weather(latency_s=0.01, rate_bytes_per_s=5_000_000)):
        async with linked(weather) as (link, port):
            assert await ask(await dial(port), data) == data
            assert link.counters.carried_bytes == 2 * len(data)


async def test_rate_holds_for_all_connections_together() -> None:
    """Two transfers over one link take at least as long as the rate makes both of them take."""
    size_bytes, rate_bytes_per_s = 100_000, 1_000_000
    async with linked(Weather(rate_bytes_per_s=rate_bytes_per_s)) as (_, port):
        ends = [await dial(port), await dial(port)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(ask(both, bytes(size_bytes)) for both in ends))
        assert loop.time() - began >= 2 * size_bytes / rate_bytes_per_s


async def test_held_link_goes_on_where_it_was() -> None:
    """Nothing passes a partition, and nothing is lost by it."""
    async with linked() as (link, port):
        ends = await dial(port)
        assert await ask(ends, b"before") == b"before"
        link.turn(Gate.HELD)
        waiting = asyncio.create_task(ask(ends, b"meanwhile"))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        link.turn(Gate.OPEN)
        assert await waiting == b"meanwhile"


@pytest.mark.parametrize("mend", [True, False])
async def test_black_hole_leaves_dead_connections(mend: bool) -> None:
    """What a black hole swallowed is gone; its connections are reset when it is mended, else stay dead."""
    async with linked() as (link, port):
        ends = await dial(port)
        await ask(ends, b"before")
        link.turn(Gate.SWALLOW)
        ends[1].write(b"into the hole")
        async with asyncio.timeout(NEVER_S):
            while link.counters.swallowed_bytes < len(b"into the hole"):
                await asyncio.sleep(0.01)
        link.turn(Gate.OPEN, mend)
        assert await ask(await dial(port), b"anew") == b"anew"
        if mend:
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ends[0].read(1), NEVER_S)
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ends[0].read(1), 0.2)


async def test_chance_resets_and_truncates() -> None:
    """Cuts come in both kinds, and what came through before one is what was sent."""
    data = random.Random(3).randbytes(40 * PIECE_BYTES)
    async with linked(Weather(cut_chance=0.2)) as (link, port):
        for _ in range(40):
            with contextlib.suppress(ConnectionError):
                found = await ask(await dial(port), data)
                assert data.startswith(found)
        assert link.counters.resets and link.counters.truncations


async def test_coordinator_that_is_down_refuses_through_the_link() -> None:
    """A site learns at once that nobody listens behind the link."""
    async with echo() as port:
        pass
    link = Link(random.Random(1), ("127.0.0.1", port))
    ends = await dial(await link.open())
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(ends[0].readexactly(1), NEVER_S)
    await link.close()


async def test_process_obeys_and_ends_with_its_input() -> None:
    """The proxy's process carries, counts, and is gone with the one who started it."""
    async with echo() as port:
        with Proxy(1) as proxy:
            dialled = await asyncio.to_thread(proxy.link, port, "east")
            assert await ask(await dial(dialled), b"hello") == b"hello"
            counted = await asyncio.to_thread(proxy.counters, "east")
            assert (counted.connections, counted.carried_bytes) == (1, 10)
        with pytest.raises(OSError):
            await dial(dialled)


def test_schedule_repeats() -> None:
    """The same seed draws the same blows, another one others, and a bounded harm ends."""
    harm = Harm(("east", "west"), {**PROCESS_DEEDS, **LINK_DEEDS}, (1.0, 2.0))
    one, again, other = (list(itertools.islice(blows(seed, harm), 50)) for seed in ("1", "1", "2"))
    assert one == again != other
    assert {blow.deed for blow in one} >= {"kill", "stop", "partition"}
    assert len(list(blows("1", Harm(("east",), PROCESS_DEEDS, (0.0, 1.0), 3)))) == 3


def test_cells_are_chosen_by_name_and_seed() -> None:
    """There are 36 cells; patterns and a count choose some, the same for the same seed."""
    assert len({cell.name for cell in CELLS}) == 36
    assert [cell.name for cell in choose(["^both-resets-"], None, 1)] == [
        "both-resets-fast",
        "both-resets-20mbit",
        "both-resets-1mbit",
    ]
    assert choose([], 6, 1) == choose([], 6, 1) != choose([], 6, 2)
    with pytest.raises(ValueError, match="no cell"):
        choose(["nothing"], None, 1)
