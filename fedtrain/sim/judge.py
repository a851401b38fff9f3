"""What a coordinator that lies has gained: everything that honest sites have said and sent, put together.

A vector under masks is known by the public mask key that its site made for it, whatever the session is called
and however often it was begun anew. Whoever is not an honest site belongs to the coordinator, and so does an
honest site's name where the proposal gives it another key than the true one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from fedtrain.core import canonical, masks
from fedtrain.core.contract import Contract
from fedtrain.core.orders import Order
from fedtrain.sim.exposure import Given, exposed
from fedtrain.sim.keys import Notary, Secrets, public_of
from fedtrain.sim.numbers import digest_of
from fedtrain.sim.secrecy import threshold
from fedtrain.sim.violation import demand

if TYPE_CHECKING:
    from fedtrain.sim.mark import Mark

Place = tuple[str, int]
"""Run and round: within one, a site's update is the same in every session."""


@dataclass
class Vector:
    """One site's part in one session. `partners`: mask keys of honest sites that it has masked with."""

    key: str
    site: str
    session: str
    share_key: str
    proposal: masks.Proposal | None = None
    adverts: Mapping[str, masks.Advert] = field(default_factory=dict)
    partners: set[str] = field(default_factory=set)
    digest: str = ""
    sent: bool = False


