"""The numbers of masked rounds, in a ring and on tiny vectors: levels, masks on, masks off, their mean.

A vector has one word per element, and behind them the limbs of the update's weight where weights count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from fedtrain.core import masks
from fedtrain.core.effects import Unmasking
from fedtrain.core.masks import Proposal
from fedtrain.core.orders import Order
from fedtrain.errors import BadUpdate, RemoteError
from fedtrain.methods import ring, shamir
from fedtrain.methods.vectors import Floats
from fedtrain.sim.keys import Secrets, pair_seed, public_of, stream

Levels = NDArray[np.int64]

TRIES_MAX = 200
"""Choices of shares that a coordinator tries before it calls a secret lost."""


def is_veiled(codec: str) -> bool:
    """Whether updates of this codec are masked in these worlds."""
    return codec != "float32"


def step_of(codec: str) -> float:
    """What one level stands for."""
    return 2.0 ** -int(codec.split("s")[1])


def weight_max(task: str) -> int:
    """The largest weight of a masked update; 0 where all count the same."""
    terms = masks.mask_terms(task)
    return terms.weight_max if terms else 0


def width(order: Order, num_elements: int) -> int:
    """Words of a masked update."""
    return num_elements + ring.limb_count(weight_max(order.task), _bits(order.codec))


def levels_of(order: Order, values: Floats, weight: int) -> Levels:
    """The plain integers of an update: weighted levels, then the limbs of the weight."""
    most, bits = weight_max(order.task), _bits(order.codec)
    weighted = values.astype(np.float64) * (weight / most if most else 1.0)
    reach = (1 << (bits - 1)) - 1
    levels = np.clip(np.rint(weighted / step_of(order.codec)), -reach, reach).astype(np.int64)
    return np.concatenate([levels, ring.weight_limbs(weight if most else 0, most, bits).astype(np.int64)])


def own_masks(
    proposal: Proposal, session: str, site: str, secrets: Secrets, publics: Mapping[str, str], count: int
) -> Levels:
    """All masks of a site: its own stream, and one with each of these others, up or down by name."""
    total = stream(secrets.seed, count).astype(np.int64)
    for other, public in publics.items():
        pair = stream(pair_seed(secrets.mask, public, session), count).astype(np.int64)
        total = total + pair if site < other else total - pair
    return total % (1 << proposal.ring_bits)


def opened_sum(asked: Unmasking, vectors: Mapping[str, NDArray[np.uint32]]) -> Levels:
    """The sum of the survivors' plain vectors; `RemoteError` where what was given does not lead there."""
    count = len(next(iter(vectors.values())))
    total = np.zeros(count, np.int64)
    for site in asked.survivors:
        seed = _secret(asked, site, survives=True)
        total = total + vectors[site].astype(np.int64) - stream(seed, count).astype(np.int64)
    for lost in set(asked.sharers) - set(asked.survivors):
        private = _secret(asked, lost, survives=False)
        for site in sorted(set(asked.neighbours[lost]) & set(asked.survivors)):
            seed = pair_seed(private, asked.adverts[site].mask_key, asked.session)
            pair = stream(seed, count).astype(np.int64)
            total = total - pair if site < lost else total + pair
    half = 1 << (asked.ring_bits - 1)
    return (total + half) % (2 * half) - half


def _secret(asked: Unmasking, site: str, survives: bool) -> bytes:
    """What the opened shares give: held against the advert, and tried again where a share is false."""
    advert, given = asked.adverts[site], {}
    for holder, opened in asked.opened.items():
        share = (opened.seeds if survives else opened.keys).get(site)
        if share is not None:
            given[place_of(asked.session, holder)] = bytes.fromhex(share)
    for some in islice(combinations(sorted(given.items()), asked.shares), TRIES_MAX):
        try:
            found = shamir.combine(some, asked.shares)
        except RemoteError:
            continue
        right = hashlib.sha256(found).hexdigest() if survives else public_of(found)
        if right == (advert.seed_digest if survives else advert.mask_key):
            return found
    raise RemoteError(f"the shares of {site} do not give the secret that it has advertised")


def place_of(session: str, site: str) -> int:
    """The number by which a site holds shares."""
    return int.from_bytes(hashlib.sha256(f"{session} {site}".encode()).digest()[:8], "big") + 1


def mean_of(asked: Unmasking, task: str, total: Levels, num_elements: int) -> Floats:
    """The mean of the updates below the masks; `BadUpdate` for a sum that no honest sites have."""
    most, bits, sites = weight_max(task), _bits(asked.codec), len(asked.survivors)
    reach = sites * ((1 << (bits - 1)) - 1)
    levels, limbs = total[:num_elements], total[num_elements:]
    if np.any(np.abs(levels) > reach):
        raise BadUpdate(f"a sum beyond {reach}: garbage came in under the masks")
    weight = sites
    if most:
        words = (limbs % (1 << asked.ring_bits)).astype(np.uint32)
        weight = ring.weight_sum(words, most, bits, asked.ring_bits, sites)
        if not weight:
            raise BadUpdate("the weights add up to nothing")
    return (levels * (step_of(asked.codec) * (most or 1) / weight)).astype(np.float32)


def _bits(codec: str) -> int:
    bits = masks.level_bits(codec)
    assert bits is not None, "only summable codecs are masked"
    return bits
