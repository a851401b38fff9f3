"""A standby on a copy of the coordinator's folder takes over while the old one lives."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_world import (
    COORDINATOR,
    SITES,
    World,
    all_work,
    fedtrain,
    free_port,
    site_file,
    standings,
    tail,
    wait_for,
)

pytestmark = pytest.mark.slow

UNHURRIED: dict[str, Any] = {"deadline_s": 900, "patience_s": 300}
"""No round ends by the clock, however slow the machine."""

STANDBY = "standby"
RUN = "run-succession"


class Succession(World):
    """A world whose coordinator can be followed by another, on a copy of its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.old_home, self.new_home = self.home, folder / "standby"
        self.new_address = f"127.0.0.1:{free_port()}"

    def copy(self) -> None:
        """What a standby has: the folder as it was when the coordinator last stopped."""
        assert self.processes.stop(COORDINATOR, signal.SIGTERM) == 0
        shutil.copytree(self.old_home, self.new_home)
        self.old = self.processes.launch(COORDINATOR, "coordinator", "serve", self.old_home)
        self.until_ready()

    def take_over(self) -> None:
        """Serve the copy elsewhere; the operator's questions go there from now on."""
        words = ("coordinator", "serve", self.new_home, "--take-over", "--address", self.new_address)
        self.processes.launch(STANDBY, *words)
        log = self.processes.log(STANDBY)
        wait_for(lambda: log.exists() and "ready: " in log.read_text(), "the standby", lambda: tail(log))
        self.home = self.new_home
        self.until_ready()

    def move(self, site: str, address: str) -> None:
        """Point a site elsewhere, as its owner does."""
        assert self.processes.stop(site, signal.SIGTERM) == 0
        (self.site(site) / "peer.yaml").write_text(json.dumps(site_file(site, address)))
        self.launch(site)

    def until_said(self, name: str, words: str) -> None:
        """Wait for words in the log of a process."""
        log = self.processes.log(name)
        wait_for(lambda: words in log.read_text(errors="replace"), f"{words!r} by {name}", self.tails)

    def tails(self) -> str:
        """The standby's last words too."""
        return f"{super().tails()}\n{tail(self.processes.log(STANDBY))}"


@pytest.fixture
def succession(tmp_path: Path) -> Iterator[Succession]:
    """A world of its own, because its sites move."""
    world = Succession(tmp_path)
    try:
        world.start()
        yield world
    finally:
        world.processes.close()


def test_a_standby_takes_over_while_the_old_coordinator_lives(quiet: World, succession: Succession) -> None:
    """An update that only the old one acknowledged reaches the new one; a site that has moved fences the
    old one with its next call; the run ends with the bits of an undisturbed one, each update counted once."""
    world = succession
    world.put("gate", *SITES)
    for each in (quiet, world):
        each.begin(RUN, rounds=UNHURRIED)
    world.until(RUN, all_work, "work at all sites")
    world.copy()
    world.clear("gate", sites=("east",))
    world.until(RUN, lambda view: standings(view).get("east") == "stored", "the update of east")

    refused = fedtrain("coordinator", "serve", world.new_home, "--address", world.new_address)
    assert refused.code == 2 and f"fedtrain coordinator serve {world.new_home} --take-over" in refused.err
    world.take_over()
    world.move("north", world.new_address)
    world.until_said("north", f"attached to storm at {world.new_address}")

    world.move("north", world.address)  # by mistake, or its address was that of a proxy
    wait_for(lambda: world.old.poll() is not None, "the end of the old coordinator", world.tails)
    assert world.old.returncode == 3
    said = world.processes.log(COORDINATOR).read_text().splitlines()[-1]
    assert said.startswith("fedtrain: another coordinator has taken over: north follows epoch "), said
    assert f"fedtrain coordinator serve {world.old_home} --take-over" in said
    again = fedtrain("coordinator", "serve", world.old_home)
    assert again.code == 3 and "north follows epoch" in again.err
    world.until_said("west", "has taken over")

    for site in SITES:
        world.move(site, world.new_address)
    world.clear("gate")
    ends_equal(quiet, world, RUN)
    world.check()


def test_a_lost_folder_is_restored_from_an_older_copy(quiet: World, stormy: World) -> None:
    """The coordinator and its disk are lost together with an update that the copy lacks; restored in its
    place, where every site finds it by itself, it gets the same bytes once more and completes the run."""
    world, run, copy = stormy, f"{RUN}-lost", stormy.folder / "copy"
    world.put("gate", *SITES)
    for each in (quiet, world):
        each.begin(run, rounds=UNHURRIED)
    world.until(run, all_work, "work at all sites")
    assert world.processes.stop(COORDINATOR, signal.SIGTERM) == 0
    shutil.copytree(world.home, copy)
    world.launch(COORDINATOR)
    world.clear("gate", sites=("east",))
    world.until(run, lambda view: standings(view).get("east") == "stored", "the update of east")

    world.processes.kill(COORDINATOR)
    shutil.rmtree(world.home)
    copy.rename(world.home)
    refused = fedtrain("coordinator", "serve", world.home)
    assert refused.code == 2 and f"fedtrain coordinator serve {world.home} --take-over" in refused.err
    world.processes.launch(COORDINATOR, "coordinator", "serve", world.home, "--take-over")
    world.until_ready()
    world.clear("gate")
    ends_equal(quiet, world, run)
    sent = world.processes.log("east").read_text().count(f"{run}.1.1.east: uploaded")
    assert sent == 2, "once to the lost coordinator and once to the restored one"


def ends_equal(quiet: World, world: World, run: str) -> None:
    """Both runs end with one model in every version, each update in it counted once."""
    for each in (quiet, world):
        each.until_done(run)
    models = [each.document("model", "list", run)["models"] for each in (quiet, world)]
    assert [m["model_digest"] for m in models[0]] == [m["model_digest"] for m in models[1]], world.tails()
    counted = [order for model in models[1] if model["version"] for order in model["contributors"]]
    assert len(counted) == len(set(counted)) == 2 * len(SITES)
