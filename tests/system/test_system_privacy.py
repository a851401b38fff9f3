"""`kill -9` around the privacy ledger, in real processes: nothing is under-counted, bytes leave unchanged."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system_world import COORDINATOR, SITES, World, all_work, wait_for, world_in

from fedtrain.storage.journal import Journal
from fedtrain.storage.ledger import Ledger

pytestmark = pytest.mark.slow

PRIVATE = {"site": {"clip": 1.0, "noise_multiplier": 2.0}}
DYING = Path(__file__).parent / "dying_agent.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One consortium for the three tests, checked at its end."""
    with world_in(tmp_path_factory.mktemp("privacy")) as made:
        yield made
        made.check()


@pytest.fixture
def stormy(world: World) -> World:
    """Healed before each test."""
    world.heal()
    return world


def charged(world: World, site: str, run: str) -> dict[str, int]:
    """Order -> executions of it that the site's ledger holds."""
    path = world.site(site) / "state" / "ledger.sqlite"
    found: dict[str, int] = {}
    if path.exists():
        with Ledger(path, writer=False) as ledger:
            for row in ledger.rows():
                if row.charge.run == run:
                    found[row.charge.order] = found.get(row.charge.order, 0) + 1
    return found


def worked_on(world: World, site: str, run: str) -> dict[str, int]:
    """Order -> how often a trainer has begun to train for it, by the trainer's log."""
    log = world.site(site) / "state" / "trainer.log"
    said = log.read_text(errors="replace") if log.exists() else ""
    found: dict[str, int] = {}
    for order in re.findall(rf"order ({re.escape(run)}\.\S+): train", said):
        found[order] = found.get(order, 0) + 1
    return found


def holds_the_balance(world: World, run: str) -> None:
    """Every execution is paid for, at every site, and the coordinator has each site's account."""
    for site in SITES:
        paid, done = charged(world, site, run), worked_on(world, site, run)
        assert done and all(paid.get(order, 0) >= count for order, count in done.items()), (site, paid, done)
    spent = world.document("run", "show", run)["privacy"]["spent"]
    assert sorted(line["site"] for line in spent) == list(SITES)
    assert all(line["unit"] == "site" and 0 < line["epsilon_pld"] < 100 for line in spent)


def test_agent_killed_between_charge_and_post(stormy: World) -> None:
    """The charge is kept; the next life charges for the execution that a trainer then gets."""
    run = "run-charged"
    stormy.processes.kill("west")
    with open(stormy.processes.log("west"), "ab") as log:
        command = [sys.executable, str(DYING), "peer", "run", str(stormy.site("west"))]
        dying = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stormy.begin(run, privacy=PRIVATE)
    assert dying.wait(60) == -signal.SIGKILL
    assert list(charged(stormy, "west", run).values()) == [1] and not worked_on(stormy, "west", run)
    stormy.launch("west")
    stormy.until_done(run)
    holds_the_balance(stormy, run)
    assert charged(stormy, "west", run)[f"{run}.1.1.west"] == 2
    assert worked_on(stormy, "west", run)[f"{run}.1.1.west"] == 1


def test_agent_killed_during_private_training(stormy: World) -> None:
    """Its trainer dies with it; the order is trained for again and charged for again."""
    run = "run-retrained"
    stormy.put("gate", *SITES)
    stormy.begin(run, privacy=PRIVATE)
    stormy.until(run, all_work, "work at all sites")
    wait_for(lambda: bool(worked_on(stormy, "north", run)), "a trainer at work", stormy.tails)
    stormy.processes.kill("north")
    stormy.launch("north")
    wait_for(
        lambda: worked_on(stormy, "north", run).get(f"{run}.1.1.north") == 2, "another trainer", stormy.tails
    )
    stormy.clear("gate")
    stormy.until_done(run)
    holds_the_balance(stormy, run)
    assert charged(stormy, "north", run)[f"{run}.1.1.north"] == 2
    assert set(charged(stormy, "east", run).values()) == {1}


def test_agent_killed_behind_the_noise_before_the_send(stormy: World) -> None:
    """What was noised leaves as it was noised: the same bytes, no second charge."""
    run, order = "run-resent", "run-resent.1.1.east"
    stormy.put("gate", *SITES)
    stormy.begin(run, privacy=PRIVATE)
    stormy.until(run, all_work, "work at all sites")
    outbox = stormy.site("east") / "state" / "outbox" / order
    os.kill(stormy.processes.pid(COORDINATOR), signal.SIGSTOP)
    try:
        stormy.clear("gate")
        wait_for(outbox.exists, "the noised update", stormy.tails)
        noised = hashlib.sha256(outbox.read_bytes()).hexdigest()
        stormy.restart("east")
    finally:
        os.kill(stormy.processes.pid(COORDINATOR), signal.SIGCONT)
    stormy.until_done(run)
    holds_the_balance(stormy, run)
    assert charged(stormy, "east", run)[order] == 1
    assert noised in _stored(stormy), "the coordinator counts these very bytes"


def _stored(world: World) -> str:
    journal = Journal.open(world.journal, writer=False)
    try:
        return " ".join(row.payload for row in journal.read(kinds=("UpdateStored",)))
    finally:
        journal.close()
