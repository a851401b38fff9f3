"""Masked worlds: they hold, their plans vary, and what a coordinator could compute is computed right."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest

from fedtrain.core import masks
from fedtrain.errors import RemoteError
from fedtrain.sim.exposure import Given, exposed
from fedtrain.sim.keys import Notary, Secrets, pair_seed, public_of, seal, stream, unseal
from fedtrain.sim.plan import PRIVATE, draw
from fedtrain.sim.secrecy import threshold
from fedtrain.sim.veils import is_veiled
from fedtrain.sim.world import World

VEILED = [seed for seed in range(PRIVATE + 1, PRIVATE + 120) if is_veiled(draw(seed).runs[0].spec.codec_up)]
FIVE = "abcde"


def complete(**changes: object) -> Given:
    """Five sites that have masked with one another; four shares give a secret back."""
    fields: dict[str, object] = {
        "shares": 4,
        "partners": {site: set(FIVE) - {site} for site in FIVE},
        "seeds": dict.fromkeys(FIVE, FIVE),
        "keys": {},
    }
    return Given(**{**fields, **changes})  # type: ignore[arg-type]


def test_masked_worlds_hold() -> None:
    """Versions are made of sums under masks, with sites lost before and after they have shared."""
    lost = sums = 0
    for seed in VEILED[:8]:
        world = World(seed)
        assert world.run().events > 0
        for session in world._auditor.secrecy._sessions.values():
            said = [text for (_, topic), text in session.words.items() if topic == "opened"]
            sums += bool(said)
            lost += bool(said) and bool(json.loads(said[0])["keys"])
    assert sums > 10 and lost > 0


def test_plans_of_masked_worlds_vary() -> None:
    """Weights, provisions for losses, codecs and numbers of sites differ; a run has sites enough."""
    runs = [(draw(seed), run.spec) for seed in VEILED for run in draw(seed).runs]
    terms = [masks.mask_terms(spec.task) for _, spec in runs]
    assert 15 < len(VEILED) < 45
    assert {term.weight_max > 0 for term in terms if term} == {True, False}
    assert {term.dropouts_max for term in terms if term} == {-1, 0, 1}
    assert all(spec.minimum >= masks.SITES_MIN for _, spec in runs)
    assert all(masks.ring_bits(spec.codec_up, len(plan.sites)) for plan, spec in runs)
    assert {len(plan.sites) for plan, _ in runs} >= {3, 4, 5, 8}


@pytest.mark.parametrize("count", range(3, 40))
def test_the_auditors_threshold_is_the_products(count: int) -> None:
    """Two formulas for one rule."""
    assert threshold(count) == masks.threshold(count)


def test_only_the_sum_of_all_can_be_had() -> None:
    """With the seeds of all and no pair known, nothing smaller than the whole is bare."""
    assert exposed(complete()) == [frozenset(FIVE)]


def test_a_lost_site_leaves_the_sum_of_the_others() -> None:
    """Its streams come off with its key; while its key is not known nothing comes off."""
    four = {site: set(FIVE) - {site} for site in "abcd"}
    seeds = dict.fromkeys("abcd", "abcd")
    assert exposed(complete(partners=four, seeds=seeds)) == []
    assert exposed(complete(partners=four, seeds=seeds, keys={"e": "abcd"})) == [frozenset("abcd")]
    assert exposed(complete(partners=four, seeds=seeds, keys={"e": "abc"})) == []


def test_both_shares_of_a_site_lay_it_bare() -> None:
    """Seed and key of one site give its update, and by difference the sum of the others."""
    assert set(exposed(complete(keys={"e": "abcd"}))) == {frozenset("e"), frozenset("abcd")}


def test_sybils_lay_the_rest_bare() -> None:
    """Sites that are the coordinator's own subtract themselves: what is left is the sum of the honest."""
    assert frozenset("ab") in exposed(complete(foreign="cde"))
    assert frozenset("a") in exposed(complete(foreign="bcde"))


def test_other_partners_for_each_site_cancel_nothing() -> None:
    """Where two sites were told of different partners, no sum with them comes off."""
    partners = {**{site: set(FIVE) - {site} for site in FIVE}, "a": {"b", "c"}}
    assert exposed(complete(partners=partners)) == []


def test_stand_ins_behave_like_what_they_stand_for() -> None:
    """Pairs agree, sessions differ, boxes open for one purpose, signatures hold for one text."""
    chance = random.Random(1)
    one, other, third = (Secrets.drawn(chance) for _ in range(3))
    seed = pair_seed(one.mask, public_of(other.mask), "s")
    assert seed == pair_seed(other.mask, public_of(one.mask), "s")
    assert seed not in (
        pair_seed(third.mask, public_of(other.mask), "s"),
        pair_seed(one.mask, public_of(other.mask), "t"),
    )
    assert np.array_equal(stream(seed, 5), stream(seed, 9)[:5])
    box = seal(seed, "a to b", b"share")
    assert unseal(seed, "a to b", box) == b"share"
    for key, about, text in ((seed, "a to c", box), (one.seed, "a to b", box), (seed, "a to b", "no box")):
        with pytest.raises(RemoteError):
            unseal(key, about, text)
    notary = Notary(1)
    key = notary.key_of("a")
    assert notary.holds(key, "yes", notary.sign("a", "yes"))
    assert not notary.holds(key, "no", notary.sign("a", "yes"))
    assert not notary.holds(hashlib.sha256(b"nobody").hexdigest(), "yes", notary.sign("a", "yes"))
