"""Ranges through threads: all of them, once, absorbed in order, failures told."""

import threading

import pytest
from hypothesis import given, strategies as st

from fedtrain.methods.ranges import cut, pass_through, range_elements


class Recorder:
    """A worker that notes what it is given; fails at one range."""

    def __init__(self, computed: list[int], absorbed: list[int], fail_at: int = -1) -> None:
        self.computed, self.absorbed, self.fail_at = computed, absorbed, fail_at

    def compute(self, start: int, stop: int) -> None:
        if start == self.fail_at:
            raise ValueError("as asked")
        self.computed.append(start)

    def absorb(self, start: int, stop: int) -> None:
        self.absorbed.append(start)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ranges_are_absorbed_in_order(threads: int) -> None:
    """Whatever the threads, every range is computed once and absorbed in its turn."""
    computed: list[int] = []
    absorbed: list[int] = []
    ranges = [(at, at + 1) for at in range(200)]
    pass_through(ranges, [Recorder(computed, absorbed) for _ in range(threads)])
    assert sorted(computed) == absorbed == list(range(200))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("fail_at", [0, 57, 199])
def test_a_failure_ends_it_and_is_raised(threads: int, fail_at: int) -> None:
    """What one worker raises comes out, nothing after it is absorbed, no thread is left."""
    absorbed: list[int] = []
    ranges = [(at, at + 1) for at in range(200)]
    before = threading.active_count()
    with pytest.raises(ValueError, match="as asked"):
        pass_through(ranges, [Recorder([], absorbed, fail_at) for _ in range(threads)])
    assert absorbed == list(range(len(absorbed)))
    assert len(absorbed) <= fail_at
    assert threading.active_count() == before


@given(st.integers(1, 10**6), st.integers(1, 20), st.integers(1, 30))
def test_cuts_cover_the_vector_and_respect_blocks(count: int, block: int, step: int) -> None:
    """Ranges follow one another without gaps, none is longer than a step or crosses a block."""
    block, step = block * 4096, step * 4096
    ranges = cut(count, block, step)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == count
    for start, stop in ranges:
        assert start < stop <= start + step
        assert start // block == (stop - 1) // block


def test_ranges_fit_the_memory() -> None:
    """Elements x bytes x threads stay within the bound, in whole chunks, at least one."""
    assert range_elements(32, 1 << 20, 1) == 32768
    assert range_elements(32, 1 << 20, 3) == 8192
    assert range_elements(32, 1, 1) == 4096
    assert range_elements(32, 1 << 40, 1) == 1 << 17
