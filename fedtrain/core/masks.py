"""A masked round's documents, thresholds and graph: what coordinator and sites must agree on.

The protocol is the one of Bonawitz et al. (Practical Secure Aggregation for Privacy-Preserving Machine
Learning, 2017) on the complete graph up to 32 sites, and on a random regular graph above (Bell et al.,
Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, 2020, IACR 2020/704):

    R0  proposal   the round as every site must see it; its digest is the session
        advert     a site's public keys for this session, and a commitment to its own mask
    R1  keys       all adverts with their signatures
        boxes      shares of the site's secrets, sealed for each of its neighbours
    R2  delivery   who has shared, and the boxes for this site; then the masked update is uploaded
    R3  survivors  whose updates are here; each of them affirms, signed, this very set
    R4  unmask     enough of these signatures; only then each gives one share per peer, and burns the session

What is bound into the session cannot differ between sites: other models, plans, cohorts or keys give other
sessions, whose masks do not cancel.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedtrain.core import canonical
from fedtrain.core.orders import NAME, Order, OrderKind, order_id
from fedtrain.core.privacy import MaskTerms
from fedtrain.core.terms import read_asked

SITES_MIN = 3
"""The sum of two tells each the other's part."""

SITES_MAX = 500
"""The keys of more do not fit into one message."""

COMPLETE_MAX = 32
"""Up to so many sites everybody is everybody's neighbour."""

DROPOUT_SHARE = 0.2
"""Of the neighbours: the losses that a threshold is meant to survive, and the liars that it is meant for."""

RING_BITS_MAX = 32

LEAK_PROBABILITY = 2.0**-40
LOSS_PROBABILITY = 2.0**-20
"""For a site of a regular graph: its neighbours are liars enough to unmask it, or too few are left."""

SUMMABLE = re.compile(r"fixed([1-9]\d?)s(-?\d{1,2})|randk8s(-?\d{1,2})k([1-9]\d{0,3})")
"""Codecs whose encodings can be added: integers on one scale that all sites share."""

TOPICS = ("proposal", "advert", "keys", "boxes", "delivery", "survivors", "affirmation", "unmask", "opened")


@dataclass(frozen=True)
class Proposal:
    """The round as the coordinator shows it to every site alike.

    Attributes:
        plan: SHA-256 of the order's task section, which holds the run's terms.
        threshold: fewest survivors, and fewest signatures over their set.
        degree: neighbours of a site; one less than the sites for the complete graph.
        shares: fewest shares that give a secret back.
        sites: name -> public key of its messages, hex.
    """

    run: str
    round: int
    attempt: int
    epoch: int
    model: str
    layout: str
    plan: str
    codec: str
    block_elements: int
    ring_bits: int
    threshold: int
    degree: int
    shares: int
    sites: Mapping[str, str]


@dataclass(frozen=True)
class Advert:
    """A site's keys of one session: X25519 publics, hex, and SHA-256 of the seed of its own mask."""

    session: str
    site: str
    mask_key: str
    share_key: str
    seed_digest: str


@dataclass(frozen=True)
class Signed:
    """A document of a site with the site's signature over it."""

    document: str
    signature: str


@dataclass(frozen=True)
class Keys:
    """All adverts that take part."""

    session: str
    adverts: Mapping[str, Signed]


@dataclass(frozen=True)
class Boxes:
    """Sealed shares, neighbour -> base64. `keys` is the digest of the keys document that they belong to."""

    session: str
    keys: str
    boxes: Mapping[str, str]


@dataclass(frozen=True)
class Delivery:
    """Who has shared, and the boxes for one site, source -> base64."""

    session: str
    sharers: tuple[str, ...]
    boxes: Mapping[str, str]


@dataclass(frozen=True)
class Survivors:
    """Whose masked updates the coordinator has, sorted. Also the form of a site's affirmation."""

    session: str
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Unmask:
    """The affirmations of the set that is to be summed, site -> signature."""

    session: str
    survivors: tuple[str, ...]
    signatures: Mapping[str, str]


@dataclass(frozen=True)
class Opened:
    """One share per neighbour, hex: of a survivor's own seed, or of a dropped site's mask key."""

    session: str
    seeds: Mapping[str, str]
    keys: Mapping[str, str]


def spelled(document: object) -> str:
    """A document as it travels and is signed."""
    return canonical.encode(document).decode()


def digest_of(text: str) -> str:
    """SHA-256 of a document as it is spelled, hex; of a proposal it is the session."""
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def mask_terms(task: str) -> MaskTerms | None:
    """The terms of a run whose updates are masked; None for any other."""
    return read_asked(task).masked


def is_masked(order: Order) -> bool:
    """Whether this order's answer has to be a masked update."""
    return order.kind is OrderKind.TRAIN and mask_terms(order.task) is not None


def level_bits(codec: str) -> int | None:
    """Bits of one element's integer; None for a codec that cannot be summed under masks."""
    match = SUMMABLE.fullmatch(codec)
    if match is None:
        return None
    bits = int(match[1]) if match[1] else 8
    return bits if 8 <= bits <= 24 else None


def ring_bits(codec: str, sites: int) -> int | None:
    """Bits of the ring in which `sites` such integers cannot overflow; None where no ring is wide enough."""
    bits = level_bits(codec)
    if bits is None:
        return None
    ring = bits + max(0, sites - 1).bit_length()
    return ring if ring <= RING_BITS_MAX else None


