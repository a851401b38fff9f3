"""Each invariant finds the state that breaks it; no event can lead there, so the states are made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_script import Script

from fedtrain.core.invariants import violations
from fedtrain.core.orders import ModelRef
from fedtrain.core.state import Phase, RunState, Standing


def played() -> Script:
    """Two rounds are done, the third is open."""
    script = Script("ab", rounds=3).begin()
    script.seed()
    script.play_round()
    script.play_round()
    return script


def broken(script: Script, run: RunState) -> str:
    """What is found in the script's state with this run in it."""
    return "; ".join(violations(replace(script.state, runs={"run": run})))


def test_a_sound_run_breaks_nothing() -> None:
    """The state that events lead to holds every invariant."""
    assert violations(played().state) == ()


def test_counted_twice() -> None:
    """I1: an order in two records."""
    script = played()
    first, *rest = script.run.records[1:]
    records = (script.run.records[0], first, replace(rest[0], counted=first.counted))
    found = broken(script, replace(script.run, records=records))
    assert found == "run: I1: run.1.1.a was counted 2 times; run: I1: run.1.1.b was counted 2 times"


def test_a_version_is_missing() -> None:
    """I3: versions with a gap."""
    script = played()
    found = broken(script, replace(script.run, records=script.run.records[1:]))
    assert found == "run: I3: versions are [1, 2]"


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (((1, "x", 1),), "the chain does not start with its snapshot"),
        (((0, "x", 1),), "no way from snapshot 0 to version 2"),
        (((0, "x", 1), (1, "y", 1)), "no way from snapshot 0 to version 2"),
        (((0, "x", 1), (2, "y", 1), (2, "z", 1)), r"deltas are not consecutive: [2, 2]"),
        (((0, "x", 1), (2, "y", 1), (1, "z", 1)), r"deltas are not consecutive: [2, 1]"),
    ],
)
def test_a_broken_way_to_the_newest_version(chain: tuple[tuple[int, str, int], ...], words: str) -> None:
    """I3: a chain that does not lead from its snapshot to the newest version."""
    script = played()
    assert script.run.model is not None
    model = replace(script.run.model, ref=ModelRef(2, "m", "l", 0, chain))
    assert words in broken(script, replace(script.run, model=model))


@pytest.mark.parametrize(
    ("standing", "reason", "words"),
    [
        (Standing.LOST, "", "I7: round 2: a is lost without a reason"),
        (Standing.WORKING, "", "I7: round 2 closed while a is working"),
    ],
)
def test_a_seat_that_is_not_accounted_for(standing: Standing, reason: str, words: str) -> None:
    """I7: a seat without a reason, or one that was never settled."""
    script = played()
    last = script.run.records[-1]
    seat = replace(last.seats["a"], standing=standing, reason=reason)
    records = (*script.run.records[:-1], replace(last, seats={**last.seats, "a": seat}))
    assert words in broken(script, replace(script.run, records=records))


def test_a_version_below_its_quorum() -> None:
    """I7: a published round that counted too few."""
    script = played()
    last = script.run.records[-1]
    records = (*script.run.records[:-1], replace(last, counted=last.counted[:1]))
    assert "I7: round 2 counted 1, below its quorum" in broken(script, replace(script.run, records=records))


@pytest.mark.parametrize(
    ("phase", "keeps_round", "words"),
    [
        (Phase.TRAINING, False, "phase training without a round"),
        (Phase.DONE, True, "phase done with an open round"),
        (Phase.AGGREGATING, True, "aggregating nothing"),
    ],
)
def test_phase_and_round_disagree(phase: Phase, keeps_round: bool, words: str) -> None:
    """The phase says whether there is an open round, and an aggregation counts something."""
    script = played()
    run = replace(script.run, phase=phase, round=script.run.round if keeps_round else None)
    assert words in broken(script, run)
