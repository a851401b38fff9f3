"""`kill -9` in masked rounds: the sum is that of a run that nothing happened to, and no secret is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from system_world import COORDINATOR, SITES, World, all_work
from test_system_crashes import await_sight, begin_both, ends_equal, strike

from fedtrain.core import canonical
from fedtrain.errors import RemoteError
from fedtrain.peer.mask_secrets import Kept

pytestmark = pytest.mark.slow

RUN = "run-masked"

MASKED: dict[str, Any] = {
    "task": {"model": {"parameters": 400_000, "tensors": 3}},
    "rounds": {"count": 3, "steps": 3},
    "codec": {"up": "fixed16", "down": "int8"},
    "privacy": {"masked": True},
}


def kept(world: World, site: str) -> list[Kept]:
    """What the site keeps of masked sessions at this moment."""
    found = []
    for path in masks_of(world, site):
        with contextlib.suppress(FileNotFoundError, RemoteError):
            found.append(canonical.decode(Kept, path.read_bytes()))
    return found


def masks_of(world: World, site: str) -> list[Path]:
    folder = world.site(site) / "state" / "masks"
    return list(folder.iterdir()) if folder.is_dir() else []


def has_said(world: World, site: str, topic: str) -> Callable[[], bool]:
    """Whether the site has this word in its file, and so is about to say it or has."""
    return lambda: any(topic in found.said for found in kept(world, site))


def strike_agent(world: World, site: str, sight: Callable[[], bool]) -> None:
    """`kill -9` the agent as soon as `sight` is seen, until one blow leaves it there."""
    hit = False
    while not hit:
        await_sight(world, sight, RUN)
        world.processes.kill(site)
        hit = sight()
        world.launch(site)


def test_processes_killed_in_masked_rounds(quiet: World, stormy: World) -> None:
    """Agents and coordinator die while keys are made, shared and opened: all sites are in every version, and
    every version has the bits of the world in which nothing happened.
    """
    begin_both(quiet, stormy, RUN, **MASKED)
    stormy.until(RUN, all_work, "work at all sites")
    strike(stormy, has_said(stormy, "east", "advert"), RUN)
    strike_agent(stormy, "north", has_said(stormy, "north", "boxes"))
    stormy.clear("gate")
    strike_agent(stormy, "west", has_said(stormy, "west", "opened"))
    strike(stormy, has_said(stormy, "east", "opened"), RUN)
    ends_equal(quiet, stormy, RUN)
    for world in (quiet, stormy):
        assert [masks_of(world, site) for site in SITES] == [[], [], []]
        models = world.document("model", "list", RUN)["models"]
        assert all(len(model["contributors"]) == len(SITES) for model in models if model["version"])
        lineages = [world.document("model", "lineage", RUN, "--version", 1)]
        assert "masked in session" in str(lineages)
        assert world.processes.alive(COORDINATOR)
