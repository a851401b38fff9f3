"""A connection to a coordinator, and how any call is made on it.

A channel shows one certificate for as long as it lives. A member whose certificate is renewed opens a
new channel beside the old one (`Connection.move`): calls that begin take the new one, those under way
end on the old one, which is closed behind the last of them.

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
from fedtrain.wire.calls import Call, call
from fedtrain.wire.status import CODE_KEY, from_rpc_error
from fedtrain.wire.traffic import Tally
from fedtrain.wire.values import HealthRequest, HealthResponse

T = TypeVar("T")

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]

ANSWER_S = 30.0
"""For a call with one answer."""

STALL_S = 60.0
"""Without a single chunk for so long, a transfer breaks off: 140 kbit/s is the slowest link."""

_NOT_ADMITTED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
"""How a coordinator refuses whoever calls. On a retired line that says nothing about who we are now."""


class Line:
    """One channel, and how many calls are under way on it.

    Attributes:
        retired: no new calls begin on it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.retired = False
        self._calls = 0
        self._closing: asyncio.Task[None] | None = None

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """Around a call."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self.retired and not self._calls:
                self._end()

    def retire(self, left_s: float) -> None:
        """Close it behind its last call, or in `left_s`, when its certificate is not accepted any more.

        Calls that are cut off then fail as broken, so whoever made them goes on over the new channel.
        """
        self.retired = True
        if self._calls:
            asyncio.get_running_loop().call_later(max(0.0, left_s), self._end)
        else:
            self._end()

    async def close(self) -> None:
        """Close it now; calls under way are cancelled."""
        await self._end()

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it."""
        return self._closing is not None and self._closing.done()

    def _end(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.channel.close(None))
        return self._closing


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
        self._tally: Tally | None = None
        self._options = options.channel_options(server_name, proxy)
        self._line = self._dial(credentials)
        self._retired: list[Line] = []

    async def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        for line in (self._line, *self._retired):
            await line.close()

    async def move(self, credentials: grpc.ChannelCredentials, left_s: float) -> None:
        """From now on calls begin on a new channel with these credentials.

        Args:
            left_s: how long the old channel may still carry the calls that are under way on it.

        Raises `UnreachableError`, or the coordinator's refusal, if it does not answer on the new channel;
        then everything stays as it was.
        """
        line = self._dial(credentials)
        try:
            await self._ask_on(line, call("Health", "Check"), HealthRequest(""), HealthResponse, ANSWER_S)
        except BaseException:
            await line.close()
            raise
        old, self._line = self._line, line
        self._retired = [kept for kept in self._retired if not kept.closed] + [old]
        old.retire(left_s)

    def _dial(self, credentials: grpc.ChannelCredentials) -> Line:
        return Line(grpc.aio.secure_channel(self.address, credentials, options=self._options))

    def follow(self, book: epochs.EpochBook) -> None:
        """From now on every call shows the epoch in `book`, and no answer of an earlier one counts."""
        self._book = book

    def account(self, tally: Tally) -> None:
        """From now on what is said is put down there; what `send_file` sends is its caller's to put down."""
        self._tally = tally

    def _open(self, line: Line, call: Call, timeout_s: float | None) -> Callable[..., Any]:
        """The call's gRPC object, with bytes for messages and its deadline bound."""
        kind = ("stream" if call.client_streaming else "unary") + (
            "_stream" if call.server_streaming else "_unary"
        )
        method = getattr(line.channel, kind)(call.path)
        shown = epochs.write(None if self._book is None else self._book.epoch_shown())

        def begin(*request: bytes) -> Any:
            if self._tally is not None:
                self._tally.note_call(f"{call.service}.{call.method}", sum(map(len, request)))
            return method(*request, timeout=timeout_s, metadata=shown)

        return begin

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
    def _calling(self, what: str, line: Line | None = None) -> Iterator[Line]:
        """Around a call: the line that carries it; whatever gRPC raises comes out in our terms."""
        line = line or self._line
        broken = f"{what} with {self.address}: the connection was closed here"
        try:
            with line.carrying():
                yield line
        except grpc.aio.AioRpcError as error:
            self._hear_refusal(error)
            if line.retired and error.code() in _NOT_ADMITTED:
                raise UnreachableError(
                    f"{what} with {self.address}: our earlier certificate is not accepted any more; it goes "
                    "on with the renewed one"
                ) from error
            raise from_rpc_error(error, f"{what} with {self.address}") from error
        except grpc.aio.UsageError as error:
            raise UnreachableError(broken) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: gRPC raises this where `close` has cancelled the call.
            raise UnreachableError(broken) from error

    async def _ask(self, call: Call, request: object, kind: type[T], timeout_s: float = ANSWER_S) -> T:
        return await self._ask_on(None, call, request, kind, timeout_s)

    async def _ask_on(
        self, line: Line | None, call: Call, request: object, kind: type[T], timeout_s: float
    ) -> T:
        with self._calling(f"{call.service}.{call.method}", line) as carrying:
            rpc = self._open(carrying, call, timeout_s)(convert.encode(request))
            raw = await rpc
            await self._hear(rpc)
        return convert.decode(kind, raw)

    async def _stream(
        self, call: Call, request: bytes, timeout_s: float, stall_s: float | None = STALL_S
    ) -> AsyncIterator[bytes]:
        """Raw messages of a server stream; ends only when the coordinator said that it was complete."""
        what = f"{call.service}.{call.method}"
        with self._calling(what) as line:
            stream = self._open(line, call, timeout_s)(request)
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
