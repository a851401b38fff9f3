"""Rows 56-60: a coordinator that wants to see one update gets a burnt session from a stock agent over real
gRPC: no share is opened, no secret is left on the disk, and nothing leaves unmasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from malicious import CONTRACT, RUN, SITE, malice_in
from malicious_masks import COHORT, OTHERS, STEPS, Round, masked_order

from fedtrain.core import canonical, masks, messages as msg
from fedtrain.core.agent import SeatStage
from fedtrain.core.contract import Contract, Require
from fedtrain.core.orders import Order
from fedtrain.trust.keys import MessageKey
from fedtrain.trust.masking import MaskKeys

MASKED = replace(CONTRACT, require=Require(masked=True))
ORGANISATIONS = {SITE: "fzj", "east": "uni", "north": "uni", "south": "clinic", "west": "uni"}


@dataclass(frozen=True)
class Trick:
    """Behind the honest document `after` ("" for none) `says` is said on `topic`, and refused in `words`."""

    after: str
    topic: str
    says: Callable[[Round], Any]
    words: str
    clauses: dict[str, Any] = field(default_factory=dict)
    roster: dict[str, str] = field(default_factory=dict)
    order: Order = field(default_factory=masked_order)
    forged: bool = False


def proposal(**changes: Any) -> Callable[[Round], masks.Proposal]:
    return lambda play: replace(play.proposal, **changes)


def another_own_key(play: Round) -> masks.Proposal:
    sites = {**play.proposal.sites, SITE: MessageKey.generate().public}
    return replace(play.proposal, sites=sites)


def keys_of(*sites: str) -> Callable[[Round], masks.Keys]:
    return lambda play: masks.Keys(play.session, play.adverts(sites))


def substituted(play: Round) -> masks.Keys:
    """North's place is taken by keys of the coordinator's own, which north has not signed."""
    own = play.advert("north", MaskKeys.generate(), play.session, signer=MessageKey.generate())
    return masks.Keys(play.session, {**play.adverts(), "north": own})


def substituted_victim(play: Round) -> masks.Keys:
    """The site's own advert with other keys, under the signature of the true one."""
    found = play.adverts()
    true = canonical.decode(masks.Advert, found[SITE].document)
    text = masks.spelled(replace(true, share_key="09" + "00" * 31))
    return masks.Keys(play.session, {**found, SITE: masks.Signed(text, found[SITE].signature)})


def replayed_advert(play: Round) -> masks.Keys:
    """North's keys of another session, well signed."""
    old = play.advert("north", play.secrets["north"], "0" * 64)
    return masks.Keys(play.session, {**play.adverts(), "north": old})


def swapped(play: Round) -> masks.Keys:
    """South's advert in north's place."""
    found = play.adverts()
    return masks.Keys(play.session, {**found, "north": found["south"]})


def forged_affirmation(play: Round) -> masks.Unmask:
    asked = play.unmask(COHORT)
    text = masks.spelled(masks.Survivors(play.session, COHORT))
    forged = play.signed("north", "affirmation", text, signer=MessageKey.generate())
    return replace(asked, signatures={**asked.signatures, "north": forged})


def affirmed_by_others(play: Round) -> masks.Unmask:
    """A set without west, which all others have affirmed and this site has not."""
    asked = play.unmask(WITHOUT_WEST)
    return replace(asked, signatures={site: asked.signatures[site] for site in OTHERS})


def affirmed_elsewhere(play: Round) -> masks.Unmask:
    """Good signatures of all, over another set than the one that is named."""
    other = play.unmask(OTHERS)
    return replace(other, survivors=COHORT)


WITHOUT_WEST = tuple(site for site in COHORT if site != "west")

