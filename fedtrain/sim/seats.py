"""A site's part in masked sessions: secrets and words on its disk, durable before anything is said.

The decisions are `core.masked_seat`'s; here are its effects, and the checks of signatures that its shell owes
it. Files are synced: a write that fails leaves the one before, and ends this life of the agent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fedtrain.core import agent, canonical, masks, messages as msg
from fedtrain.core.agent_state import MaskSeat
from fedtrain.core.orders import Order, Result
from fedtrain.errors import RemoteError, StorageError
from fedtrain.methods import shamir
from fedtrain.sim.keys import Secrets, pair_seed, public_of, said, seal, unseal
from fedtrain.sim.numbers import digest_of
from fedtrain.sim.process import Place
from fedtrain.sim.veils import own_masks, place_of

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

COORDINATOR = "coordinator"
"""The name that every coordinator of a consortium signs with: a standby has its keys."""


@dataclass(frozen=True)
class Kept:
    """The file of one order's session. `secrets` is None once they are destroyed.

    Attributes:
        own: this site's shares of its own secrets: of the mask key, of the seed.
        words: topic -> what this site says on it, always.
        told: digest -> document of the coordinator.
    """

    session: str = ""
    secrets: Secrets | None = None
    own: tuple[bytes, bytes] = (b"", b"")
    words: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)


class Seats:
    """Of one site; it outlives the agent's lives.

    Attributes:
        files: order -> what the disk holds of its session.
        updates: order -> the masked update; not synced.
    """

    def __init__(self, owner: Site) -> None:
        self.files: dict[str, Kept] = {}
        self.updates: dict[str, bytes] = {}
        self._owner = owner

    def sweep(self) -> None:
        """At a start: what an agent that died left of sessions that are over."""
        state = self._owner.state
        for order in tuple(self.files):
            seat = state.masks.get(order)
            if order not in state.held:
                self.discard(order)
            elif seat is not None and seat.stage is agent.SeatStage.BURNT:
                self.burn(order)

    def lose_power(self, how: random.Random) -> None:
        """Updates are not synced."""
        for order in list(self.updates):
            if how.random() < 0.3:
                del self.updates[order]

    def discard(self, order: str) -> None:
        """Nothing of it is needed any more."""
        self.files.pop(order, None)
        self.updates.pop(order, None)

    @property
    def sessions(self) -> list[str]:
        """Of which secrets are here."""
        return [kept.session for kept in self.files.values() if kept.secrets is not None]

    def burn(self, order: str) -> None:
        """Its secrets are destroyed, and nothing is said in it any more."""
        if order in self.files:
            self._write(order, Kept(self.files[order].session))

    # -- what the coordinator says ----------------------------------------------------------------

    def hear(self, statement: msg.Statement) -> None:
        """Keep the document, check whatever is signed or sealed in it, and let the machine judge it."""
        owner, order = self._owner, statement.order
        fault = ""
        if order in owner.held:
            fault = self._fault(statement)
            if statement.topic in ("keys", "delivery"):
                kept = self.files.get(order, Kept())
                told = {**kept.told, masks.digest_of(statement.document): statement.document}
                self._write(order, replace(kept, told=told))
        owner.submit(agent.StatementReceived(owner.now_ms, statement.topic, order, statement.document, fault))

    def _fault(self, statement: msg.Statement) -> str:
        """Which signature or box in this statement does not hold, "" if all do."""
        owner = self._owner
        text = said(owner.name, statement.topic, statement.order, statement.document)
        if not owner.notary.holds(owner.notary.key_of(COORDINATOR), text, statement.signature):
            return "the coordinator's signature does not hold"
        seat = owner.state.masks.get(statement.order)
        try:
            match statement.topic:
                case "proposal":
                    proposal = canonical.decode(masks.Proposal, statement.document)
                    own = proposal.sites.get(owner.name) == owner.notary.key_of(owner.name)
                    return "" if own else "this site's own key is another one"
                case "keys" if seat is not None and seat.proposal:
                    return self._fault_of_keys(seat, canonical.decode(masks.Keys, statement.document))
                case "delivery" if seat is not None and seat.members:
                    delivery = canonical.decode(masks.Delivery, statement.document)
                    self._unsealed(statement.order, seat, delivery)
                case "unmask" if seat is not None and seat.survivors:
                    return self._fault_of_unmask(seat, canonical.decode(masks.Unmask, statement.document))
        except RemoteError as error:
            return str(error)
        return ""

    def _fault_of_keys(self, seat: MaskSeat, keys: masks.Keys) -> str:
        """Adverts hold by the keys that the proposal names; this site's own is the one that it has said."""
        owner, proposal = self._owner, canonical.decode(masks.Proposal, seat.proposal)
        for site, signed in keys.adverts.items():
            order = masks.order_of(proposal, site)
            text = said(site, "advert", order, signed.document)
            if site not in proposal.sites or not owner.notary.holds(
                proposal.sites[site], text, signed.signature
            ):
                return f"the advert of {site} does not hold"
        own, kept = keys.adverts.get(owner.name), self.files.get(masks.order_of(proposal, owner.name), Kept())
        if own is not None and own.document != kept.words.get("advert"):
            return "this site's own advert is another one"
        return ""

    def _fault_of_unmask(self, seat: MaskSeat, asked: masks.Unmask) -> str:
        proposal = canonical.decode(masks.Proposal, seat.proposal)
        document = masks.spelled(masks.Survivors(seat.session, seat.survivors))
        for site, signature in asked.signatures.items():
            text = said(site, "affirmation", masks.order_of(proposal, site), document)
            if site not in proposal.sites or not self._owner.notary.holds(
                proposal.sites[site], text, signature
            ):
                return f"the affirmation of {site} does not hold"
        return ""

    # -- what this site says ----------------------------------------------------------------------

    def say(self, order: str, topic: str) -> None:
        """Make the answer, keep it, then say it; what is there is said again."""
        owner = self._owner
        seat, held = owner.state.masks.get(order), owner.held.get(order)
        if seat is None or held is None:
            return
        kept = self.files.get(order, Kept())
        if topic not in kept.words:
            made = self._made(held.order, seat, kept, topic)
            if made is None:
                return  # a document is not here: it is said again, and then this is asked again
            kept, document = made
            kept = replace(kept, words={**kept.words, topic: document})
            self._write(order, kept)
            owner.fuse.reach(Place.BEFORE_ROW)
        document = kept.words[topic]
        owner.auditor.spoke(owner.name, order, topic, document, kept.secrets is None)
        signature = owner.notary.sign(owner.name, said(owner.name, topic, order, document))
        owner.say(msg.Statement(topic, order, document, signature))

    def _made(self, order: Order, seat: MaskSeat, kept: Kept, topic: str) -> tuple[Kept, str] | None:
        """The file with what has become of it, and the answer; None where it cannot be made now."""
        if topic == "advert":
            return self._advert(seat, kept)
        if kept.secrets is None or kept.session != seat.session:
            return None
        if topic == "affirmation":
            return kept, masks.spelled(masks.Survivors(seat.session, seat.survivors))
        keys = self._told(kept, seat, "keys")
        if keys is None:
            return None
        if topic == "boxes":
            return self._boxes(seat, kept, kept.secrets, keys)
        delivery = self._told(kept, seat, "delivery")
        if delivery is None:
            return None
        return self._opened(order, seat, kept, canonical.decode(masks.Delivery, delivery))

    def _advert(self, seat: MaskSeat, kept: Kept) -> tuple[Kept, str]:
        owner = self._owner
        secrets = Secrets.drawn(owner.scene.chance.stream("mask keys", owner.name))
        owner.auditor.secrecy.drew(owner.name, seat.session, secrets)
        advert = masks.Advert(
            seat.session,
            owner.name,
            public_of(secrets.mask),
            public_of(secrets.share),
            digest_of(secrets.seed),
        )
        return replace(kept, session=seat.session, secrets=secrets), masks.spelled(advert)

    def _boxes(self, seat: MaskSeat, kept: Kept, secrets: Secrets, text: str) -> tuple[Kept, str]:
        owner, proposal = self._owner, canonical.decode(masks.Proposal, seat.proposal)
        adverts = _adverts(text)
        holders = [owner.name, *(site for site in self._near(seat) if site in adverts)]
        places = {site: place_of(seat.session, site) for site in holders}
        chance = owner.scene.chance.stream("shares", owner.name)
        of_key, of_seed = (
            shamir.split(secret, proposal.shares, list(places.values()), chance.randbytes)
            for secret in (secrets.mask, secrets.seed)
        )
        boxes = {}
        for site in holders[1:]:
            key = pair_seed(secrets.share, adverts[site].share_key, seat.session)
            about = _about(seat.session, owner.name, site, text)
            boxes[site] = seal(key, about, of_key[places[site]] + of_seed[places[site]])
        mine = places[owner.name]
        document = masks.Boxes(seat.session, masks.digest_of(text), boxes)
        return replace(kept, own=(of_key[mine], of_seed[mine])), masks.spelled(document)

    def _opened(self, order: Order, seat: MaskSeat, kept: Kept, told: masks.Delivery) -> tuple[Kept, str]:
        """One share per peer; the secrets are gone with the same write."""
        shares = {**self._unsealed(order.id, seat, told), self._owner.name: kept.own}
        seeds = {site: shares[site][1].hex() for site in seat.survivors if site in shares}
        lost = set(seat.sharers) - set(seat.survivors)
        keys = {site: shares[site][0].hex() for site in sorted(lost) if site in shares}
        document = masks.spelled(masks.Opened(seat.session, seeds, keys))
        return replace(kept, secrets=None, own=(b"", b""), told={}), document

    def mask(self, order: Order, result: Result) -> None:
        """Put the masks on; once on, they are the same again."""
        owner, seat = self._owner, self._owner.state.masks[order.id]
        kept, finished = self.files.get(order.id, Kept()), owner.trainer.results.get(order.id)
        keys = self._told(kept, seat, "keys")
        if finished is None or len(finished.payload) != result.size_bytes:
            owner.outbox.lost(order)
            return
        if kept.secrets is None or keys is None:
            return
        proposal, adverts = canonical.decode(masks.Proposal, seat.proposal), _adverts(keys)
        publics = {s: adverts[s].mask_key for s in self._near(seat) if s in seat.sharers}
        plain = np.frombuffer(finished.payload, "<i4").astype(np.int64)
        veil = own_masks(proposal, seat.session, owner.name, kept.secrets, publics, len(plain))
        data = ((plain + veil) % (1 << proposal.ring_bits)).astype("<u4").tobytes()
        self.updates[order.id] = data
        owner.auditor.secrecy.veiled(owner.name, seat.session, digest_of(data))
        owner.fuse.reach(Place.BEFORE_ROW)
        day = owner.moment.day
        owner.submit(agent.UpdateMasked(owner.now_ms, order.id, digest_of(data), len(data), day))

    def _near(self, seat: MaskSeat) -> tuple[str, ...]:
        proposal = canonical.decode(masks.Proposal, seat.proposal)
        return masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, self._owner.name)

    def _told(self, kept: Kept, seat: MaskSeat, topic: str) -> str | None:
        """The document that the machine has accepted on this topic."""
        return kept.told.get(seat.heard.get(topic, ""))

    def _unsealed(
        self, order: str, seat: MaskSeat, delivery: masks.Delivery
    ) -> dict[str, tuple[bytes, bytes]]:
        """Source -> (share of its mask key, of its seed); `RemoteError` for a box that does not open."""
        owner, kept = self._owner, self.files.get(order, Kept())
        keys = self._told(kept, seat, "keys")
        if keys is None or kept.secrets is None:
            return {}
        adverts, found = _adverts(keys), {}
        for source, box in delivery.boxes.items():
            if source not in adverts:
                raise RemoteError(f"there is no advert of {source}")
            key = pair_seed(kept.secrets.share, adverts[source].share_key, seat.session)
            plain = unseal(key, _about(seat.session, source, owner.name, keys), box)
            found[source] = (plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :])
        return found

    def _write(self, order: str, kept: Kept) -> None:
        """Synced, or not there at all."""
        scene, name = self._owner.scene, self._owner.name
        if scene.strikes(scene.plan.rates.sync_fails, "sync of a mask file fails", name):
            raise StorageError("the sync of a mask file failed")
        self.files[order] = kept


def _adverts(keys: str) -> dict[str, masks.Advert]:
    adverts = canonical.decode(masks.Keys, keys).adverts
    return {site: canonical.decode(masks.Advert, signed.document) for site, signed in adverts.items()}


def _about(session: str, source: str, target: str, keys: str) -> str:
    return f"{session} {source} {target} {masks.digest_of(keys)}"
