"""Calls under way are cut from outside, whatever they wait for, and their clients hear why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import wire_loopback as loopback

from fedtrain.core import messages as core
from fedtrain.errors import Unauthenticated
from fedtrain.wire import options
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.live import LiveCalls
from fedtrain.wire.server import open_server
from fedtrain.wire.values import Caller, Document

LIMIT_S = 60
NEVER = Unauthenticated("jsc: its membership was revoked")


class Patient(loopback.Recorder):
    """Handlers that wait for ever, each at another place."""

    async def run(self, caller: Caller, run: str) -> Document:
        await asyncio.Event().wait()
        return {}

    async def watch(self, caller: Caller, run: str) -> AsyncIterator[Document]:
        yield {"run": run}
        await asyncio.Event().wait()

    async def send(
        self, caller: Caller, digest: str, pieces: AsyncIterator[tuple[int, bytes]]
    ) -> core.Missing:
        async for _ in pieces:
            await asyncio.Event().wait()
        return core.Missing(0, 0)


async def _watch(client: CoordinatorClient, folder: Path) -> None:
    async for _ in client.watch("lm"):
        pass


async def _attend(client: CoordinatorClient, folder: Path) -> None:
    async def outgoing() -> AsyncIterator[core.FromPeer]:
        yield core.Hello(core.PROTOCOL_VERSION, "0.1", "s", (), (), ())
        await asyncio.Event().wait()

    async for _ in client.attend(outgoing()):
        pass


async def _send(client: CoordinatorClient, folder: Path) -> None:
    digest, data = loopback.blob(folder, 12 << 20)
    await client.send_file(folder / digest, digest, len(data))


async def _ask(client: CoordinatorClient, folder: Path) -> None:
    await client.run("lm")


async def _commit(client: CoordinatorClient, folder: Path) -> None:
    await client.commit(loopback.a_commit())


@pytest.mark.parametrize("call", [_ask, _watch, _attend, _send, _commit])
async def test_a_call_is_cut_with_its_reason(
    call: Callable[[CoordinatorClient, Path], Awaitable[None]], tmp_path: Path
) -> None:
    """Cutting a member ends its call with UNAUTHENTICATED and the words, nobody else's, and leaves none.
    A review does the same for whoever may not be here any more."""
    recorder, live = Patient(tmp_path), LiveCalls()
    recorder.commit_may_end.clear()
    key, certificate = loopback.authority().issue(loopback.SERVER_NAME)
    credentials = options.server_credentials(key, certificate, loopback.authority().pem)
    server, port = await open_server(
        "127.0.0.1:0", credentials, Handlers(*[recorder] * 5), loopback.judge, live
    )

    def check(caller: Caller) -> None:
        if caller.name == "jsc":
            raise NEVER

    try:
        async with loopback.connect(port) as client, asyncio.timeout(LIMIT_S):
            for cut in (lambda: live.cut("jsc", NEVER), lambda: live.review(check)):
                running = asyncio.ensure_future(call(client, tmp_path))
                while not len(live):
                    await asyncio.sleep(0.01)
                assert live.cut("somebody-else", NEVER) == 0
                cut()
                with pytest.raises(Unauthenticated, match="was revoked"):
                    await running
                assert len(live) == 0
    finally:
        recorder.commit_may_end.set()
        await server.stop(0)
