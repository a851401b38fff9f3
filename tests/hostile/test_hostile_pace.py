"""Transfers that hold something up: trickles, crumbs, readers that do not read (row 28)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile_world import Arena, Refusal, arena_in, raw
from raw_http2 import RawStream, grpc_prefix

from fedtrain.coordinator.intake import JOIN_BYTES, SMALL_WRITES_MAX
from fedtrain.coordinator.transfers import STREAMS_PER_SITE_MAX
from fedtrain.core import messages as msg
from fedtrain.core.orders import Order, OrderKind, Progress
from fedtrain.errors import BusyError
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.storage.blobs import Upload
from fedtrain.wire import convert
from fedtrain.wire.calls import call
from fedtrain.wire.chunks import frame
from fedtrain.wire.values import FetchRequest

SEND = call("Transfer", "Send").path
FETCH = call("Transfer", "Fetch").path


async def seed_order(arena: Arena, **spec: object) -> Order:
    """A run that only the liar takes part in, and its order to make the weights: any size may be offered."""
    changes: dict[str, object] = {"run": "own", "sites": ("mallory",), "minimum": 1, "quorum": 1, **spec}
    await arena.consortium.operator.start(dataclasses.replace(arena.run.spec, **changes))
    order = await arena.liar.order()
    assert (order.run, order.kind) == ("own", OrderKind.SEED)
    return order


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every write of an upload."""
    sizes: list[int] = []
    honest = Upload.write

    def write(self: Upload, offset: int, data: bytes | memoryview) -> int:
        sizes.append(len(data))
        return honest(self, offset, data)

    monkeypatch.setattr(Upload, "write", write)
    return sizes


@pytest.mark.parametrize("heartbeats", [False, True])
async def test_a_trickle_is_dropped_after_patience(tmp_path: Path, heartbeats: bool) -> None:
    """An upload of single bytes, each in a message of its own, is given up once patience is spent, even if
    heartbeats claim progress all the while; the other run goes on."""
    async with arena_in(tmp_path) as arena:
        order = await seed_order(arena, patience_ms=1_500)
        data = bytes(1 << 20)
        digest = hashlib.sha256(data).hexdigest()
        await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
        stop = asyncio.Event()

        async def crumbs() -> AsyncIterator[bytes]:
            for place in range(len(data)):
                if stop.is_set():
                    return
                yield frame(place, data[place : place + 1], digest if place == 0 else "")
                if heartbeats:
                    progress = Progress(order.id, place)
                    arena.liar.outbox.put_nowait(msg.Heartbeat((progress,)))
                await asyncio.sleep(0.05)

        try:
            refusal = await raw(arena.liar.keys, SEND, crumbs())
        finally:
            stop.set()
        assert isinstance(refusal, Refusal)
        told = (refusal.status, refusal.code, refusal.sentence)
        assert told[:2] in (("FAILED_PRECONDITION", "stale_round"), ("UNAVAILABLE", "offer_again")), told
        assert "bytes of its upload came in 1.5 s" in told[2] or "nothing was offered" in told[2]
        failed = [row for row in arena.rows("WorkFailed") if row.run == "own"]
        assert failed, "the order was not given up"
        assert list((arena.hub.blobs.folder / "partial").iterdir()) == []
        await arena.finish()


async def test_crumbs_do_not_cost_a_write_each(arena: Arena, writes: list[int]) -> None:
    """Twenty thousand messages of one byte are one write, and the upload is whole."""
    order = await seed_order(arena)
    data = bytes(range(250)) * 80
    digest = hashlib.sha256(data).hexdigest()
    await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
    crumbs = [frame(i, data[i : i + 1], digest if i == 0 else "") for i in range(len(data))]
    answer = await raw(arena.liar.keys, SEND, crumbs)
    assert isinstance(answer, list)
    assert convert.decode(msg.Missing, answer[0]).offset == len(data)
    assert writes == [len(data)]
    await arena.finish()


