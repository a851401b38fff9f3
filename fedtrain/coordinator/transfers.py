"""Blobs out and blobs in. An upload counts only at its commit.

Out: any blob on the way to a version, to the sites of its run. In: the blob that answers an order,
resumable at the byte, checked whole, journaled, and only then acknowledged. What a site sends in vain
is refused in words, journaled within bounds, and never kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.intake import Incoming, Intake
from fedtrain.coordinator.refusals import Refusals
from fedtrain.coordinator.unmasking import check_masked_file, check_masked_size, masked_header
from fedtrain.core import events as ev, messages as msg
from fedtrain.core.cohort import expected_sites
from fedtrain.core.conduct import implausible
from fedtrain.core.liveness import STRIDE_BYTES, Passage, carry
from fedtrain.core.orders import Order, OrderKind, parse_order_id
from fedtrain.core.state import Acknowledged
from fedtrain.core.uploads import Admission, Answer, admit
from fedtrain.errors import (
    BadUpdate,
    BusyError,
    FedtrainError,
    IntegrityError,
    LocalError,
    NotFoundError,
    OfferAgain,
    RemoteError,
    StaleRound,
    StorageError,
)
from fedtrain.methods.codecs import codec
from fedtrain.methods.updatefile import HEADER_BYTES_MAX, UpdateFacts, inspect
from fedtrain.trust import statements
from fedtrain.wire.chunks import FrameCache
from fedtrain.wire.values import Caller

_log = logging.getLogger(__name__)

WEIGHT_MAX = 1 << 53
"""Largest weight that a float64 holds exactly."""

HEARD_EVERY_MS = 100
"""Between two signs of life from the bytes of one site; far below any patience."""

MODEL_BYTES_MAX = 1 << 42
"""Largest initial model: 4 TiB, above any disk that this version will meet."""

STREAMS_PER_SITE_MAX = 8
"""Uploads and downloads of one site at once. An agent has one or two; a broken link leaves some behind.

