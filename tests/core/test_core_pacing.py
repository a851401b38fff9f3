"""How often sites show themselves, and who is let in when."""

import itertools

from core_script import SPEC
from hypothesis import given, strategies as st

from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.pacing import (
    BEATS_PER_PATIENCE,
    BURST,
    IDLE_BEAT_MS,
    IDLE_PACE_SINCE,
    IDLE_PATIENCE_MS,
    SLOT_KEPT_MS,
    SLOT_MS,
    Door,
    beat_ms,
    has_part,
    knock,
    lease_ms,
)
from fedtrain.core.state import OpenRound, Phase, RunState, Seat, Standing, State

PATIENCES = st.lists(st.integers(100, 3_600_000), max_size=5)


def knocks(door: Door, sites: list[str], now_ms: int) -> tuple[Door, dict[str, int]]:
    """All of them at one moment: what each was told."""
    told = {}
    for site in sites:
        door, told[site] = knock(door, site, now_ms)
    return door, told


def names(count: int, prefix: str = "site") -> list[str]:
    return [f"{prefix}-{index}" for index in range(count)]


def test_the_figures_that_follow_from_patience() -> None:
    """By hand, with the default patience of 60 s and a run that is less patient."""
    assert beat_ms(5_000, (60_000,), (1, 1)) == 5_000
    assert beat_ms(5_000, (60_000, 8_000), (1, 1)) == 2_000
    assert beat_ms(5_000, (), (1, 1)) == 20_000
    assert beat_ms(5_000, (), (1, 0)) == 5_000
    assert (lease_ms(()), lease_ms((60_000, 8_000))) == (60_000, 8_000)


@given(asked_ms=st.integers(1, 100_000), patiences_ms=PATIENCES)
def test_a_lease_outlives_lost_beats(asked_ms: int, patiences_ms: list[int]) -> None:
    """Whatever is asked for, several beats fit into the lease of the same site."""
    beats = BEATS_PER_PATIENCE if patiences_ms else IDLE_PATIENCE_MS // IDLE_BEAT_MS
    assert beats * beat_ms(asked_ms, patiences_ms, IDLE_PACE_SINCE) <= lease_ms(patiences_ms)


def test_a_small_consortium_never_notices_the_door() -> None:
    """As many as the burst come at once and all are in; the next ones are told slots behind each other."""
    _, told = knocks(Door(), names(BURST + 3), 1_000)
    assert list(told.values()) == [0] * BURST + [(BURST + i) * SLOT_MS for i in range(3)]


def test_who_was_told_a_slot_is_let_in_at_it() -> None:
    """Early it is the same slot again, at it or a little later the door is open, much later it is a queue."""
    door, told = knocks(Door(), names(BURST + 1), 0)
    late = names(BURST + 1)[-1]
    slot_ms = told[late]
    door, wait_ms = knock(door, late, 1)
    assert wait_ms == slot_ms - 1
    assert knock(door, late, slot_ms)[1] == 0
    assert knock(door, late, slot_ms + SLOT_KEPT_MS - 1)[1] == 0
    assert late not in knock(door, late, slot_ms)[0].slots
    assert "other" not in knock(door, "other", slot_ms + SLOT_KEPT_MS)[0].slots
    assert late not in knock(door, "other", slot_ms + SLOT_KEPT_MS)[0].slots


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 29)), max_size=120))
def test_the_rate_is_bounded_however_they_knock(course: list[tuple[int, int]]) -> None:
    """Slots, the burst included, are given out one after the other, and nobody waits for ever.

    Every site that is let in has used up a slot of its own, and no slot lies further ahead than the
    knocks before it explain.
    """
    door, now_ms, slots = Door(), 0, []
    promised: dict[str, int] = {}
    for pause_ms, number in course:
        now_ms += pause_ms
        site = f"site-{number}"
        before = door.free_ms
        door, wait_ms = knock(door, site, now_ms)
        if door.free_ms != before:
            slots.append(door.free_ms - SLOT_MS)
        assert wait_ms <= (len(course) + BURST) * SLOT_MS
        if site in promised and promised[site] <= now_ms < promised[site] + SLOT_KEPT_MS:
            assert wait_ms == 0, "a promise is kept"
        promised.pop(site, None)
        if wait_ms:
            promised[site] = now_ms + wait_ms
    assert all(later - earlier >= SLOT_MS for earlier, later in itertools.pairwise(slots))


def test_a_thousand_that_obey_are_in_after_ten_seconds() -> None:
    """All knock at once and come back when told: everybody is in at the second knock, a few each 100 ms."""
    door, told = knocks(Door(), names(1_000), 0)
    entered = [wait_ms for wait_ms in told.values() if not wait_ms]
    for site, wait_ms in sorted(told.items(), key=lambda item: item[1]):
        if wait_ms:
            door, again_ms = knock(door, site, wait_ms)
            assert again_ms == 0
            entered.append(wait_ms)
    assert len(entered) == 1_000 and max(entered) == 999 * SLOT_MS < 10_000
    per_tick = [sum(tick <= moment < tick + 100 for moment in entered) for tick in range(1, 10_000, 100)]
    assert max(per_tick) <= 100 // SLOT_MS
    assert not door.slots


def test_who_has_a_part_in_a_run() -> None:
    """Sites that a run names, that have a seat, or that are still at an earlier round; not of ended runs."""
    order = Order(
        id="run.1.1.seated", kind=OrderKind.TRAIN, run="run", round=1, attempt=1, site="seated", seed=1,
        model=None, steps=1, evaluate=False, parent="", returned=(), cohort=(), task="{}", codec="float32",
        block_elements=1, patience_ms=1,
    )  # fmt: skip
    seats = {"seated": Seat(order, Standing.WORKING)}
    opened = OpenRound(1, 1, 0, 1, 0, "", seats)
    run = RunState(SPEC, Phase.TRAINING, "", 0, 0, round=opened, busy={"late": order})
    state = State(runs={"run": run})
    assert [has_part(state, site) for site in ("seated", "late", "idle")] == [True, True, False]
    ended = RunState(SPEC, Phase.DONE, "", 0, 0, busy={"late": order})
    assert not has_part(State(runs={"run": ended}), "late")
