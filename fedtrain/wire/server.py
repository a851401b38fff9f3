"""The coordinator's end: handlers in, gRPC services out. Everything of gRPC's server stays here.

Every call is judged before its first byte is read, every request is held to its bounds before a
handler sees it, and whatever a handler raises becomes the status of the call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from fedtrain.core import canonical, messages as core
from fedtrain.core.spec import RunSpec
from fedtrain.errors import ConfigError, FedtrainError
from fedtrain.wire import chunks, convert, epochs, moments, options
from fedtrain.wire.calls import Call, call, closing
from fedtrain.wire.handlers import (
    EpochHandler,
    Handlers,
    Judge,
    MembersHandler,
    OperationsHandler,
    SessionHandler,
    TransferHandler,
)
from fedtrain.wire.live import LiveCalls, RefusalLog
from fedtrain.wire.status import Answering
from fedtrain.wire.v1 import operations_pb2
from fedtrain.wire.values import (
    CHUNK_BYTES,
    Caller,
    Document,
    Everything,
    ExportRequest,
    FetchRequest,
    HealthRequest,
    HealthResponse,
    InviteLine,
    InviteOrder,
    InviteRequest,
    JournalRequest,
    MemberName,
    Registration,
    RollOverOrder,
    RunName,
    SigningRequest,
    Spec,
    Verdict,
    VersionOrder,
)

Q = TypeVar("Q")
A = TypeVar("A")

_SERVING = 1

_log = logging.getLogger(__name__)


async def open_server(
    address: str,
    credentials: grpc.ServerCredentials,
    handlers: Handlers,
    judge: Judge,
    live: LiveCalls | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A started server and its port. `address` is `host:port`; port 0 takes a free one.

    `live` gets every call that the judge admits, for as long as it lasts.

    Raises `ConfigError` if the address cannot be had.
    """
    server = grpc.aio.server(options=options.server_options())
    add_services(server, handlers, judge, live)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {address}: another process may hold the port, or the host is not this "
            "machine's; choose another address or stop the other process"
        ) from error
    await server.start()
    return server, port


def add_services(
    server: grpc.aio.Server, handlers: Handlers, judge: Judge, live: LiveCalls | None = None
) -> None:
    """Registers all services of the protocol, and grpc.health.v1.Health, on a server."""
    desk = _Desk(judge, handlers.epochs, LiveCalls() if live is None else live)
    operations = handlers.operations
    routes = [
        desk.answer(call("Enrolment", "Enrol"), SigningRequest, handlers.enrolment.enrol),
        desk.answer(call("Enrolment", "Renew"), SigningRequest, handlers.enrolment.renew),
        desk.converse(call("Session", "Attend"), handlers.session),
        desk.stream(call("Transfer", "Fetch"), FetchRequest, _fetching(handlers.transfer)),
        desk.answer(call("Transfer", "Offer"), core.Offer, handlers.transfer.offer),
        desk.take(call("Transfer", "Send"), handlers.transfer),
        desk.answer(call("Transfer", "Commit"), core.Commit, _to_its_end(handlers.transfer.commit)),
        desk.answer(call("Operations", "MakeInvite"), InviteRequest, _inviting_plainly(handlers.members)),
        desk.answer(call("Operations", "Invite"), InviteOrder, _inviting(handlers.members)),
        desk.stream(call("Operations", "Watch"), RunName, _watching(operations)),
        desk.stream(call("Operations", "Export"), ExportRequest, _exporting(operations)),
        desk.stream(call("Operations", "Journal"), JournalRequest, _journaling(operations)),
        desk.answer(call("Health", "Check"), HealthRequest, _health),
    ]
    for method, (kind, handle) in {**_documents(operations), **_verdicts(handlers.members)}.items():
        routes.append(desk.stream(call("Operations", method), kind, _in_parts(handle)))
    server.add_generic_rpc_handlers((_Routes(dict(routes)),))


