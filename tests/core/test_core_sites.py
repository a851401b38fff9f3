"""Transcripts of sites that refuse, vanish, come back, and of a coordinator that restarts."""

from core_script import Script

from fedtrain.core import events as ev
from fedtrain.core.state import Phase, Standing
from fedtrain.core.transitions import resume


def seeded(names: str = "abc", **changes: object) -> Script:
    """Round 1 is open."""
    script = Script(names, **changes).begin()
    script.seed()
    return script


def test_a_refusal_is_recorded_and_excludes() -> None:
    """A site that refuses is not asked again in the same session; its record has the clause."""
    script = seeded()
    assert script.refuse("c") == []
    assert script.standings == "a invited, b invited, c refused"
    script.store("a"), script.store("b")
    assert script.aggregate()[2:] == [
        "invite a run.2.1.a",
        "invite b run.2.1.b",
        "timer deadline.2.1 in 10000",
    ]
    assert script.last_seats()["c"] == (Standing.REFUSED, "clause")
    assert script.run.reason == "2 of 3 sites (c refused: clause)"


def test_a_new_session_lifts_a_refusal() -> None:
    """A site that comes back may have another contract: it is asked again."""
    script = seeded()
    script.refuse("c")
    script.attach("c")
    script.play_round("ab")
    assert script.standings == "a invited, b invited, c invited"
    assert "refused" not in script.run.reason


def test_a_refusal_without_a_session_ends_with_the_next_one() -> None:
    """A refusal that arrives after its site was lost does not hold against the site's next session."""
    script = seeded("ab", minimum=1, quorum=1)
    script.store("a")
    script.wait(10_000)
    script.tell(ev.SiteLost, site="b", reason="gone")
    script.refuse("b", order="run.1.1.b")
    script.attach("b")
    assert "invite b run.2.1.b" in script.aggregate()


def test_resuming_asks_refusers_again() -> None:
    """An operator's resume invites whoever had refused."""
    script = seeded()
    script.refuse("c")
    script.pause()
    script.play_round("ab")
    assert script.resume()[2] == "invite c run.2.1.c"


def test_a_refusal_without_reasons_gets_one() -> None:
    """I7: even a silent refusal stands in the record with a reason."""
    script = seeded()
    script.tell(ev.ConsentRefused, order="run.1.1.c", reasons=())
    script.play_round("ab")
    assert script.last_seats()["c"] == (Standing.REFUSED, "no reason given")


def test_lost_and_back() -> None:
    """A lost site is not waited for; back in time, it gets its order again."""
    script = seeded()
    script.consent("c")
    assert script.lose("c") == []
    assert script.standings == "a invited, b invited, c lost"
    script.store("a")
    assert script.attach("c", holding=("run.1.1.c",)) == ["invite c run.1.1.c"]
    assert script.standings == "a stored, b invited, c invited"


def test_a_lost_site_ends_the_round_for_the_others() -> None:
    """The last one that a round waits for is lost: the round closes with who is left."""
    script = seeded()
    script.store("a"), script.store("b")
    assert script.lose("c") == ["aggregate 1.1 onto 0: run.1.1.a*1 + run.1.1.b*1"]
    script.aggregate()
    assert script.last_seats()["c"] == (Standing.LOST, "no sign of life")


def test_a_lost_sites_upload_still_counts_while_the_round_is_open() -> None:
    """An upload needs no session: a lost site that gets its update through has contributed."""
    script = seeded()
    script.lose("c")
    assert script.store("c") == ["acknowledge c run.1.1.c stored"]
    assert script.attach("c") == []


def test_a_site_that_comes_back_while_a_round_is_aggregated() -> None:
    """Its seat of the closed round is not revived."""
    script = seeded()
    script.store("a"), script.store("b")
    script.lose("c")
    assert script.attach("c") == []
    assert script.standings == "a stored, b stored, c lost"


def test_losing_a_contributor_changes_nothing() -> None:
    """What was acknowledged stays, wherever its site is now."""
    script = seeded()
    script.store("a")
    script.lose("a")
    assert script.standings == "a stored, b invited, c invited"