async def test_scattered_crumbs_are_refused(arena: Arena, writes: list[int]) -> None:
    """Pieces that never follow one another have a bounded number of writes; then the stream is refused."""
    order = await seed_order(arena)
    data = bytes(4 * JOIN_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
    refusal = await raw(arena.liar.keys, SEND, [frame(0, b"\0", digest)] * 1_000)
    assert isinstance(refusal, Refusal) and refusal.status == "INVALID_ARGUMENT", refusal
    assert "scattered" in refusal.sentence
    assert len(writes) <= SMALL_WRITES_MAX
    await arena.finish()


async def test_whole_pieces_are_written_as_they_come(arena: Arena, writes: list[int]) -> None:
    """Chunks of a mebibyte are neither joined nor cut, and what is left at the end is not lost."""
    order = await seed_order(arena)
    data = bytes((2 << 20) + 5)
    digest = hashlib.sha256(data).hexdigest()
    path = arena.liar.folder / "zeros"
    path.write_bytes(data)
    await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
    missing = await arena.liar.client.send_file(path, digest, len(data))
    assert missing.offset == len(data) and writes == [1 << 20, 1 << 20, 5]
    await arena.finish()


async def test_one_order_keeps_one_upload(arena: Arena) -> None:
    """A site that offers one blob after another for its order leaves nothing of the earlier ones on the
    disk, and wins no time by it."""
    order = await seed_order(arena)
    partial = arena.hub.blobs.folder / "partial"
    for number in range(20):
        data = bytes([number]) * 5_000
        digest = hashlib.sha256(data).hexdigest()
        await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
        await raw(arena.liar.keys, SEND, [frame(0, data[:4_000], digest)])
        assert [path.name for path in partial.iterdir()] == [digest]
    await arena.finish()


async def test_uploads_for_two_runs_do_not_disturb_each_other(arena: Arena) -> None:
    """A site that has orders of two runs uploads both at once, piece by piece."""
    order = await seed_order(arena)
    data = bytes(5_000)
    digest = hashlib.sha256(data).hexdigest()
    await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))
    await raw(arena.liar.keys, SEND, [frame(0, data[:4_000], digest)])
    path = arena.liar.make_file(arena.order, 1.0)
    assert (await arena.upload(path, arena.liar.commit(arena.order, path))).outcome == "stored"
    assert (await arena.liar.client.offer(msg.Offer(order.id, digest, len(data)))).offset == 4_000
    await arena.finish(liar_counts=True)


BIG = Layout((Entry("w", (4096, 1024)),))


async def big_model(arena: Arena) -> str:
    """The liar's own run has a model of 16 MiB; its digest."""
    order = await seed_order(arena)
    path = arena.liar.folder / "big"
    writer = ModelWriter(path, BIG, order.run, 0)
    writer.write(np.zeros(BIG.num_elements, np.float32))
    writer.close()
    commit = dataclasses.replace(arena.liar.commit(order, path), layout=BIG.to_json())
    assert (await arena.upload(path, commit)).outcome == "stored"
    return commit.digest


@contextlib.contextmanager
def hogs(arena: Arena, digest: str, count: int) -> Iterator[list[RawStream]]:
    """Streams that ask for the blob and do not read a byte of it."""
    request = convert.encode(FetchRequest(digest, 0))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(RawStream(arena.liar.keys, FETCH)) for _ in range(count)]
        for stream in opened:
            stream.send(grpc_prefix(len(request)) + request, last=True)
        yield opened


async def test_a_site_has_so_many_streams(arena: Arena) -> None:
    """Downloads that nobody reads fill a site's own places and no others: the next one is told to wait, the
    other sites' are served, and once they are gone there is room again."""
    digest = await big_model(arena)
    client = arena.liar.client

    async def first_piece() -> None:
        async for _ in client.fetch(digest):
            return

    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, hogs(arena, digest, STREAMS_PER_SITE_MAX))
        async with asyncio.timeout(60):
            with pytest.raises(BusyError, match="transfers under way"):
                while True:
                    await first_piece()
        honest = arena.site("beta")
        blob = arena.run.model.ref.chain[0][1] if arena.run.model else ""
        assert [piece async for piece in honest.client.fetch(blob)]
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(BusyError):
                await first_piece()
                break
            await asyncio.sleep(0.05)
    await arena.finish()
