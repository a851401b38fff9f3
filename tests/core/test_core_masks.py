"""Masked rounds, both halves: what each stage waits for, what ends it, and what burns a session."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_script import Script
from masked_script import ALLOWS, TASK, Consortium

from fedtrain.core import agent, canonical, effects as fx, events as ev, masks
from fedtrain.core.contract import Approval
from fedtrain.core.state import MaskStage, Phase, Standing


def test_a_round_goes_through_its_stages() -> None:
    """Keys, shares, masked updates, affirmations, opened shares; then the sum of all is asked for."""
    world = Consortium()
    assert world.phase is Phase.AGGREGATING and world.stage is MaskStage.BARE
    asked = world.script.last_aggregation()
    assert asked.masks is not None and asked.masks.survivors == tuple("abcde")
    assert [item.weight for item in asked.contributions] == [1.0] * 5
    assert set(asked.masks.opened) == set("abcde")
    assert all(site.state.unmasked["run"].round == 1 for site in world.sites.values())
    world.script.aggregate()
    world.settle()
    assert world.script.run.records[-1].version == 1
    assert world.script.run.parents == {name: f"run.1.1.{name}" for name in "abcde"}


def test_the_journal_folds_to_the_same_state() -> None:
    """A replay of the coordinator's journal ends in the same masked round."""
    world = Consortium()
    assert world.script.replayed() == world.script.state


@pytest.mark.parametrize("sites", [3, 4, 5, 10])
def test_thresholds_are_those_of_the_design(sites: int) -> None:
    """More than ceil((n + n/5) / 2): 3, 4, 4, 7; three and four sites can lose nobody."""
    assert masks.threshold(sites) == {3: 3, 4: 4, 5: 4, 10: 7}[sites]


def test_two_disjoint_sets_never_reach_the_threshold() -> None:
    """Whatever the number of sites, two sums over disjoint survivors cannot both be affirmed."""
    assert all(2 * masks.threshold(n) > n for n in range(1, 500))


def test_the_graph_is_mutual_regular_and_complete_up_to_32() -> None:
    """Everybody has the same number of neighbours, and is its neighbours' neighbour."""
    assert [masks.degree(n) for n in (3, 10, 32)] == [2, 9, 31]
    names = [f"s{i:03}" for i in range(100)]
    count = masks.degree(100)
    assert 32 <= count < 99 and count % 2 == 0
    near = {name: masks.neighbours("ab" * 32, names, count, name) for name in names}
    assert all(len(others) == count and name not in others for name, others in near.items())
    assert all(name in near[other] for name, others in near.items() for other in others)
    assert near != {name: masks.neighbours("cd" * 32, names, count, name) for name in names}


def test_rings_are_as_wide_as_the_sum_needs() -> None:
    """Twelve bits of ten sites take sixteen; what no ring of 32 bits holds is said to be so."""
    assert masks.ring_bits("fixed12s11", 10) == 16
    assert masks.ring_bits("randk8s11k10", 3) == 10
    assert masks.ring_bits("fixed24s20", 300) is None
    assert masks.ring_bits("int8", 3) is None and masks.ring_bits("fixed4s2", 3) is None


@pytest.mark.parametrize("topic", ["advert", "boxes", "update", "affirmation", "opened"])
def test_one_site_drops_out_in_a_phase(topic: str) -> None:
    """Whoever falls silent is left out or dropped; the sum of the others is had."""
    world = Consortium("abcdef")
    world.script.aggregate()
    world.mute.add(("f", topic))
    world.settle()
    assert world.phase is not Phase.AGGREGATING
    world.lose("f")
    world.wait(20_000)
    assert world.phase is Phase.AGGREGATING
    last = world.sums[-1]
    assert "".join(last.survivors) == ("abcdef" if topic in ("affirmation", "opened") else "abcde")
    assert "".join(sorted(last.sharers)) == ("abcde" if topic in ("advert", "boxes") else "abcdef")
    assert "".join(sorted(last.opened)) == "abcde"
    assert all(set(opened.keys) == set(last.sharers) - set(last.survivors) for opened in last.opened.values())


def test_too_many_drop_out_and_nothing_is_released() -> None:
    """Below the threshold the attempt is abandoned, nobody is asked to open, and the next has new keys."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {("d", "update"), ("e", "update")}
    world.settle()
    before = {site.name: site.stage(world.order(site.name)) for site in world.sites.values()}
    assert set(before.values()) == {agent.SeatStage.READY}
    first = world.script.run.round
    assert first is not None and first.masks is not None
    for name in "de":
        world.lose(name)
    assert "needed to unmask a sum" in world.script.run.records[-1].reason
    assert not [said for said in world.spoken if said.order.startswith("run.2.1.") and said.topic == "unmask"]
    world.mute.clear()
    for name in "de":
        world.back(name)
    assert world.phase is Phase.AGGREGATING
    second = world.script.run.round
    assert second is not None and second.masks is not None and second.attempt == 2
    assert second.masks.session != first.masks.session
    assert {order.split(".")[2] for order in second.counted} == {"2"}


def test_no_seat_and_no_parent_is_kept_from_a_session_that_failed() -> None:
    """Updates of an abandoned masked attempt count nowhere, and no site goes on from the work for them."""
    world = Consortium("abcde")
    world.script.aggregate()
    parents = dict(world.script.run.parents)
    world.mute |= {("d", "update"), ("e", "update")}
    world.settle()
    for name in "de":
        world.lose(name)
    seats = world.script.last_seats()
    assert [seats[name][0] for name in "abc"] == [Standing.STORED] * 3
    assert world.script.run.parents == parents
    for name in "abc":
        assert not any(held.order.round == 2 and held.order.attempt == 1
                       for held in world.sites[name].state.held.values())  # fmt: skip


def test_a_site_that_is_lost_and_back_says_the_same_words() -> None:
    """Words that were on their way when a session broke are asked for again, and are the same."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute.add(("c", "boxes"))
    world.settle()
    order = world.order("c")
    world.lose("c")
    world.mute.clear()
    advert = world.sites["c"].said[order, "advert"]
    world.back("c")
    assert world.phase is Phase.AGGREGATING
    assert world.sites["c"].said[order, "advert"] == advert


