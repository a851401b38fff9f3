"""All bombs at one real coordinator process: its memory stays flat, and it goes on (rows 51-53)."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from coordinator_world import ScriptedSite, client_of, free_port, spec_of
from hostile_world import CALM, Refusal, raw
from raw_http2 import RawStream, grpc_prefix

from fedtrain import coordinator
from fedtrain.core import messages as msg
from fedtrain.core.conduct import STRIKES_MAX
from fedtrain.core.orders import Order, OrderKind
from fedtrain.errors import BadUpdate
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join, load_member
from fedtrain.trust.invites import decode_invite
from fedtrain.wire import convert
from fedtrain.wire.calls import call
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import FetchRequest, InviteOrder, SigningRequest, Verdict

pytestmark = pytest.mark.slow

GROWTH_BYTES_MAX = 64 << 20
ZIPPED_BYTES = 2 * GROWTH_BYTES_MAX
BIG = Layout((Entry("w", (4096, 1024)),))
COMMIT, OFFER, SEND = (call("Transfer", name).path for name in ("Commit", "Offer", "Send"))
FETCH, ATTEND = call("Transfer", "Fetch").path, call("Session", "Attend").path


class Weighed:
    """A process whose resident memory is looked at all the time."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self.peak_bytes = 0

    @property
    def now_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, self.now_bytes)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[int, CoordinatorClient]]:
    """(pid, operator) of `fedtrain coordinator serve` on a new folder."""
    home = folder / "coordinator"
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}")
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with open(folder / "log", "wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fedtrain.cli",
            "coordinator",
            "serve",
            str(home),
            env=environment,
            stderr=log,
        )
        operator = client_of(load_member(home / "operator"))
        try:
            await operator.connect(60)
            yield process.pid, operator
            assert process.returncode is None, (folder / "log").read_text()
        finally:
            await operator.close()
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def join(folder: Path, operator: CoordinatorClient, name: str) -> ScriptedSite:
    """An attached site."""
    invite = decode_invite(await operator.invite(InviteOrder(name, "site", 600)), time.time_ns() // 1_000_000)
    state = folder / "sites" / name
    application = begin_join(state, invite)
    credentials = channel_credentials(invite.key_pem, invite.certificate_pem, invite.ca_pem)
    async with CoordinatorClient(invite.address, credentials, invite.server_name) as newcomer:
        admission = await newcomer.enrol(SigningRequest(application.csr_pem, application.message_key.public))
    keys = finish_join(state, invite, application, admission.certificate_pem, admission.message_key)
    site = ScriptedSite(keys, state, client_of(keys))
    await site.attend()
    return site


def compressed(size_bytes: int) -> bytes:
    """That many zeros as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size_bytes >> 20)) + packer.flush()


def call_of(keys: MemberKeys, path: str, message: bytes, **headers: str) -> None:
    """One call, frame by frame, until the server has ended it."""
    with RawStream(keys, path, headers) as stream:
        stream.send(message, last=True)
        stream.wait_for_end()


def bombs(site: ScriptedSite) -> dict[str, Callable[[], None]]:
    """What only a hand-made client sends."""
    keys, gzip = site.keys, compressed(ZIPPED_BYTES)

    def declared() -> None:
        with RawStream(keys, SEND) as stream:
            stream.send(grpc_prefix(3 << 30) + bytes(64 << 20))

    def many_headers() -> None:
        with RawStream(keys, OFFER, {f"x-{i}": "y" * 8_000 for i in range(2)}) as stream:
            stream.send(grpc_prefix(0), last=True)
            stream.wait_for_end()

    def zipped(path: str) -> Callable[[], None]:
        message = grpc_prefix(len(gzip), compressed=True) + gzip
        return lambda: call_of(keys, path, message, **{"grpc-encoding": "gzip"})

    return {
        "compressed zeros as a commit": zipped(COMMIT),
        "compressed zeros as a chunk": zipped(SEND),
        "compressed zeros in a session": zipped(ATTEND),
        "three gigabytes declared, sixty-four mebibytes sent": declared,
        "headers beyond the bound": many_headers,
    }


def nested(depth: int) -> bytes:
    """A length-delimited field inside itself, `depth` times."""
    data = b""
    for _ in range(depth):
        data = b"\x0a" + _varint(len(data)) + data
    return data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


async def messages(keys: MemberKeys) -> None:
    """What gRPC lets through and our own reading refuses."""
    big = bytes(3 << 20)
    many = b"".join(b"\x32\x03x.1" for _ in range(600_000))  # repeated texts, six bytes each
    for path, message, streaming_answer in (
        (COMMIT, nested(200), False),
        (COMMIT, nested(5_000), False),
        (ATTEND, nested(200), True),
        (ATTEND, b"\x0a" + _varint(len(many)) + many, True),
        (OFFER, b"\x12" + _varint(len(big)) + big, False),
        (COMMIT, b"\x5a" + _varint(len(big)) + big, False),
        (COMMIT, bytes(5 << 20), False),
        (SEND, b"\x1a" + _varint(len(big)) + big, False),
    ):
        stream = path in (SEND, ATTEND)
        answer = await raw(keys, path, [message] if stream else message, streaming_answer=streaming_answer)
        assert isinstance(answer, Refusal) and answer.status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), (
            path
        )


def seeds(order: Order, maker: ScriptedSite) -> list[tuple[bytes, str]]:
    """(model file, layout) of initial models whose headers would take hundreds of mebibytes to read."""

    def model(header: bytes) -> bytes:
        header = header.ljust(len(header) + -len(header) % 8)
        return struct.pack("<Q", len(header)) + header

    honest = maker.make_file(order, 0.0).read_bytes()
    layout = maker.commit(order, maker.folder / order.id).layout
    return [
        (model(b'{"a":[' + b"[]," * (2 << 20) + b"[]]}"), layout),
        (model(b'{"a":[' + b"{}," * 900_000 + b"{}]}"), layout),
        (honest, '{"entries":[' + "{}," * 900_000 + "{}]}"),
        (honest, '{"entries":[' + "[]," * 900_000 + "[]]}"),
        (honest, "[" * (3 << 20)),
    ]


async def bad_seed(
    operator: CoordinatorClient, maker: ScriptedSite, number: int, data: bytes, layout: str
) -> None:
    """A run whose only site answers the seeding order with this."""
    name = f"seed-{number}"
    if number == STRIKES_MAX:  # the rule has put it in quarantine
        await operator.release(Verdict(maker.name, "so that it can lie on"))
    spec = spec_of(run=name, sites=(maker.name,), minimum=1, quorum=1, **CALM)
    await operator.start(spec)
    order = await maker.order()
    while order.run != name:
        order = await maker.order()
    assert order.kind is OrderKind.SEED
    path = maker.folder / "bomb"
    path.write_bytes(data)
    commit = dataclasses.replace(maker.commit(order, path), layout=layout)
    await maker.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    await maker.client.send_file(path, commit.digest, commit.size_bytes)
    with pytest.raises(BadUpdate):
        await maker.client.commit(commit)
    await operator.stop(name)


async def big_run(operator: CoordinatorClient, maker: ScriptedSite) -> str:
    """A run whose model has 16 MiB; the blob of it."""
    await operator.start(spec_of(run="big", sites=(maker.name,), minimum=1, quorum=1, **CALM))
    order = await maker.order()
    path = maker.folder / "big"
    writer = ModelWriter(path, BIG, order.run, 0)
    writer.write(np.zeros(BIG.num_elements, np.float32))
    writer.close()
    commit = dataclasses.replace(maker.commit(order, path), layout=BIG.to_json())
    await maker.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    await maker.client.send_file(path, commit.digest, commit.size_bytes)
    await maker.client.commit(commit)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def unread(keys: MemberKeys, digest: str, count: int) -> Iterator[None]:
    """Downloads that nobody reads."""
    request = convert.encode(FetchRequest(digest, 0))
    streams = [RawStream(keys, FETCH) for _ in range(count)]
    try:
        for stream in streams:
            stream.send(grpc_prefix(len(request)) + request, last=True)
        yield
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)


async def test_bombs_leave_memory_flat(tmp_path: Path) -> None:
    """Compressed zeros, declared gigabytes, nested and wide messages, wide headers of models and layouts,
    and downloads that nobody reads: the coordinator's resident memory grows by less than 64 MiB at its peak,
    and it answers as before."""
    async with served(tmp_path) as (pid, operator):
        liar = await join(tmp_path, operator, "mallory")
        try:
            digest = await big_run(operator, liar)
            weighed = Weighed(pid)
            before = weighed.now_bytes
            peaks = {}
            with weighed.watched():
                for name, bomb in bombs(liar).items():
                    await asyncio.to_thread(bomb)
                    peaks[name] = weighed.peak_bytes - before
                await messages(liar.keys)
                peaks["messages"] = weighed.peak_bytes - before
                for number, (data, layout) in enumerate(seeds(_a_seed_order(liar), liar)):
                    await bad_seed(operator, liar, number, data, layout)
                    peaks[f"seed {number}"] = weighed.peak_bytes - before
                hogs = unread(liar.keys, digest, 12)
                await asyncio.to_thread(hogs.__enter__)
                try:
                    assert (await operator.runs())["runs"]
                    peaks["unread downloads"] = weighed.peak_bytes - before
                finally:
                    hogs.__exit__(None, None, None)
            grown = {name: f"{growth / (1 << 20):.1f} MiB" for name, growth in peaks.items()}
            assert weighed.peak_bytes - before < GROWTH_BYTES_MAX, grown
            assert {run["run"] for run in (await operator.runs())["runs"]} >= {"big", "seed-0"}
        finally:
            await liar.close()


def _a_seed_order(site: ScriptedSite) -> Order:
    """An order of the shape that seeding has, to make honest bytes from."""
    return Order(
        id=f"any.0.1.{site.name}", kind=OrderKind.SEED, run="any", round=0, attempt=1, site=site.name, seed=1,
        model=None, steps=1, evaluate=False, parent="", returned=(), cohort=(site.name,), task="{}",
        codec="float32", block_elements=1 << 20, patience_ms=60_000,
    )  # fmt: skip
