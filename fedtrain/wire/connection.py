"""One channel to a coordinator, and how any call is made on it.

Every call shows the highest epoch that we have seen and holds the answerer's against it before the
answer counts, a refusal included. gRPC's exceptions end here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from fedtrain.errors import UnreachableError
from fedtrain.wire import convert, epochs, options
from fedtrain.wire.calls import Call
from fedtrain.wire.status import CODE_KEY, from_rpc_error

T = TypeVar("T")

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]

ANSWER_S = 30.0
"""For a call with one answer."""

STALL_S = 60.0
"""Without a single chunk for so long, a transfer breaks off: 140 kbit/s is the slowest link."""


class Connection:
    """A connection to a coordinator. An async context manager; nothing is dialled before the first call.

    Args:
        address: `host:port`.
        credentials: from `options.channel_credentials`.
        server_name: DNS name in the coordinator's certificate.
        proxy: `host:port` of an HTTP CONNECT proxy, None for none.
    """

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials, server_name: str, proxy: str | None = None
    ) -> None:
        self.address = address
        self._book: epochs.EpochBook | None = None
        self._channel = grpc.aio.secure_channel(
            address, credentials, options=options.channel_options(server_name, proxy)
        )

    async def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        await self._channel.close(None)

    def follow(self, book: epochs.EpochBook) -> None:
        """From now on every call shows the epoch in `book`, and no answer of an earlier one counts."""
        self._book = book

    def _open(self, call: Call, timeout_s: float | None) -> Callable[..., Any]:
        """The call's gRPC object, with bytes for messages and its deadline bound."""
        kind = ("stream" if call.client_streaming else "unary") + (
            "_stream" if call.server_streaming else "_unary"
        )
        method = getattr(self._channel, kind)(call.path)
        shown = epochs.write(None if self._book is None else self._book.epoch_shown())
        return lambda *request: method(*request, timeout=timeout_s, metadata=shown)

    async def _hear(self, rpc: Any) -> None:
        """Hold the epoch of whoever answers against the highest seen; it comes before the answer."""
        if self._book is not None:
            self._book.epoch_seen(epochs.read(await rpc.initial_metadata()))

    def _hear_refusal(self, error: grpc.aio.AioRpcError) -> None:
        """As `_hear`, for a call that failed; if only its transport did, nobody has answered."""
        shown = epochs.read(error.initial_metadata()) or epochs.read(error.trailing_metadata())
        if self._book is not None and (shown is not None or _said_by_fedtrain(error)):
            self._book.epoch_seen(shown)

    @contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self._hear_refusal(error)
            raise from_rpc_error(error, f"{what} with {self.address}") from error
        except grpc.aio.UsageError as error:
            raise UnreachableError(f"{what} with {self.address}: the connection was closed here") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: gRPC raises this where `close` has cancelled the call.
            raise UnreachableError(f"{what} with {self.address}: the connection was closed here") from error

    async def _ask(self, call: Call, request: object, kind: type[T], timeout_s: float = ANSWER_S) -> T:
        with self._translating(f"{call.service}.{call.method}"):
            rpc = self._open(call, timeout_s)(convert.encode(request))
            raw = await rpc
            await self._hear(rpc)
        return convert.decode(kind, raw)

    async def _stream(
        self, call: Call, request: bytes, timeout_s: float, stall_s: float | None = STALL_S
    ) -> AsyncIterator[bytes]:
        """Raw messages of a server stream; ends only when the coordinator said that it was complete."""
        what = f"{call.service}.{call.method}"
        with self._translating(what):
            stream = self._open(call, timeout_s)(request)
            try:
                raw = await in_time(stream.read(), what, stall_s)
                await self._hear(stream)
                while raw is not END:
                    yield raw
                    raw = await in_time(stream.read(), what, stall_s)
            finally:
                stream.cancel()


async def in_time(step: Any, what: str, stall_s: float | None = STALL_S) -> Any:
    """One step of a transfer; `UnreachableError` if it does not come within `stall_s`."""
    try:
        async with asyncio.timeout(stall_s):
            return await step
    except TimeoutError as error:
        raise UnreachableError(
            f"{what}: nothing moved for {stall_s:.0f} s; check the link and try again: it goes on from there"
        ) from error


def _said_by_fedtrain(error: grpc.aio.AioRpcError) -> bool:
    """Whether a coordinator said this; else its transport, or a proxy, did."""
    trailing: Any = error.trailing_metadata()
    return any(key == CODE_KEY for key, _ in trailing or ())