class Judge:
    """Of one world; for the seats of its sites it is auditor and secrecy at once.

    Attributes:
        sums: place -> sets of honest sites whose sums can be had.
        counts: what there was to judge.
        tasks: digest -> task section that an order came with.
    """

    def __init__(self, notary: Notary, contracts: Mapping[str, Contract], roster: Mapping[str, str]) -> None:
        self.secrecy = self
        self.marks: dict[str, Mark] = {}
        self.sums: dict[Place, set[frozenset[str]]] = defaultdict(set)
        self.counts: Counter[str] = Counter()
        self.tasks: dict[str, str] = {}
        self._keys = {site: notary.key_of(site) for site in contracts}
        self._contracts, self._roster = contracts, roster
        self._vectors: dict[str, Vector] = {}
        self._seeds: dict[str, set[str]] = defaultdict(set)
        self._mask_keys: dict[str, set[str]] = defaultdict(set)
        self._told: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._affirmed: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
        self._openers: dict[str, set[str]] = defaultdict(set)
        self._sets: dict[tuple[str, Place], tuple[str, ...]] = {}
        self._partners: dict[tuple[str, str], str] = {}

    # -- what sites do --------------------------------------------------------------------------------

    def drew(self, site: str, session: str, secrets: Secrets) -> None:
        """New secrets, never seen before."""
        key = public_of(secrets.mask)
        demand(key not in self._vectors, "I6", f"{site} uses a key again")
        self._vectors[key] = Vector(key, site, session, public_of(secrets.share))

    def veiled(self, site: str, session: str, digest: str) -> None:
        """The masks are on. A stream whose other end is no honest site's is the coordinator's to take off."""
        mark = self.marks[site]
        (order,) = (name for name, seat in mark.state.masks.items() if seat.session == session)
        own = self._own(site, order)
        seat, proposal = mark.state.masks[order], own.proposal
        assert proposal is not None, "an advert was said"
        demand(own.digest in ("", digest), "I6", f"{site} masks two vectors with the same streams")
        near = masks.neighbours(session, tuple(proposal.sites), proposal.degree, site)
        keys = {own.adverts[other].mask_key for other in near if other in seat.sharers}
        own.digest, own.partners = digest, keys & set(self._vectors)

    def uploaded(self, site: str, order: Order, digest: str, data: bytes) -> None:
        """A file leaves: one that was masked in its order's session, and nothing else."""
        masked = order.id in self.marks[site].state.masks and digest == digest_of(data)
        own = self._own(site, order.id) if masked else None
        demand(own is not None and own.digest == digest, "I6", f"{order.id} leaves without masks")
        assert own is not None, "demanded above"
        own.sent = True
        self.counts["masked updates"] += 1
        self._look(own.session)

    def spoke(self, site: str, order: str, topic: str, document: str, bare: bool) -> None:
        """A site says this on a topic."""
        seat, own = self.marks[site].state.masks[order], self._own(site, order)
        told = self._told[own.key, topic]
        told.add(document)
        demand(len(told) == 1, "I6", f"{site} says two things on {topic} in one session")
        self.counts[topic] += 1
        if topic == "advert":
            own.proposal = canonical.decode(masks.Proposal, seat.proposal)
            self._knows(site, own.proposal, self.marks[site].held[order].order)
        elif topic == "boxes":
            self._shared(own, self.marks[site], order, canonical.decode(masks.Boxes, document))
        elif topic == "affirmation":
            self._affirmed[own.session, canonical.decode(masks.Survivors, document).survivors].add(site)
        else:
            demand(bare, "I6", f"{site} opens shares and keeps its secrets")
            self._opened(own, seat.survivors, canonical.decode(masks.Opened, document))

    def _own(self, site: str, order: str) -> Vector:
        words = self.marks[site].seats.files[order].words
        return self._vectors[canonical.decode(masks.Advert, words["advert"]).mask_key]

    def _knows(self, site: str, proposal: masks.Proposal, order: Order) -> None:
        """The session is about the order's own work; partners are those that the contract names, or that came
        first.
        """
        least, count = proposal.threshold, threshold(len(order.cohort))
        demand(least >= count, "I6", f"{site} takes part where {least} are enough, and not {count}")
        asked = (order.model.digest if order.model else "", masks.digest_of(order.task), set(order.cohort))
        same = asked == (proposal.model, proposal.plan, set(proposal.sites))
        demand(same, "I6", f"{site} takes part in a session about other work than its order's")
        for other, key in proposal.sites.items():
            first = self._contracts[site].partners.get(other)
            known = first or self._partners.setdefault((site, other), key)
            demand(known == key, "I6", f"{site} takes another key for {other} than the one that it knows")

    def _shared(self, own: Vector, mark: Mark, order: str, boxes: masks.Boxes) -> None:
        """Shares sealed for anybody but an honest site are the coordinator's, of both kinds."""
        keys = canonical.decode(masks.Keys, mark.seats.files[order].told[boxes.keys])
        own.adverts = {
            s: canonical.decode(masks.Advert, signed.document) for s, signed in keys.adverts.items()
        }
        honest = {vector.share_key for vector in self._vectors.values()}
        for target in boxes.boxes:
            if own.adverts[target].share_key not in honest:
                mine = own.proposal is not None and target in self._foreign(own.proposal)
                demand(mine, "I6", f"{own.site} seals shares for {target} with a key that is not {target}'s")
                self._seeds[own.key].add(target)
                self._mask_keys[own.key].add(target)

    def _opened(self, own: Vector, survivors: tuple[str, ...], opened: masks.Opened) -> None:
        """One share per peer, for a set that enough have signed, and no second set of the same round."""
        site, proposal = own.site, own.proposal
        assert proposal is not None, "an advert was said"
        both = set(opened.seeds) & set(opened.keys)
        demand(not both, "I6", f"{site} gives both shares of {sorted(both)}")
        signed = len(self._affirmed[own.session, survivors]) + len(set(survivors) & self._foreign(proposal))
        least = threshold(len(proposal.sites))
        demand(signed >= least, "I6", f"{site} opens shares, {signed} of {least} can have affirmed")
        first = self._sets.setdefault((site, (proposal.run, proposal.round)), survivors)
        demand(first == survivors, "I6", f"{site} opens round {proposal.round} for {first} and {survivors}")
        self._openers[own.session].add(site)
        for given, found in ((opened.seeds, self._seeds), (opened.keys, self._mask_keys)):
            for other in given:
                key = own.key if other == site else own.adverts[other].mask_key
                found[key].add(site)
        self._look(own.session)

    # -- what the coordinator can compute -------------------------------------------------------------

    def _foreign(self, proposal: masks.Proposal) -> set[str]:
        """Names of a session that are the coordinator's."""
        return {site for site, key in proposal.sites.items() if self._keys.get(site) != key}

    def _look(self, session: str) -> None:
        """Every sum that can be had by now, alone and against the others of its round."""
        vectors = {k: v for k, v in self._vectors.items() if v.session == session and v.sent}
        if not vectors:
            return
        proposal = next(iter(vectors.values())).proposal
        assert proposal is not None, "an advert was said"
        partners = {key: vector.partners for key, vector in vectors.items()}
        place = (proposal.run, proposal.round)
        for keys in exposed(Given(proposal.shares, partners, self._seeds, self._mask_keys)):
            found = frozenset(vectors[key].site for key in keys)
            if found in self.sums[place]:
                continue
            least = self._floor(session, proposal)
            demand(len(found) >= least, "I6", f"the sum of {sorted(found)} can be had, promised were {least}")
            self.sums[place].add(found)
            self.counts["sums had"] += 1
            wanted = max(self._contracts[site].cohort_min for site in found)
            short = wanted > len(found) + len(self._foreign(proposal))
            self.counts["sums smaller than the cohort_min of a site that did not open"] += short
            self.counts["sums of one, which contracts allow"] += len(found) == 1
            self.counts["sums had beside own sites"] += bool(self._foreign(proposal))
            self._differ(place, least)

    def _floor(self, session: str, proposal: masks.Proposal) -> int:
        """Fewest honest sites of a sum: what threshold, run and the contracts of those who have opened shares
        promise, less the coordinator's own. A site that has not cannot keep the others from it.
        """
        count, terms = len(proposal.sites), masks.mask_terms(self.tasks[proposal.plan])
        lost = terms.dropouts_max if terms and terms.dropouts_max >= 0 else count
        contracts = [self._contracts[site] for site in self._openers[session]]
        least = max(threshold(count), count - lost, *(contract.cohort_min for contract in contracts), 1)
        foreign = self._foreign(proposal)
        owners = {self._roster[site] for site in foreign}
        apart = max((c.organisations_min for c in contracts), default=1) - len(owners)
        return max(1, least - len(foreign), apart)

    def _differ(self, place: Place, least: int) -> None:
        """No combination of the sums of one round is about fewer sites."""
        sums = self.sums[place]
        if len(sums) < 2:
            return
        sites = sorted(set().union(*sums))
        rows = np.array([[site in found for site in sites] for found in sums], float)
        rank = np.linalg.matrix_rank(rows)
        for size in range(1, min(least, len(sites))):
            for few in combinations(range(len(sites)), size):
                rest = np.delete(rows, few, axis=1)
                told = np.linalg.matrix_rank(rest) < rank
                names = [sites[index] for index in few]
                demand(not told, "I6", f"sums of round {place[1]} of {place[0]} differ by {names} alone")
