"""Stopping, visiting, and a real model: processes end in order and go on where they ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_world import COORDINATOR, PLUGIN, SITES, World, all_work, command, fedtrain, wait_for

pytestmark = pytest.mark.slow

TEXT: dict[str, Any] = {
    "task": {
        "name": "causal_lm",
        "data": "corpus",
        "model": {"layers": 1, "heads": 2, "width": 16, "context": 16, "vocabulary": "bytes"},
        "training": {"optimizer": "adamw", "learning_rate": 0.003, "batch_size": 4},
    },
    "sites": {"include": ["east", "north"], "minimum": 2},
    "rounds": {"quorum": 2, "count": 3, "steps": 100},
}


def maps_torch(pid: int) -> bool:
    """Whether a process has torch in its memory."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_text_model_survives_every_kill_with_the_same_bits(quiet: World, stormy: World) -> None:
    """A language model comes out the same although trainer, agent and coordinator are killed on the way;
    only the trainers ever hold torch."""
    for world in (quiet, stormy):
        world.begin("run-text", **TEXT)
    for version, victim in ((0, "trainer"), (1, "north"), (2, COORDINATOR)):
        stormy.until("run-text", lambda view, least=version: view["version"] >= least, f"version {version}")
        if victim == "trainer":
            trainer = stormy.trainer("east")
            wait_for(lambda pid=trainer.pid: maps_torch(pid), "torch in the trainer", stormy.tails)
            networked = [stormy.processes.pid(name) for name in (COORDINATOR, "east")]
            assert not any(maps_torch(pid) for pid in networked)
            trainer.kill()
        else:
            stormy.restart(victim)
    digests = {world.until_done("run-text")["model_digest"] for world in (quiet, stormy)}
    assert len(digests) == 1, stormy.tails()
    found = quiet.document("run", "show", "run-text")["evaluations"]
    assert sorted(found) == ["east", "north"] and all(0 < e["loss"] < 6 for e in found.values())


def test_diverging_model_pauses_the_run_with_the_reason(stormy: World) -> None:
    """An absurd learning rate ends in a loss that is no number: the run pauses and says so."""
    training = {**TEXT["task"]["training"], "learning_rate": 1e9}
    stormy.begin("run-absurd", **{**TEXT, "task": {**TEXT["task"], "training": training}})
    view = stormy.until("run-absurd", lambda view: view["phase"] == "paused", "the pause")
    assert "learning rate" in view["reason"], view["reason"]


def test_interrupt_ends_in_order_and_the_next_start_goes_on(quiet: World, stormy: World) -> None:
    """Ctrl-C of coordinator and agent, while they are at work, ends with 130 and leaves no process; started
    again they finish the run with the bits of an undisturbed one."""
    stormy.put("gate", *SITES)
    for world in (quiet, stormy):
        world.begin("run-interrupt")
    stormy.until("run-interrupt", all_work, "work at all sites")
    trainer = stormy.trainer("west")
    assert stormy.processes.stop("west") == 130
    assert not psutil.pid_exists(trainer.pid) or trainer.status() == psutil.STATUS_ZOMBIE
    assert stormy.processes.stop(COORDINATOR) == 130
    stormy.launch(COORDINATOR)
    stormy.launch("west")
    stormy.clear("gate")
    digests = {world.until_done("run-interrupt")["model_digest"] for world in (quiet, stormy)}
    assert len(digests) == 1, stormy.tails()


def test_site_that_only_visits_takes_part(stormy: World) -> None:
    """`peer run --once` does what waits for it, leaves with 0 and no child, and the run still ends."""
    assert stormy.processes.stop("west", signal.SIGTERM) == 0
    stormy.begin("run-visits", rounds={"count": 1})
    for _ in range(8):
        process = stormy.processes.launch(
            "west", "peer", "run", stormy.site("west"), "--once", PYTHONPATH=str(PLUGIN)
        )
        code = process.wait(60)
        assert code == 0, stormy.tails()
        assert not [p for p in psutil.process_iter(["cmdline"]) if _serves(p, stormy.site("west"))]
        if stormy.document("run", "show", "run-visits")["phase"] == "done":
            break
    else:
        pytest.fail(f"not done after 8 visits\n{stormy.tails()}")
    (version,) = [m for m in stormy.document("model", "list", "run-visits")["models"] if m["version"] == 1]
    assert len(version["contributors"]) == 3


def _serves(process: psutil.Process, folder: Path) -> bool:
    """Whether this is a trainer of the site in `folder`."""
    words = process.info["cmdline"] or []
    return "fedtrain.trainer" in words and any(str(folder) in word for word in words)


def test_second_server_on_a_folder_is_refused(stormy: World) -> None:
    """A second coordinator and a second agent on a folder in use end at once and say who holds it."""
    for words in (("coordinator", "serve", stormy.home), ("peer", "run", stormy.site("east"))):
        done = fedtrain(*words)
        assert done.code == 1 and "another process" in done.err, (command(*words), done)
    assert stormy.processes.alive(COORDINATOR) and stormy.processes.alive("east")
