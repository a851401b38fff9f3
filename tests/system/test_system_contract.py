"""A site's people have the last word: withdrawal, approval and hours, on real processes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from system_world import World, fedtrain, site_file, standings, wait_for

pytestmark = pytest.mark.slow

TWO_OF_THREE: dict[str, Any] = {"sites": {"minimum": 2}, "rounds": {"quorum": 2, "count": 4}}
SETTLE_S = 8
"""For agents to start again before their window opens; a slower start only finds it open."""


def say(world: World, kind: str, site: str, run: str, *more: str) -> None:
    """A person's command at a site whose agent runs; it has been taken when this returns."""
    done = fedtrain("peer", kind, world.site(site), run, *more, "--json")
    assert done.code == 0, done.err
    path = world.site(site) / "state" / "decisions"
    wait_for(lambda: not list(path.glob("*.json")), "the agent to take the word", world.tails)


def counted(world: World, run: str, version: int) -> set[str]:
    """The sites whose updates a version counts."""
    rounds = world.document("run", "rounds", run)["rounds"]
    record = next(found for found in rounds if found["version"] == version)
    return {order.rsplit(".", 1)[-1] for order in record["counted"]}


def rows(journal: object, kind: str) -> list[dict[str, Any]]:
    found = fedtrain("audit", "show", journal, "--json").document["rows"]
    return [row["payload"] for row in found if row["kind"] == kind]


def test_consent_is_taken_back_and_given_again(stormy: World) -> None:
    """Withdrawn mid-round, a stored update is not aggregated and the site is in no further round; approved
    again, it is back in the next; withdrawn after an aggregation, that version keeps it and none after does.
    Both journals have it all."""
    run = "run-leave"
    stormy.put("gate", "north")
    stormy.begin(run, **TWO_OF_THREE)
    first = {"east": "stored", "north": "working", "west": "stored"}
    stormy.until(run, lambda view: standings(view) == first, "two updates")
    say(stormy, "withdraw", "west", run, "--reason", "board decision")
    view = stormy.until(run, lambda view: standings(view).get("west") == "refused", "the withdrawal")
    assert "board decision" in view["round"]["seats"]["west"]["reason"]
    stormy.put("gate", "east")
    stormy.clear("gate", sites=("north",))
    second = {"east": "working", "north": "stored"}
    stormy.until(run, lambda view: standings(view) == second, "a second round without west")
    assert counted(stormy, run, 1) == {"east", "north"}

    say(stormy, "approve", "west", run)
    stormy.put("gate", "north")
    stormy.clear("gate", sites=("east",))
    third = {"east": "stored", "north": "working", "west": "stored"}
    stormy.until(run, lambda view: standings(view) == third, "a third round with west")
    stormy.put("gate", "east")
    stormy.clear("gate", sites=("north",))
    stormy.until(run, lambda view: view["version"] == 3, "a version that counts west")
    say(stormy, "withdraw", "west", run)
    stormy.until(run, lambda view: standings(view).get("west") == "refused", "the second withdrawal")
    stormy.clear("gate")
    stormy.until_done(run)
    assert [counted(stormy, run, version) for version in (2, 3, 4)] == [
        {"east", "north"},
        {"east", "north", "west"},
        {"east", "north"},
    ]
    taken = [row for row in rows(stormy.journal, "ConsentWithdrawn") if row["run"] == run]
    assert [(row["site"], row["reason"]) for row in taken] == [("west", "board decision"), ("west", "")]
    said = [
        row for row in rows(stormy.site("west") / "state" / "journal.db", "RunDecided") if row["run"] == run
    ]
    assert [row["verdict"]["word"] for row in said] == ["withdrawn", "approved", "withdrawn"]


@contextmanager
def other_contracts(world: World, **clauses: dict[str, Any]) -> Iterator[None]:
    """These sites run under a changed contract, and afterwards under their own again."""
    try:
        for site, changed in clauses.items():
            world.processes.stop(site)
            document = site_file(site, world.address)
            document["contract"].update(changed)
            (world.site(site) / "peer.yaml").write_text(json.dumps(document))
            world.launch(site)
        yield
    finally:
        for site in clauses:
            if world.processes.alive(site):
                world.processes.stop(site)
            (world.site(site) / "peer.yaml").write_text(json.dumps(site_file(site, world.address)))
            world.launch(site)


def test_a_run_waits_for_a_person_and_for_an_hour(stormy: World) -> None:
    """East's people approve by hand, north's window opens on the next minute: until then the run waits and
    `run check` says for whom and why; then it comes to its end without another word."""
    run = "run-patient"
    opens = (datetime.now(ZoneInfo("Europe/Berlin")) + timedelta(seconds=SETTLE_S + 60)).replace(second=0)
    hours = f"{opens:%H:%M}-{opens + timedelta(hours=2):%H:%M} Europe/Berlin"
    with other_contracts(stormy, east={"approval": "manual"}, north={"hours": hours}):
        stormy.begin(run, rounds={"count": 1})
        waits = "waits for a person's word"
        view = stormy.until(run, lambda view: waits in view["sites"]["east"]["refused"], "east's refusal")
        checked = fedtrain("run", "check", stormy.folder / f"{run}.yaml", "--dir", stormy.home, "--json")
        answers = checked.document["sites"]
        assert checked.code == 3 and waits in answers["east"]["reasons"][0]
        if datetime.now(ZoneInfo("Europe/Berlin")) < opens:
            assert view["phase"] in ("waiting", "seeding")
        (waiting,) = fedtrain("peer", "pending", stormy.site("east"), "--json").document["pending"]
        assert waiting["run"] == run and waiting["task"] == "gated"
        say(stormy, "approve", "east", run)
        left_s = (opens - datetime.now(ZoneInfo("Europe/Berlin"))).total_seconds()
        time.sleep(max(0.0, left_s))  # the contract's clock is the real one; at most a minute and a bit
        stormy.until_done(run)
        assert counted(stormy, run, 1) == {"east", "north", "west"}
        refused = [
            row
            for row in rows(stormy.journal, "ConsentRefused")
            if row["order"].startswith(run) and "contract.hours" in "".join(row["reasons"])
        ]
        assert all(row["contract"] and row["signature"] for row in refused)