def test_a_failed_lost_site() -> None:
    """A lost site whose update was rejected has failed."""
    script = seeded()
    script.lose("c")
    rejected = script.tell(ev.UpdateRejected, order="run.1.1.c", blob="x", reason="not finite")
    assert rejected == ["cancel c run.1.1.c: not finite"]
    assert script.standings.endswith("c failed")
    assert script.fail("c") == []


def test_sites_of_ended_runs_are_left_alone() -> None:
    """Comings and goings change no run that has ended."""
    script = seeded()
    script.stop()
    ended = script.run
    script.lose("a"), script.attach("a"), script.enrol("z"), script.boot()
    assert script.run is ended


def test_restart_while_training() -> None:
    """A restart forgets sessions, and asks again for every open order and its timer."""
    script = seeded()
    script.store("a")
    script.consent("b")
    script.now_ms += 400
    assert script.boot() == ["invite b run.1.1.b", "invite c run.1.1.c", "timer deadline.1.1 in 9600"]
    assert script.state.attached == {}
    assert (script.state.epoch, script.state.booted_ms) == (2, script.now_ms)
    assert script.attach("c") == ["invite c run.1.1.c"]
    assert script.replayed() == script.state


def test_restart_while_aggregating() -> None:
    """The very same aggregation is asked for again; made twice, it counts once."""
    script = seeded()
    script.store("a"), script.store("b")
    first = script.store("c")[1]
    assert script.boot() == [first]
    script.aggregate()
    again = script.tell(
        ev.RoundAggregated,
        run="run",
        round=1,
        attempt=1,
        model_digest="model-1",
        delta="delta-1",
        delta_bytes=12,
        snapshot="",
        snapshot_bytes=0,
        update_norm=1.5,
    )
    assert (again, script.run.rounds_done) == ([], 1)


def test_restart_after_the_deadline() -> None:
    """A deadline that passed while the coordinator was down is kept at the next start."""
    script = seeded()
    script.store("a"), script.store("b")
    script.now_ms += 60_000
    assert script.boot()[-1] == "aggregate 1.1 onto 0: run.1.1.a*1 + run.1.1.b*1"


def test_restart_while_waiting() -> None:
    """After a restart the sites get their patience again before a round starts without them."""
    script = Script("abc", minimum=3).begin(attached="ab")
    script.now_ms += 60_000
    assert script.boot() == ["timer waiting in 3000"]
    assert script.run.reason == "waiting for a, b, c"
    script.attach("a"), script.attach("b")
    assert script.attach("c")[0] == "invite a run.0.1.a"


def test_restart_with_an_abandoned_attempt() -> None:
    """Who still works for an abandoned attempt is asked for again; there is no deadline to set."""
    script = seeded("ab")
    script.lose("a")
    script.wait(10_000)
    assert script.run.phase is Phase.WAITING
    assert resume(script.state) != ()
    assert script.boot() == ["invite b run.1.1.b", "timer waiting in 3000"]


def test_resume_of_ended_runs() -> None:
    """Nothing is called for by a run that has ended."""
    script = seeded()
    script.stop()
    assert resume(script.state) == ()


def test_invites_and_their_misuse() -> None:
    """An invite is remembered with who used it; showing it again with another key changes nothing."""
    script = Script("")
    script.tell(ev.MemberInvited, name="a", role="site", invite="invite-a", expires_ms=5)
    assert script.state.invites["invite-a"].used_by == ""
    script.enrol("a")
    assert script.state.invites["invite-a"].used_by == "k"
    before = script.state
    assert script.tell(ev.InviteMisused, name="a", invite="invite-a", reason="other key") == []
    assert script.state == before
    assert script.state.members["a"].message_key == "m"


def test_time_never_runs_backwards() -> None:
    """A clock that was set back does not take the state's time with it."""
    script = seeded()
    script.now_ms -= 500
    script.consent("a")
    assert script.state.now_ms == 1_000
