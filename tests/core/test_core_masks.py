"""Masked rounds, both halves: what each stage waits for, what ends it, and what burns a session."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_script import Script
from masked_script import ALLOWS, TASK, Consortium

from fedtrain.core import agent, effects as fx, events as ev, masks
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


def test_a_stopped_run_calls_off_those_who_have_delivered_too() -> None:
    """Their secrets wait for a question that nobody asks any more."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {("e", "update")}
    world.settle()
    assert any(world.sites[name].state.masks for name in "abcd")
    world.script.tell(ev.RunStopped, run="run", by="operator")
    world.settle()
    assert not any(site.state.masks or site.state.held for site in world.sites.values())


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
    """Whoever takes its consent back before the sum is out is not in any sum. Shares may have been given for
    the set that it was in, so the others open no sum without it: people have to decide.
    """
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {(name, "opened") for name in "abcde"}
    world.settle()
    assert world.phase is Phase.UNMASKING and world.stage is MaskStage.OPEN
    world.script.withdraw("e")
    assert world.script.run.records[-1].version is None
    assert world.phase is Phase.WAITING
    reason = world.script.run.reason
    assert "e is not here" in reason and "take the run back by a version, or stop it" in reason


def test_a_withdrawal_before_anybody_is_asked_to_open_costs_an_attempt() -> None:
    """As long as no share can have been given, the next attempt is made without the site."""
    world = Consortium("abcde")
    world.script.aggregate()
    world.mute |= {(name, "affirmation") for name in "abcde"}
    world.settle()
    world.script.withdraw("e")
    opened = world.script.run.round
    assert opened is not None and opened.attempt == 2 and "e" not in opened.seats and not opened.bound


@pytest.mark.parametrize("minimum", [3, 6])
def test_a_set_that_was_to_be_opened_is_asked_again_and_no_other(minimum: int) -> None:
    """Who joins meanwhile waits for the next round: with it in the set nobody would open. The set is enough,
    whatever a round has to start with."""
    world = Consortium("abcdef", minimum=minimum)
    world.script.aggregate()
    world.mute |= {("f", "update"), *((name, "opened") for name in "bcde")}
    world.settle()
    world.lose("f")
    assert world.stage is MaskStage.OPEN
    world.back("f")
    world.mute.clear()
    world.wait(3_000)
    again = world.script.run.round
    assert again is not None and again.attempt == 2 and "".join(again.seats) == "abcde"
    assert world.phase is Phase.AGGREGATING and "".join(world.sums[-1].survivors) == "abcde"


@pytest.mark.parametrize(("topic", "words"), [("advert", "sent no keys"), ("boxes", "shared no secrets")])
def test_a_stage_goes_on_without_who_is_silent(topic: str, words: str) -> None:
    """A site that is here and says nothing loses its seat once the stage's time is over, and not before."""
    world = Consortium("abcdef", deadline_ms=60_000)
    world.script.aggregate()
    world.mute.add(("f", topic))
    world.settle()
    before = world.stage
    assert before in (MaskStage.ADVERTISE, MaskStage.SHARE)
    world.wait(3_000)
    seat = world.script.run.round.seats["f"]  # type: ignore[union-attr]
    assert seat.standing is Standing.FAILED and words in seat.reason
    assert world.phase is Phase.AGGREGATING and "".join(world.sums[-1].survivors) == "abcde"


def test_documents_wait_for_consent() -> None:
    """A proposal that overtook its order would be nobody's: a site hears of a session once it works on it."""
    world = Consortium("abc")
    script = world.script
    script.aggregate()
    assert not [effect for effect in world._performed if isinstance(effect, fx.Speak)]
    script.tell(ev.ConsentGiven, order=script.order("a").id)
    spoken = [effect for effect in world._performed if isinstance(effect, fx.Speak)]
    assert [(effect.site, effect.topic) for effect in spoken] == [("a", "proposal")]


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
    assert world.phase is Phase.WAITING and "f is not here" in world.script.run.reason
    state, run = world.script.state, world.script.run
    assert run.round is not None
    forgetful = replace(run, round=replace(run.round, bound=()))
    world.script._driver.state = replace(state, runs={"run": forgetful})  # as a copy from before would be
    world.script.tell(ev.RunResumed, run="run", by="operator")
    world.settle()
    for _ in range(5):
        world.wait(3_000)
    for name in "abcde":
        assert any("another set" in reason for reason in world.sites[name].burnt.values())
        assert not any(topic == "opened" and ".1.2." in order for order, topic in world.sites[name].said)
    told = [seat.reason for record in world.script.run.records for seat in record.seats.values()]
    assert any("another set would tell single updates apart" in reason for reason in told)


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
        ("fixed12s11", 3, 501, "sites.include"),
    ],
)
def test_what_can_never_be_masked_is_refused_at_submission(
    codec: str, minimum: int, sites: int, key: str
) -> None:
    """Codecs that cannot be summed, rings that overflow, and cohorts of two, each by its key."""
    assert masks.spec_fault(TASK, codec, minimum, sites)[0] == key
    assert masks.spec_fault('{"name":"tiny"}', codec, minimum, sites) == ("", "")
