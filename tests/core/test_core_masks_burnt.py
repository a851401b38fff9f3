"""What burns a site's masked session: words out of turn, other words, strangers, sets that are too small."""

from __future__ import annotations

from dataclasses import replace

import pytest
from masked_script import ALLOWS, Consortium

from fedtrain.core import agent, canonical, effects as fx, events as ev, masks


def stopped_at(topic: str, names: str = "abcde") -> tuple[Consortium, str]:
    """A consortium in which the coordinator's document of this topic has not reached site a yet."""
    world = Consortium(names)
    world.script.aggregate()
    answer = {"keys": "advert", "delivery": "boxes", "survivors": "update", "unmask": "affirmation"}[topic]
    world.mute.add(("b", answer))
    world.settle()
    return world, world.order("a")


def lie(world: Consortium, order: str, topic: str, document: object, fault: str = "") -> str:
    """What site a makes of these words: the reason with which it burns its session, "" if it does not."""
    text = document if isinstance(document, str) else masks.spelled(document)
    world.speak(fx.Speak("a", order, topic, text), fault)
    return world.sites["a"].burnt.get(order, "")


def session_of(world: Consortium, order: str) -> str:
    return world.sites["a"].state.masks[order].session


def test_other_words_on_a_topic_burn_the_session() -> None:
    """A second proposal, of another cohort, model or plan, ends it; the order fails with the reason."""
    world, order = stopped_at("keys")
    first = canonical.decode(masks.Proposal, world.heard[order]["proposal"])
    assert "where its keys was due" in lie(world, order, "proposal", replace(first, model="0" * 64))
    assert world.sites["a"].reports and world.sites["a"].stage(order) is agent.SeatStage.BURNT


@pytest.mark.parametrize("field", ["model", "layout", "plan", "codec", "ring_bits", "threshold", "round"])
def test_a_proposal_that_is_not_the_orders_is_burnt(field: str) -> None:
    """Whatever differs from the order that was accepted is refused by name."""
    world = Consortium("abcde")
    world.script.aggregate()
    order = world.script.order("a")
    world.sites["a"].tell(agent.OrderReceived, order=order, day=0, minute=0)
    proposal = masks.propose(1, order, {name: f"key-{name}" for name in "abcde"})
    found = getattr(proposal, field)
    wrong = replace(proposal, **{field: found + 1 if isinstance(found, int) else "0" * 64})
    assert f"the proposal's {field} is not the order's" in lie(world, order.id, "proposal", wrong)


def test_a_strange_key_in_a_partners_place_is_burnt() -> None:
    """A pinned partner, and one that came before with another key, are told by the key that is shown."""
    pinned = Consortium("abc", contract=replace(ALLOWS, partners={"b": "another key"}))
    assert all("contract.partners.b" in next(iter(s.burnt.values())) for s in pinned.sites.values())
    world = Consortium("abcde")
    world.script.tell(
        ev.MemberEnrolled, name="b", role="site", invite="again", key_digest="k", certificate="",
        message_key="key-of-somebody-else",
    )  # fmt: skip
    world.script.tell(ev.SumRefused, run="run", round=1, attempt=1, reason="")
    world.settle()
    reasons = [reason for site in world.sites.values() for reason in site.burnt.values()]
    assert reasons and all("write its key at contract.partners.b" in reason for reason in reasons)
    assert world.script.run.paused.startswith("round 1 was abandoned 5 times")


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ("abc", "the session needs 4"),
        ("bcde", "left out"),
        ("abcdef", "not named before"),
        ("aabcd", "named twice"),
    ],
)
def test_survivors_that_cannot_be_are_burnt(survivors: str, reason: str) -> None:
    """Too few, without this site, strangers, or one name twice."""
    world, order = stopped_at("survivors")
    said = masks.Survivors(session_of(world, order), tuple(survivors))
    assert reason in lie(world, order, "survivors", said)


