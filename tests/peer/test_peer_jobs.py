"""Work in the background, and how long to wait between tries."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from hypothesis import given, strategies as st

from fedtrain.peer.backoff import Backoff
from fedtrain.peer.jobs import Jobs, in_thread


@given(seed=st.integers(0, 2**32), tries=st.integers(1, 20))
def test_pauses_stay_below_a_ceiling_that_doubles_to_its_cap(seed: int, tries: int) -> None:
    """Try n pauses between nothing and first * 2^n, never above the cap; success starts over."""
    backoff = Backoff(0.25, 30.0, random.Random(seed))
    for count in range(tries):
        assert 0.0 <= backoff.next_s() <= min(30.0, 0.25 * 2**count)
    backoff.reset()
    assert backoff.next_s() <= 0.25


async def test_the_same_work_is_not_begun_twice() -> None:
    """A repeated effect does not restart work that is under way, and can be repeated when it is done."""
    begun: list[str] = []
    gate = asyncio.Event()

    async def work() -> None:
        begun.append("work")
        await gate.wait()

    jobs = Jobs(pytest.fail)
    jobs.start("a", "prepare", work)
    jobs.start("a", "prepare", work)
    jobs.start("b", "prepare", work)
    await asyncio.sleep(0)
    assert begun == ["work", "work"]
    gate.set()
    await asyncio.sleep(0.01)
    jobs.start("a", "prepare", work)
    await asyncio.sleep(0.01)
    assert len(begun) == 3
    await jobs.stop()


async def test_new_work_begins_when_the_old_has_ended() -> None:
    """Work of another kind cancels what is under way and waits for its last thread."""
    trace: list[str] = []
    release = threading.Event()

    async def old() -> None:
        def slow() -> None:
            trace.append("thread begins")
            release.wait(5)
            trace.append("thread ends")

        await in_thread(slow)
        trace.append("never reached")

    async def new() -> None:
        trace.append("new")

    jobs = Jobs(pytest.fail)
    jobs.start("a", "prepare", old)
    while not trace:
        await asyncio.sleep(0.001)
    jobs.start("a", "discard", new)
    await asyncio.sleep(0.01)
    assert trace == ["thread begins"]
    release.set()
    while trace[-1] != "new":
        await asyncio.sleep(0.001)
    assert trace == ["thread begins", "thread ends", "new"]
    await jobs.stop()


async def test_brief_work_is_never_left_half_done() -> None:
    """Work that is to reach its end is not cancelled, neither by other work nor by a stop."""
    done: list[str] = []

    async def brief() -> None:
        await asyncio.sleep(0.01)
        done.append("brief")

    async def other() -> None:
        done.append("other")

    jobs = Jobs(pytest.fail)
    jobs.start("a", "discard", brief, to_end=True)
    jobs.start("a", "prepare", other)
    jobs.start("b", "discard", brief, to_end=True)
    await jobs.stop()
    assert done.count("brief") == 2


async def test_what_escapes_is_told() -> None:
    """A bug in a piece of work reaches the agent; a cancellation does not count as one."""
    told: list[BaseException] = []

    async def bug() -> None:
        raise ZeroDivisionError

    async def endless() -> None:
        await asyncio.Event().wait()

    jobs = Jobs(told.append)
    jobs.start("a", "prepare", bug)
    jobs.start("b", "prepare", endless)
    await asyncio.sleep(0.01)
    await jobs.stop()
    assert [type(error) for error in told] == [ZeroDivisionError]
