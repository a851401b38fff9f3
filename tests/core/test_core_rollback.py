"""The way back: version N+1 is version V again, and nothing of the path that was left comes along."""

from __future__ import annotations

import pytest
from core_script import Script

from fedtrain.core import events as ev
from fedtrain.core.rollback import restorable, way_to
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import Phase
from fedtrain.core.transitions import step
from fedtrain.core.uploads import Admission, admit
from fedtrain.core.versions import blobs_needed


def played(rounds: int, **changes: object) -> Script:
    """So many versions are out, of eight; every second one is a snapshot."""
    script = Script(**{"rounds": 8, "snapshot_every": 2, **changes}).begin()
    script.seed()
    for version in range(1, rounds + 1):
        for site in "abc":
            script.store(site)
        script.aggregate(f"snapshot-{version}" if version % 2 == 0 else "")
    return script


def can(script: Script) -> tuple[int, ...]:
    assert script.run.model is not None
    return restorable(script.run.model)


def test_a_version_comes_again() -> None:
    """Work is called off, the version is asked for, and the next round starts from it with a clean slate."""
    script = played(3)
    script.store("a")
    lines = script.roll_back(1)
    assert lines[-1] == "restore 1 as 4"
    assert [line.split(":")[0] for line in lines[:-1]] == ["cancel b run.4.1.b", "cancel c run.4.1.c"]
    assert script.run.phase is Phase.RESTORING
    assert script.run.records[-1].version is None and script.run.records[-1].counted == ()
    lines = script.restored(1)
    assert lines[:2] == ["publish 4", "collect below 4"]
    assert [line for line in lines if line.startswith("invite")] == [f"invite {s} run.5.1.{s}" for s in "abc"]
    order = script.order("a")
    assert order.model is not None and order.model.digest == "model-1"
    assert order.model.chain == ((4, "again-1", 40),)
    assert (order.parent, order.returned) == ("", ())
    record = next(record for record in script.run.records if record.restored is not None)
    assert (record.index, record.attempt, record.version, record.restored) == (4, 2, 4, 1)
    assert script.run.spec.rounds == 8 + 3
    assert script.replayed() == script.state


def test_as_many_rounds_are_left_as_were_left_then() -> None:
    """After the way back from version 3 to version 1 seven more rounds lead to the end."""
    script = played(3)
    script.roll_back(1)
    script.restored(1)
    rounds = 0
    while script.run.phase is Phase.TRAINING:
        for site in "abc":
            script.store(site)
        script.aggregate()
        rounds += 1
    assert rounds == 7 and script.run.phase is Phase.EVALUATING


def test_what_can_be_gone_back_to() -> None:
    """From the snapshot before the newest one on; after a way back the left path stays in reach."""
    assert can(played(0)) == ()
    assert can(played(1)) == (0,)
    assert can(played(2)) == (0, 1)
    assert can(played(4)) == (2, 3)
    assert can(played(5)) == (2, 3, 4)
    script = played(5)
    script.roll_back(3)
    script.restored(3)
    assert can(script) == (4, 5)
    assert script.run.model is not None
    assert way_to(script.run.model, 5) == ((4, "snapshot-4", 40), (5, "delta-5", 12))


def test_the_way_there_is_kept() -> None:
    """No blob on the way to a restorable version may be collected, until the run has ended."""
    script = played(5)
    assert script.run.model is not None
    ways = {blob for version in can(script) for _, blob, _ in way_to(script.run.model, version)}
    assert ways <= blobs_needed(script.run)
    assert way_to(script.run.model, 3) == ((2, "snapshot-2", 40), (3, "delta-3", 12))
    script.stop()
    assert "snapshot-2" not in blobs_needed(script.run)


@pytest.mark.parametrize("version", [-1, 1, 5, 9])
def test_a_version_that_cannot_be_had(version: int) -> None:
    """The core changes nothing, whatever the shell has let through."""
    script = played(5)
    before = script.run
    assert script.roll_back(version) == [] and script.run == before


def test_while_a_version_is_summed() -> None:
    """The sum and its failure mean nothing any more; nor does a version that nobody waits for."""
    script = played(3)
    for site in "abc":
        script.store(site)
    assert script.run.phase is Phase.AGGREGATING and script.run.round is not None
    opened = script.run.round
    assert script.roll_back(2)[-1] == "restore 2 as 4"
    place = {"run": "run", "round": opened.index, "attempt": opened.attempt}
    files = {"model_digest": "m", "delta": "d", "delta_bytes": 1, "snapshot": "", "snapshot_bytes": 0}
    assert script.tell(ev.RoundAggregated, **place, **files, update_norm=1.0) == []
    assert script.tell(ev.AggregationFailed, **place, reason="memory ran out") == []
    assert script.run.phase is Phase.RESTORING and script.run.paused == ""
    assert script.restored(2)[0] == "publish 4"
    assert script.restored(2) == []


def test_another_version_meanwhile() -> None:
    """The answer about the first one is known by its digest, and not taken for the second's."""
    script = played(3)
    script.roll_back(2)
    assert script.roll_back(0) == ["restore 0 as 4"]
    assert script.restored(2) == [] and script.run.phase is Phase.RESTORING
    assert script.restored(0)[0] == "publish 4"
    assert script.run.records[-1].restored == 0


def test_a_failure_pauses_and_is_tried_again() -> None:
    """`run resume` asks for the same version once more; so does a restart."""
    script = played(3)
    script.roll_back(2)
    script.tell(ev.AggregationFailed, run="run", round=4, attempt=0, reason="no space left")
    assert script.run.paused == "version 2 could not be restored: no space left"
    assert "restore 2 as 4" in script.boot()
    assert script.resume() == ["restore 2 as 4"]


def test_late_work_and_promises_are_over() -> None:
    """Late updates, late work and residuals of the left path count nowhere, and uploads are stale."""
    script = played(1, late=LatePolicy.NEXT_ROUND)
    script.store("a")
    script.store("b")
    script.wait(10_000)
    script.aggregate()
    late = script.run.busy["c"].id
    script.roll_back(1)
    assert (script.run.busy, script.run.late, script.run.parents) == ({}, (), {})
    assert admit(script.state, "c", late, "blob").admission is Admission.STALE
    script.attach("c", holding=(late,))
    script.restored(1)
    assert script.order("c").parent == ""


def test_late_updates_are_over() -> None:
    """An update that was promised for the next round counts in none after the way back."""
    script = played(1)
    script.store("a")
    script.store("b")
    script.wait(10_000)
    script.aggregate("snapshot-2")
    assert script.store("c", order=script.run.busy["c"].id)[0].endswith("late_next_round")
    script.roll_back(1)
    script.restored(1)
    for site in "abc":
        script.store(site)
    assert {item.order.split(".")[1] for item in script.last_aggregation().contributions} == {"4"}


def test_a_paused_run_and_the_last_evaluation() -> None:
    """A pause stays a pause; a run that measures its last version goes back to training."""
    script = played(8)
    assert script.run.phase is Phase.EVALUATING
    script.roll_back(7)
    script.pause()
    script.restored(7)
    assert script.run.phase is Phase.WAITING and script.run.paused
    script.resume()
    assert script.run.phase is Phase.TRAINING and script.order("a").round == 10
    assert script.run.spec.rounds == 10


def test_without_a_model_or_an_open_end() -> None:
    """Before the initial weights and after the end there is nothing to go back to."""
    script = Script().begin()
    assert script.roll_back(0) == []
    script.stop()
    before = script.state
    after, effects = step(before, ev.RunRolledBack(script.now_ms, "run", 0, "op"))
    assert after.runs == before.runs and effects == ()
