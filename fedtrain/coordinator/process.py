"""The coordinator's process: open the folder, listen, serve until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedtrain.coordinator.authorities import Authorities
from fedtrain.coordinator.descriptors import allow_descriptors
from fedtrain.coordinator.gate import Gate
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.membership import Members
from fedtrain.coordinator.operations import Operations
from fedtrain.coordinator.sessions import Sessions
from fedtrain.coordinator.setup import move
from fedtrain.coordinator.succession import Succession, choose_epoch, place_of, why_fenced
from fedtrain.coordinator.transfers import Transfers
from fedtrain.errors import RefusedError
from fedtrain.trust.folders import load_coordinator
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.live import REVIEW_S, LiveCalls
from fedtrain.wire.server import open_server

_log = logging.getLogger(__name__)

GRACE_S = 2.0
"""For calls that are under way when the coordinator is told to stop."""


def serve(folder: Path, take_over: bool = False, address: str = "", passphrase: bytes = b"") -> None:
    """Run the coordinator of `folder` until SIGTERM, or Ctrl-C (which raises `KeyboardInterrupt`).

    Args:
        take_over: deliberately take the place of the coordinator that this folder is a copy of, or
            that has taken over from it.
        address: `HOST:PORT` to listen on from now on and to name in invites; "" leaves it as it is.
        passphrase: of the key that issues certificates; empty if that is not encrypted.

    Raises `ConfigError` (folder, port, a copy), `RefusedError` (another coordinator has taken over,
    now or before), `StorageError` (another coordinator runs on the folder, or the disk refuses),
    `IntegrityError` (the journal is damaged).
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        interrupted = runner.run(_serve(folder, take_over, address, passphrase))
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
        fenced = self.hub.state.fenced
        self.sessions.close(
            f"a coordinator of epoch {fenced} has taken over; ask its operator for its address"
            if fenced
            else "the coordinator goes down; stay, it will be back"
        )
        await self.server.stop(GRACE_S)
        await self.hub.close()


async def open_coordinator(
    folder: Path, take_over: bool = False, address: str = "", passphrase: bytes = b""
) -> Serving:
    """Open the folder, listen, and take up whatever was under way. Arguments and errors as `serve`."""
    state = folder / "state"
    hub = Hub(state, load_coordinator(state, passphrase))
    try:
        allow_descriptors(len(hub.state.members))
        place = place_of(state / "journal.db")
        epoch = choose_epoch(hub, folder, place, take_over)
        if address:
            move(folder, address)
            hub.keys = load_coordinator(state, passphrase)
        keys, live = hub.keys, LiveCalls()
        authorities = Authorities(hub, folder, passphrase)
        sessions, gate = Sessions(hub), Gate(hub, authorities)
        hub.cut = live.cut
        hub.boot(epoch, place)
        authorities.complete()
        authorities.refresh_operator()
        operations, members = Operations(hub, sessions), Members(hub, authorities)
        handlers = Handlers(gate, sessions, Transfers(hub), operations, members, Succession(hub))
        server, port = await open_server(
            keys.membership.address, authorities.identity.credentials, handlers, gate.judge, live
        )
        hub.run_beside(_watch_over(live, gate, authorities))
    except BaseException:
        await hub.close()
        raise
    _log.info("ready: %s on port %d, epoch %d", keys.membership.consortium, port, hub.state.epoch)
    return Serving(hub, sessions, server, port)


async def _watch_over(live: LiveCalls, gate: Gate, authorities: Authorities) -> None:
    """Certificates end and memberships do, also of whoever is in a call."""
    while True:
        await asyncio.sleep(REVIEW_S)
        live.review(gate.check)
        authorities.tend()


async def _serve(folder: Path, take_over: bool, address: str, passphrase: bytes) -> bool:
    """Serve; True if it was Ctrl-C that ended it."""
    stop = _stop_signals()
    serving = await open_coordinator(folder, take_over, address, passphrase)
    hub = serving.hub
    try:
        waits: list[asyncio.Future[Any]] = [stop, hub.failed]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        fence = why_fenced(hub, folder) if hub.state.fenced else ""
    finally:
        await serving.close()
    if fence:
        raise RefusedError(fence) from hub.failed.exception()
    if hub.failed.done():
        hub.failed.result()
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
