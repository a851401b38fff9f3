"""Strikes, quarantine by rule, and claims that cannot be."""

from __future__ import annotations

import pytest
from core_script import Script

from fedtrain.core import events as ev
from fedtrain.core.conduct import PASSES_MAX, RULE, STRIKES_MAX, implausible
from fedtrain.core.state import Declared, Standing


def struck(times: int) -> Script:
    """Site c was rejected so many times in a row, round after round; the others contribute."""
    script = Script(rounds=8).begin()
    script.seed()
    for _ in range(times):
        script.reject("c")
        script.play_round("ab")
    return script


def test_three_in_a_row_are_out() -> None:
    """Out of every cohort, with the count and the last reason."""
    script = struck(STRIKES_MAX - 1)
    assert script.state.quarantined == {} and "c invited" in script.standings
    lines = script.reject("c")
    assert len([line for line in lines if line.startswith("cancel c")]) == 1
    found = script.state.quarantined["c"]
    assert found.by == RULE
    assert found.reason == "3 updates in a row were rejected, the last because NaN"
    assert script.standings == "a invited, b invited, c failed"
    script.play_round("ab")
    assert script.last_seats()["c"] == (Standing.FAILED, f"in quarantine: {found.reason}")
    assert script.standings == "a invited, b invited"
    assert script.replayed() == script.state


def test_no_attempt_begins_with_who_is_on_the_way_out() -> None:
    """The third rejected update closes its round below the quorum: the next attempt is without the site."""
    script = Script("ab", minimum=1, quorum=1, rounds=3).begin()
    script.seed()
    for _ in range(STRIKES_MAX - 1):
        script.reject("b")
        script.store("a")
        script.aggregate()
    script.fail("a")
    lines = script.reject("b")
    assert [line for line in lines if line.startswith("invite")] == ["invite a run.3.2.a"]


def test_a_good_update_wipes_the_slate() -> None:
    """Two strikes, a good one, two strikes: not three in a row."""
    script = struck(2)
    script.store("c")
    script.play_round("ab")
    for _ in range(2):
        script.reject("c")
        script.play_round("ab")
    assert script.state.strikes == {"c": 2} and script.state.quarantined == {}


def test_second_stories_count() -> None:
    """An order that was answered is told of again and again: the stored update goes too."""
    script = struck(0)
    order = script.order("c").id
    script.store("c")
    for _ in range(STRIKES_MAX):
        script.reject("c", order)
    assert "c failed" in script.standings
    script.store("a")
    script.store("b")
    assert [item.site for item in script.last_aggregation().contributions] == ["a", "b"]


def test_a_release_begins_anew() -> None:
    """The site is asked from the next round on, with no strike left."""
    script = struck(STRIKES_MAX)
    script.release("c")
    assert script.state.strikes == {} and script.state.quarantined == {}
    script.play_round("ab")
    assert script.standings == "a invited, b invited, c invited"
    script.reject("c")
    assert script.state.strikes == {"c": 1}


def test_an_operators_quarantine_is_not_replaced_by_the_rule() -> None:
    """Who is out stays out for the reason that was given first; strangers cannot be put anywhere."""
    script = struck(STRIKES_MAX - 1)
    order = script.order("c").id
    script.quarantine("c")
    script.reject("c", order)
    assert script.state.quarantined["c"].reason == "odd"
    assert script.quarantine("nobody") == [] and "nobody" not in script.state.quarantined


def test_rejections_of_a_run_that_is_over_do_not_count() -> None:
    """Nor do those of runs that never were."""
    script = struck(1)
    script.stop()
    script.tell(ev.UpdateRejected, order="run.9.1.c", blob="bad", reason="NaN")
    script.tell(ev.UpdateRejected, order="never.1.1.c", blob="bad", reason="NaN")
    assert script.state.strikes == {"c": 1}


@pytest.mark.parametrize(
    ("weight", "steps", "words"),
    [
        (PASSES_MAX * 10, 5, ""),
        (PASSES_MAX * 10 + 1, 5, "more than 100 passes over the 10 examples"),
        (1, 6, "it claims 6 steps, its order asked for 5"),
    ],
)
def test_claims(weight: int, steps: int, words: str) -> None:
    """Steps are held against the order, a weight against what the site has declared of this data set."""
    order = struck(0).order("c")
    found = implausible(Declared("contract", {"corpus": 10, "other": 1}), order, weight, steps)
    assert (words in found) if words else found == ""
    assert implausible(None, order, 1 << 50, 5) == ""
    assert implausible(Declared("contract", {"other": 1}), order, 1 << 50, 5) == ""
