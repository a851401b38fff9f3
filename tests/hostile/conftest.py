"""An arena for each test, and one profile for all fuzzers."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "coordinator"))  # its world is ours, with a liar in it

from hostile_world import Arena, arena_in


@pytest.fixture
async def arena(tmp_path: Path) -> AsyncIterator[Arena]:
    """A run of two honest sites and a liar, with its first round open."""
    async with arena_in(tmp_path) as made:
        yield made
