"""Two equal consortia of real processes for all tests of this folder: one is hurt, one is left in peace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from system_world import World, world_in


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """Two running worlds of the same three sites."""
    folder = tmp_path_factory.mktemp("system")
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: stack.enter_context(world_in(folder / name)), ("quiet", "stormy"))
        quiet, stormy = found
        yield quiet, stormy
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def quiet(both: tuple[World, World]) -> Iterator[World]:
    """The world in which nothing goes wrong; it is checked after the test."""
    yield from _lent(both[0])


@pytest.fixture
def stormy(both: tuple[World, World]) -> Iterator[World]:
    """The world that is hurt; it is healed before the test and checked after it."""
    yield from _lent(both[1])


def _lent(world: World) -> Iterator[World]:
    world.heal()
    yield world
    world.check()
