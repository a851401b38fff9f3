"""The site's part in masked rounds: what it hears is held against its signatures, what it says is signed.

When to say what is the core's decision (`core.masked_seat`); here words are made (`mask_secrets`), kept
before they are said, and masks put on. Key work runs beside the training: it has jobs of its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from fedtrain.core import agent as core, canonical, masks, messages as msg
from fedtrain.core.agent import AgentEvent, AgentState, SeatStage, StatementReceived
from fedtrain.core.agent_state import MaskSeat
from fedtrain.core.orders import Order, Result
from fedtrain.errors import BadSignature, BadUpdate, FedtrainError, IntegrityError, RemoteError
from fedtrain.methods import masking
from fedtrain.methods.maskedfile import MaskedHeader, MaskedReader, header_of
from fedtrain.methods.updatefile import UpdateFacts, UpdateHeader, UpdateReader, check_facts
from fedtrain.peer import mask_secrets
from fedtrain.peer.clock import now_ms
from fedtrain.peer.jobs import Jobs, in_thread
from fedtrain.peer.mask_secrets import MaskFolder
from fedtrain.peer.session import Session
from fedtrain.storage.filesystem import disk_errors
from fedtrain.trust import statements
from fedtrain.trust.folders import MemberKeys
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

THREADS = max(1, min(4, os.cpu_count() or 1))
"""For ranges of a vector that is masked; the result does not depend on it."""


class Owner(Protocol):
    """What masked rounds need of their agent."""

    session: Session

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""

    def has_spoken(self) -> None:
        """A word is made, and said if there is a session."""

    def broke(self, error: BaseException) -> None:
        """The agent cannot go on."""


class Masking:
    """Keeps the secrets of masked sessions, and speaks for the site in them."""

    def __init__(self, owner: Owner, state: Path, keys: MemberKeys) -> None:
        self._owner = owner
        self._folder = MaskFolder(state / "masks")
        self._jobs = Jobs(owner.broke, owner.has_spoken)
        self._consortium, self._site = keys.membership.consortium, keys.membership.name
        self._key, self._coordinator = keys.message_key, keys.coordinator_public
        self._documents: dict[tuple[str, str], str] = {}

    def create(self) -> None:
        """At a start: secrets of sessions that are over are destroyed. Blocking."""
        state = self._owner.state
        going_on = (name for name, seat in state.masks.items() if seat.stage is not SeatStage.BURNT)
        self._folder.create(name for name in going_on if name in state.held)

    @property
    def speaking(self) -> bool:
        """Whether a word is being made."""
        return self._jobs.busy

    async def stop(self) -> None:
        """Wait for what is under way: a word that is half made is finished and kept."""
        await self._jobs.stop()

    # -- what is heard ----------------------------------------------------------------------------

    def receive(self, statement: msg.Statement) -> None:
        """A document of the coordinator, in its turn. What nothing follows from is no row of the journal."""
        state = self._owner.state
        if statement.order not in state.held:
            return
        event = StatementReceived(
            now_ms(), statement.topic, statement.order, statement.document, self._fault(statement)
        )
        after, effects = core.step(state, event)
        seat = after.masks.get(statement.order)
        if seat is not None and seat.heard.get(statement.topic) == masks.digest_of(statement.document):
            # Also one heard before: an agent that has restarted needs it again, though nothing follows yet.
            self._documents[statement.order, statement.topic] = statement.document
        if after != state or effects:
            self._owner.submit(event)

    def _fault(self, statement: msg.Statement) -> str:
        """Which signature over the document, or in it, does not hold; "" if all do.

        What cannot be read is left to the core, which reads it again.
        """
        said = statements.said(
            self._consortium, self._site, statement.topic, statement.order, statement.document
        )
        try:
            signature = statements.signature_bytes(statement.signature, "it")
            statements.verify(said, self._coordinator, signature)
        except BadSignature as error:
            return f"the coordinator has not signed its {printable(statement.topic[:20])}: {error}"
        seat = self._owner.state.masks.get(statement.order)
        check = _FAULTS.get(statement.topic)
        if check is None or (seat is None and statement.topic != "proposal"):
            return ""
        try:
            return check(self, seat or MaskSeat(), statement)
        except RemoteError as error:
            return str(error)

    def _proposal_fault(self, seat: MaskSeat, statement: msg.Statement) -> str:
        proposal = canonical.decode(masks.Proposal, statement.document)
        if proposal.sites.get(self._site) != self._key.public:
            return "the proposal names another key for this site than its own"
        return ""

    def _keys_fault(self, seat: MaskSeat, statement: msg.Statement) -> str:
        """Every advert is signed by its site; our own is the one that we have said."""
        proposal = canonical.decode(masks.Proposal, seat.proposal)
        keys = canonical.decode(masks.Keys, statement.document)
        for site, signed in keys.adverts.items():
            public = proposal.sites.get(site)
            if public is None:
                return "the keys hold the advert of a site that the proposal does not name"
            order = masks.order_of(proposal, site)
            said = statements.said(self._consortium, site, "advert", order, signed.document)
            _check(said, public, signed.signature, f"{site}'s advert")
        kept = self._folder.load(statement.order)
        return mask_secrets.own_advert_fault(kept, keys, self._site)

    def _unmask_fault(self, seat: MaskSeat, statement: msg.Statement) -> str:
        """Each signature is its site's, over this very set."""
        proposal = canonical.decode(masks.Proposal, seat.proposal)
        asked = canonical.decode(masks.Unmask, statement.document)
        if (asked.session, asked.survivors) != (seat.session, seat.survivors):
            return ""  # signed or not, it is another set than the one affirmed here: the core says so
        document = masks.spelled(masks.Survivors(asked.session, asked.survivors))
        for site, signature in asked.signatures.items():
            public = proposal.sites.get(site)
            if public is None:
                return "a site has signed the survivors that the proposal does not name"
            order = masks.order_of(proposal, site)
            said = statements.said(self._consortium, site, "affirmation", order, document)
            _check(said, public, signature, f"{site}'s affirmation")
        return ""

    # -- what is said -----------------------------------------------------------------------------

    def say(self, order: str, topic: str) -> None:
        """Make the word that is due, keep it, say it; the same word again if it was made before."""
        self._jobs.start(order, f"say {topic}", partial(self._say, order, topic), to_end=True)

    async def _say(self, order: str, topic: str) -> None:
        seat = self._owner.state.masks.get(order)
        if seat is None or seat.stage is SeatStage.BURNT:
            return
        try:
            document = await in_thread(self._word, order, seat, topic)
        except FedtrainError as error:
            self._fail(order, f"its {topic} cannot be made: {error}")
            return
        if document:
            said = statements.said(self._consortium, self._site, topic, order, document)
            signature = statements.sign(said, self._key).hex()
            self._owner.session.say(msg.Statement(topic, order, document, signature))

    def _word(self, order: str, seat: MaskSeat, topic: str) -> str:
        """The word, durable; "" if what it is made of has to be heard again first, or is destroyed."""
        if topic == "affirmation":
            return masks.spelled(masks.Survivors(seat.session, seat.survivors))
        kept = self._folder.load(order)
        if kept is None and topic == "advert" and seat.stage is SeatStage.ADVERTISED:
            kept = self._folder.save(order, mask_secrets.advert(seat, self._site))
        if kept is None or kept.session != seat.session:
            return ""
        if topic not in kept.said and kept.secrets:
            keys = self._documents.get((order, "keys"))
            if topic == "boxes" and keys is not None:
                kept = self._folder.save(order, mask_secrets.boxes(kept, seat, self._site, keys))
            elif topic == "opened":
                kept = self._folder.save(order, mask_secrets.opened(kept, seat, self._site))
        return kept.said.get(topic, "")

    def burn(self, order: str) -> None:
        """Destroy what is kept of the order's session, if anything is: at once, so that nobody is told of the
        end before; behind the word that is just being made, if there is one.
        """
        for key in [key for key in self._documents if key[0] == order]:
            del self._documents[key]
        if self._jobs.busy_with(order):
            self._jobs.start(order, "burn", partial(self._burn, order), to_end=True)
        elif self._folder.has(order):
            self._destroy(order)

    async def _burn(self, order: str) -> None:
        await in_thread(self._destroy, order)

    def _destroy(self, order: str) -> None:
        try:
            self._folder.destroy(order)
        except FedtrainError as error:
            _log.error("%s: secrets of its masked session are left until the next start: %s", order, error)

    # -- the update -------------------------------------------------------------------------------

    async def mask(self, order: Order, result: Result, path: Path) -> tuple[str, int] | None:
        """Put the masks on the file at `path`, in its place; its digest and size.

        Done once, it is only looked at again. None if the session is over, or the word who masks with whom
        has to be heard again. Raises `BadUpdate` for a file that does not fit the order, `IntegrityError`
        for one that is not the result's, `StorageError` from the disk.
        """
        seat = self._owner.state.masks.get(order.id)
        if seat is None or seat.stage is not SeatStage.READY:
            return None
        try:
            return await in_thread(self._mask, order, result, seat, path)
        finally:
            now = self._owner.state.masks.get(order.id)
            if now is None or now.stage is SeatStage.BURNT:  # meanwhile, and the file was written once more
                self.burn(order.id)

    def _mask(self, order: Order, result: Result, seat: MaskSeat, path: Path) -> tuple[str, int] | None:
        kept = self._folder.load(order.id)
        delivery = self._documents.get((order.id, "delivery"))
        if kept is None or not kept.secrets or (not kept.sharers and delivery is None):
            return None
        if not kept.sharers and delivery is not None:
            # Kept before the update leaves: it is needed when the masks come off.
            kept = self._folder.save(order.id, mask_secrets.delivered(kept, seat, self._site, delivery))
        return _masked(order, result, seat, mask_secrets.streams(kept, seat, self._site), path)

    def _fail(self, order: str, reason: str) -> None:
        """Nobody waits for this site's update any more; one that is delivered stays masked for ever."""
        _log.error("%s: the masked session is given up here: %s", order, reason)
        held = self._owner.state.held.get(order)
        if held is None or held.stage is core.Stage.DELIVERED:
            return
        self._owner.session.say(msg.Failure(order, printable(reason)))
        self._owner.submit(core.UploadRefused(now_ms(), order, reason))


