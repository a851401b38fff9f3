"""Errors across the wire: a class of `fedtrain.errors` here is the same class, same sentence, there.

The gRPC status is the one that the error names, the details are its sentence, and the trailing
metadata `fedtrain-code` is its machine code; a busy side adds `fedtrain-retry-after-ms`. What carries
no such code was said by a transport, not by fedtrain: the connection broke, the call ran out of time,
or a limit was hit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

import grpc

from fedtrain import errors
from fedtrain.errors import (
    BusyError,
    FedtrainError,
    LocalError,
    RefusedError,
    RemoteError,
    UnreachableError,
)

CODE_KEY = "fedtrain-code"
RETRY_KEY = "fedtrain-retry-after-ms"

RETRY_MS_MAX = 600_000
"""A side that asks for a longer wait is obeyed so far."""

SENTENCE_LENGTH_MAX = 2000
"""Characters of a sentence that travel: gRPC cuts trailing metadata off at 8 KiB, three bytes each."""

_CLASSES: dict[str, type[FedtrainError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FedtrainError)
}

_OUR_FAULT = "the coordinator met an error of its own, which its log describes: tell its operator the time"

_SETTLE_S = 1.0
"""A call's true status follows its broken write within a millisecond, or never."""

_log = logging.getLogger(__name__)


def printable(text: str) -> str:
    """The other side's text on one line, without control characters, at most a screenful."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:SENTENCE_LENGTH_MAX])


class Answering:
    """Around a handler at the server: whatever it raises becomes the status of the call.

    Our own bugs are logged here with their traceback; of them the other side learns nothing more.

    Args:
        context: the call's `grpc.aio.ServicerContext`.
        call: its name, for the log.
        beside: more trailing metadata of a refusal.
    """

    def __init__(self, context: Any, call: str, beside: tuple[tuple[str, str], ...] = ()) -> None:
        self._context = context
        self._call = call
        self._beside = beside

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Aborts the call on an error, which raises; a cancellation goes its own way."""
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            return
        if not isinstance(error, FedtrainError) or isinstance(error, LocalError):
            _log.error("%s failed", self._call, exc_info=error)
            error = LocalError(_OUR_FAULT)
        await self._context.abort(
            grpc.StatusCode[error.status],
            printable(str(error)),
            trailing_metadata=(*_metadata_of(error), *self._beside),
        )


def from_rpc_error(error: grpc.aio.AioRpcError, doing: str) -> FedtrainError:
    """The error that the other side meant, or what its transport's refusal means for us.

    Args:
        error: as a `grpc.aio` call raised it.
        doing: what was tried and with whom, to open the sentence where fedtrain gave none.
    """
    code = _code_of(error)
    details = printable(error.details() or "")
    if code is not None:
        kind = _CLASSES.get(code, _nearest(error.code()))
        return BusyError(details, _retry_after_ms(error)) if kind is BusyError else kind(details)
    status = error.code()
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RemoteError(f"{doing}: over a limit of the transport ({details})")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return RemoteError(f"{doing}: the coordinator does not know this call; compare both versions")
    if status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return RefusedError(f"{doing}: refused ({details})")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError(f"{doing}: no answer in time; check the link and the coordinator's load")
    return UnreachableError(
        f"{doing}: nobody answered, or the connection broke ({details or status.name}); check the address, "
        "that the coordinator runs, and the certificates and clocks of both sides"
    )


class TrueStatus:
    """The status with which the other side ended a call that was still being written to.

    In grpcio 1.85 a write that loses against the end of its call puts "Internal error from Core" in
    the place of the call's status, before the true one has come or over it. So the first status is
    noted the moment it is set, and where that is the internal error, the next one is waited for.

    Args:
        call: the `grpc.aio` call, just opened.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The error that the other side sent, or `error` if it sent none within `_SETTLE_S`."""
        if self._first is not None and not _is_internal(self._first):
            return self._first
        deadline_s = time.monotonic() + _SETTLE_S
        while _is_internal(error) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
            error = self._read()
        return error

    def _note(self, _: Any) -> None:
        self._first = self._read()

    def _read(self) -> grpc.aio.AioRpcError:
        """The present status of a call that is done: its coroutines end in their first step."""
        call = self._call
        return grpc.aio.AioRpcError(
            _value_now(call.code()),
            _value_now(call.initial_metadata()),
            _value_now(call.trailing_metadata()),
            details=_value_now(call.details()),
            debug_error_string=_value_now(call.debug_error_string()),
        )


def _is_internal(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and _code_of(error) is None


def _value_now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise LocalError("the status of a gRPC call was read before the call had ended")


def _metadata_of(error: FedtrainError) -> tuple[tuple[str, str], ...]:
    """What goes beside the sentence of an error."""
    code = (CODE_KEY, error.code)
    return (code, (RETRY_KEY, str(error.retry_after_ms))) if isinstance(error, BusyError) else (code,)


def _code_of(error: grpc.aio.AioRpcError) -> str | None:
    return _trailing(error, CODE_KEY)


def _retry_after_ms(error: grpc.aio.AioRpcError) -> int:
    """0 to `RETRY_MS_MAX`, whatever the other side wrote."""
    told = _trailing(error, RETRY_KEY) or ""
    return min(int(told), RETRY_MS_MAX) if told.isascii() and told.isdigit() and len(told) < 10 else 0


def _trailing(error: grpc.aio.AioRpcError, wanted: str) -> str | None:
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == wanted and isinstance(value, str):
            return value
    return None


def _nearest(status: grpc.StatusCode) -> type[FedtrainError]:
    """The class for a code that only a newer version knows."""
    if status is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError
    return RefusedError if status is grpc.StatusCode.PERMISSION_DENIED else RemoteError
