"""A site leaves: by its own word, by quarantine, by revocation. Nothing uncounted of it may count."""

from __future__ import annotations

import pytest
from core_script import Script

from fedtrain.core import events as ev
from fedtrain.core.cohort import expected_sites
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import Phase, Standing
from fedtrain.core.uploads import Admission, admit

WAYS = ["withdraw", "quarantine", "revoke"]


def out(script: Script, way: str, site: str) -> list[str]:
    return [line for line in getattr(script, way)(site) if not line.startswith("expel")]


def three(**changes: object) -> Script:
    """Three sites, the first round is open."""
    script = Script(**changes).begin()
    script.seed()
    return script


@pytest.mark.parametrize("way", WAYS)
def test_work_is_called_off(way: str) -> None:
    """A seat at work is settled with the reason, its order is cancelled, and its upload is not welcome."""
    script = three()
    order = script.order("b").id
    (cancelled,) = out(script, way, "b")
    assert cancelled.startswith(f"cancel b {order}: ")
    assert script.run.round is not None
    seat = script.run.round.seats["b"]
    assert seat.standing in (Standing.REFUSED, Standing.FAILED) and seat.reason
    assert admit(script.state, "b", order, "blob").admission is Admission.STALE
    assert script.store("b", order=order) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_stored_update_is_taken_out(way: str) -> None:
    """What was acknowledged and not yet summed does not go into the version."""
    script = three()
    taken = script.order("b").id
    script.store("b")
    assert out(script, way, "b") == []
    script.store("a")
    script.store("c")
    assert [item.site for item in script.last_aggregation().contributions] == ["a", "c"]
    script.aggregate()
    assert taken not in script.run.records[-1].counted
    assert script.last_seats()["b"][0] in (Standing.REFUSED, Standing.FAILED)


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_that_holds_it_is_made_again(way: str) -> None:
    """The answer to the abandoned aggregation means nothing; the next attempt counts the others."""
    script = three()
    for site in "abc":
        script.store(site)
    assert script.run.phase is Phase.AGGREGATING
    old = script.run.round
    out(script, way, "b")
    assert old is not None and script.run.round is not None
    assert script.run.phase is Phase.AGGREGATING and script.run.round.attempt == old.attempt + 1
    assert [item.site for item in script.last_aggregation().contributions] == ["a", "c"]
    stale = {"run": "run", "round": old.index, "attempt": old.attempt, "model_digest": "wrong"}
    files = {"delta": "d", "delta_bytes": 1, "snapshot": "", "snapshot_bytes": 0, "update_norm": 1.0}
    assert script.tell(ev.RoundAggregated, **stale, **files) == []
    script.aggregate()
    assert [order.rsplit(".", 1)[-1] for order in script.run.records[-1].counted] == ["a", "c"]


@pytest.mark.parametrize("way", WAYS)
def test_a_late_update_is_forgotten(way: str) -> None:
    """Also one that was promised for the next round."""
    script = three()
    script.store("a")
    script.store("b")
    script.wait(10_000)
    script.aggregate()
    late = script.run.busy["c"].id
    assert script.store("c", order=late) == [f"acknowledge c {late} late_next_round"]
    out(script, way, "c")
    assert script.run.late == ()
    script.store("a")
    script.store("b")
    assert [item.site for item in script.last_aggregation().contributions] == ["a", "b"]


@pytest.mark.parametrize("way", WAYS)
def test_late_work_is_called_off(way: str) -> None:
    """A site that still works on an order of a closed round need not go on."""
    script = three()
    script.store("a")
    script.store("b")
    script.wait(10_000)
    late = script.run.busy["c"].id
    assert out(script, way, "c")[0].startswith(f"cancel c {late}: ")
    assert script.run.busy == {}
    assert admit(script.state, "c", late, "blob").admission is Admission.STALE


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_site_cannot_come_back_with_its_update(way: str) -> None:
    """It went silent, then it was taken out; its update comes all the same."""
    script = three()
    order = script.order("b").id
    script.lose("b")
    out(script, way, "b")
    assert admit(script.state, "b", order, "blob").admission is Admission.STALE
    assert script.store("b", order=order) == []


@pytest.mark.parametrize("way", WAYS)
def test_nothing_comes_back_inside_a_later_update(way: str) -> None:
    """An update that was to go back into the site's residual is forgotten with the rest."""
    script = three(late=LatePolicy.RESIDUAL)
    script.store("a")
    script.store("b")
    script.wait(10_000)
    script.aggregate()
    script.store("c", order=script.run.busy["c"].id)
    assert script.run.returned["c"]
    out(script, way, "c")
    assert "c" not in script.run.returned


def test_initial_weights_of_one_who_left() -> None:
    """The seat is given to another site, and weights that come all the same are nobody's."""
    script = Script().begin()
    order = script.order("a").id
    script.quarantine("a")
    assert script.standings == "c invited"
    assert script.seed(order=order) == [] and script.run.model is None


def test_a_withdrawal_holds_until_the_next_session() -> None:
    """It is not asked again in this session; in the next one its contract speaks anew."""
    script = three(rounds=3)
    script.withdraw("c")
    script.play_round("ab")
    assert script.standings == "a invited, b invited"
    script.attach("c")
    script.play_round("ab")
    assert script.standings == "a invited, b invited, c invited"


def test_revoked_for_good_and_invited_again() -> None:
    """The call is cut, the name leaves every cohort and does not attach; a new invite makes it a member."""
    script = three(rounds=3)
    assert script.revoke("c")[0] == "expel c: its membership was revoked by op: left"
    assert script.revoke("c") == []
    assert "c" not in script.state.attached
    script.attach("c")
    assert "c" not in script.state.attached
    assert expected_sites(script.state, script.spec) == ("a", "b")
    script.play_round("ab")
    assert script.standings == "a invited, b invited"
    script.enrol("c")
    script.attach("c")
    script.play_round("ab")
    assert script.standings == "a invited, b invited, c invited"


def test_the_only_other_site() -> None:
    """Below its quorum the run waits, and says for whom; it goes on when the site is back."""
    script = Script("ab").begin()
    script.seed()
    script.store("a")
    script.quarantine("b")
    assert script.run.phase is Phase.WAITING
    assert script.run.reason == "1 of 2 needed sites are here (in quarantine: b)"
    assert script.release("b")[0] == "invite b run.1.2.b"
    script.store("b")
    assert [item.order for item in script.last_aggregation().contributions] == ["run.1.1.a", "run.1.2.b"]


def test_another_run_is_left_alone_by_a_withdrawal() -> None:
    """Consent is per run; a quarantine is not."""
    script = three()
    other = Script(run="other").spec
    script.tell(ev.RunSubmitted, spec=other, by="op")
    script.withdraw("b")
    assert "b" in script.run.excluded and "b" not in script.state.runs["other"].excluded
    assert script.replayed() == script.state