_FAULTS: dict[str, Callable[[Masking, MaskSeat, msg.Statement], str]] = {
    "proposal": Masking._proposal_fault,
    "keys": Masking._keys_fault,
    "unmask": Masking._unmask_fault,
}


def _check(said: statements.Said, public: str, signature: str, what: str) -> None:
    """Holds that the site has said it; `BadSignature` that names what was forged."""
    try:
        statements.verify(said, public, statements.signature_bytes(signature, what))
    except BadSignature as error:
        raise BadSignature(f"{what} does not carry its signature: {error}") from error


def _masked(
    order: Order, result: Result, seat: MaskSeat, streams: list[masking.SignedStream], path: Path
) -> tuple[str, int]:
    """The masked file in the plain one's place, on the disk."""
    proposal, terms = canonical.decode(masks.Proposal, seat.proposal), masks.mask_terms(order.task)
    weight_max = terms.weight_max if terms else 0
    found = _made_before(path, seat, order)
    if found is not None:
        return found
    header = _plain_header(order, result, path)
    if weight_max and not 0 < result.weight <= weight_max:
        raise BadUpdate(
            f"the update of {order.id} weighs {result.weight}, and the run's privacy.masked.weight_max is "
            f"{weight_max}: ask its operator for a larger one"
        )
    target = path.with_name(f"{path.name}.part")
    masked = header_of(proposal, seat.session, order.site, header.num_elements, weight_max)
    job = masking.Masking(path, masked, order.seed, result.weight, streams, target)
    digest, size_bytes = masking.mask(job, THREADS)
    with disk_errors(f"keep the masked update {path}"):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        target.replace(path)
    return digest, size_bytes


def _made_before(path: Path, seat: MaskSeat, order: Order) -> tuple[str, int] | None:
    """Of the masked file that a crash kept from being journaled; None if there is a plain one yet."""
    try:
        with MaskedReader(path) as reader:
            header: MaskedHeader = reader.header
    except BadUpdate:
        return None
    if (header.session, header.site) != (seat.session, order.site):
        raise BadUpdate(f"the file of {order.id} is a masked update of another session: it is not sent")
    with disk_errors(f"read {path}"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _plain_header(order: Order, result: Result, path: Path) -> UpdateHeader:
    """The header of the trainer's file, which is the result's and fits the order."""
    with disk_errors(f"read {path}"), open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != result.digest:
            raise IntegrityError(f"the update of {order.id} is not the file that the trainer announced")
    with UpdateReader(path) as reader:
        header = reader.header
    if order.model is None:
        raise BadUpdate(f"{order.id} names no model that an update could be of")
    facts = UpdateFacts(
        run=order.run,
        round=order.round,
        site=order.site,
        base_version=order.model.version,
        layout_digest=order.model.layout_digest,
        codec=order.codec,
        num_elements=header.num_elements,
    )
    check_facts(header, facts)
    return header
