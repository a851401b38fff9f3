"""I6 by the auditor's own account: what sites say in masked sessions, and what could be computed from it.

It hears every document as it is said, knows every secret that was drawn, and takes the masks off by itself:
no mask comes off a smaller set than agreed, nobody says two things on one topic, and a masked version is the
sum of exactly the survivors that it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedtrain.core import canonical, effects as fx, masks
from fedtrain.core.orders import Order
from fedtrain.methods.vectors import Floats
from fedtrain.sim.exposure import Given, exposed
from fedtrain.sim.keys import Secrets, public_of
from fedtrain.sim.recomputation import sha256
from fedtrain.sim.veils import Levels, own_masks, step_of, weight_max
from fedtrain.sim.violation import demand


@dataclass
class Session:
    """One session as it was proposed, and what was said in it. `sharers` is empty until they are named."""

    proposal: masks.Proposal
    sharers: tuple[str, ...] = ()
    words: dict[tuple[str, str], str] = field(default_factory=dict)
    secrets: dict[str, Secrets] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)

    def least(self, task: str, cohort_min: int) -> int:
        """Fewest sites of a sum: more than half of them and of a fifth again; the run's word; the site's."""
        count, terms = len(self.proposal.sites), masks.mask_terms(task)
        most_lost = terms.dropouts_max if terms and terms.dropouts_max >= 0 else count
        return max(threshold(count), count - most_lost, cohort_min)


def threshold(count: int) -> int:
    """More than half of so many sites and of a fifth again."""
    return min(count, -(-6 * count // 10) + 1)


class Secrecy:
    """Of one world.

    Args:
        plain: order -> its honest plain vector, None where its site may lie.
        blobs: every upload that crossed the network, by its digest.
        tasks: run -> its task section.
        liars: sites in whose name somebody else speaks too.
    """

    def __init__(
        self,
        plain: Callable[[Order], Levels | None],
        blobs: Mapping[str, bytes],
        tasks: Mapping[str, str],
        liars: Collection[str],
    ) -> None:
        self._plain = plain
        self._tasks = tasks
        self._liars = liars
        self._blobs = blobs
        self._sessions: dict[str, Session] = {}
        self._publics: set[str] = set()
        self._bare: dict[tuple[str, int], frozenset[str]] = {}

    # -- what coordinators say --------------------------------------------------------------------

    def spoken(self, effect: fx.Speak) -> None:
        """A document for a site."""
        if effect.topic == "proposal":
            session = masks.digest_of(effect.document)
            if session not in self._sessions:
                self._sessions[session] = Session(canonical.decode(masks.Proposal, effect.document))
        elif effect.topic == "delivery":
            told = canonical.decode(masks.Delivery, effect.document)
            known = self._sessions[told.session]
            same = known.sharers in ((), told.sharers)
            demand(same, "I6", f"two sites hear of other sharers in one session: {told.sharers}")
            known.sharers = told.sharers

    # -- what sites do ----------------------------------------------------------------------------

    def drew(self, site: str, session: str, secrets: Secrets) -> None:
        """New secrets, for this session alone."""
        publics = {public_of(secrets.mask), public_of(secrets.share), sha256(secrets.seed)}
        demand(not publics & self._publics, "I6", f"{site} uses a key again")
        self._publics |= publics
        self._sessions[session].secrets[site] = secrets

    def veiled(self, site: str, session: str, digest: str) -> None:
        """Its masks are on: once, or the same again."""
        first = self._sessions[session].vectors.setdefault(site, digest)
        demand(first == digest, "I6", f"{site} masks two vectors with the same streams")

    def burnt(self, site: str, session: str) -> None:
        """Its session is over."""
        if session in self._sessions:
            self._sessions[session].over.add(site)

    def kept(self, site: str, sessions: list[str]) -> None:
        """Sessions of which its disk holds secrets, while it is up and nothing is under way."""
        for session in sessions:
            over = site in self._sessions[session].over
            demand(not over, "I6", f"{site} keeps the secrets of a session that is over")

    def spoke(self, site: str, topic: str, document: str, bare: bool, cohort_min: int) -> None:
        """A site says this. `bare`: it has no secrets of the session any more."""
        session = str(json.loads(document)["session"])
        known = self._sessions[session]
        first = known.words.setdefault((site, topic), document)
        demand(first == document, "I6", f"{site} says two things on {topic} in one session")
        if topic != "opened":
            demand(site not in known.over, "I6", f"{site} speaks in a session that is over")
            return
        demand(bare, "I6", f"{site} opens shares and keeps its secrets")
        known.over.add(site)
        affirmed = known.words.get((site, "affirmation"))
        demand(affirmed is not None, "I6", f"{site} opens shares for a set that it has not affirmed")
        assert affirmed is not None, "demanded above"
        survivors = canonical.decode(masks.Survivors, affirmed).survivors
        self._opens(known, session, site, survivors, canonical.decode(masks.Opened, document))
        self._looks(known, session, cohort_min)

    def _opens(
        self, known: Session, session: str, site: str, survivors: tuple[str, ...], opened: masks.Opened
    ) -> None:
        """One share per peer: of the seed of a survivor, of the key of a lost one."""
        proposal = known.proposal
        near = {site, *_near(proposal, session, site)}
        seeds, keys = set(opened.seeds), set(opened.keys)
        demand(not seeds & keys, "I6", f"{site} gives both shares of {sorted(seeds & keys)}")
        demand(seeds == set(survivors) & near, "I6", f"{site} gives shares of the seeds of {sorted(seeds)}")
        lost = (set(known.sharers) - set(survivors)) & near
        demand(keys == lost, "I6", f"{site} gives shares of the keys of {sorted(keys)}, lost are {lost}")
        affirmed = sum(self._affirms(known, session, other, survivors) for other in survivors)
        enough = affirmed >= threshold(len(proposal.sites))
        demand(enough, "I6", f"{site} opens shares, and {affirmed} have affirmed")

    def _affirms(self, known: Session, session: str, site: str, survivors: tuple[str, ...]) -> bool:
        document = known.words.get((site, "affirmation"))
        return document == masks.spelled(masks.Survivors(session, survivors))

    def _looks(self, known: Session, session: str, cohort_min: int) -> None:
        """What can be computed now: one sum, of sites enough, and no other one of the same round."""
        proposal, said = known.proposal, known.words.items()
        given = [(s, canonical.decode(masks.Opened, text)) for (s, topic), text in said if topic == "opened"]
        partners = {s: set(known.sharers) & set(_near(proposal, session, s)) for s in known.vectors}
        seeds = {site: [holder for holder, o in given if site in o.seeds] for site in proposal.sites}
        keys = {site: [holder for holder, o in given if site in o.keys] for site in proposal.sites}
        for found in exposed(Given(proposal.shares, partners, seeds, keys)):
            least = known.least(self._tasks[proposal.run], cohort_min)
            demand(len(found) >= least, "I6", f"the sum of {sorted(found)} can be had, agreed were {least}")
            place = (proposal.run, proposal.round)
            first = self._bare.setdefault(place, found)
            same = first == found
            demand(same, "I6", f"two sums of round {place[1]}: {sorted(first)} and {sorted(found)}")

    # -- what coordinators compute ----------------------------------------------------------------

    def mean(self, effect: fx.Aggregate, orders: Mapping[str, Order]) -> Floats | None:
        """What the masked version has to be the step by: the mean of exactly the survivors.

        None where what lies under the masks is what only a liar can have sent.
        """
        asked = effect.masks
        assert asked is not None, "asked of masked sums"
        known = self._sessions[asked.session]
        sites = tuple(item.site for item in effect.contributions)
        demand(sites == asked.survivors, "I6", f"{sites} are summed, survivors are {asked.survivors}")
        ring, total = 1 << known.proposal.ring_bits, np.zeros(0, np.int64)
        for item in effect.contributions:
            vector = np.frombuffer(self._blobs[item.blob], "<u4").astype(np.int64)
            bare = (vector - self._veil(known, asked.session, item.site, len(vector))) % ring
            honest = self._plain(orders[item.order])
            same = honest is None or np.array_equal(bare, honest % ring)
            demand(same, "I2", f"under the masks of {item.order} lies another update than its own")
            total = bare if not len(total) else total + bare
        return self._mean(known, effect.run, (total + ring // 2) % ring - ring // 2, len(sites))

    def may_be_refused(self, asked: fx.Unmasking) -> bool:
        """Whether one of those who masked may have sent what spoils the sum."""
        return any(site in self._liars for site in asked.sharers)

    def _veil(self, known: Session, session: str, site: str, count: int) -> Levels:
        near = set(_near(known.proposal, session, site)) & set(known.sharers)
        publics = {other: public_of(known.secrets[other].mask) for other in near}
        return own_masks(known.proposal, session, site, known.secrets[site], publics, count)

    def _mean(self, known: Session, run: str, total: Levels, count: int) -> Floats | None:
        """Written out once more: levels, and behind them the limbs of the weights where these count."""
        codec, most = known.proposal.codec, weight_max(self._tasks[run])
        bits = int(codec.removeprefix("fixed").split("s")[0])
        num_limbs = -(-most.bit_length() // bits)
        levels, limbs = total[: len(total) - num_limbs], total[len(total) - num_limbs :]
        words = [int(limb) % (1 << known.proposal.ring_bits) for limb in limbs]
        weight = sum(word << bits * place for place, word in enumerate(words)) if most else count
        garbage = bool(np.any(np.abs(levels) > count * ((1 << (bits - 1)) - 1)))
        garbage = garbage or any(word > count * ((1 << bits) - 1) for word in words)
        if garbage or not 0 < weight <= count * (most or 1):
            return None
        scale = step_of(codec) * (most or 1) / weight
        return np.array([int(level) * scale for level in levels], np.float64).astype(np.float32)


def _near(proposal: masks.Proposal, session: str, site: str) -> tuple[str, ...]:
    return masks.neighbours(session, tuple(proposal.sites), proposal.degree, site)
