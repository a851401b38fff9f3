"""What leaves over our connections: the kernel's own count, and how much of it each kind of message is.

The kernel counts every byte that a TCP socket has sent: TLS handshakes and records, HTTP/2 frames, keepalive,
everything. gRPC does not say which sockets are its own, but this process can look through its descriptors for
those that lead to the coordinator's port (`SocketMeter`). What only we know is what the bytes were for: each
message is put down under its kind with what the protocol makes of it (`Tally`, `wire_bytes`). The kernel's
count is the total, the kinds are its parts, and what is left over is the connection itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")

_COUNTERS = struct.Struct("=QQ")
_SENT_OFFSET = 200
"""Of `tcpi_bytes_sent` and `tcpi_bytes_retrans` in Linux's `struct tcp_info`, since 4.19. The structure only
ever grows at its end, and the kernel says how much of it it knows."""

_TCP_INFO_BYTES = 256

_ELSEWHERE = -1

_SO_COOKIE = 57
_COOKIE = struct.Struct("=Q")
"""The kernel's own number of a socket, which is never used twice."""

_NETLINK_SOCK_DIAG = 4
_ENDED_TCP4, _ENDED_TCP6 = 1 << 0, 1 << 2
"""Groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, since Linux 4.7: news of ended sockets."""

_MESSAGE_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE_HEAD = struct.Struct("=HH")
_DIAG_COOKIE_OFFSET = 44
_DIAG_BYTES = 72
_DIAG_INFO = 2
"""Inside a message: `struct inet_diag_msg` with the cookie, then attributes; INET_DIAG_INFO is tcp_info."""

_NEWS_BYTES = 65_536

GRPC_BYTES = 5
"""Before each message: a flag and its length."""

FRAME_BYTES, FRAME_BYTES_MAX = 9, 16_384
"""Head and largest content of an HTTP/2 frame as gRPC sends it."""

RECORD_BYTES, RECORD_BYTES_MAX = 22, 16_384
"""What TLS 1.3 adds to a record (5 head, 1 type, 16 tag), and the largest record."""

CALL_BYTES = 60
"""A call's head: path, deadline and epoch, mostly indexed by HPACK behind the first call of a connection."""


