"""A consortium is brought up to date one process at a time while a run goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_world import COORDINATOR, PATIENCE_S, SITES, World, all_work, wait_for

pytestmark = pytest.mark.slow

UNHURRIED: dict[str, Any] = {"deadline_s": 900, "patience_s": 300}
"""No round ends by the clock, however slow the machine."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_every_process_is_restarted_in_turn(quiet: World, stormy: World, number: signal.Signals) -> None:
    """Coordinator, agents and trainers are replaced one after the other during a round; nothing is lost,
    every site counts in every round, and the model is that of a run in peace."""
    run = f"run-rolling-{number.name.lower()}"
    stormy.put("gate", *SITES)
    for world in (quiet, stormy):
        world.begin(run, rounds=UNHURRIED)
    stormy.until(run, all_work, "work at all sites")
    for name in (COORDINATOR, *SITES):
        code = stormy.processes.stop(name, number)
        assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        stormy.launch(name)
        if name == COORDINATOR:
            stormy.until_ready()
        stormy.until(run, all_work, f"work at all sites after {name}")
    for site in SITES:
        trainer = a_trainer(stormy, site)
        trainer.send_signal(number)
        a_trainer(stormy, site, but=trainer)
        stormy.until(run, all_work, f"work at all sites after the trainer of {site}")
    stormy.clear("gate")
    for world in (quiet, stormy):
        world.until_done(run)
    models = [world.document("model", "list", run)["models"] for world in (quiet, stormy)]
    assert [len(m["contributors"]) for m in models[1] if m["version"]] == [len(SITES)] * 2
    assert [m["model_digest"] for m in models[0]] == [m["model_digest"] for m in models[1]], stormy.tails()


def a_trainer(world: World, site: str, but: psutil.Process | None = None) -> psutil.Process:
    """The trainer at a site, once there is one that is not `but`."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [process for process in world.processes.children(site) if process != but]
        return bool(found)

    wait_for(look, f"a trainer at {site}", world.tails)
    return found[0]


def test_an_agent_of_another_major_ends_with_the_reason_on_both_sides(stormy: World, tmp_path: Path) -> None:
    """It is refused once, ends with 3, and site and coordinator read both versions and what to install."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fedtrain\nfrom fedtrain.core import messages\n"
        "fedtrain.__version__, messages.PROTOCOL_VERSION = '9.8.7', (9, 0)\n"
    )
    assert stormy.processes.stop("west", signal.SIGTERM) == 0
    process = stormy.processes.launch("west", "peer", "run", stormy.site("west"), PYTHONPATH=str(tmp_path))
    assert process.wait(PATIENCE_S) == 3, stormy.tails()
    said = stormy.processes.log("west").read_text().splitlines()[-1]
    assert said.startswith("fedtrain: the site speaks protocol 9.0 (fedtrain 9.8.7), the coordinator 1.")
    assert said.endswith("install fedtrain 9.8.7, or one with the minor before it, at the coordinator")
    noted = [
        line for line in stormy.processes.log(COORDINATOR).read_text().splitlines() if "turned away" in line
    ]
    assert len(noted) == 1 and noted[0].endswith(said.removeprefix("fedtrain: "))