class _Routes(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # only the stubs know parameters
    """Path of a call -> its gRPC handler."""

    def __init__(self, by_path: dict[str, Any]) -> None:
        self._by_path = by_path

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """gRPC's look-up; None is answered with UNIMPLEMENTED."""
        return self._by_path.get(handler_call_details.method)


class _Desk:
    """Builds the gRPC handler of each kind of call. Requests and answers are bytes to gRPC, because
    what is malformed should be answered by us, in words."""

    def __init__(self, judge: Judge, epochs: EpochHandler | None, live: LiveCalls) -> None:
        self._judge = judge
        self._epochs = epochs
        self._live = live
        self._refusals = RefusalLog()

    def answer(
        self, call: Call, kind: type[Q], handle: Callable[[Caller, Q], Awaitable[Any]]
    ) -> tuple[str, Any]:
        """One request, one answer."""

        async def run(raw: bytes, context: Any) -> bytes:
            async with self._admitted(context, call) as caller:
                return convert.encode(await handle(caller, convert.decode(kind, raw)))

        return call.path, grpc.unary_unary_rpc_method_handler(run)

    def stream(
        self, call: Call, kind: type[Q], handle: Callable[[Caller, Q], AsyncIterator[bytes]]
    ) -> tuple[str, Any]:
        """One request, a stream of serialised messages."""

        async def run(raw: bytes, context: Any) -> None:
            async with (
                self._admitted(context, call) as caller,
                closing(handle(caller, convert.decode(kind, raw))) as messages,
            ):
                async for message in messages:
                    await context.write(message)

        return call.path, grpc.unary_stream_rpc_method_handler(run)

    def take(self, call: Call, transfer: TransferHandler) -> tuple[str, Any]:
        """A stream of chunks, one answer."""

        async def run(frames: AsyncIterator[bytes], context: Any) -> bytes:
            async with self._admitted(context, call) as caller:
                digest, pieces = await chunks.read_upload(frames)
                async with closing(pieces):
                    return convert.encode(await transfer.send(caller, digest, pieces))

        return call.path, grpc.stream_unary_rpc_method_handler(run)

    def converse(self, call: Call, session: SessionHandler) -> tuple[str, Any]:
        """A stream each way, for as long as both like."""

        async def read(raws: AsyncIterator[bytes]) -> AsyncIterator[core.FromPeer]:
            async for raw in raws:
                yield convert.decode_from_peer(raw)

        async def run(raws: AsyncIterator[bytes], context: Any) -> None:
            async with (
                self._admitted(context, call) as caller,
                closing(session.attend(caller, read(raws))) as messages,
            ):
                async for epoch, message in messages:
                    await context.write(convert.encode_to_peer(epoch, message))

        return call.path, grpc.stream_stream_rpc_method_handler(run)

    @asynccontextmanager
    async def _admitted(self, context: Any, call: Call) -> AsyncIterator[Caller]:
        """Around a call: our epoch goes out first, then the caller is judged and theirs is heard.

        An answer, or a refusal, that was under way when another coordinator took over is not given.
        """
        ours = epochs.write(self._epochs.proof()) if self._epochs is not None else ()
        # A refusal says it once more at its end: grpc.aio may lose the beginning of a stream that is refused.
        async with Answering(context, call.path, ours):
            if self._epochs is not None:
                await context.send_initial_metadata((*ours, *moments.write()))
                self._epochs.check()
            caller = self._admit(context, call)
            shown = epochs.read(context.invocation_metadata())
            async with self._live.holding(caller, f"{call.service}.{call.method}"):
                if self._epochs is None:
                    yield caller
                    return
                if shown is not None:
                    self._epochs.hear(caller, shown)
                try:
                    yield caller
                except Exception:
                    self._epochs.check()
                    raise
                self._epochs.check()

    def _admit(self, context: Any, call: Call) -> Caller:
        """Who calls; a refusal is logged with its address, which is all that tells strangers apart."""
        try:
            caller = self._judge(context.auth_context(), call.service, call.method)
        except FedtrainError as error:
            self._refusals.log(f"{call.service}.{call.method} from {context.peer()}", error)
            raise
        return replace(caller, address=context.peer())


def _to_its_end(handle: Callable[[Caller, Q], Awaitable[A]]) -> Callable[[Caller, Q], Awaitable[A]]:
    """The handler, shielded: once begun it ends, whether its caller still waits or not."""
    running: set[asyncio.Task[A]] = set()  # asyncio itself holds tasks only weakly

    def forget(task: asyncio.Task[A]) -> None:
        running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.info("a shielded call ended with: %s", task.exception())

    async def run(caller: Caller, request: Q) -> A:
        task = asyncio.ensure_future(handle(caller, request))
        running.add(task)
        task.add_done_callback(forget)
        return await asyncio.shield(task)

    return run


def _fetching(transfer: TransferHandler) -> Callable[[Caller, FetchRequest], AsyncIterator[bytes]]:
    return lambda caller, request: transfer.fetch(caller, request.digest, request.offset)


def _inviting(members: MembersHandler) -> Callable[[Caller, InviteOrder], Awaitable[InviteLine]]:
    async def run(caller: Caller, order: InviteOrder) -> InviteLine:
        return InviteLine(await members.invite(caller, order))

    return run


def _inviting_plainly(members: MembersHandler) -> Callable[[Caller, InviteRequest], Awaitable[InviteLine]]:
    """As operators of 1.0 invite: the site is its own organisation."""

    async def run(caller: Caller, request: InviteRequest) -> InviteLine:
        order = InviteOrder(request.name, request.role, request.valid_s)
        return InviteLine(await members.invite(caller, order))

    return run


def _watching(operations: OperationsHandler) -> Callable[[Caller, RunName], AsyncIterator[bytes]]:
    return lambda caller, request: _as_documents(operations.watch(caller, request.run))


def _journaling(operations: OperationsHandler) -> Callable[[Caller, JournalRequest], AsyncIterator[bytes]]:
    return lambda caller, request: _as_documents(operations.journal(caller, request.after))


async def _as_documents(found: AsyncIterator[Document]) -> AsyncIterator[bytes]:
    async with closing(found) as documents:
        async for document in documents:
            yield operations_pb2.Document(json=canonical.encode(document)).SerializeToString()


def _exporting(operations: OperationsHandler) -> Callable[[Caller, ExportRequest], AsyncIterator[bytes]]:
    async def run(caller: Caller, request: ExportRequest) -> AsyncIterator[bytes]:
        export = await operations.export(caller, request.run, request.version)
        head = convert.write_message(export.head)
        yield operations_pb2.ExportPart(head=head).SerializeToString()
        async with closing(export.pieces) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), CHUNK_BYTES):
                    data = piece[start : start + CHUNK_BYTES]
                    yield operations_pb2.ExportPart(data=data).SerializeToString()

    return run


