"""A TCP relay that counts: what passes between agents and coordinator, to the byte.

It forwards on a thread of its own with blocking sockets, and understands nothing of what it carries
(that is TLS). Counted are payload bytes of TCP; the headers of TCP and IP, 52 bytes a packet here,
belong to the link.
"""

from __future__ import annotations

import contextlib
import socket
import threading

BUFFER_BYTES = 1 << 18


class Relay:
    """Listens on a port of its own and carries every connection to the coordinator.

    Attributes:
        up_bytes, down_bytes: from agents to the coordinator, and back, so far.
    """

    def __init__(self) -> None:
        self.up_bytes = 0
        self.down_bytes = 0
        self._guard = threading.Lock()
        self._listener: socket.socket | None = None

    def start(self, port: int) -> int:
        """Relay to a local port from now on; returns the port to dial instead."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()
        return int(listener.getsockname()[1])

    def stop(self) -> None:
        """Accept nothing more. Open connections end with their ends."""
        if self._listener is not None:
            self._listener.close()

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for source, target, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._carry, args=(source, target, up), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        buffer = bytearray(BUFFER_BYTES)
        view = memoryview(buffer)
        with contextlib.suppress(OSError):
            while count := source.recv_into(buffer):
                with self._guard:
                    if up:
                        self.up_bytes += count
                    else:
                        self.down_bytes += count
                target.sendall(view[:count])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
