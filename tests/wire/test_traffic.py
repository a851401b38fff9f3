"""What leaves is what the kernel says, to the byte, and messages are most of it."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wire_loopback as loopback
from hypothesis import given, strategies as st

from benchmarks.relay import Relay
from fedtrain.core import messages as msg
from fedtrain.wire import traffic
from fedtrain.wire.traffic import SocketMeter, Tally, wire_bytes

PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel does in its own time."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_the_protocol_adds_what_can_be_added_by_hand() -> None:
    """A small message is itself, 5 of gRPC, 9 of its frame and 22 of its record; a mebibyte has 65 frames."""
    assert wire_bytes(100) == 100 + 5 + 9 + 22
    mebibyte = 1 << 20
    frames = 65  # 64 whole ones, and 5 bytes behind them
    records = 65
    assert wire_bytes(mebibyte) == mebibyte + 5 + 9 * frames + 22 * records


def test_the_meter_counts_what_our_connections_send(listener: socket.socket) -> None:
    """Connections to the port count, whoever made them; what comes back, and other ports, do not."""
    meter = SocketMeter(port_of(listener))
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()) as aside,
    ):
        aside.sendall(b"x" * 1000)
        with socket.create_connection(listener.getsockname()) as first:
            far, _ = listener.accept()
            far.sendall(b"answer" * 100)
            first.sendall(b"y" * 300)
            with socket.create_connection(listener.getsockname()) as second:
                second.sendall(b"z" * 7)
                assert meter.look() == 307
            far.close()
    meter.close()


def test_a_socket_that_ended_between_two_looks_is_counted_to_its_last_byte(listener: socket.socket) -> None:
    """The kernel's news of its end brings the final count, so nothing is lost between looks."""
    meter = SocketMeter(port_of(listener))
    if not meter.sees_ends:
        pytest.skip("this kernel does not tell of ended sockets")
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    near.sendall(b"a" * 10)
    assert meter.look() == 10
    near.sendall(b"b" * 90_000)
    received = 0
    while received < 90_010:
        received += len(far.recv(65_536))
    near.close()
    far.close()
    until(lambda: meter.look() == 90_010)
    meter.close()


def test_without_news_of_ends_the_last_look_counts(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel tells nothing of ends, what was seen stays, and nothing is counted twice."""
    monkeypatch.setattr(traffic, "_hear_of_ends", lambda: None)
    meter = SocketMeter(port_of(listener))
    assert not meter.sees_ends
    for expected in (10, 20):
        with socket.create_connection(listener.getsockname()) as near:
            near.sendall(b"a" * 10)
            assert meter.look() == expected
        assert meter.look() == expected


def test_where_nobody_counts_the_meter_says_nothing(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of descriptors, or with a short tcp_info, the count stays 0, and nothing is raised."""
    with socket.create_connection(listener.getsockname()) as near:
        near.sendall(b"a" * 10)
        monkeypatch.setattr(traffic, "_TCP_INFO_BYTES", 104)
        assert SocketMeter(port_of(listener)).look() == 0
        monkeypatch.undo()
        monkeypatch.setattr(traffic, "DESCRIPTORS", tmp_path / "nowhere")
        assert SocketMeter(port_of(listener)).look() == 0


@given(st.binary(max_size=400))
def test_news_that_is_cut_off_or_made_up_ends(data: bytes) -> None:
    """Any bytes in place of the kernel's news are read to their end, without an error."""
    list(traffic._read_news(data))


def test_news_is_read_as_the_kernel_writes_it() -> None:
    """Two messages in one piece, the second without counters: one cookie with its count, one with 0."""

    def message(cookie: int, info: bytes) -> bytes:
        diag = b"\0" * 44 + struct.pack("=Q", cookie) + b"\0" * 20
        attribute = struct.pack("=HH", 4 + len(info), 2) + info
        return struct.pack("=IHHII", 16 + len(diag) + len(attribute), 20, 0, 0, 0) + diag + attribute

    counters = b"\0" * 200 + struct.pack("=QQ", 1000, 40)
    assert list(traffic._read_news(message(7, counters) + message(8, b"\0" * 104))) == [(7, 960), (8, 0)]


async def test_the_kernels_count_is_what_a_relay_sees(tmp_path: Path) -> None:
    """Handshake, calls, an upload and a session: the meter and an independent relay agree to the byte."""
    recorder = loopback.Recorder(tmp_path)
    digest, data = loopback.blob(tmp_path, 3_000_000)
    relay = Relay()
    async with loopback.serving(recorder) as port:
        through = relay.start(port)
        meter, tally = SocketMeter(through), Tally()
        async with loopback.connect(through) as client:
            client.account(tally)
            await client.connect(PATIENCE_S)
            await client.offer(msg.Offer("lm.3.0.jsc", digest, len(data)))
            before = meter.look()
            reached: list[int] = []
            await client.send_file(tmp_path / digest, digest, len(data), progress=reached.append)
            uploaded = meter.look() - before
            said = loopback.saying(msg.Heartbeat(()), msg.Goodbye("done"))
            await loopback.collect(client.attend(said))
            seen = -1
            while seen != meter.look():
                seen = meter.look()
                await asyncio.sleep(0.1)
            assert seen == relay.up_bytes
        assert reached[-1] == len(data)
        assert abs(uploaded / wire_bytes(len(data), 3) - 1) < 0.01
    meter.close()
    relay.stop()
    kinds = {kind: sent.messages for kind, sent in tally.kinds.items()}
    assert kinds == {
        "Health.Check": kinds["Health.Check"],
        "Transfer.Offer": 1,
        "Transfer.Send": 1,
        "Session.Attend": 1,
        "Session.Heartbeat": 1,
        "Session.Goodbye": 1,
    }
    assert tally.size_bytes < seen - uploaded
