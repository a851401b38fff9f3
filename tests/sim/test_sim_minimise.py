"""A part of a world: faults by name, what a choice leaves of a plan, and the smallest part that fails."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from fedtrain.core.state import State
from fedtrain.errors import ConfigError
from fedtrain.sim.__main__ import main
from fedtrain.sim.chance import Chance
from fedtrain.sim.choice import EVERYTHING, Choice, parse, planned, reduced, spell
from fedtrain.sim.minimise import attempt, minimise, narrow
from fedtrain.sim.plan import draw
from fedtrain.sim.world import World

NAMES = st.sampled_from(["message lost/site-a>coordinator", "crash/site-b", "NaN sent/run-1.1.1.site-a"])


@given(st.sets(st.tuples(NAMES, st.integers(1, 400))))
def test_keys_have_one_text(faults: set[tuple[str, int]]) -> None:
    """Any set of keys is spelled as one text that reads back as the same set."""
    keys = frozenset(f"{name}/{ordinal}" for name, ordinal in faults)
    assert parse(spell(keys)) == keys


def test_ranges_are_drawn_together() -> None:
    """Neighbouring ordinals are one range, and names are sorted."""
    assert spell(["b/x/9", "a/y/3", "b/x/7", "b/x/8", "b/x/2"]) == "a/y/3; b/x/2,7-9"


@pytest.mark.parametrize("text", ["crash", "crash/site-a", "crash/site-a/x", "/3", "a/1-", "a/b/1-900000"])
def test_texts_that_name_no_faults(text: str) -> None:
    """A mistyped list of faults is refused with an example, not read as an empty one."""
    with pytest.raises(ConfigError):
        parse(text)


def test_streams_do_not_disturb_each_other() -> None:
    """What one stream gives depends neither on other streams nor on which faults may strike."""
    all_faults, no_faults = Chance(5, lambda key: True), Chance(5, lambda key: False)
    for _ in range(3):
        no_faults.stream("delay", "elsewhere").random()
    struck = [all_faults.draw(0.5, "crash", "site-a") for _ in range(50)]
    assert {no_faults.draw(0.5, "crash", "site-a") for _ in range(50)} == {""}
    assert all_faults.stream("crash", "site-a").random() == no_faults.stream("crash", "site-a").random()
    odd = Chance(5, lambda key: key not in struck[::2])
    kept = [odd.draw(0.5, "crash", "site-a") for _ in range(50)]
    assert kept == [key if key not in struck[::2] else "" for key in struck] and any(kept)
    assert all_faults.of("crash/site-a/1").random() == odd.of("crash/site-a/1").random()


def test_all_faults_by_name_are_the_same_world() -> None:
    """To allow exactly the faults that struck changes nothing, bit for bit; to forbid one does."""
    whole = World(3)
    trace = whole.run(trace=True).trace
    struck = whole.scene.struck
    assert len(struck) > 20 and len(set(struck)) == len(struck)
    assert World(3, Choice(only=frozenset(struck))).run(trace=True).trace == trace
    less = World(3, Choice(without=frozenset(struck[-1:])))
    assert less.run(trace=True).trace != trace
    assert struck[-1] not in less.scene.struck


def test_a_world_without_faults() -> None:
    """With no fault allowed none strikes, whatever the plan had in store."""
    for seed in range(1, 8):
        world = World(seed, Choice(only=frozenset()))
        world.run()
        assert world.scene.struck == []


def test_what_a_choice_leaves_of_a_plan() -> None:
    """Sites, runs and rounds are taken away, and what the plan makes hard is a fault like others."""
    seed = next(seed for seed in range(1, 500) if len(draw(seed).runs) > 1 and len(planned(draw(seed))) > 2)
    plan = draw(seed)
    assert reduced(plan, EVERYTHING) == plan
    kept = (plan.sites[0].name,)
    small = reduced(plan, Choice(only=frozenset(), sites=kept, runs=("run-2",), rounds=1))
    assert [site.name for site in small.sites] == list(kept)
    assert [(run.spec.run, run.spec.rounds) for run in small.runs] == [("run-2", 1)]
    assert set(small.runs[0].spec.sites) <= set(kept) and planned(small) == []
    with pytest.raises(ConfigError, match="which has site-a"):
        reduced(plan, Choice(sites=("nobody",)))


@given(st.sets(st.integers(0, 40), max_size=5), st.integers(1, 41))
def test_narrowing_keeps_exactly_what_is_needed(needed: set[int], count: int) -> None:
    """Where a set fails if it holds certain items, those and no others remain."""
    items = [str(number) for number in range(count)]
    wanted = {str(number) for number in needed if number < count}
    assert narrow(items, lambda part: part if wanted <= set(part) else None) == sorted(wanted, key=int)


@pytest.fixture
def broken_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that says after its first restart that a model was counted twice."""

    def broken(state: State) -> tuple[str, ...]:
        return ("I1: planted",) if state.epoch > 1 and any(r.model for r in state.runs.values()) else ()

    monkeypatch.setattr("fedtrain.core.invariants.violations", broken)