def test_a_withdrawal_while_unmasking_ends_the_session() -> None:
    """Whoever takes its consent back before the sum is out is not in any sum: all begin anew without it."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {(name, "opened") for name in "abcde"}
    world.settle()
    assert world.phase is Phase.UNMASKING and world.stage is MaskStage.OPEN
    world.script.withdraw("e")
    assert world.script.run.records[-1].version is None
    opened = world.script.run.round
    assert opened is not None and opened.attempt == 2 and "e" not in opened.seats


def test_a_copy_of_the_coordinator_burns_the_session() -> None:
    """What the original may have opened since is not known to a copy, so it opens nothing of it."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {(name, "opened") for name in "abcde"}
    world.settle()
    world.script.tell(ev.Booted, epoch=7, place="copy")
    assert world.phase is Phase.UNMASKING  # the first place is only learnt here
    world.script.tell(ev.Booted, epoch=9, place="another")
    assert world.script.run.round is not None and world.phase is not Phase.UNMASKING


def test_a_restart_goes_on_with_the_session() -> None:
    """The same coordinator in a new epoch asks again for what it had not heard."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {(name, "opened") for name in "abcde"}
    world.settle()
    world.mute.clear()
    world.script.boot()
    for name in "abcde":
        world.back(name)
    assert world.phase is Phase.AGGREGATING


def test_a_refused_sum_is_made_again_with_new_keys() -> None:
    """Garbage under the masks abandons the attempt; sites that opened shares open only the same set again."""
    world = Consortium("abcde")
    opened = world.script.run.round
    assert opened is not None
    world.script.tell(ev.SumRefused, run="run", round=1, attempt=1, reason="garbage")
    world.settle()
    again = world.script.run.round
    assert again is not None and again.attempt == 2 and world.phase is Phase.AGGREGATING
    assert (
        again.masks is not None and opened.masks is not None and again.masks.session != opened.masks.session
    )


def test_a_second_sum_of_a_round_over_other_sites_is_refused() -> None:
    """The difference of two sums would be one site's update, so nobody opens the second."""
    world = Consortium("abcdef")
    world.lost.add("f")
    world.script.tell(ev.SumRefused, run="run", round=1, attempt=1, reason="so it says")
    world.script.lose("f")
    world.settle()
    world.wait(60_000)
    for name in "abcde":
        assert any("another set" in reason for reason in world.sites[name].burnt.values())
        assert not any(topic == "opened" and ".1.2." in order for order, topic in world.sites[name].said)


def test_a_held_update_is_masked_when_it_is_let_go() -> None:
    """With `approval: hold` a person sees the update before its masks are on."""
    world = Consortium("abc", contract=replace(ALLOWS, approval=Approval.HOLD))
    order = world.order("a")
    assert world.sites["a"].state.held[order].stage is agent.Stage.HELD
    for name in "abc":
        site = world.sites[name]
        world._act(site, site.tell(agent.UpdateReleased, order=world.order(name), by="me", day=0))
    world.settle()
    assert world.phase is Phase.AGGREGATING


def test_malformed_words_cost_the_seat() -> None:
    """A site whose boxes do not fit the session fails with the reason; the others go on."""
    world = Consortium("abcdef")
    world.script.aggregate()
    world.mute.add(("f", "boxes"))
    world.settle()
    order = world.order("f")
    held = world.script.run.round.masks  # type: ignore[union-attr]
    assert held is not None
    wrong = masks.spelled(masks.Boxes(held.session, masks.digest_of(held.keys), {"a": "AAAA"}))
    world.say("f", order, "boxes", wrong)
    world.settle()
    assert world.phase is Phase.AGGREGATING
    assert world.script.run.round is not None
    seat = world.script.run.round.seats["f"]
    assert seat.standing is Standing.FAILED and "one box for each neighbour" in seat.reason


def test_an_upload_before_its_turn_is_not_awaited() -> None:
    """While shares are exchanged no masked update can exist, so none is let in."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute.add(("e", "boxes"))
    world.settle()
    before = world.script.state
    world.script.store("a")
    assert world.script.run.round == before.runs["run"].round


# -- what burns a session ------------------------------------------------------------------------


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


def test_a_plain_order_is_not_masked() -> None:
    """A run without the terms has no session; a proposal for its order is burnt."""
    plain = Script("abc", minimum=3, quorum=3).begin()
    plain.seed()
    assert plain.run.round is not None and plain.run.round.masks is None
    assert not masks.is_masked(plain.order("a"))
    assert masks.mask_terms(TASK) is not None


@pytest.mark.parametrize(
    ("codec", "minimum", "sites", "key"),
    [
        ("fixed12s11", 3, 5, ""),
        ("int8", 3, 5, "codec.up"),
        ("fixed24s20", 3, 400, "codec.up"),
        ("fixed12s11", 2, 5, "sites.minimum"),
    ],
)
def test_what_can_never_be_masked_is_refused_at_submission(
    codec: str, minimum: int, sites: int, key: str
) -> None:
    """Codecs that cannot be summed, rings that overflow, and cohorts of two, each by its key."""
    assert masks.spec_fault(TASK, codec, minimum, sites)[0] == key
    assert masks.spec_fault('{"name":"tiny"}', codec, minimum, sites) == ("", "")
