"""Heartbeats to verdicts, by hand and for any course of beats."""

from hypothesis import given, strategies as st

from fedtrain.core.liveness import (
    STRIDE_BYTES,
    Lost,
    Passage,
    Pulses,
    Stalled,
    carry,
    expect,
    forget,
    hear,
    renew,
    settle,
    verdicts,
)
from fedtrain.core.orders import Progress

ORDER = "run.1.1.a"


def at_work() -> Pulses:
    """Site a, heard at 0 with a patience of 100; its order is expected to move within 50."""
    return expect(hear({}, "a", 0, 100), "a", ORDER, 0, 50)


def test_silence_is_lost() -> None:
    """A site is given up when its patience is spent, not before; the next look is at that time."""
    pulses = hear({}, "a", 0, 1_000)
    assert verdicts(pulses, 999) == ((), 1_000)
    assert verdicts(pulses, 1_000) == ((Lost("a", "no sign of life for 1 s"),), None)
    assert verdicts({}, 5) == ((), None)


def test_a_sign_of_life_moves_the_end() -> None:
    """Each sign of life begins the patience anew, and may change it."""
    pulses = hear(hear({}, "a", 0, 100), "a", 60, 30)
    assert verdicts(pulses, 89) == ((), 90)


def test_work_that_does_not_move_is_stalled() -> None:
    """A beating site whose counter stands still loses the order, not itself."""
    pulses = hear(at_work(), "a", 40, 100, [Progress(ORDER, 1)])
    pulses = hear(pulses, "a", 80, 100, [Progress(ORDER, 1)])
    assert verdicts(pulses, 89) == ((), 90)
    assert verdicts(pulses, 90) == ((Stalled("a", ORDER, "no progress for 0.05 s"),), 180)


def test_only_a_higher_counter_is_progress() -> None:
    """A counter that falls or stays is none, and counters of unknown orders are not kept."""
    pulses = hear(at_work(), "a", 10, 100, [Progress(ORDER, 5)])
    pulses = hear(pulses, "a", 40, 100, [Progress(ORDER, 4), Progress("run.9.1.a", 7)])
    assert pulses["a"].orders[ORDER].since_ms == 10
    assert list(pulses["a"].orders) == [ORDER]


def test_bytes_of_an_upload_are_progress() -> None:
    """Expecting an order again moves its end and keeps its counter."""
    pulses = expect(hear(at_work(), "a", 10, 100, [Progress(ORDER, 5)]), "a", ORDER, 45, 50)
    beat = pulses["a"].orders[ORDER]
    assert (beat.counter, beat.since_ms) == (5, 45)


def test_answered_orders_are_not_expected() -> None:
    """After its answer an order cannot stall; settling what nobody expects changes nothing."""
    pulses = settle(at_work(), "a", ORDER)
    assert verdicts(pulses, 99) == ((), 100)
    assert settle(pulses, "a", ORDER) is pulses
    assert settle(pulses, "b", ORDER) is pulses


def test_an_order_for_a_silent_site() -> None:
    """Expecting an order of a site that was never heard begins its patience."""
    assert verdicts(expect({}, "b", ORDER, 0, 50), 50)[0] == (Lost("b", "no sign of life for 0.05 s"),)


def test_forgotten_sites_have_no_verdict() -> None:
    """A site that was given up is silent until it is heard again."""
    pulses = forget(hear(at_work(), "b", 0, 10), "a")
    assert [verdict.site for verdict in verdicts(pulses, 1_000)[0]] == ["b"]


@given(beats=st.lists(st.integers(0, 99), max_size=20))
def test_nobody_who_shows_himself_in_time_is_lost(beats: list[int]) -> None:
    """Gaps below the patience never lose a site; the next look is never in the past."""
    now_ms, pulses = 0, hear({}, "a", 0, 100)
    for gap_ms in beats:
        now_ms += gap_ms
        found, next_ms = verdicts(pulses, now_ms)
        assert found == () and next_ms is not None and next_ms > now_ms
        pulses = hear(pulses, "a", now_ms, 100)


def test_a_transfer_moves_by_whole_strides() -> None:
    """One byte less than a stride is no sign of progress, a stride is; the mark is where it was seen."""
    passage = Passage(3 * STRIDE_BYTES, 0, 0, 100)
    assert carry(passage, STRIDE_BYTES - 1, 50) is passage
    moved = carry(passage, STRIDE_BYTES + 7, 60)
    assert (moved.marked_bytes, moved.since_ms, moved.end_ms) == (STRIDE_BYTES + 7, 60, 160)
    assert carry(moved, 2 * STRIDE_BYTES + 6, 90) is moved


def test_the_rest_of_a_transfer_is_a_stride() -> None:
    """A transfer below a stride, or the last piece of a long one, moves when it is whole, once."""
    passage = Passage(10, 0, 0, 100)
    assert carry(passage, 9, 50) is passage
    whole = carry(passage, 10, 60)
    assert whole.since_ms == 60
    assert carry(whole, 10, 90) is whole


@given(
    pieces=st.lists(st.tuples(st.integers(0, 3 * STRIDE_BYTES), st.integers(0, 99)), max_size=30),
    size=st.integers(1, 20 * STRIDE_BYTES),
)
def test_patience_is_bought_with_bytes(pieces: list[tuple[int, int]], size: int) -> None:
    """However bytes are cut into pieces, the clock is set back at most once for each stride, and once for the
    rest: so a transfer lasts at most that many patiences."""
    passage = Passage(size, 0, 0, 100)
    now_ms = received = moves = 0
    for more, gap_ms in pieces:
        now_ms, received = now_ms + gap_ms, min(size, received + more)
        after = carry(passage, received, now_ms)
        moves += after is not passage
        passage = after
        assert received - passage.marked_bytes < STRIDE_BYTES
    assert moves <= received // STRIDE_BYTES + 1


def test_leases_that_begin_anew() -> None:
    """After a time in which nobody listened, patience counts from now, for sites and for their orders."""
    pulses = expect(hear({}, "a", 0, 100), "a", "run.1.1.a", 0, 50)
    assert len(verdicts(pulses, 500)[0]) == 1
    renewed = renew(pulses, 500)
    assert verdicts(renewed, 549) == ((), 550)
    assert verdicts(renewed, 550)[0] == (Stalled("a", "run.1.1.a", "no progress for 0.05 s"),)