def test_shares_are_given_for_the_affirmed_set_only() -> None:
    """Another set, too few signatures, or one that does not hold: nothing is opened."""
    for change, fault, reason in (
        ({"survivors": tuple("abcd")}, "", "another set"),
        ({"signatures": {"a": "x"}}, "", "fewer than 4"),
        ({}, "the affirmation of c does not hold", "the affirmation of c does not hold"),
        ({"session": "0" * 64}, "", "another set"),
    ):
        world, order = stopped_at("unmask")
        session = session_of(world, order)
        right = masks.Unmask(session, tuple("abcde"), dict.fromkeys("abcde", "x"))
        assert reason in lie(world, order, "unmask", replace(right, **change), fault)
        assert (order, "opened") not in world.sites["a"].said


def test_a_session_is_opened_once() -> None:
    """The same request has the same answer; another one has none, and burns nothing that is left."""
    world = Consortium("abcde")
    order = world.order("a")
    site = world.sites["a"]
    told = world.heard[order]["unmask"]
    again = site.tell(agent.StatementReceived, topic="unmask", order=order, document=told)
    assert again == [agent.SayMasked(order, "opened")]
    other = replace(canonical.decode(masks.Unmask, told), survivors=tuple("abcd"))
    assert site.tell(
        agent.StatementReceived, topic="unmask", order=order, document=masks.spelled(other)
    ) == []  # fmt: skip


def test_small_sets_break_the_contract_at_every_stage() -> None:
    """cohort_min holds for the keys, the sharers and the survivors, not for the order alone."""
    strict = replace(ALLOWS, cohort_min=5)
    for topic, answer in (("keys", "advert"), ("delivery", "boxes")):
        world = Consortium("abcde", contract=strict)
        world.script.aggregate()
        world.mute.add(("e", answer))
        world.settle()
        world.lose("e")
        world.wait(20_000)
        reasons = [reason for site in world.sites.values() for reason in site.burnt.values()]
        assert reasons and all("contract.cohort_min is 5" in reason for reason in reasons), topic


def test_a_site_with_too_few_neighbours_left_burns() -> None:
    """On a regular graph a set may be large enough and still leave a site among strangers, with few masks."""
    names = "abcdefghijklmnopqrstuvwxyz0123456789"
    world, order = stopped_at("keys", names)
    site = world.sites["a"]
    proposal = canonical.decode(masks.Proposal, site.state.masks[order].proposal)
    session = session_of(world, order)
    near = masks.neighbours(session, names, proposal.degree, "a")
    far = [name for name in names if name not in near and name != "a"]
    assert far and proposal.degree < len(names) - 1
    members = ["a", *far, *near[: proposal.threshold - 1 - len(far)]]
    assert len(members) == proposal.threshold

    def advert(name: str) -> masks.Signed:
        return masks.Signed(masks.spelled(masks.Advert(session, name, "0" * 64, "1" * 64, "2" * 64)), "x")

    said = masks.Keys(session, {name: advert(name) for name in members})
    assert f"of its neighbours are left, {proposal.shares} are needed" in lie(world, order, "keys", said)


def test_what_was_opened_outlives_a_snapshot() -> None:
    """The state that a snapshot brings back refuses the same second sums as the one that was kept."""
    world = Consortium("abcde")
    state = world.sites["a"].state
    assert state.unmasked["run"].sets
    assert canonical.decode(type(state), canonical.encode(state)).unmasked == state.unmasked


def test_a_session_that_was_left_is_not_entered_again() -> None:
    """An order that was dropped here and comes once more has no second part in the session that it had."""
    world, order = stopped_at("keys")
    site, work = world.sites["a"], world.script.order("a")
    proposal = world.heard[order]["proposal"]
    site.tell(agent.OrderCancelled, order=order, reason="no progress")
    site.tell(agent.OrderReceived, order=work, day=0, minute=0)
    assert "left this very session" in lie(world, order, "proposal", proposal)