TRICKS: dict[str, Trick] = {
    "another model than the order's": Trick(
        "", "proposal", proposal(model="e" * 64), "the proposal's model is not the order's"
    ),
    "another plan": Trick("", "proposal", proposal(plan="e" * 64), "the proposal's plan is not"),
    "a smaller cohort": Trick(
        "", "proposal", lambda play: replace(play.proposal, sites={
            site: key for site, key in play.proposal.sites.items() if site != "west"
        }), "the proposal's sites are not the order's cohort",
    ),
    "a cohort of two": Trick(
        "", "proposal", proposal(), "a masked round needs 3 sites, this one has 2",
        clauses={"cohort_min": 2}, order=masked_order(cohort=(SITE, "north")),
    ),
    "a lower threshold": Trick("", "proposal", proposal(threshold=2), "the proposal's threshold is not"),
    "fewer shares": Trick("", "proposal", proposal(shares=1), "the proposal's shares is not"),
    "a smaller ring": Trick("", "proposal", proposal(ring_bits=12), "the proposal's ring_bits is not"),
    "a codec that has no sum": Trick(
        "", "proposal", proposal(), "codec int8 cannot be summed", order=masked_order(codec="int8")
    ),
    "its own key in the site's place": Trick(
        "", "proposal", another_own_key, "the proposal names another key for this site than its own"
    ),
    "one key in two places": Trick(
        "", "proposal",
        lambda play: replace(play.proposal, sites={**play.proposal.sites,
                                                   "north": play.proposal.sites["south"]}),
        "two sites of the proposal have one key",
    ),
    "its own key in a pinned partner's place": Trick(
        "", "proposal", proposal(), "contract.partners.north", clauses={"partners": {"north": "ab" * 32}}
    ),
    "an unsigned proposal": Trick(
        "", "proposal", proposal(), "has not signed its proposal", forged=True
    ),
    "keys before a proposal": Trick("", "keys", lambda play: masks.Keys("0" * 64, {}), "proposal was due"),
    "two proposals": Trick("proposal", "proposal", proposal(model="e" * 64), "its keys was due"),
    "its own keys in a partner's place": Trick("proposal", "keys", substituted, "signature"),
    "other keys in the site's place": Trick("proposal", "keys", substituted_victim, "signature"),
    "keys of another session": Trick("proposal", "keys", replayed_advert, "of another session"),
    "one site's keys for two": Trick("proposal", "keys", swapped, "signature"),
    "keys without this site": Trick("proposal", "keys", keys_of(*OTHERS), "another advert of this site"),
    "keys of too few": Trick("proposal", "keys", keys_of(*COHORT[:3]), "the session needs 4"),
    "keys of fewer than the contract's cohort": Trick(
        "proposal", "keys", keys_of(*WITHOUT_WEST), "contract.cohort_min is 5", clauses={"cohort_min": 5}
    ),
    "keys of one organisation": Trick(
        "proposal", "keys", keys_of(SITE, "east", "north", "west"), "organisations_min is 3, 2 are left",
        clauses={"organisations_min": 3}, roster=ORGANISATIONS,
    ),
    "keys of sites that the roster does not know": Trick(
        "", "proposal", proposal(), "contract.cohort_min is 3, 2 sites are left",
        roster={SITE: "fzj", "north": "uni", "nobody": "x"}, clauses={"cohort_min": 3},
    ),
    "a delivery for too few": Trick(
        "keys", "delivery", lambda play: play.delivery(COHORT[:3]), "the session needs 4"
    ),
    "a delivery without a box": Trick(
        "keys", "delivery", lambda play: play.delivery(COHORT, WITHOUT_WEST), "one box of each neighbour"
    ),
    "a delivery without this site": Trick(
        "keys", "delivery", lambda play: play.delivery(OTHERS), "this site is left out"
    ),
    "survivors before a delivery": Trick(
        "keys", "survivors", lambda play: masks.Survivors(play.session, COHORT), "its delivery was due"
    ),
    "too few survivors": Trick(
        "delivery", "survivors", lambda play: masks.Survivors(play.session, COHORT[:3]), "the session needs 4"
    ),
    "survivors without this site": Trick(
        "delivery", "survivors", lambda play: masks.Survivors(play.session, OTHERS), "this site is left out"
    ),
    "survivors nobody has heard of": Trick(
        "delivery", "survivors", lambda play: masks.Survivors(play.session, (*COHORT, "zebra")),
        "not named before",
    ),
    "a survivor twice": Trick(
        "delivery", "survivors", lambda play: masks.Survivors(play.session, (*COHORT, "west")), "named twice"
    ),
    "survivors of another session": Trick(
        "delivery", "survivors", lambda play: masks.Survivors("0" * 64, COHORT), "of another session"
    ),
    "opening without affirmation": Trick(
        "delivery", "unmask", lambda play: play.unmask(COHORT), "its survivors was due"
    ),
    "two sets of survivors": Trick(
        "survivors", "survivors", lambda play: masks.Survivors(play.session, WITHOUT_WEST),
        "its unmask was due",
    ),
    "west alive and dropped: the other share of it": Trick(
        "survivors", "unmask", affirmed_by_others, "another set"
    ),
    "opening with too few signatures": Trick(
        "survivors", "unmask", lambda play: play.unmask(COHORT, ("east", "north")), "fewer than 4"
    ),
    "opening with a forged signature": Trick(
        "survivors", "unmask", forged_affirmation, "does not verify"
    ),
    "opening with signatures over another set": Trick(
        "survivors", "unmask", affirmed_elsewhere, "does not verify"
    ),
    "opening with a stranger's signature": Trick(
        "survivors", "unmask",
        lambda play: replace(play.unmask(COHORT), signatures={**play.unmask(COHORT).signatures,
                                                              "zebra": "00" * 64}),
        "signed the survivors that the proposal does not name",
    ),
    "words that are none": Trick("delivery", "survivors", lambda play: "{}", "Survivors"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
async def test_a_trick_burns_the_session(name: str, tmp_path: Path) -> None:
    """The order fails with the reason, the secrets are gone from the disk, and nothing that follows is heard:
    neither the honest document in the trick's place nor a request to open has an answer."""
    trick = TRICKS[name]
    async with malice_in(tmp_path, replace(MASKED, **trick.clauses)) as (malice, victim):
        play = Round(malice, victim, trick.order)
        if trick.roster and trick.after:
            malice.say(malice.roster(trick.roster))
        await play.invite()
        if trick.roster and not trick.after:
            malice.say(malice.roster(trick.roster))
            await victim.agent.until(lambda: victim.agent.state.roster)
        if trick.after:
            await play.go(trick.after)
        honest = {topic: len(play.words(topic)) for topic in ("advert", "boxes", "affirmation", "opened")}
        play.speak(trick.topic, trick.says(play), "00" * 64 if trick.forged else None)
        (failure,) = await malice.until(lambda: malice.of(msg.Failure))
        assert failure.order == play.order.id and "the masked session was burnt" in failure.reason
        assert trick.words in failure.reason, failure.reason
        # What a coordinator that has learnt nothing would try next.
        for topic in STEPS if trick.after else ():
            if topic in play.documents:
                play.speak(topic, play.documents[topic])
        if trick.after:
            play.speak("unmask", play.unmask(COHORT))
        malice.say(msg.Invitation(masked_order(round=2, cohort=(SITE, "north"))))
        await malice.until(lambda: [a for a in malice.of(msg.Agreement) if a.order == f"{RUN}.2.1.{SITE}"])
        assert not play.words("opened")
        assert {topic: len(play.words(topic)) for topic in honest} == honest
        assert play.order.id not in _secrets(victim.settings.state / "masks")
        assert play.plain not in {offer.digest for offer in malice.offered}
        assert bool(malice.offered) == bool(play.plain) and not victim.agent.failed.done()


async def test_the_honest_session_is_answered(tmp_path: Path) -> None:
    """The control: what the tricks change is answered by the very same agent, one share per peer, once;
    before it speaks, its secrets are gone. The same request again has the same answer, another one none."""
    async with malice_in(tmp_path, MASKED) as (malice, victim):
        play = Round(malice, victim)
        await play.invite()
        await play.go("unmask")
        (offer,) = malice.offered
        assert offer.digest != play.plain
        (said,) = play.words("opened")
        opened = canonical.decode(masks.Opened, said.document)
        assert set(opened.seeds) == set(COHORT) and not opened.keys
        kept = json.loads((victim.settings.state / "masks" / play.order.id).read_bytes())
        assert not kept["secrets"] and not kept["shares"] and set(kept["said"]) == {"opened"}
        play.speak("unmask", play.documents["unmask"])
        again = await malice.until(lambda: play.words("opened")[1:])
        assert again[0].document == said.document
        play.speak("unmask", play.unmask(WITHOUT_WEST))
        play.speak("survivors", masks.Survivors(play.session, WITHOUT_WEST))
        await _settled(play)
        assert len(play.words("opened")) == 2 and not malice.of(msg.Failure)
        assert victim.agent.state.masks[play.order.id].stage is SeatStage.OPENED


async def test_the_difference_of_two_sums_is_not_had(tmp_path: Path) -> None:
    """A second attempt at a round with one site fewer, everything in it honest: no share is opened, because
    the two sums would differ by one site's update."""
    async with malice_in(tmp_path, MASKED) as (malice, victim):
        first = Round(malice, victim)
        await first.invite()
        await first.go("unmask")
        second = Round(malice, victim, masked_order(attempt=2), signers=first.signers)
        await second.invite()
        await second.go("delivery")
        second.speak("survivors", masks.Survivors(second.session, WITHOUT_WEST))
        (failure,) = await malice.until(lambda: malice.of(msg.Failure))
        assert "another set would tell single updates apart" in failure.reason
        assert not second.words("opened") and not second.words("affirmation")


async def test_a_partner_is_known_by_its_first_key(tmp_path: Path) -> None:
    """Where no key is pinned the first one counts: later another key in north's place is refused."""
    async with malice_in(tmp_path, MASKED) as (malice, victim):
        first = Round(malice, victim)
        await first.invite()
        await first.go("proposal")
        others = {**first.signers, "north": MessageKey.generate()}
        second = Round(malice, victim, masked_order(attempt=2), signers=others)
        await second.invite()
        second.speak("proposal", second.proposal)
        (failure,) = await malice.until(lambda: malice.of(msg.Failure))
        assert "write its key at contract.partners.north" in failure.reason
        assert not second.words("advert")


async def test_an_old_session_is_not_taken_up_again(tmp_path: Path) -> None:
    """New keys for every session: what was said in the first one has no place in the second."""
    async with malice_in(tmp_path, MASKED) as (malice, victim):
        first = Round(malice, victim)
        await first.invite()
        await first.go("delivery")
        second = Round(malice, victim, masked_order(attempt=2), signers=first.signers)
        await second.invite()
        second.speak("proposal", first.documents["proposal"])
        (failure,) = await malice.until(lambda: malice.of(msg.Failure))
        assert "the proposal's attempt is not the order's" in failure.reason


@pytest.mark.parametrize("terms", [{}, {"privacy": {}}, {"privacy": {"masked": False}}], ids=str)
async def test_a_plain_order_is_refused_where_masks_are_required(
    terms: dict[str, Any], tmp_path: Path
) -> None:
    """`contract.require.masked`: an order without masks is refused before anything is fetched or proposed."""
    async with malice_in(tmp_path, MASKED) as (malice, victim):
        play = Round(malice, victim, masked_order(terms=terms))
        malice.say(msg.Invitation(play.order))
        (answer,) = await malice.until(lambda: malice.of(msg.Agreement))
        assert not answer.accepted and "contract.require.masked" in "; ".join(answer.reasons)
        play.speak("proposal", play.proposal)
        await _settled(play)
        assert not play.words("advert") and victim.untouched and not malice.fetched


async def _settled(play: Round) -> None:
    """Everything that was said so far has been answered: so is this, which comes behind it."""
    order = masked_order(round=9, cohort=(SITE, "north"))
    play.malice.say(msg.Invitation(order))
    await play.malice.until(lambda: [a for a in play.malice.of(msg.Agreement) if a.order == order.id])


def _secrets(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_the_contract_is_the_usual_one() -> None:
    """Nothing but the required masks makes it stricter than that of the other tricks."""
    assert replace(MASKED, require=Require()) == CONTRACT and isinstance(MASKED, Contract)
