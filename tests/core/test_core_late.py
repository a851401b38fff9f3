"""Transcripts of late updates: each policy, and that what was acknowledged counts exactly once."""

import math

import pytest
from core_script import Script

from fedtrain.core.spec import LatePolicy


def late_script(policy: LatePolicy, rounds: int = 3) -> Script:
    """Round 1 has closed at its deadline with a and b; c still works."""
    script = Script("abc", late=policy, rounds=rounds).begin()
    script.seed()
    script.consent("c")
    script.store("a"), script.store("b")
    script.wait(10_000)
    return script


def test_next_round() -> None:
    """A late update counts in the next aggregation with weight (1 + 1)^-1/2, after its site's fresh one."""
    script = late_script(LatePolicy.NEXT_ROUND)
    script.aggregate()
    assert script.standings == "a invited, b invited"
    assert script.run.reason == "2 of 3 sites (still at an earlier round: c)"
    assert script.store("c", weight=10) == ["acknowledge c run.1.1.c late_next_round"]
    script.store("a")
    assert script.store("b") == [
        "acknowledge b run.2.1.b stored",
        "aggregate 2.1 onto 1: run.2.1.a*1 + run.2.1.b*1 + run.1.1.c*7.071",
    ]
    assert script.last_aggregation().contributions[2].weight == 10 / math.sqrt(2)
    script.aggregate()
    assert script.run.records[-1].counted == ("run.2.1.a", "run.2.1.b", "run.1.1.c")
    assert script.run.late == ()
    assert script.order("c").parent == "run.1.1.c"
    assert script.replayed() == script.state


def test_next_round_beside_a_fresh_update() -> None:
    """A late update that came while its round was aggregated stands behind its site's fresh one."""
    script = late_script(LatePolicy.NEXT_ROUND)
    assert script.store("c") == ["acknowledge c run.1.1.c late_next_round"]
    assert script.aggregate()[2:5] == ["invite a run.2.1.a", "invite b run.2.1.b", "invite c run.2.1.c"]
    script.store("b"), script.store("c")
    assert script.store("a")[1] == (
        "aggregate 2.1 onto 1: run.2.1.a*1 + run.2.1.b*1 + run.2.1.c*1 + run.1.1.c*0.7071"
    )


def test_residual() -> None:
    """A late update goes back: the site's next orders name it until one of them is acknowledged."""
    script = late_script(LatePolicy.RESIDUAL)
    script.aggregate()
    assert script.store("c") == ["acknowledge c run.1.1.c late_residual"]
    assert script.play_round("ab")[4] == "invite c run.3.1.c"
    assert script.run.records[-1].counted == ("run.2.1.a", "run.2.1.b")
    order = script.order("c")
    assert (order.parent, order.returned) == ("run.1.1.c", ("run.1.1.c",))
    script.fail("a"), script.fail("b"), script.fail("c")
    assert (script.order("c").id, script.order("c").returned) == ("run.3.2.c", ("run.1.1.c",))
    script.store("c")
    assert script.run.returned == {}


def test_a_residual_that_is_late_again() -> None:
    """What a late order took back returns with that order, not twice."""
    script = late_script(LatePolicy.RESIDUAL, rounds=5)
    script.store("c")
    script.aggregate()
    assert script.order("c").returned == ("run.1.1.c",)
    script.store("a"), script.store("b")
    script.wait(10_000)
    assert script.store("c") == ["acknowledge c run.2.1.c late_residual"]
    script.aggregate()
    assert script.order("c").returned == ("run.2.1.c",)


def test_drop() -> None:
    """With `drop` late work is called off, the site is free for the next round, its upload is refused."""
    script = Script("abc", late=LatePolicy.DROP).begin()
    script.seed()
    script.store("a"), script.store("b")
    assert script.wait(10_000)[0] == "cancel c run.1.1.c: the round closed without it"
    assert script.store("c", order="run.1.1.c") == []
    assert "invite c run.2.1.c" in script.aggregate()


@pytest.mark.parametrize("policy", list(LatePolicy))
def test_nothing_is_late_for_the_last_round(policy: LatePolicy) -> None:
    """After the last round nothing could count a late update: it is called off, never acknowledged."""
    script = Script("abc", late=policy, rounds=1).begin()
    script.seed()
    script.store("a"), script.store("b")
    assert script.wait(10_000)[0] == "cancel c run.1.1.c: the round closed without it"
    assert script.store("c", order="run.1.1.c") == []
    assert script.aggregate()[4] == "invite c run.2.1.c"


def test_the_last_round_calls_off_who_is_late_since_earlier() -> None:
    """A site that is late since round 1 is called off when the last round closes."""
    script = late_script(LatePolicy.NEXT_ROUND, rounds=2)
    script.aggregate()
    script.store("a")
    assert script.store("b")[1] == "cancel c run.1.1.c: the round closed without it"
    assert script.run.busy == {}


@pytest.mark.parametrize("while_aggregating", [True, False])
@pytest.mark.parametrize("answer", ["fail", "refuse", "lose", "attach"])
def test_a_late_site_becomes_free(answer: str, while_aggregating: bool) -> None:
    """A late site that fails, refuses, is lost or comes back without the order is not waited for."""
    script = late_script(LatePolicy.NEXT_ROUND)
    if not while_aggregating:
        script.aggregate()
    if answer in ("fail", "refuse"):
        getattr(script, answer)("c", order="run.1.1.c")
    else:
        getattr(script, answer)("c")
    assert script.run.busy == {}
    if while_aggregating:
        assert script.standings == "a stored, b stored, c late"


def test_a_late_site_that_comes_back_with_its_order() -> None:
    """A late order that its site still holds is handed out again, so that its progress is watched."""
    script = late_script(LatePolicy.NEXT_ROUND)
    assert script.attach("c", holding=("run.1.1.c",)) == ["invite c run.1.1.c"]
    assert "c" in script.run.busy
    assert script.boot()[0].startswith("aggregate 1.1")


def test_staleness_of_two() -> None:
    """An update two versions behind weighs (1 + 2)^-1/2."""
    script = late_script(LatePolicy.NEXT_ROUND)
    script.aggregate()
    script.play_round("ab")
    script.store("c", weight=3)
    script.store("a")
    assert script.store("b")[1].endswith("run.1.1.c*1.732")


def test_two_late_sites() -> None:
    """Each late site is freed by its own answer only."""
    script = Script("abcd", rounds=3).begin()
    script.seed()
    script.store("a"), script.store("b")
    script.wait(10_000)
    script.fail("d", order="run.1.1.d")
    assert list(script.run.busy) == ["c"]
    script.fail("d", order="run.1.1.d")
    script.store("b", order="run.1.1.b")
    assert list(script.run.busy) == ["c"]
