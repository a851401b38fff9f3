"""Transcripts of pause, resume, stop, and of aggregations that fail."""

from core_script import Script

from fedtrain.core import events as ev
from fedtrain.core.state import Phase, Standing
from fedtrain.core.transitions import TABLE, step


def seeded(**changes: object) -> Script:
    """Round 1 is open, two sites."""
    script = Script("ab", **changes).begin()
    script.seed()
    return script


def failing(script: Script, attempt: int = 1) -> list[str]:
    """The aggregation of round 1 could not be computed."""
    return script.tell(ev.AggregationFailed, run="run", round=1, attempt=attempt, reason="no space left")


def test_pause_lets_work_finish() -> None:
    """A pause hands out nothing new: the open round goes on to its version, and no other opens."""
    script = seeded()
    assert script.pause() == []
    script.store("a")
    assert script.store("b")[1].startswith("aggregate 1.1")
    assert script.aggregate() == ["publish 1", "collect below 1"]
    assert (script.run.phase, script.run.paused) == (Phase.WAITING, "paused by op")
    assert script.resume() == ["invite a run.2.1.a", "invite b run.2.1.b", "timer deadline.2.1 in 10000"]


def test_resume_gives_absent_sites_their_patience_again() -> None:
    """A resume waits for absent sites as a start does."""
    script = seeded(minimum=1, quorum=1)
    script.pause()
    script.store("a"), script.lose("b"), script.aggregate()
    assert script.resume() == ["timer waiting in 3000"]
    assert script.wait(3_000)[0] == "invite a run.2.1.a"


def test_stop_with_an_open_round() -> None:
    """A stop calls work off, leaves a record of the open attempt, and ends the run for good."""
    script = seeded()
    script.store("a")
    assert script.stop() == [
        "cancel b run.1.1.b: the run was stopped",
        "finish stopped: stopped by op",
        "collect below 0",
    ]
    assert script.run.records[-1].reason == "stopped by op"
    assert script.last_seats() == {"a": (Standing.STORED, ""), "b": (Standing.INVITED, "")}
    assert script.resume() == script.stop() == script.store("b", order="run.1.1.b") == []
    assert script.replayed() == script.state


def test_stop_between_rounds() -> None:
    """Nothing is recorded twice when a run stops with an attempt that was abandoned already."""
    script = seeded()
    script.lose("a")
    script.wait(10_000)
    records = script.run.records
    script.stop()
    assert script.run.records == records
    assert script.run.phase is Phase.STOPPED


def test_stop_before_anything() -> None:
    """A run that waits for sites can be stopped."""
    script = Script("ab").begin(attached="")
    assert script.stop() == ["finish stopped: stopped by op", "collect below 0"]


def test_a_failed_aggregation_pauses() -> None:
    """The round stays closed, the run asks for a person, and resuming asks for the same sum again."""
    script = seeded()
    script.store("a")
    aggregate = script.store("b")[1]
    assert failing(script) == []
    assert script.run.paused == "round 1 could not be aggregated: no space left"
    assert script.resume() == [aggregate]
    assert script.aggregate()[0] == "publish 1"


def test_a_stale_failure_does_not_pause() -> None:
    """A failure of an attempt that is over means nothing."""
    script = seeded()
    script.store("a"), script.store("b")
    failing(script, attempt=7)
    assert script.run.paused == ""


def test_a_stale_aggregation_is_not_published() -> None:
    """A version of another attempt than the closed one changes nothing."""
    script = seeded()
    script.store("a"), script.store("b")
    before = script.run
    stale = ev.RoundAggregated(script.now_ms, "run", 1, 9, "m", "d", 1, "", 0, 0.0)
    assert step(script.state, stale)[1] == ()
    assert step(script.state, stale)[0].runs["run"] == before


def test_resume_of_a_run_that_is_not_paused() -> None:
    """Resuming a run at work changes nothing of its open round."""
    script = seeded()
    assert script.resume() == []
    assert script.standings == "a invited, b invited"


def test_ended_phases_have_no_entry() -> None:
    """A run that has ended answers no event at all."""
    assert not [kind for phase, kind in TABLE if phase in (Phase.DONE, Phase.STOPPED)]