def threshold(sites: int) -> int:
    """More than half of the sites and of those that may be lost: two disjoint sets never both reach it."""
    return min(sites, math.ceil(round(sites * (1 + DROPOUT_SHARE), 6) / 2) + 1)


def needed(proposal: Proposal, terms: MaskTerms) -> int:
    """Fewest survivors: the threshold, and what the provision for lost noise allows."""
    lost = terms.dropouts_max
    return proposal.threshold if lost < 0 else max(proposal.threshold, len(proposal.sites) - lost)


@functools.lru_cache(maxsize=256)
def degree(sites: int) -> int:
    """Neighbours of a site: all others up to 32 sites; above, the fewest (an even number) with which a site
    is, up to `LEAK_PROBABILITY` and `LOSS_PROBABILITY`, neither unmasked nor lost when a fifth of all sites
    collude and, apart from these, a fifth is lost.
    """
    if sites <= COMPLETE_MAX:
        return sites - 1
    bad = math.ceil(DROPOUT_SHARE * sites)
    for count in range(COMPLETE_MAX, sites - 1, 2):
        wanted = threshold(count + 1)
        # The site itself is among the holders, is honest, and may be lost.
        leak = _tail(sites - 1, bad, count, wanted)
        loss = _tail(sites - 1, bad, count, count + 1 - wanted)
        if leak <= LEAK_PROBABILITY and loss <= LOSS_PROBABILITY:
            return count
    return sites - 1


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Probability that a draw without replacement holds at least `least` of the marked ones."""
    total = math.comb(population, drawn)
    hits = sum(
        math.comb(marked, k) * math.comb(population - marked, drawn - k)
        for k in range(max(0, least), min(marked, drawn) + 1)
    )
    return hits / total


def neighbours(session: str, sites: Collection[str], count: int, site: str) -> tuple[str, ...]:
    """The sites that share secrets and masks with this one, sorted.

    All others on the complete graph; else a ring of all sites in an order that the session's digest draws,
    where everybody is joined with the nearest on either side.
    """
    names = sorted(sites)
    if count >= len(names) - 1:
        return tuple(name for name in names if name != site)
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{session} {name}".encode()).digest())
    place, half = drawn.index(site), count // 2
    near = {drawn[(place + step) % len(drawn)] for step in range(-half, half + 1)}
    return tuple(sorted(near - {site}))


def propose(epoch: int, order: Order, keys: Mapping[str, str]) -> Proposal:
    """The proposal of an order's round. `keys` are the cohort's message keys."""
    assert order.model is not None, "only training is masked"
    count = len(order.cohort)
    bits = ring_bits(order.codec, count)
    near = degree(count)
    return Proposal(
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        epoch=epoch,
        model=order.model.digest,
        layout=order.model.layout_digest,
        plan=digest_of(order.task),
        codec=order.codec,
        block_elements=order.block_elements,
        ring_bits=bits or 0,
        threshold=threshold(count),
        degree=near,
        shares=threshold(near + 1),
        sites={site: keys[site] for site in order.cohort},
    )


def fault_of(proposal: Proposal, order: Order) -> str:
    """Why this proposal is not the one of the order that was accepted; "" if it is.

    Everything but the epoch and the keys follows from the order, so everything is compared.
    """
    if len(order.cohort) < SITES_MIN:
        return f"a masked round needs {SITES_MIN} sites, this one has {len(order.cohort)}"
    if not is_masked(order):
        return "the order does not ask for a masked update"
    if level_bits(order.codec) is None:
        return f"codec {order.codec[:40]} cannot be summed under masks"
    if set(proposal.sites) != set(order.cohort):
        return "the proposal's sites are not the order's cohort"
    if any(NAME.fullmatch(site) is None for site in proposal.sites):
        return "the proposal names what is no site"
    expected = propose(proposal.epoch, order, proposal.sites)
    for name in vars(expected):
        if getattr(proposal, name) != getattr(expected, name):
            return f"the proposal's {name} is not the order's"
    if not proposal.ring_bits:
        return f"no ring of {RING_BITS_MAX} bits holds {len(order.cohort)} updates of codec {order.codec}"
    if len(set(proposal.sites.values())) != len(proposal.sites):
        return "two sites of the proposal have one key"
    return ""


def spec_fault(task: str, codec: str, minimum: int, sites: int) -> tuple[str, str]:
    """(key of the run's file, why) a run with up to so many sites could never be masked; ("", "") if it can,
    or is plain."""
    terms = mask_terms(task)
    if terms is None:
        return "", ""
    if minimum < SITES_MIN:
        return "sites.minimum", f"{minimum} is too few for a sum under masks, which needs {SITES_MIN} sites"
    if sites > SITES_MAX:
        return "sites.include", f"{sites} sites may take part, a masked round can have {SITES_MAX}"
    if level_bits(codec) is None:
        return "codec.up", f"{codec} cannot be summed under masks: fixed<bits>s<exp>, randk8s<exp>k<keep> can"
    if ring_bits(codec, sites) is None:
        return "codec.up", f"the sum of {sites} updates of {codec} overflows a ring of {RING_BITS_MAX} bits"
    if terms.dropouts_max >= minimum:
        return (
            "privacy.masked.dropouts_max",
            f"{terms.dropouts_max} sites cannot be lost of {minimum} that a round may start with",
        )
    return "", ""


def order_of(proposal: Proposal, site: str) -> str:
    """The id of a site's order in the proposal's round."""
    return order_id(proposal.run, proposal.round, proposal.attempt, site)
