"""Standbys, restores and liars in simulated worlds, and an auditor that notices when they do harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedtrain.core import events as ev, transitions
from fedtrain.core.epochs import TAKEOVER_STEP
from fedtrain.sim import coordinator as sim_coordinator
from fedtrain.sim.liar import LIES
from fedtrain.sim.making import Making
from fedtrain.sim.models import Models
from fedtrain.sim.plan import Old, Plan, draw
from fedtrain.sim.violation import Violation
from fedtrain.sim.world import SeedFailed, World


def worlds(wanted: Callable[[Plan], bool], count: int, first: int = 1) -> Iterator[World]:
    """The first worlds whose plans are wanted."""
    seed = first
    while count:
        if wanted(draw(seed)):
            yield World(seed)
            count -= 1
        seed += 1


@pytest.mark.parametrize("old", list(Old), ids=str)
def test_a_standby_takes_over(old: Old) -> None:
    """Dead, alive or cut off: every run ends at the standby, in its epochs, and nothing counts twice."""

    def wanted(plan: Plan) -> bool:
        return plan.succession is not None and plan.succession.old is old

    taken = 0
    for world in worlds(wanted, 6):
        outcome = world.run()
        chief = world.succession.chief
        if outcome.faults[f"standby took over, the old one {old}"]:
            taken += 1
            assert chief.name == "standby"
            assert chief.state.epoch >= TAKEOVER_STEP
        assert all(ledger.ended for ledger in chief.history.ledgers.values())
    assert taken >= 3


def test_an_old_coordinator_is_fenced_by_a_visitor() -> None:
    """A site that comes back to it by mistake shows the higher epoch: it decides nothing more and ends."""

    def wanted(plan: Plan) -> bool:
        taken = plan.succession
        return taken is not None and taken.old is Old.ALIVE and bool(taken.visitor)

    faults: Counter[str] = Counter()
    for world in worlds(wanted, 6):
        faults += world.run().faults
    assert faults["site went back"] > 0
    assert faults["coordinator fenced"] > 0


def test_a_damaged_journal_is_restored() -> None:
    """The start is refused, a person restores what still verifies, and the run goes on in a higher epoch."""

    def wanted(plan: Plan) -> bool:
        return plan.rates.journal_flip_gap_ms < 100_000 and plan.succession is None

    restored = 0
    for world in worlds(wanted, 8):
        faults = world.run().faults
        if faults["bit flipped in a journal"]:
            restored += 1
            assert faults["start refused"] > 0
            assert world.succession.chief.state.epoch >= TAKEOVER_STEP
    assert restored > 2


def test_liars_tell_every_lie_and_runs_go_on() -> None:
    """Worlds with a liar hold, and among them every kind of lie was told."""
    told: Counter[str] = Counter()
    for world in worlds(lambda plan: any(site.lies for site in plan.sites), 20):
        told += world.run().faults
    assert {f"lie: {name}" for name in LIES} <= set(told)


def test_a_liar_speaks_of_orders_that_are_not_its_own() -> None:
    """The journals of such worlds hold refusals: what was told did reach the coordinator."""
    rejected = 0
    for world in worlds(lambda plan: any(site.lies for site in plan.sites), 10):
        world.run()
        rows = world.succession.chief.disk.journal.entries
        rejected += sum(row.kind == "UpdateRejected" for row in rows)
    assert rejected > 0


# -- what the auditor would notice ------------------------------------------------------------------


def ordinary_epoch(epoch: int, chance: int | None) -> int:
    """A take-over that is no more than a start."""
    return epoch + 1


def nothing_damaged(making: Making, effect: object) -> list[ev.Event]:
    """An aggregation that reads what lies there, whatever it is."""
    return []


def deaf(state: Any, event: ev.Fenced) -> tuple[Any, tuple[()]]:
    """A coordinator that does not mind who has taken over."""
    return state, ()


def trusting(models: Models, order: Any, missing_from: Any) -> None:
    """A site that works from whatever model it has."""
    owner = models._owner
    owner.auditor.holds(owner.name, order, "0" * 64)


def caught(wanted: Callable[[Plan], bool], count: int) -> str:
    """The first violation among so many worlds, "" if all hold."""
    for world in worlds(wanted, count):
        try:
            world.run()
        except SeedFailed as failure:
            assert isinstance(failure.__cause__, Violation), failure
            return str(failure.__cause__)
    return ""


def has_bad_disks(plan: Plan) -> bool:
    """Bits flip, and power fails."""
    return plan.rates.flip_gap_ms < 10_000


def is_taken_over_alive(plan: Plan) -> bool:
    """Two coordinators are up at the same time."""
    return plan.succession is not None and plan.succession.old is not Old.DEAD


@pytest.mark.parametrize(
    ("place", "name", "instead", "wanted", "says"),
    [
        (sim_coordinator, "next_epoch", ordinary_epoch, is_taken_over_alive, "I3: two coordinators"),
        (Making, "_damaged", nothing_damaged, has_bad_disks, "I2: version"),
        (Models, "_drop", trusting, has_bad_disks, "I11: "),
    ],
    ids=["take-over without a step", "blobs unchecked", "models unchecked"],
)
def test_a_careless_shell_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    instead: object,
    wanted: Callable[[Plan], bool],
    says: str,
) -> None:
    """Each of these faults, planted in the shell, breaks the invariant that it should."""
    monkeypatch.setattr(place, name, instead)
    assert caught(wanted, 40).startswith(says)


def test_a_coordinator_that_is_deaf_to_a_fence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on deciding although its journal says that another one rules."""
    monkeypatch.setitem(transitions.MEMBERSHIP, ev.Fenced, deaf)
    assert "has taken over" in caught(is_taken_over_alive, 40)
