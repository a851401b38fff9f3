"""Blobs out of a coordinator and blobs into it. An upload counts only at its commit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtrain.core import events as ev, messages as msg
from fedtrain.core.cohort import expected_sites
from fedtrain.core.conduct import implausible
from fedtrain.core.masks import is_masked, ring_bits
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.uploads import Admission, admit
from fedtrain.errors import IntegrityError, RemoteError
from fedtrain.sim.calls import Fetch, Part, Piece, Refusal, Request, Response
from fedtrain.sim.numbers import LAYOUT, Version, digest_of, norm_of, to_vector
from fedtrain.sim.process import Place
from fedtrain.sim.veils import width

if TYPE_CHECKING:
    from fedtrain.sim.coordinator import Coordinator

WEIGHT_MAX = 1 << 53
PIECE_BYTES = 24
"""Of a download; a model of a world has 16 to 64 bytes."""

NO_SPACE = Refusal("no space is left", again=True)


@dataclass(frozen=True)
class Incoming:
    """An upload under way: what it answers and how large it will be."""

    order: Order
    size_bytes: int


class Intake:
    """Of one life: which uploads are open. Their bytes lie on the owner's disk.

    Attributes:
        held: blobs that are being taken in right now and must not be collected.
    """

    def __init__(self, owner: Coordinator) -> None:
        self._owner = owner
        self._incoming: dict[tuple[str, str], Incoming] = {}
        self.held: set[str] = set()

    @property
    def offered(self) -> set[str]:
        """Digests of the uploads that are open."""
        return {digest for _, digest in self._incoming}

    def answer(self, site: str, request: Request) -> None:
        """Answer one call, now or when its work is done."""
        match request.body:
            case Fetch():
                self._fetch(site, request, request.body)
            case msg.Offer():
                self._offer(site, request, request.body)
            case Piece():
                self._take(site, request, request.body)
            case msg.Commit():
                self._commit(site, request, request.body)

    def _respond(self, site: str, request: Request, body: Part | msg.Missing | msg.Receipt | Refusal) -> None:
        owner = self._owner
        owner.respond(site, Response(request.call, owner.state.epoch, body))

    # -- out ------------------------------------------------------------------------------------------

    def _fetch(self, site: str, request: Request, fetch: Fetch) -> None:
        """The next bytes of a blob that leads to a newest version."""
        owner = self._owner
        data = owner.disk.store.blobs.get(fetch.digest) if self._on_offer(site, fetch.digest) else None
        if data is None:
            if site not in owner.state.quarantined:
                owner.history.lacks(fetch.digest)
            self._respond(site, request, Refusal("no such blob"))
            return
        end = fetch.offset + PIECE_BYTES
        part = Part(fetch.digest, len(data), fetch.offset, data[fetch.offset : end])
        self._respond(site, request, part)

    def _on_offer(self, site: str, digest: str) -> bool:
        return any(
            run.model is not None
            and site in expected_sites(self._owner.state, run.spec)
            and any(blob == digest for _, blob, _ in run.model.ref.chain)
            for run in self._owner.state.runs.values()
        )

    # -- in -------------------------------------------------------------------------------------------

    def _offer(self, site: str, request: Request, offer: msg.Offer) -> None:
        """What is still missing of the offered blob; nothing if it was acknowledged before."""
        order, repeated = self._admit(site, request, offer.order, offer.digest)
        if repeated:
            self._respond(site, request, msg.Missing(offer.size_bytes, offer.size_bytes))
        if order is None:
            return
        num_elements = self._owner.scene.plan.num_elements
        expected = 4 * (width(order, num_elements) if is_masked(order) else num_elements)
        if offer.size_bytes != expected:
            self._respond(site, request, Refusal(f"{offer.size_bytes} bytes offered, {expected} expected"))
            return
        if self._full("offer"):
            self._respond(site, request, NO_SPACE)
            return
        known = [key for key, incoming in self._incoming.items() if incoming.order.id == order.id]
        for key in known:
            del self._incoming[key]  # one answer to an order at a time
        self._incoming[site, offer.digest] = Incoming(order, offer.size_bytes)
        if not known:
            self._owner.sessions.expect(order)  # offers without bytes are no progress
        received = self._owner.disk.store.received(offer.digest)
        self._respond(site, request, msg.Missing(received, offer.size_bytes))

    def _take(self, site: str, request: Request, piece: Piece) -> None:
        """Some bytes, perhaps not for the first time."""
        owner = self._owner
        owner.fuse.reach(Place.AMID_TRANSFER)
        incoming = self._incoming.get((site, piece.digest))
        if incoming is None:
            self._respond(site, request, Refusal("nothing was offered with this digest", again=True))
            return
        if self._full("chunk"):
            self._respond(site, request, NO_SPACE)
            return
        store, before = owner.disk.store, owner.disk.store.received(piece.digest)
        try:
            received = store.write(piece.digest, incoming.size_bytes, piece.offset, piece.data)
        except RemoteError:
            received = before
        if received > before:
            owner.sessions.expect(incoming.order)
        self._respond(site, request, msg.Missing(received, incoming.size_bytes))

    def _commit(self, site: str, request: Request, commit: msg.Commit) -> None:
        """Make it a blob, look at every value, ask again, journal, and only then acknowledge."""
        owner = self._owner
        order, repeated = self._admit(site, request, commit.order, commit.digest)
        if repeated:
            self._receipt(site, request, commit.order)
        if order is None:
            return
        incoming = self._incoming.get((site, commit.digest))
        if incoming is None or incoming.order.id != order.id:
            self._respond(site, request, Refusal("nothing was offered with this digest", again=True))
            return
        if self._full("commit"):
            owner.disk.store.discard_partial(commit.digest)
            del self._incoming[site, commit.digest]
            self._respond(site, request, NO_SPACE)
            return
        try:
            owner.disk.store.commit(commit.digest, incoming.size_bytes)
        except IntegrityError as error:
            del self._incoming[site, commit.digest]
            self._reject(site, request, commit, str(error))
            return
        except RemoteError as error:
            self._respond(site, request, Refusal(str(error), again=True))
            return
        del self._incoming[site, commit.digest]
        self.held.add(commit.digest)
        owner.auditor.uploaded(owner.disk.store.blobs[commit.digest])
        owner.fuse.reach(Place.BEFORE_ROW)
        delay_ms = owner.scene.chance.stream("inspection", site).randint(1, 200)
        owner.later(delay_ms, lambda: self._inspected(site, request, commit))

    def _inspected(self, site: str, request: Request, commit: msg.Commit) -> None:
        """The round may have closed while the bytes were checked: ask again, now for good."""
        owner = self._owner
        self.held.discard(commit.digest)
        order, repeated = self._admit(site, request, commit.order, commit.digest)
        if repeated:
            self._receipt(site, request, commit.order)
        if order is None:
            return
        data = owner.disk.store.blobs.get(commit.digest)
        if data is None:
            self._respond(site, request, Refusal("the blob is gone: offer it again", again=True))
            return
        wrong = _not_in_ring(order, data) or self._wrong(order, commit, _norm(order, data))
        if wrong:
            self._reject(site, request, commit, wrong)
            return
        owner.submit(self._stored(order, commit, data))
        owner.fuse.reach(Place.BEFORE_REPLY)
        self._receipt(site, request, commit.order)

    def _wrong(self, order: Order, commit: msg.Commit, norm: float) -> str:
        """Why this cannot be used, "" if it can."""
        if not math.isfinite(norm):
            return "a value is not finite"
        if order.kind is OrderKind.SEED:
            return "" if commit.layout == LAYOUT else "the model has another layout"
        if not 0 < commit.weight <= WEIGHT_MAX:
            return f"a weight of {commit.weight} is not valid"
        declared = self._owner.state.declared.get(order.site)
        return implausible(declared, order, commit.weight, commit.steps)

    def _reject(self, site: str, request: Request, commit: msg.Commit, reason: str) -> None:
        owner = self._owner
        owner.submit(ev.UpdateRejected(owner.now_ms, commit.order, commit.digest, reason))
        self._respond(site, request, Refusal(reason))

    def _admit(self, site: str, request: Request, order: str, digest: str) -> tuple[Order | None, bool]:
        """(the order, False) if the upload is welcome, (None, True) if it was acknowledged before.

        Else (None, False), and the call is answered.
        """
        owner = self._owner
        answer = admit(owner.state, site, order, digest)
        if answer.admission in (Admission.WELCOME, Admission.REPEATED):
            return answer.order, answer.admission is Admission.REPEATED
        if answer.admission is Admission.EQUIVOCATION:
            owner.submit(ev.UpdateRejected(owner.now_ms, order, digest, answer.reason))
        self._respond(site, request, Refusal(answer.reason))
        return None, False

    def _full(self, what: str) -> bool:
        """Whether the disk has no space for this now; the journal keeps a reserve of its own."""
        scene = self._owner.scene
        return bool(scene.strikes(scene.plan.rates.disk_full, "disk full", f"{self._owner.name} {what}"))

    def _stored(self, order: Order, commit: msg.Commit, data: bytes) -> ev.Event:
        owner, values = self._owner, to_vector(data)
        if order.kind is OrderKind.SEED:
            owner.disk.versions[order.run, 0] = Version(values, values)
            return ev.ModelSeeded(
                at_ms=owner.now_ms,
                order=order.id,
                blob=commit.digest,
                size_bytes=len(data),
                model_digest=commit.digest,
                layout=commit.layout,
                layout_digest=digest_of(commit.layout.encode()),
                num_elements=len(values),
            )
        return ev.UpdateStored(
            at_ms=owner.now_ms,
            order=order.id,
            blob=commit.digest,
            size_bytes=len(data),
            weight=commit.weight,
            steps=commit.steps,
            norm=_norm(order, data),
            train_loss=commit.train_loss,
            eval_loss=commit.eval_loss,
            eval_count=commit.eval_count,
            seconds=commit.seconds,
            signature=commit.signature,
        )

    def _receipt(self, site: str, request: Request, order: str) -> None:
        owner = self._owner
        kept = owner.state.runs[order.split(".", 1)[0]].receipts.get(site)
        if kept is None or kept.order != order:
            owner.history.unanswered(order)
            return
        receipt = msg.Receipt(kept.order, kept.blob, kept.outcome, kept.epoch, kept.at_ms, "")
        owner.history.receipt(receipt)
        self._respond(site, request, receipt)


def _norm(order: Order, data: bytes) -> float:
    """What can be told of an update's length; under masks nothing."""
    return 0.0 if is_masked(order) else norm_of(to_vector(data))


def _not_in_ring(order: Order, data: bytes) -> str:
    """Why these are no masked words, "" if they are, or are not to be."""
    if not is_masked(order):
        return ""
    bits = ring_bits(order.codec, len(order.cohort)) or 0
    words = np.frombuffer(data, "<u4")
    return f"a word has more than {bits} bits" if int(words.max()) >> bits else ""
