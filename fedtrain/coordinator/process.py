"""The coordinator's process: open the folder, listen, serve until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedtrain.coordinator.gate import Gate
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.operations import Operations
from fedtrain.coordinator.sessions import Sessions
from fedtrain.coordinator.transfers import Transfers
from fedtrain.trust.folders import load_coordinator
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.options import server_credentials
from fedtrain.wire.server import open_server

_log = logging.getLogger(__name__)

GRACE_S = 2.0
"""For calls that are under way when the coordinator is told to stop."""


def serve(folder: Path) -> None:
    """Run the coordinator of `folder` until SIGTERM, or Ctrl-C (which raises `KeyboardInterrupt`).

    Raises `ConfigError` (folder, port), `StorageError` (another coordinator runs on the folder, or
    the disk refuses), `IntegrityError` (the journal is damaged).
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        interrupted = runner.run(_serve(folder))
    if interrupted:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Serving:
    """A coordinator that listens."""

    hub: Hub
    sessions: Sessions
    server: grpc.aio.Server
    port: int

    async def close(self) -> None:
        """Tell the sites, let running calls end, give the journal up."""
        self.sessions.close("the coordinator goes down; stay, it will be back")
        await self.server.stop(GRACE_S)
        await self.hub.close()


async def open_coordinator(folder: Path) -> Serving:
    """Open the folder, listen, and take up whatever was under way."""
    keys = load_coordinator(folder / "state")
    hub = Hub(folder / "state", keys)
    try:
        sessions, gate = Sessions(hub), Gate(hub)
        handlers = Handlers(gate, sessions, Transfers(hub), Operations(hub, sessions))
        credentials = server_credentials(
            keys.server_key_pem, keys.server_certificate_pem, keys.authority.certificate_pem
        )
        hub.boot()
        server, port = await open_server(keys.membership.address, credentials, handlers, gate.judge)
    except BaseException:
        await hub.close()
        raise
    _log.info("ready: %s on port %d, epoch %d", keys.membership.consortium, port, hub.state.epoch)
    return Serving(hub, sessions, server, port)


async def _serve(folder: Path) -> bool:
    """Serve; True if it was Ctrl-C that ended it."""
    stop = _stop_signals()
    serving = await open_coordinator(folder)
    try:
        waits: list[asyncio.Future[Any]] = [stop, serving.hub.failed]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await serving.close()
    if serving.hub.failed.done():
        serving.hub.failed.result()
    return stop.done() and stop.result() == signal.SIGINT


def _stop_signals() -> asyncio.Future[int]:
    """Resolves with the first of SIGINT and SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def on(number: int) -> None:
        loop.remove_signal_handler(number)
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on, number)
    return stop
