"""The site's and the operator's end: one object per coordinator, core values in and out.

Every call has a deadline, `attend` excepted. What goes wrong comes out as an error of
`fedtrain.errors`: the one that the coordinator raised, or `UnreachableError` if nobody answered.
All calls are safe to repeat; `fetch` and `send_file` go on where they broke off.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedtrain.core import canonical, messages as core
from fedtrain.core.spec import RunSpec
from fedtrain.errors import RemoteError, StaleEpoch, UnreachableError
from fedtrain.wire import chunks, convert, moments
from fedtrain.wire.calls import call, closing
from fedtrain.wire.connection import ANSWER_S, END, Connection, in_time
from fedtrain.wire.status import TrueStatus
from fedtrain.wire.traffic import Tally
from fedtrain.wire.v1 import operations_pb2
from fedtrain.wire.values import (
    Admission,
    Document,
    Everything,
    Export,
    ExportHead,
    ExportRequest,
    FetchRequest,
    HealthRequest,
    HealthResponse,
    InviteLine,
    InviteOrder,
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

T = TypeVar("T")

COMMIT_S = 120.0
"""For a commit, which may make gigabytes durable first."""

TRANSFER_S = 3600.0
"""For a whole transfer; a longer one breaks off and goes on from where it was."""

DOCUMENT_S = 60.0
"""For a document; to check a run, the coordinator asks its sites first."""

WATCH_S = 86_400.0
"""For a watch, which ends with its run; a longer one is opened again by the caller."""

DOCUMENT_BYTES_MAX = 256 << 20
"""Largest document that is put together from parts."""


class CoordinatorClient(Connection):
    """All calls of the protocol. An async context manager."""

    async def __aenter__(self) -> CoordinatorClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, patience_s: float = 20.0) -> None:
        """Returns once the coordinator has answered; `UnreachableError` if it has not in `patience_s`.

        The sentence then holds the transport's own reason, e.g. a refused connection or certificate.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        pause_s = 0.1
        while True:
            left_s = end - loop.time()
            try:
                await self._ask(
                    call("Health", "Check"), HealthRequest(""), HealthResponse, timeout_s=max(left_s, 0.1)
                )
                return
            except StaleEpoch:
                raise  # somebody has answered, and will say the same again
            except UnreachableError as error:
                if end - loop.time() <= pause_s:
                    raise UnreachableError(f"{error} (tried for {patience_s:.0f} s)") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    async def sound(self) -> int | None:
        """One health check: the coordinator's clock in UTC milliseconds, None if it does not tell."""
        what = "Health.Check"
        with self._calling(what) as line:
            rpc = self._open(line, call("Health", "Check"), ANSWER_S)(convert.encode(HealthRequest("")))
            await rpc
            await self._hear(rpc)
            return moments.read(await rpc.initial_metadata())

    async def enrol(self, request: SigningRequest) -> Admission:
        """The certificate for a signing request; to be called with an invite's bootstrap credentials."""
        return await self._ask(call("Enrolment", "Enrol"), request, Admission)

    async def renew(self, request: SigningRequest) -> Admission:
        """The next certificate of the member whose certificate this connection shows."""
        return await self._ask(call("Enrolment", "Renew"), request, Admission)

    async def attend(self, outgoing: AsyncIterator[core.FromPeer]) -> AsyncIterator[tuple[int, core.ToPeer]]:
        """A session: sends what `outgoing` yields, yields (epoch, message) until the coordinator ends it.

        An error that `outgoing` raises ends the session and is raised here.
        """
        with self._calling("the session") as line:
            stream = self._open(line, call("Session", "Attend"), timeout_s=None)()
            status = TrueStatus(stream)
            sending = asyncio.create_task(_pump(outgoing, stream, self._tally))
            try:
                raw = await stream.read()
                await self._hear(stream)
                while raw is not END:
                    yield convert.decode_to_peer(raw)
                    raw = await stream.read()
            except grpc.aio.AioRpcError as error:
                raise await status.of(error) from error
            finally:
                stream.cancel()
                sending.cancel()
                await asyncio.wait([sending])
                _raise_own(sending)

    async def fetch(self, digest: str, offset: int = 0) -> AsyncIterator[tuple[int, memoryview]]:
        """(offset, data) pieces of a blob from `offset` on, without gaps. The caller checks the digest."""
        request = convert.encode(FetchRequest(digest, offset))
        position = offset
        async with closing(self._stream(call("Transfer", "Fetch"), request, TRANSFER_S)) as frames:
            async for raw in frames:
                _, at, data = chunks.read_frame(raw)
                if at != position:
                    raise RemoteError(f"byte {position} of a blob was due and byte {at} came")
                yield at, data
                position += len(data)

    async def offer(self, offer: core.Offer) -> core.Missing:
        """What the coordinator lacks of the blob."""
        return await self._ask(call("Transfer", "Offer"), offer, core.Missing)

    async def send_file(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        offset: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> core.Missing:
        """Sends a file's bytes from `offset` on; `progress` gets the position reached, in bytes.

        The whole file is hashed in the same pass: `IntegrityError` if it is not `digest`, and then it
        must not be committed. Returns what the coordinator still lacks.
        """
        if offset > size_bytes:
            raise RemoteError(f"byte {offset} was asked for of a blob of {size_bytes}")
        with chunks.HashedFile(path, digest, size_bytes) as file, self._calling("the upload") as line:
            if offset == size_bytes:
                await file.check()
                return core.Missing(offset, size_bytes)
            stream = self._open(line, call("Transfer", "Send"), timeout_s=TRANSFER_S)()
            status = TrueStatus(stream)
            try:
                async with closing(file.frames(offset)) as frames:
                    async for position, raw in frames:
                        await _write(stream, raw)
                        if progress is not None:
                            progress(position)
                await stream.done_writing()
                raw = await in_time(stream, "the upload")
                await self._hear(stream)
                return convert.decode(core.Missing, raw)
            except grpc.aio.AioRpcError as error:
                raise await status.of(error) from error
            finally:
                stream.cancel()

    async def commit(self, commit: core.Commit) -> core.Receipt:
        """Makes an upload count."""
        return await self._ask(call("Transfer", "Commit"), commit, core.Receipt, timeout_s=COMMIT_S)

    async def invite(self, order: InviteOrder) -> str:
        """The line to paste."""
        return (await self._ask(call("Operations", "Invite"), order, InviteLine)).line

    async def revoke(self, verdict: Verdict) -> Document:
        """Ends a membership."""
        return await self._document("Revoke", verdict)

    async def quarantine(self, verdict: Verdict) -> Document:
        """Takes a site out of all runs."""
        return await self._document("Quarantine", verdict)

    async def release(self, verdict: Verdict) -> Document:
        """Ends a quarantine."""
        return await self._document("Release", verdict)

    async def register(self, registration: Registration) -> Document:
        """Takes in a member whose certificate was signed away from the coordinator."""
        return await self._document("Register", registration)

    async def roll_over(self, finish: bool = False) -> Document:
        """Begins, or ends, the replacement of the authority."""
        return await self._document("RollOver", RollOverOrder(finish))

    async def roll_back(self, run: str, version: int) -> Document:
        """Goes on from an earlier version."""
        return await self._document("Rollback", VersionOrder(run, version))

    async def lineage(self, run: str, version: int | None = None) -> Document:
        """Where a published version comes from, signed."""
        return await self._document("Lineage", ExportRequest(run, version))

    async def start(self, spec: RunSpec) -> Document:
        """Starts a run."""
        return await self._document("Start", Spec(canonical.encode(spec).decode()))

    async def check(self, spec: RunSpec) -> Document:
        """Asks who would refuse the run, and why."""
        return await self._document("Check", Spec(canonical.encode(spec).decode()))

    async def pause(self, run: str) -> Document:
        """Pauses a run after its round."""
        return await self._document("Pause", RunName(run))

    async def resume(self, run: str) -> Document:
        """Goes on with a paused run."""
        return await self._document("Resume", RunName(run))

    async def stop(self, run: str) -> Document:
        """Ends a run."""
        return await self._document("Stop", RunName(run))

    async def runs(self) -> Document:
        """All runs."""
        return await self._document("Runs", Everything())

    async def run(self, run: str) -> Document:
        """One run."""
        return await self._document("Run", RunName(run))

    async def rounds(self, run: str) -> Document:
        """A run's closed rounds."""
        return await self._document("Rounds", RunName(run))

    async def members(self) -> Document:
        """All members of the consortium."""
        return await self._document("Members", Everything())

    async def member(self, name: str) -> Document:
        """One member."""
        return await self._document("Member", MemberName(name))

    async def models(self, run: str) -> Document:
        """A run's published versions."""
        return await self._document("Models", RunName(run))

    async def watch(self, run: str) -> AsyncIterator[Document]:
        """The run as it is, and again after every change, until it has ended."""
        stream = self._stream(call("Operations", "Watch"), convert.encode(RunName(run)), WATCH_S, None)
        async with closing(stream) as raws:
            async for raw in raws:
                yield _parse_document(convert.parse(operations_pb2.Document, raw).json)

    async def journal(self, after: int = 0) -> AsyncIterator[Document]:
        """The coordinator's journal rows behind `after`."""
        request = convert.encode(JournalRequest(after))
        async with closing(self._stream(call("Operations", "Journal"), request, TRANSFER_S)) as raws:
            async for raw in raws:
                yield _parse_document(convert.parse(operations_pb2.Document, raw).json)

    async def export(self, run: str, version: int | None = None) -> Export:
        """A published model: its head, and its bytes, which the caller holds against the head's digest."""
        request = convert.encode(ExportRequest(run, version))
        parts = self._stream(call("Operations", "Export"), request, TRANSFER_S)
        first = await anext(parts, None)
        part = (
            operations_pb2.ExportPart() if first is None else convert.parse(operations_pb2.ExportPart, first)
        )
        if part.WhichOneof("body") != "head":
            raise RemoteError("an export began without saying what it is")
        head = convert.read_message(ExportHead, part.head)
        return Export(head, _export_pieces(parts, head))

    async def _document(self, method: str, request: object) -> Document:
        parts = []
        size_bytes = 0
        stream = self._stream(call("Operations", method), convert.encode(request), DOCUMENT_S)
        async with closing(stream) as raws:
            async for raw in raws:
                parts.append(convert.parse(operations_pb2.DocumentPart, raw).json)
                size_bytes += len(parts[-1])
                if size_bytes > DOCUMENT_BYTES_MAX:
                    raise RemoteError(f"the coordinator's answer is larger than {DOCUMENT_BYTES_MAX} bytes")
        return _parse_document(b"".join(parts))


async def _write(stream: Any, raw: bytes) -> None:
    """Sends one chunk. Once the coordinator has ended the call gladly, the rest need only be hashed."""
    try:
        await in_time(stream.write(raw), "the upload")
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await in_time(stream, "the upload")  # raises the call's status, unless it has been answered


async def _pump(outgoing: AsyncIterator[core.FromPeer], stream: Any, tally: Tally | None) -> None:
    """Writes what the site says; an error of its own ends the call, so that the reader wakes up."""
    try:
        async for message in outgoing:
            raw = convert.encode_from_peer(message)
            if tally is not None:
                tally.note(f"Session.{type(message).__name__}", len(raw))
            await stream.write(raw)
        await stream.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the call has ended; its reader learns why
    except Exception:
        stream.cancel()
        raise


def _raise_own(sending: asyncio.Task[None]) -> None:
    if not sending.cancelled() and (error := sending.exception()) is not None:
        raise error


async def _export_pieces(parts: AsyncIterator[bytes], head: ExportHead) -> AsyncIterator[bytes]:
    size_bytes = 0
    async for raw in parts:
        data = convert.parse(operations_pb2.ExportPart, raw).data
        size_bytes += len(data)
        if size_bytes > head.size_bytes:
            raise RemoteError(f"an export of {head.size_bytes} bytes goes on beyond them")
        yield data
    if size_bytes != head.size_bytes:
        raise RemoteError(f"an export of {head.size_bytes} bytes ended after {size_bytes}")


def _parse_document(data: bytes) -> Document:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the coordinator's answer is not a JSON document ({error})") from error
    if not isinstance(document, dict):
        raise RemoteError("the coordinator's answer is not a JSON object")
    return document
