"""Sites that are late, refuse, lack their data or keep dying: the run goes on, and the record says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from system_world import SITES, World, fedtrain, standings

pytestmark = pytest.mark.slow

TWO_OF_THREE: dict[str, Any] = {"sites": {"minimum": 2}, "rounds": {"quorum": 2}}


def merged(changes: Mapping[str, Any], **rounds: Any) -> dict[str, Any]:
    """`changes` with more keys in `rounds`."""
    return {**changes, "rounds": {**changes["rounds"], **rounds}}


def records(world: World, run: str) -> list[Any]:
    """`run rounds` without the seeding."""
    found: list[Any] = world.document("run", "rounds", run)["rounds"]
    return [record for record in found if record["index"] > 0]


def late_once(world: World, run: str, policy: str) -> str:
    """Run with west late in the first round and in time ever after; returns west's late order."""
    fast = ("east", "north")
    world.put("gate", "west")
    world.begin(run, **merged(TWO_OF_THREE, count=3, deadline_s=9, patience_s=8, late=policy))
    stored = {"east": "stored", "north": "stored", "west": "working"}
    world.until(run, lambda view: standings(view) == stored, "two updates in time")
    world.put("gate", *fast)  # so that the next round cannot close before west is done with this one
    view = world.until(run, lambda view: view["version"] == 1, "the first version at the deadline")
    order = f"{run}.1.1.west"
    assert view["sites"]["west"]["busy"] == order
    seats = next(record["seats"] for record in records(world, run) if record["version"] == 1)
    assert [seats[site]["standing"] for site in SITES] == ["stored", "stored", "late"]
    assert "still at work" in seats["west"]["reason"]
    world.clear("gate", sites=("west",))
    world.until(run, lambda view: not view["sites"]["west"]["busy"], "the late update")
    world.clear("gate")
    world.until_done(run)
    return order


def test_late_update_counts_in_the_next_round(stormy: World) -> None:
    """With `late: next_round` a round closes at its deadline, and the late update counts once, later."""
    order = late_once(stormy, "run-late-next", "next_round")
    found = records(stormy, "run-late-next")
    assert [record["counted"].count(order) for record in found if record["version"] == 1] == [0]
    assert sum(record["counted"].count(order) for record in found) == 1


def test_late_update_goes_back_into_the_residual(stormy: World) -> None:
    """With `late: residual` the late update counts nowhere and is named to its site as returned, once."""
    order = late_once(stormy, "run-late-back", "residual")
    assert not any(order in record["counted"] for record in records(stormy, "run-late-back"))
    journal = stormy.site("west") / "state" / "journal.db"
    rows = fedtrain("audit", "show", journal, "--json").document["rows"]
    received = {
        row["payload"]["order"]["id"]: row["payload"]["order"]["returned"]
        for row in rows
        if row["kind"] == "OrderReceived" and row["payload"]["order"]["run"] == "run-late-back"
    }
    assert sum(returned.count(order) for returned in received.values()) == 1, received


def test_run_goes_on_without_a_site_that_refuses(stormy: World) -> None:
    """A contract's refusal is in the round's record and in `run show`, and the others go on at quorum."""
    stormy.begin("picky-quorum", **TWO_OF_THREE)
    view = stormy.until_done("picky-quorum")
    assert "contract.runs" in view["sites"]["west"]["refused"]
    first = records(stormy, "picky-quorum")[0]["seats"]["west"]
    assert first["standing"] == "refused" and "picky-quorum" in first["reason"]


def test_run_waits_with_the_reason_when_too_few_agree(stormy: World) -> None:
    """A run that needs all sites waits while one refuses, `run show` says which and why; `run check` too."""
    stormy.begin("picky-all")
    view = stormy.until("picky-all", lambda view: "refused" in view["reason"], "the reason")
    assert view["phase"] == "waiting" and "west" in view["reason"] and "contract.runs" in view["reason"]
    checked = fedtrain("run", "check", stormy.folder / "picky-all.yaml", "--dir", stormy.home, "--json")
    assert checked.code == 3 and not checked.document["can_start"]
    assert "contract.runs" in checked.document["sites"]["west"]["reasons"][0]


@pytest.mark.parametrize(
    ("data", "standing", "words"),
    [
        ("rare", "refused", "no data set rare here"),
        ("broken", "failed", "no file matches"),
        ("empty", "failed", "'empty' is empty"),
    ],
)
def test_run_goes_on_without_a_site_that_lacks_its_data(
    stormy: World, data: str, standing: str, words: str
) -> None:
    """A data set that a site has not, whose files are gone, or that is empty costs that site its seat."""
    run = f"run-{data}"
    stormy.begin(run, task={"data": data}, **merged(TWO_OF_THREE, count=1))
    stormy.until_done(run)
    (record,) = [record for record in records(stormy, run) if record["index"] == 1]
    seat = record["seats"]["west"]
    assert (seat["standing"], record["version"]) == (standing, 1) and words in seat["reason"]


def test_run_pauses_where_no_site_has_the_task(stormy: World) -> None:
    """A task that is installed nowhere pauses the run, and `run show` says what is missing."""
    stormy.begin("run-elsewhere", task={"name": "elsewhere"})
    view = stormy.until("run-elsewhere", lambda view: view["phase"] == "paused", "the pause")
    assert "'elsewhere' is not installed" in view["reason"]


def test_site_with_another_layout_fails_alone(stormy: World) -> None:
    """A site whose task builds another layout is told so, and takes no part in the model."""
    stormy.put("widened", "west")
    stormy.begin("run-widened", **merged(TWO_OF_THREE, count=1))
    stormy.until_done("run-widened")
    seat = records(stormy, "run-widened")[0]["seats"]["west"]
    assert seat["standing"] == "failed" and "another version of the task" in seat["reason"]


def test_trainer_that_dies_every_time_is_given_up(stormy: World) -> None:
    """After three deaths over one order the site says so, the run goes on, and the agent lives."""
    stormy.put("crash", "west")
    stormy.begin("run-deadly", **merged(TWO_OF_THREE, count=1))
    stormy.until_done("run-deadly")
    seat = records(stormy, "run-deadly")[0]["seats"]["west"]
    assert seat["standing"] == "failed" and "died 3 times" in seat["reason"] and "9" in seat["reason"]
    assert stormy.processes.alive("west")