def wire_bytes(payload_bytes: int, messages: int = 1) -> int:
    """Size on the wire of messages with so much content in all."""
    content = payload_bytes + GRPC_BYTES * messages
    frames = max(messages, -(-content // FRAME_BYTES_MAX))
    framed = content + FRAME_BYTES * frames
    records = max(messages, -(-framed // RECORD_BYTES_MAX))
    return framed + RECORD_BYTES * records


@dataclass
class Sent:
    """How many messages of one kind, and how large on the wire."""

    messages: int = 0
    size_bytes: int = 0


class Tally:
    """Messages by kind, since it was made. A kind is `<service>.<method>`, or `Session.<message>`."""

    def __init__(self) -> None:
        self.kinds: dict[str, Sent] = {}

    def note(self, kind: str, payload_bytes: int) -> None:
        """A message was handed over to be sent."""
        self._add(kind, 1, wire_bytes(payload_bytes))

    def note_call(self, kind: str, payload_bytes: int = 0) -> None:
        """A call was opened, with its request if it has just one."""
        self._add(kind, 1, CALL_BYTES + (wire_bytes(payload_bytes) if payload_bytes else 0))

    @property
    def size_bytes(self) -> int:
        """Of everything."""
        return sum(sent.size_bytes for sent in self.kinds.values())

    def _add(self, kind: str, messages: int, size_bytes: int) -> None:
        sent = self.kinds.setdefault(kind, Sent())
        sent.messages += messages
        sent.size_bytes += size_bytes


class SocketMeter:
    """What this process has sent over TCP to one port, as the kernel counts it; retransmissions not twice.

    A socket is known from the first look that finds it open, and its end brings the final count with it.
    Where the kernel tells nothing of ended sockets (`sees_ends` is False), what one sent after the last look
    is not seen. So whoever uses this looks often while connections may come and go.

    Args:
        port: of the coordinator, or of the proxy that leads to it.

    Attributes:
        sent_bytes: as of the last look; stays 0 where the kernel does not tell.
    """

    def __init__(self, port: int) -> None:
        self.sent_bytes = 0
        self._port = port
        self._counts: dict[int, int] = {}
        self._others: set[int] = set()
        self._news = _hear_of_ends()

    @property
    def sees_ends(self) -> bool:
        """Whether the kernel tells what a socket had sent when it ended."""
        return self._news is not None

    def look(self) -> int:
        """`sent_bytes`, now."""
        others: set[int] = set()
        here: set[int] = set()
        for descriptor, number in _sockets():
            if number in self._others:
                others.add(number)
                continue
            cookie, sent_bytes = _sent_bytes(descriptor, self._port)
            if sent_bytes == _ELSEWHERE:
                others.add(number)
            elif cookie:
                here.add(cookie)
                self._count(cookie, sent_bytes)
        self._others = others
        for cookie, sent_bytes in self._ended():
            if cookie in self._counts:
                self._count(cookie, sent_bytes)
                del self._counts[cookie]
                here.discard(cookie)
        if self._news is None:
            self._counts = {cookie: self._counts[cookie] for cookie in here}
        return self.sent_bytes

    def close(self) -> None:
        """Hear of no more ends."""
        if self._news is not None:
            self._news.close()
            self._news = None

    def _count(self, cookie: int, sent_bytes: int) -> None:
        before = self._counts.get(cookie, 0)
        self._counts[cookie] = max(sent_bytes, before)
        self.sent_bytes += self._counts[cookie] - before

    def _ended(self) -> Iterator[tuple[int, int]]:
        """(cookie, bytes sent) of all the machine's TCP sockets that have ended since the last look."""
        while self._news is not None:
            try:
                data = self._news.recv(_NEWS_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # more news than the kernel keeps for us: some ends are known from the last look
                return
            yield from _read_news(data)


def _hear_of_ends() -> socket.socket | None:
    """A socket on which the kernel tells of ended TCP sockets; None where it does not."""
    try:
        news = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETLINK_SOCK_DIAG,
        )
    except (OSError, AttributeError):
        return None
    try:
        news.bind((0, _ENDED_TCP4 | _ENDED_TCP6))
    except OSError:
        news.close()
        return None
    return news


def _read_news(data: bytes) -> Iterator[tuple[int, int]]:
    """(cookie, bytes sent) of the sockets that one piece of news is about."""
    start = 0
    while start + _MESSAGE_HEAD.size + _DIAG_BYTES <= len(data):
        length = _MESSAGE_HEAD.unpack_from(data, start)[0]
        body, end = start + _MESSAGE_HEAD.size, min(start + length, len(data))
        cookie = _COOKIE.unpack_from(data, body + _DIAG_COOKIE_OFFSET)[0]
        place = body + _DIAG_BYTES
        while place + _ATTRIBUTE_HEAD.size <= end:
            size, kind = _ATTRIBUTE_HEAD.unpack_from(data, place)
            if kind == _DIAG_INFO:
                yield cookie, _sent_in(data[place + _ATTRIBUTE_HEAD.size : place + size])
            place += max(_ATTRIBUTE_HEAD.size, -(-size // 4) * 4)
        start += max(_MESSAGE_HEAD.size, -(-length // 4) * 4)


def _sockets() -> list[tuple[int, int]]:
    """(descriptor, number that no other open socket has) of all sockets of this process."""
    try:
        names = os.listdir(DESCRIPTORS)  # noqa: PTH208 - several times as fast, and often called
    except OSError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # it was closed meanwhile
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                found.append((int(name), status.st_ino))
    return found


def _sent_bytes(descriptor: int, port: int) -> tuple[int, int]:
    """(cookie, bytes sent) of a connection to that port; `_ELSEWHERE` bytes of any other socket.

    No cookie (0) for one that is not connected yet, and where the kernel does not count. The descriptor is
    gRPC's: it is looked at and not duplicated, because a copy would keep the socket in gRPC's poll set beyond
    its end.
    """
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return 0, 0
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6) or borrowed.type != socket.SOCK_STREAM:
            return 0, _ELSEWHERE
        if borrowed.getpeername()[1] != port:
            return 0, _ELSEWHERE
        cookie = _COOKIE.unpack(borrowed.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size))[0]
        return cookie, _sent_in(borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))
    except (OSError, AttributeError, struct.error):
        return 0, 0
    finally:
        borrowed.detach()


def _sent_in(info: bytes) -> int:
    """What a `struct tcp_info` says was sent, retransmissions not counted twice; 0 if it does not tell."""
    if len(info) < _SENT_OFFSET + _COUNTERS.size:
        return 0
    sent_bytes, repeated_bytes = _COUNTERS.unpack_from(info, _SENT_OFFSET)
    return int(sent_bytes - repeated_bytes)