@pytest.mark.usefixtures("broken_after_a_crash")
def test_the_smallest_world_that_fails() -> None:
    """Of a world full of faults few are left, none of which can go, and it fails as the whole did."""
    seed = next(seed for seed in range(1, 60) if len(getattr(attempt(seed, EVERYTHING), "struck", "")) > 30)
    found = minimise(seed)
    assert found is not None
    assert (found.first.broken, found.last.broken) == ("I1", "I1")
    struck = found.last.struck
    assert len(struck) <= 3 and any("/coordinator/" in key for key in struck)
    for key in struck:
        less = attempt(seed, replace(found.last.choice, only=frozenset(struck) - {key}))
        assert less is None or less.broken != "I1", key
    left = reduced(draw(seed), found.last.choice)
    assert (len(left.runs), left.runs[0].spec.rounds) == (1, 1)
    assert len(found.last.transcript) < len(found.first.transcript)
    again = attempt(seed, found.last.choice)
    assert again == found.last
    assert (
        f"left after {found.attempts} worlds: {len(struck)} of {len(found.first.struck)} faults"
        in found.text()
    )


@pytest.mark.usefixtures("broken_after_a_crash")
def test_a_part_is_repeated_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line that --minimise prints is a command, and it shows the same failure again."""
    seed = next(seed for seed in range(1, 60) if attempt(seed, EVERYTHING) is not None)
    assert main(["--seed", str(seed), "--minimise"]) == 1
    said = capsys.readouterr().out
    command = shlex.split(said.splitlines()[-1].removeprefix("repeat it: "))
    assert command[:3] == ["python", "-m", "fedtrain.sim"]
    assert main(command[3:]) == 1
    again = capsys.readouterr()
    assert again.out.splitlines() == said.splitlines()[: len(again.out.splitlines())]
    assert "I1: planted" in again.err


def test_a_world_that_holds_has_nothing_to_minimise(capsys: pytest.CaptureFixture[str]) -> None:
    """No failure, no minimum, and the command says so."""
    assert minimise(3) is None
    assert main(["--seed", "3", "--minimise"]) == 0
    assert "nothing to minimise" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--minimise"], ["--only", ""], ["--seed", "3", "--only", "crash"], ["--seed", "3", "--rounds", "0"]],
    ids=" ".join,
)
def test_command_lines_that_make_no_sense(arguments: list[str]) -> None:
    """Parts are chosen of one world, and faults are named by their keys."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_an_end_that_does_not_come_is_minimised_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that a quorum needs stay: without them no run ends, which would prove nothing."""
    monkeypatch.setattr("fedtrain.sim.world.END_MS", 600_000)
    monkeypatch.setattr("fedtrain.core.liveness.verdicts", lambda pulses, now_ms: ((), None))
    found = next(minimum for seed in range(1, 60) if (minimum := minimise(seed)) is not None)
    assert found.last.broken == "I12"
    assert attempt(found.seed, replace(found.last.choice, only=frozenset())) is None
    assert len(found.last.struck) >= 1
