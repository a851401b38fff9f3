"""HTTP/2 by hand over mutual TLS: what no gRPC library would send.

Only what an attacker needs: one stream per connection, headers without compression, data frames of any
content, and whether the server has ended the stream. RFC 9113 (HTTP/2), RFC 7541 (HPACK).
"""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
from pathlib import Path
from types import TracebackType

from fedtrain.trust.folders import MemberKeys

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
FRAME_BYTES_MAX = 16_384
STREAM = 1


def grpc_prefix(length: int, compressed: bool = False) -> bytes:
    """What stands before a gRPC message: whether it is compressed, and how long it says it is."""
    return struct.pack(">BI", compressed, length)


class RawStream:
    """One call of a site, written frame by frame. A context manager.

    Args:
        keys: whose certificate is shown.
        path: of the call, e.g. `/fedtrain.wire.v1.Transfer/Send`.
        headers: further request headers.
    """

    def __init__(self, keys: MemberKeys, path: str, headers: dict[str, str] | None = None) -> None:
        host, _, port = keys.membership.address.rpartition(":")
        tls = ssl.create_default_context(cadata=keys.ca_pem.decode())
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.set_alpn_protocols(["h2"])
        with tempfile.TemporaryDirectory() as folder:
            pair = Path(folder) / "pair.pem"
            pair.write_bytes(keys.tls_key_pem + keys.certificate_pem)
            tls.load_cert_chain(pair)
        plain = socket.create_connection((host, int(port)), timeout=60)
        self._socket = tls.wrap_socket(plain, server_hostname=keys.membership.server_name)
        self._window = 65_535
        self._connection_window = 65_535
        self._unread = b""
        self.ended = False
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, b"", 0))
        fields = {
            ":method": "POST",
            ":scheme": "https",
            ":path": path,
            ":authority": keys.membership.server_name,
            "content-type": "application/grpc",
            "te": "trailers",
            **(headers or {}),
        }
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
        self._socket.sendall(_frame(HEADERS, END_HEADERS, block))

    def __enter__(self) -> RawStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes, last: bool = False) -> bool:
        """Data as frames, as fast as the server's windows allow; False once it has ended the stream."""
        view = memoryview(data)
        while view and not self.ended:
            size = min(len(view), FRAME_BYTES_MAX, self._window, self._connection_window)
            if size <= 0:
                self._read_frame()
                continue
            end = END_STREAM if last and size == len(view) else 0
            try:
                self._socket.sendall(_frame(DATA, end, bytes(view[:size])))
            except OSError:
                self.ended = True
                break
            self._window -= size
            self._connection_window -= size
            view = view[size:]
        return not self.ended

    def wait_for_end(self) -> None:
        """Returns once the server has ended the stream or the connection."""
        while not self.ended:
            self._read_frame()

    def _read_frame(self) -> None:
        head = self._read(9)
        if len(head) < 9:
            self.ended = True
            return
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
        payload = self._read(int.from_bytes(head[:3], "big"))
        if kind == WINDOW_UPDATE:
            step = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream:
                self._window += step
            else:
                self._connection_window += step
        elif kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                number, value = struct.unpack(">HI", payload[place : place + 6])
                if number == 0x4:  # the initial window of every stream
                    self._window += value - 65_535
            self._socket.sendall(_frame(SETTINGS, ACK, b"", 0))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(_frame(PING, ACK, payload, 0))
        elif kind in (RST_STREAM, GOAWAY) or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.ended = True

    def _read(self, size: int) -> bytes:
        while len(self._unread) < size:
            try:
                data = self._socket.recv(65_536)
            except OSError:
                data = b""
            if not data:
                break
            self._unread += data
        found, self._unread = self._unread[:size], self._unread[size:]
        return found


def _frame(kind: int, flags: int, payload: bytes, stream: int = STREAM) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(value: str) -> bytes:
    """A string of HPACK, spelled out: seven bits of length, more where they do not suffice."""
    data = value.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, length = len(data) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes(length) + bytes([rest]) + data