It is also the bound on who reads a byte a second: grpc.aio 1.85 cannot end a call while a message of it
waits to be sent, so a download that is not read keeps its place, and a frame of a mebibyte, for as long
as its connection lives.
"""


class Transfers:
    """Implements the wire's `TransferHandler`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._frames = FrameCache()
        self._incoming: dict[str, dict[str, Incoming]] = {}  # site -> digest -> upload
        self._streams: Counter[str] = Counter()
        self._heard_ms: dict[str, int] = {}
        self._refusals = Refusals(hub)

    async def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        """Frames of a blob that the caller's runs name."""
        size_bytes = self._size_on_offer(caller.name, digest)
        path = self._hub.blobs.path(digest)
        with self._place(caller.name):
            await self._prove(digest)
            async for frame in self._frames.read(digest, path, size_bytes, offset):
                yield frame

    async def _prove(self, digest: str) -> None:
        """Nothing leaves that the disk has changed. Where it lies is said in our own log only."""
        try:
            await asyncio.to_thread(self._hub.blobs.prove, digest)
        except IntegrityError as error:
            raise IntegrityError(
                f"the coordinator's disk has damaged blob {digest[:12]}: its operator has to restore it"
            ) from error

    @contextlib.contextmanager
    def _place(self, site: str) -> Iterator[None]:
        """One of the streams that a site may have; each holds a few mebibytes."""
        if self._streams[site] >= STREAMS_PER_SITE_MAX:
            raise BusyError(
                f"{site} has {STREAMS_PER_SITE_MAX} transfers under way: let one of them end first"
            )
        self._streams[site] += 1
        try:
            yield
        finally:
            self._streams[site] -= 1

    def _size_on_offer(self, site: str, digest: str) -> int:
        for run in self._hub.state.runs.values():
            if run.model is not None and site in expected_sites(self._hub.state, run.spec):
                for _, blob, size_bytes in run.model.ref.chain:
                    if blob == digest:
                        return size_bytes
        raise NotFoundError(f"no blob {digest[:12]} for {site}: ask for the newest version")

    async def offer(self, caller: Caller, offer: msg.Offer) -> msg.Missing:
        """What is still missing of the offered blob; nothing if it was acknowledged before."""
        site = caller.name
        order = self._admit(site, offer.order, offer.digest).order
        if order is None:
            return msg.Missing(offer.size_bytes, offer.size_bytes)
        self._check_size(order, offer.size_bytes)
        known = self._incoming.get(site, {}).get(offer.digest)
        if known is None:
            known = await self._begin(site, order, offer)
        now_ms = self._hub.clock.monotonic_ms()
        if known.passage.end_ms <= now_ms:  # given up before, and handed out again since
            known.passage = replace(known.passage, since_ms=now_ms)
        known.order = order
        return msg.Missing(known.upload.received, offer.size_bytes)

    async def _begin(self, site: str, order: Order, offer: msg.Offer) -> Incoming:
        """A new upload. What the site sent before for the same order is thrown away, but not its clock:
        who offers another blob every minute has moved nothing."""
        since_ms = self._hub.clock.monotonic_ms()
        uploads = self._incoming.setdefault(site, {})
        for digest, other in list(uploads.items()):
            if other.order.id == order.id and other.passage.end_ms > since_ms:
                since_ms = min(since_ms, other.passage.since_ms)
            if other.order.id == order.id or not self._awaited(site, other):
                self._drop(site, digest)
        try:
            upload = await asyncio.to_thread(self._hub.blobs.begin, offer.digest, offer.size_bytes)
        except StorageError:
            if not self._drop_unawaited():
                raise
            upload = await asyncio.to_thread(self._hub.blobs.begin, offer.digest, offer.size_bytes)
        passage = Passage(offer.size_bytes, upload.received, since_ms, order.patience_ms)
        if since_ms + order.patience_ms > self._hub.clock.monotonic_ms():
            self._hub.pulse.move(site, order.id, order.patience_ms)
        return self._incoming.setdefault(site, {}).setdefault(offer.digest, Incoming(upload, order, passage))

    def _awaited(self, site: str, incoming: Incoming) -> bool:
        found = admit(self._hub.state, site, incoming.order.id, incoming.upload.digest)
        return found.admission is Admission.WELCOME

    def _drop_unawaited(self) -> bool:
        """Free the disk of uploads that cannot count any more; whether there was one."""
        over = [
            (site, digest)
            for site, uploads in self._incoming.items()
            for digest, incoming in uploads.items()
            if not self._awaited(site, incoming)
        ]
        for site, digest in over:
            self._drop(site, digest)
        return bool(over)

    def _drop(self, site: str, digest: str) -> None:
        """Forget an upload and its bytes."""
        uploads = self._incoming.get(site, {})
        incoming = uploads.pop(digest, None)
        if incoming is not None:
            incoming.upload.discard()
        if not uploads:
            self._incoming.pop(site, None)

    def _check_size(self, order: Order, size_bytes: int) -> None:
        """An update's size follows from the layout, so a wrong one is refused before a byte comes."""
        if order.kind is OrderKind.SEED:
            if not 0 < size_bytes <= MODEL_BYTES_MAX:
                raise BadUpdate(f"an initial model of {size_bytes} bytes is not accepted")
            return
        run = self._hub.state.runs[order.run]
        model, header = run.model, masked_header(run, order)
        assert model is not None, "a training order has a model"
        if header is not None:
            check_masked_size(header, size_bytes)
            return
        payload = codec(order.codec).encoded_bytes(model.num_elements)
        if not payload < size_bytes <= payload + HEADER_BYTES_MAX:
            raise BadUpdate(
                f"the update for {order.id} has {size_bytes} bytes, but {model.num_elements} values take "
                f"{payload} as {order.codec}, and a header at most {HEADER_BYTES_MAX}"
            )

    async def send(
        self, caller: Caller, digest: str, pieces: AsyncIterator[tuple[int, memoryview]]
    ) -> msg.Missing:
        """Take pieces in; how the stream ends proves nothing.

        Raises `StaleRound` if too little comes for the order's patience (`core.liveness.carry`).
        """
        site = caller.name
        incoming = self._offered(site, digest)
        with self._place(site):
            try:
                await self._take_in(site, incoming, pieces)
            except TimeoutError as error:
                raise self._too_slow(site, incoming) from error
        return msg.Missing(incoming.upload.received, incoming.upload.size_bytes)

    def _offered(self, site: str, digest: str) -> Incoming:
        incoming = self._incoming.get(site, {}).get(digest)
        if incoming is None:
            raise OfferAgain("nothing was offered with this digest since this coordinator started")
        return incoming

    async def _take_in(
        self, site: str, incoming: Incoming, pieces: AsyncIterator[tuple[int, memoryview]]
    ) -> None:
        """Take pieces in for as long as they move the upload; `TimeoutError` when they do not."""

        def left_s() -> float:
            return max(0, incoming.passage.end_ms - self._hub.clock.monotonic_ms()) / 1000

        def wrote() -> None:
            now_ms = self._hub.clock.monotonic_ms()
            before, incoming.passage = (
                incoming.passage,
                carry(incoming.passage, incoming.upload.received, now_ms),
            )
            if incoming.passage is not before:
                self._hub.pulse.move(site, incoming.order.id, incoming.order.patience_ms)
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time() + left_s())

        async with asyncio.timeout(left_s()) as limit:
            intake = Intake(incoming, wrote)
            try:
                async for offset, data in pieces:
                    await intake.take(offset, data)
                    self._hear(site)
            finally:
                await intake.end()

    def _hear(self, site: str) -> None:
        """Bytes are a sign of life. Told now and then: a fast link brings thousands of pieces a second."""
        now_ms = self._hub.clock.monotonic_ms()
        if now_ms - self._heard_ms.get(site, 0) >= HEARD_EVERY_MS:
            self._heard_ms[site] = now_ms
            self._hub.pulse.hear(site)

    def _too_slow(self, site: str, incoming: Incoming) -> StaleRound:
        """The order is given up, whatever its heartbeats say: the round does not wait for a trickle."""
        order, passage = incoming.order, incoming.passage
        due = min(STRIDE_BYTES, passage.size_bytes - passage.marked_bytes)
        reason = f"less than {due} bytes of its upload came in {passage.patience_ms / 1000:g} s"
        _log.warning("%s: %s", order.id, reason)
        if self._awaited(site, incoming):
            self._hub.pulse.settle(site, order.id)
            self._hub.submit(ev.WorkFailed(self._hub.clock.now_ms(), order.id, reason))
        self._drop(site, incoming.upload.digest)
        return StaleRound(f"{order.id} is given up, because {reason}: check the link")

    async def commit(self, caller: Caller, commit: msg.Commit) -> msg.Receipt:
        """Make an upload count: whole, signed, sound, journaled; then acknowledged."""
        answer = self._admit(caller.name, commit.order, commit.digest)
        if answer.acknowledged is not None:
            return self._receipt(answer.acknowledged)
        order = answer.order
        assert order is not None, "a welcome upload has its order"
        self._check_signature(caller.name, commit)
        incoming = self._offered(caller.name, commit.digest)
        self._hub.held.add(commit.digest)
        try:
            await self._finish(caller.name, incoming)
            event = await self._inspected(order, commit)
            # The round may have closed while the bytes were checked: ask again, now for good.
            answer = self._admit(caller.name, commit.order, commit.digest)
            if answer.acknowledged is None:
                self._hub.submit(event)
                _log.info("%s: %s of %d bytes is stored", order.id, order.kind, commit.size_bytes)
        except (BadUpdate, IntegrityError) as error:
            self._reject(caller.name, order, commit.digest, str(error))
            raise
        finally:
            self._hub.held.discard(commit.digest)
        receipt = self._hub.state.runs[order.run].receipts.get(caller.name)
        if receipt is None or receipt.order != order.id:
            raise LocalError(f"{order.id} was admitted and then not acknowledged")
        return self._receipt(receipt)

    async def _finish(self, site: str, incoming: Incoming) -> None:
        """Make a blob of an upload. One that lacks bytes goes on; any other end is the end of this upload,
        and after a disk's refusal it begins again."""
        try:
            async with incoming.lock:
                await asyncio.to_thread(incoming.upload.commit)
        except RemoteError:
            raise
        except FedtrainError:
            self._drop(site, incoming.upload.digest)
            raise
        self._incoming.get(site, {}).pop(incoming.upload.digest, None)

    async def _inspected(self, order: Order, commit: msg.Commit) -> ev.Event:
        """The event that the blob amounts to, after a look at every value of it."""
        if order.kind is OrderKind.SEED:
            found = await asyncio.to_thread(self._hub.versions.seed, order.run, commit.digest, commit.layout)
            return ev.ModelSeeded(
                at_ms=self._hub.clock.now_ms(),
                order=order.id,
                blob=commit.digest,
                size_bytes=commit.size_bytes,
                model_digest=found.model_digest,
                layout=commit.layout,
                layout_digest=found.layout_digest,
                num_elements=found.num_elements,
            )
        if not 0 < commit.weight <= WEIGHT_MAX:
            raise BadUpdate(f"{order.id} claims a weight of {commit.weight}; 1 to {WEIGHT_MAX} is valid")
        if fault := implausible(self._hub.state.declared.get(order.site), order, commit.weight, commit.steps):
            raise BadUpdate(f"{order.id} is not credible: {fault}")
        norm = await self._norm(order, commit)
        return ev.UpdateStored(
            at_ms=self._hub.clock.now_ms(),
            order=order.id,
            blob=commit.digest,
            size_bytes=commit.size_bytes,
            weight=commit.weight,
            steps=commit.steps,
            norm=norm,
            train_loss=commit.train_loss,
            eval_loss=commit.eval_loss,
            eval_count=commit.eval_count,
            seconds=commit.seconds,
            signature=commit.signature,
        )

    async def _norm(self, order: Order, commit: msg.Commit) -> float:
        """Of an update, after a look at all of it; a masked one has none that anybody could know."""
        path = self._hub.blobs.path(commit.digest)
        header = masked_header(self._hub.state.runs[order.run], order)
        if header is None:
            return await asyncio.to_thread(inspect, path, self._facts(order))
        await asyncio.to_thread(check_masked_file, path, header, commit)
        return 0.0

    def _facts(self, order: Order) -> UpdateFacts:
        model = self._hub.state.runs[order.run].model
        assert model is not None and order.model is not None, "a training order has a model"
        return UpdateFacts(
            run=order.run,
            round=order.round,
            site=order.site,
            base_version=order.model.version,
            layout_digest=order.model.layout_digest,
            codec=order.codec,
            num_elements=model.num_elements,
        )

    def _admit(self, site: str, order: str, digest: str) -> Answer:
        """The core's answer, as an error where it is no."""
        answer = admit(self._hub.state, site, order, digest)
        if answer.admission in (Admission.WELCOME, Admission.REPEATED):
            return answer
        raise self._refusals.refuse(site, order, digest, answer)

    def _check_signature(self, site: str, commit: msg.Commit) -> None:
        statement = statements.Commit(
            run=parse_order_id(commit.order)[0],
            order=commit.order,
            digest=commit.digest,
            size_bytes=commit.size_bytes,
            weight=commit.weight,
            steps=commit.steps,
        )
        signature = statements.signature_bytes(commit.signature, f"the commit of {commit.order}")
        statements.verify(statement, self._hub.state.members[site].message_key, signature)

    def _reject(self, site: str, order: Order, digest: str, reason: str) -> None:
        _log.warning("%s: rejected: %s", order.id, reason)
        self._drop(site, digest)
        self._hub.pulse.settle(site, order.id)
        self._hub.submit(ev.UpdateRejected(self._hub.clock.now_ms(), order.id, digest, reason))

    def _receipt(self, kept: Acknowledged) -> msg.Receipt:
        """The signed receipt. The same acknowledgement gives the same bytes: Ed25519 has no chance in it."""
        statement = statements.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms)
        signature = statements.sign(statement, self._hub.keys.message_key).hex()
        return msg.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms, signature)
