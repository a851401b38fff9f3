"""Blobs out and blobs in. An upload counts only at its commit.

Out: any blob on the way to a version, to the sites of its run. In: the blob that answers an order,
resumable at the byte, checked whole, journaled, and only then acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fedtrain.coordinator.hub import Hub
from fedtrain.core import events as ev
from fedtrain.core import messages as msg
from fedtrain.core.cohort import expected_sites
from fedtrain.core.orders import Order, OrderKind, parse_order_id
from fedtrain.core.state import Acknowledged
from fedtrain.core.uploads import Admission, Answer, admit
from fedtrain.errors import (
    BadSignature,
    BadUpdate,
    Equivocation,
    IntegrityError,
    LocalError,
    NotFoundError,
    StaleRound,
    UnknownSite,
)
from fedtrain.methods.codecs import codec
from fedtrain.methods.updatefile import HEADER_BYTES_MAX, UpdateFacts, inspect
from fedtrain.storage.blobs import Upload
from fedtrain.trust import statements
from fedtrain.wire.chunks import FrameCache
from fedtrain.wire.values import Caller

_log = logging.getLogger(__name__)

WEIGHT_MAX = 1 << 53
"""Largest weight that a float64 holds exactly."""

MOVED_EVERY_MS = 100
"""Between two signs of progress of one upload; far below any patience."""

MODEL_BYTES_MAX = 1 << 42
"""Largest initial model: 4 TiB, above any disk that this version will meet."""


@dataclass
class Incoming:
    """One upload under way. The lock keeps an old and a new stream of one site apart."""

    upload: Upload
    order: Order
    lock: asyncio.Lock


class Transfers:
    """Implements the wire's `TransferHandler`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._frames = FrameCache()
        self._incoming: dict[tuple[str, str], Incoming] = {}
        self._moved_ms: dict[str, int] = {}

    async def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        """Frames of a blob that the caller's runs name."""
        size_bytes = self._size_on_offer(caller.name, digest)
        path = self._hub.blobs.path(digest)
        async for frame in self._frames.read(digest, path, size_bytes, offset):
            yield frame

    def _size_on_offer(self, site: str, digest: str) -> int:
        for run in self._hub.state.runs.values():
            if run.model is not None and site in expected_sites(self._hub.state, run.spec):
                for _, blob, size_bytes in run.model.ref.chain:
                    if blob == digest:
                        return size_bytes
        raise NotFoundError(f"no blob {digest[:12]} for {site}: ask for the newest version")

    async def offer(self, caller: Caller, offer: msg.Offer) -> msg.Missing:
        """What is still missing of the offered blob; nothing if it was acknowledged before."""
        answer = self._admit(caller.name, offer.order, offer.digest)
        if answer.order is None:
            return msg.Missing(offer.size_bytes, offer.size_bytes)
        self._check_size(answer.order, offer.size_bytes)
        key = (caller.name, offer.digest)
        known = self._incoming.get(key)
        if known is None:
            for other in [k for k in self._incoming if k[0] == caller.name and k != key]:
                # One answer at a time: a site that starts over leaves nothing of its last try open.
                self._incoming.pop(other).upload.abandon()
            upload = await asyncio.to_thread(self._hub.blobs.begin, offer.digest, offer.size_bytes)
            known = self._incoming.setdefault(key, Incoming(upload, answer.order, asyncio.Lock()))
        known.order = answer.order
        self._hub.pulse.move(caller.name, offer.order, answer.order.patience_ms)
        return msg.Missing(known.upload.received, offer.size_bytes)

    def _check_size(self, order: Order, size_bytes: int) -> None:
        """An update's size follows from the layout, so a wrong one is refused before a byte comes."""
        if order.kind is OrderKind.SEED:
            if not 0 < size_bytes <= MODEL_BYTES_MAX:
                raise BadUpdate(f"an initial model of {size_bytes} bytes is not accepted")
            return
        model = self._hub.state.runs[order.run].model
        assert model is not None, "a training order has a model"
        payload = codec(order.codec).encoded_bytes(model.num_elements)
        if not payload < size_bytes <= payload + HEADER_BYTES_MAX:
            raise BadUpdate(
                f"the update for {order.id} has {size_bytes} bytes, but {model.num_elements} values take "
                f"{payload} as {order.codec}, and a header at most {HEADER_BYTES_MAX}"
            )

    async def send(
        self, caller: Caller, digest: str, pieces: AsyncIterator[tuple[int, memoryview]]
    ) -> msg.Missing:
        """Take pieces in; how the stream ends proves nothing."""
        incoming = self._incoming.get((caller.name, digest))
        if incoming is None:
            raise StaleRound("nothing was offered with this digest: offer it again")
        writing: asyncio.Task[None] | None = None
        try:
            async for offset, data in pieces:
                if writing is not None:
                    await writing
                # Hashed and written while the next piece comes.
                writing = asyncio.create_task(self._write(incoming, offset, data))
                self._moved(caller.name, incoming.order)
        finally:
            if writing is not None:
                await writing
        return msg.Missing(incoming.upload.received, incoming.upload.size_bytes)

    @staticmethod
    async def _write(incoming: Incoming, offset: int, data: memoryview) -> None:
        async with incoming.lock:
            await asyncio.to_thread(incoming.upload.write, offset, data)

    def _moved(self, site: str, order: Order) -> None:
        """Bytes are progress. Said now and then: a fast link brings thousands of pieces a second."""
        now_ms = self._hub.clock.monotonic_ms()
        if now_ms - self._moved_ms.get(site, 0) >= MOVED_EVERY_MS:
            self._moved_ms[site] = now_ms
            self._hub.pulse.hear(site)
            self._hub.pulse.move(site, order.id, order.patience_ms)

    async def commit(self, caller: Caller, commit: msg.Commit) -> msg.Receipt:
        """Make an upload count: whole, signed, sound, journaled; then acknowledged."""
        answer = self._admit(caller.name, commit.order, commit.digest)
        if answer.acknowledged is not None:
            return self._receipt(answer.acknowledged)
        order = answer.order
        assert order is not None, "a welcome upload has its order"
        self._check_signature(caller.name, commit)
        incoming = self._incoming.get((caller.name, commit.digest))
        if incoming is None:
            raise StaleRound("nothing was offered with this digest: offer it again")
        self._hub.held.add(commit.digest)
        try:
            async with incoming.lock:
                await asyncio.to_thread(incoming.upload.commit)
                self._incoming.pop((caller.name, commit.digest), None)
            event = await self._inspected(order, commit)
            # The round may have closed while the bytes were checked: ask again, now for good.
            answer = self._admit(caller.name, commit.order, commit.digest)
            if answer.acknowledged is None:
                self._hub.submit(event)
                _log.info("%s: %s of %d bytes is stored", order.id, order.kind, commit.size_bytes)
        except (BadUpdate, IntegrityError) as error:
            self._reject(order, commit.digest, str(error))
            raise
        finally:
            self._hub.held.discard(commit.digest)
        receipt = self._hub.state.runs[order.run].receipts.get(caller.name)
        if receipt is None or receipt.order != order.id:
            raise LocalError(f"{order.id} was admitted and then not acknowledged")
        return self._receipt(receipt)

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
        facts = self._facts(order)
        norm = await asyncio.to_thread(inspect, self._hub.blobs.path(commit.digest), facts)
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
        match answer.admission:
            case Admission.UNKNOWN:
                raise UnknownSite(answer.reason)
            case Admission.STALE:
                raise StaleRound(answer.reason)
            case Admission.EQUIVOCATION:
                event = ev.UpdateRejected(self._hub.clock.now_ms(), order, digest, answer.reason)
                self._hub.submit(event)
                raise Equivocation(answer.reason)
            case _:
                return answer

    def _check_signature(self, site: str, commit: msg.Commit) -> None:
        statement = statements.Commit(
            run=parse_order_id(commit.order)[0],
            order=commit.order,
            digest=commit.digest,
            size_bytes=commit.size_bytes,
            weight=commit.weight,
            steps=commit.steps,
        )
        try:
            signature = bytes.fromhex(commit.signature)
        except ValueError as error:
            raise BadSignature(f"the commit of {commit.order} carries no signature") from error
        statements.verify(statement, self._hub.state.members[site].message_key, signature)

    def _reject(self, order: Order, digest: str, reason: str) -> None:
        _log.warning("%s: rejected: %s", order.id, reason)
        self._hub.submit(ev.UpdateRejected(self._hub.clock.now_ms(), order.id, digest, reason))

    def _receipt(self, kept: Acknowledged) -> msg.Receipt:
        """The signed receipt. The same acknowledgement gives the same bytes: Ed25519 has no chance in it."""
        statement = statements.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms)
        signature = statements.sign(statement, self._hub.keys.message_key).hex()
        return msg.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms, signature)
