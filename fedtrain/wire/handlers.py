"""What the coordinator puts behind the wire: plain async methods on core values.

A handler gets a `Caller`, whose certificate was judged when the call began, and raises errors of
`fedtrain.errors`, which the other side raises again. On a long stream the handler judges again by
itself, because a certificate may expire or be revoked meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedtrain.core import messages as core
from fedtrain.core.spec import RunSpec
from fedtrain.wire.values import (
    Admission,
    Caller,
    Document,
    EpochProof,
    Export,
    InviteOrder,
    Registration,
    SigningRequest,
    Verdict,
)

Judge = Callable[[Mapping[str, Iterable[bytes]], str, str], Caller]
"""(auth context, service, method) -> who calls; raises `RefusedError` or `RemoteError` to refuse.

Services are `Enrolment`, `Session`, `Transfer`, `Operations` and `Health`; methods as in the protos.
"""


class EnrolmentHandler(Protocol):
    """Turns invites into members."""

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        """The certificate; the same one again for the same request."""

    async def renew(self, caller: Caller, request: SigningRequest) -> Admission:
        """The caller's next certificate; the same one again for the same request."""


class SessionHandler(Protocol):
    """Holds the conversations with sites."""

    def attend(
        self, caller: Caller, incoming: AsyncIterator[core.FromPeer]
    ) -> AsyncIterator[tuple[int, core.ToPeer]]:
        """An async generator of (epoch, message). `incoming` ends when the site is gone, however it
        went; the generator is closed then, or cancelled where it waits."""


class TransferHandler(Protocol):
    """Hands out and takes in blobs."""

    def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        """An async generator of frames, as `chunks.FrameCache.read` makes them."""

    async def offer(self, caller: Caller, offer: core.Offer) -> core.Missing:
        """What is still missing of the offered blob."""

    async def send(
        self, caller: Caller, digest: str, pieces: AsyncIterator[tuple[int, memoryview]]
    ) -> core.Missing:
        """Takes (offset, data) pieces of at most a mebibyte. Their end proves nothing: the stream of a
        killed client ends in the same way."""

    async def commit(self, caller: Caller, commit: core.Commit) -> core.Receipt:
        """Makes the upload count. Runs to its end even if the caller goes away."""


class MembersHandler(Protocol):
    """Decides who belongs to the consortium, at an operator's word."""

    async def invite(self, caller: Caller, order: InviteOrder) -> str:
        """The line to paste."""

    async def revoke(self, caller: Caller, verdict: Verdict) -> Document:
        """Ends a membership, and every call that the member has under way."""

    async def quarantine(self, caller: Caller, verdict: Verdict) -> Document:
        """Takes a site out of all runs until it is released."""

    async def release(self, caller: Caller, verdict: Verdict) -> Document:
        """Ends a quarantine."""

    async def register(self, caller: Caller, registration: Registration) -> Document:
        """Takes in a member whose certificate was signed elsewhere."""

    async def roll_over(self, caller: Caller, finish: bool) -> Document:
        """Begins, or ends, the replacement of the authority."""


class OperationsHandler(Protocol):
    """Answers operators, observers and auditors with documents."""

    async def start(self, caller: Caller, spec: RunSpec) -> Document:
        """Starts a run."""

    async def check(self, caller: Caller, spec: RunSpec) -> Document:
        """Says who would refuse it and why."""

    async def pause(self, caller: Caller, run: str) -> Document:
        """Lets the round end and starts no other."""

    async def resume(self, caller: Caller, run: str) -> Document:
        """Goes on."""

    async def stop(self, caller: Caller, run: str) -> Document:
        """Ends the run for good."""

    async def runs(self, caller: Caller) -> Document:
        """All runs."""

    async def run(self, caller: Caller, run: str) -> Document:
        """One run."""

    async def rounds(self, caller: Caller, run: str) -> Document:
        """Its closed rounds."""

    async def members(self, caller: Caller) -> Document:
        """All members."""

    async def member(self, caller: Caller, name: str) -> Document:
        """One member."""

    async def models(self, caller: Caller, run: str) -> Document:
        """The published versions of a run."""

    async def roll_back(self, caller: Caller, run: str, version: int) -> Document:
        """Goes on from an earlier version."""

    async def lineage(self, caller: Caller, run: str, version: int | None) -> Document:
        """The signed statement of where a published version comes from; None is the newest."""

    def watch(self, caller: Caller, run: str) -> AsyncIterator[Document]:
        """An async generator: the run as it is now, then after every change, until it has ended."""

    async def export(self, caller: Caller, run: str, version: int | None) -> Export:
        """A published model; None is the newest."""

    def journal(self, caller: Caller, after: int) -> AsyncIterator[Document]:
        """An async generator of the rows behind `after`, as of now."""


class EpochHandler(Protocol):
    """Knows which coordinator is obeyed."""

    def proof(self) -> EpochProof:
        """The epoch of this one, as every answer shows it."""

    def hear(self, caller: Caller, shown: EpochProof) -> None:
        """Hold the epoch that a member follows against ours.

        Raises `StaleEpoch` if it is higher, after which this coordinator answers nothing more, and
        `BadSignature` if it was made up.
        """

    def check(self) -> None:
        """Raises `StaleEpoch` once another coordinator has taken over: then no answer may leave."""


@dataclass(frozen=True)
class Handlers:
    """What the coordinator puts behind the wire. Without `epochs` it says as little as protocol 1.0."""

    enrolment: EnrolmentHandler
    session: SessionHandler
    transfer: TransferHandler
    operations: OperationsHandler
    members: MembersHandler
    epochs: EpochHandler | None = None
