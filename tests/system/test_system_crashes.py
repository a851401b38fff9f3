"""`kill -9` at every stage of a run: it completes, with the bits of a run that nothing happened to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_world import COORDINATOR, PATIENCE_S, SITES, World, all_work, standings, tail, wait_for

pytestmark = pytest.mark.slow

LARGE: dict[str, Any] = {
    "task": {"model": {"parameters": 4_000_000, "tensors": 3}},
    "rounds": {"count": 4, "steps": 1},
    "codec": {"up": "float32", "down": "int8"},
}
"""Updates of 16 MB: on the way, and in the making, for long enough to be seen."""

LARGE_BYTES = 16_000_000


def begin_both(quiet: World, stormy: World, run: str, **changes: Any) -> None:
    """The same run in both worlds; in the stormy one it stops at the gates before its first step."""
    stormy.put("gate", *SITES)
    for world in (quiet, stormy):
        world.begin(run, **changes)


def ends_equal(quiet: World, stormy: World, run: str) -> None:
    """Both runs end with every site counted in every round, and with one digest."""
    for world in (quiet, stormy):
        world.until_done(run)
    models = [world.document("model", "list", run)["models"] for world in (quiet, stormy)]
    assert all(model["contributors"] for found in models for model in found if model["version"])
    digests = [[model["model_digest"] for model in found] for found in models]
    assert digests[0] == digests[1], stormy.tails()
    assert len(set(digests[0])) == len(digests[0]), "every round changes the model"


def strike(world: World, sight: Callable[[], bool], run: str) -> None:
    """`kill -9` the coordinator as soon as `sight` is seen on the disk, until one blow leaves it there.

    The coordinator may get further between the look and the blow. Then it was too late, and the next
    occasion of the same run is taken.
    """
    hit = False
    while not hit:
        await_sight(world, sight, run)
        world.processes.kill(COORDINATOR)
        hit = sight()
        world.launch(COORDINATOR)


def await_sight(world: World, sight: Callable[[], bool], run: str) -> None:
    """Look without a pause worth the name until it is there."""
    end = time.monotonic() + PATIENCE_S
    while not sight():
        if time.monotonic() > end:
            pytest.fail(f"{run} never came to where it was to be hit\n{world.tails()}")
        time.sleep(0.0003)


def half_uploads(world: World) -> list[Path]:
    """Uploads of updates that have begun and are not whole."""
    partial = world.home / "state" / "blobs" / "partial"
    return [path for path in partial.iterdir() if 0 < _size(path) < LARGE_BYTES]


def half_versions(world: World, run: str) -> list[Path]:
    """Folders of versions in the making, the initial weights apart."""
    folder = world.home / "state" / "models" / run
    return [path for path in folder.glob(".*.part") if path.name != ".0.part"]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def test_coordinator_killed_during_training(quiet: World, stormy: World) -> None:
    """A coordinator that is killed while all sites train takes the run up again, bit for bit."""
    begin_both(quiet, stormy, "run-training")
    stormy.until("run-training", all_work, "work at all sites")
    stormy.restart(COORDINATOR)
    stormy.clear("gate")
    ends_equal(quiet, stormy, "run-training")


def test_coordinator_killed_during_an_upload(quiet: World, stormy: World) -> None:
    """A coordinator that is killed with half an update on its disk gets the rest and counts it once."""
    begin_both(quiet, stormy, "run-upload", **LARGE)
    stormy.until("run-upload", all_work, "work at all sites")
    stormy.clear("gate")
    strike(stormy, lambda: bool(half_uploads(stormy)), "run-upload")
    ends_equal(quiet, stormy, "run-upload")


def test_coordinator_killed_during_aggregation(quiet: World, stormy: World) -> None:
    """A coordinator that is killed half-way into a new version makes that version again, the same."""
    begin_both(quiet, stormy, "run-aggregate", **LARGE)
    stormy.until("run-aggregate", all_work, "work at all sites")
    stormy.clear("gate")
    strike(stormy, lambda: bool(half_versions(stormy, "run-aggregate")), "run-aggregate")
    ends_equal(quiet, stormy, "run-aggregate")


def test_agent_killed_during_an_upload(quiet: World, stormy: World) -> None:
    """An agent that is killed half-way through its upload goes on with the same bytes.

    The coordinator is stopped for the moment of the blow, so that what was on its way stays there.
    """
    begin_both(quiet, stormy, "run-agent-upload", **LARGE)
    stormy.until("run-agent-upload", all_work, "work at all sites")
    stormy.clear("gate")
    victim = ""
    while not victim:
        await_sight(stormy, lambda: bool(half_uploads(stormy)), "run-agent-upload")
        os.kill(stormy.processes.pid(COORDINATOR), signal.SIGSTOP)
        victim = next(filter(None, (sender(stormy, path) for path in half_uploads(stormy))), "")
        if victim:
            stormy.processes.kill(victim)
        os.kill(stormy.processes.pid(COORDINATOR), signal.SIGCONT)
    stormy.launch(victim)
    ends_equal(quiet, stormy, "run-agent-upload")


def sender(world: World, upload: Path) -> str:
    """The site whose outbox holds the file that this upload is of; "" for none."""
    for site in SITES:
        for path in (world.site(site) / "state" / "outbox").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if hashlib.sha256(path.read_bytes()).hexdigest() == upload.name:
                    return site
    return ""


def test_trainer_killed_during_training(quiet: World, stormy: World) -> None:
    """A trainer that is killed at work is started again and makes the same update."""
    begin_both(quiet, stormy, "run-trainer")
    stormy.until("run-trainer", all_work, "work at all sites")
    trainer = stormy.trainer("north")
    trainer.kill()
    wait_for(
        lambda: any(child.pid != trainer.pid for child in stormy.processes.children("north")),
        "a new trainer",
        stormy.tails,
    )
    stormy.clear("gate")
    ends_equal(quiet, stormy, "run-trainer")


def test_agent_killed_during_training(quiet: World, stormy: World) -> None:
    """An agent that is killed takes its trainer with it; a new agent does the order again, the same."""
    begin_both(quiet, stormy, "run-agent")
    stormy.until("run-agent", all_work, "work at all sites")
    trainer = stormy.trainer("west")
    stormy.processes.kill("west")
    wait_for(lambda: gone(trainer), "the end of its trainer", stormy.tails)
    stormy.launch("west")
    stormy.clear("gate")
    ends_equal(quiet, stormy, "run-agent")


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; one whose parent died may stay as a zombie until it is reaped."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_order_of_arrival_changes_nothing(quiet: World, stormy: World) -> None:
    """Updates that arrive in another order make the same model."""
    for world, last in ((quiet, "east"), (stormy, "west")):
        world.put("gate", last)
        world.begin("run-order")

    def but_one_stored(view: Any) -> bool:
        return sorted(standings(view).values()) == ["stored", "stored", "working"]

    for world in (quiet, stormy):
        world.until("run-order", but_one_stored, "the others' updates")
        world.clear("gate")
    ends_equal(quiet, stormy, "run-order")


def test_seed_decides(quiet: World, stormy: World) -> None:
    """The same run with another seed ends with another model."""
    for seed, world in enumerate((quiet, stormy), 1):
        world.begin("run-seeded", seed=seed, rounds={"count": 1})
    digests = {world.until_done("run-seeded")["model_digest"] for world in (quiet, stormy)}
    assert len(digests) == 2, tail(stormy.processes.log(COORDINATOR))