def _documents(
    operations: OperationsHandler,
) -> dict[str, tuple[type[Any], Callable[[Caller, Any], Awaitable[Document]]]]:
    """Method -> (request, handler) of the calls that are answered by one document."""
    return {
        "Start": (Spec, lambda caller, request: operations.start(caller, _spec(request))),
        "Check": (Spec, lambda caller, request: operations.check(caller, _spec(request))),
        "Pause": (RunName, lambda caller, request: operations.pause(caller, request.run)),
        "Resume": (RunName, lambda caller, request: operations.resume(caller, request.run)),
        "Stop": (RunName, lambda caller, request: operations.stop(caller, request.run)),
        "Runs": (Everything, lambda caller, _: operations.runs(caller)),
        "Run": (RunName, lambda caller, request: operations.run(caller, request.run)),
        "Rounds": (RunName, lambda caller, request: operations.rounds(caller, request.run)),
        "Members": (Everything, lambda caller, _: operations.members(caller)),
        "Member": (MemberName, lambda caller, request: operations.member(caller, request.name)),
        "Models": (RunName, lambda caller, request: operations.models(caller, request.run)),
        "Rollback": (
            VersionOrder,
            lambda caller, request: operations.roll_back(caller, request.run, request.version),
        ),
        "Lineage": (
            ExportRequest,
            lambda caller, request: operations.lineage(caller, request.run, request.version),
        ),
    }


def _verdicts(
    members: MembersHandler,
) -> dict[str, tuple[type[Any], Callable[[Caller, Any], Awaitable[Document]]]]:
    """As `_documents`, about members."""
    return {
        "Revoke": (Verdict, members.revoke),
        "Quarantine": (Verdict, members.quarantine),
        "Release": (Verdict, members.release),
        "Register": (Registration, members.register),
        "RollOver": (RollOverOrder, lambda caller, order: members.roll_over(caller, order.finish)),
    }


def _spec(request: Spec) -> RunSpec:
    return canonical.decode(RunSpec, request.json)


def _in_parts(
    handle: Callable[[Caller, Q], Awaitable[Document]],
) -> Callable[[Caller, Q], AsyncIterator[bytes]]:
    async def run(caller: Caller, request: Q) -> AsyncIterator[bytes]:
        data = canonical.encode(await handle(caller, request))
        for start in range(0, len(data), CHUNK_BYTES):
            part = operations_pb2.DocumentPart(json=data[start : start + CHUNK_BYTES])
            yield part.SerializeToString()

    return run


async def _health(caller: Caller, request: HealthRequest) -> HealthResponse:
    return HealthResponse(_SERVING)
