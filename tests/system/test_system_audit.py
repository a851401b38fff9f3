"""A real consortium's journal: witnessed by its sites, tampered with, and the origin of its model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from system_world import COORDINATOR, SITES, World, fedtrain, wait_for, world_in

from benchmarks.tamper import try_all, witnessed_rows

pytestmark = pytest.mark.slow

RUN = "run-audit"
ROUNDS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A consortium that has finished a run."""
    with world_in(tmp_path_factory.mktemp("audit")) as world:
        world.begin(RUN, rounds={"count": ROUNDS})
        world.until_done(RUN)
        yield world


def test_a_model_is_traced_to_its_contributors(world: World, tmp_path: Path) -> None:
    """The coordinator's signed lineage of every version is what an auditor makes of the journal alone; a card
    is made from it; a document that was changed is refused with 5."""
    for version in range(ROUNDS + 1):
        document = world.document("model", "lineage", RUN, "--version", version)
        path = tmp_path / f"{version}.json"
        path.write_text(json.dumps(document))
        words = ("audit", "lineage", world.journal, RUN, "--version", version, "--check", path, "--json")
        done = fedtrain(*words)
        assert done.code == 0, done.err
        contributors = len(document["lineage"]["contributors"])
        assert contributors == (1 if version == 0 else len(SITES))
        assert done.document["lineage"] == document["lineage"]
        assert done.document["commits_verified"] == (0 if version == 0 else len(SITES))
        assert document["lineage"]["code_digest"] and document["lineage"]["code_version"]
    changed = path.read_text().replace('"counted_weight": ', '"counted_weight": 1')
    path.write_text(changed)
    assert fedtrain(*words).code == 5
    card = fedtrain("model", "card", RUN, "--dir", world.home)
    assert card.code == 0 and all(site in card.out for site in SITES)
    newest = world.document("model", "list", RUN)["models"][-1]
    assert newest["model_digest"] in card.out


def test_every_site_is_a_witness_and_catches_up(world: World) -> None:
    """All sites keep the same newest head; one that was away gets it when it comes back."""
    assert world.processes.stop("west", signal.SIGTERM) == 0
    world.begin("run-without-west", sites={"include": ["east", "north"], "minimum": 2}, rounds={"quorum": 2})
    world.until_done("run-without-west")

    def newest(site: str) -> int:
        files = (world.site(site) / "state" / "heads").glob("*.json")
        return max(int(file.stem) for file in files)

    wait_for(lambda: newest("east") == newest("north"), "both to keep the last head", world.tails)
    assert newest("west") < newest("east")
    world.launch("west")
    wait_for(lambda: newest("west") >= newest("east"), "west to catch up", world.tails)
    for site in SITES:
        own = fedtrain("audit", "verify", world.site(site) / "state" / "journal.db", "--json")
        assert own.code == 0 and own.document["heads_checked"] >= ROUNDS, own.err


def test_tampering_is_caught_at_the_right_row(world: World, tmp_path: Path) -> None:
    """Each deed on a copy of the journal is told as what it is, at its row, by what the sites keep; the
    journal itself, which is being written, verifies."""
    live = fedtrain("audit", "verify", world.journal, "--heads", world.folder / "sites", "--json")
    assert live.code == 0 and set(SITES) <= set(live.document["witnesses"]), live.err
    findings = try_all(world.journal, world.folder / "sites", tmp_path)
    assert len(findings) == 7
    for finding in findings:
        assert finding.right, f"{finding.deed.name}: {finding.kind} at row {finding.sequence}"


def test_the_last_word_of_a_stopped_coordinator_is_witnessed(world: World) -> None:
    """A coordinator that is stopped in good order leaves its sites the head of its last row."""
    assert world.processes.stop(COORDINATOR, signal.SIGTERM) == 0
    report = fedtrain("audit", "verify", world.journal, "--json").document
    sites = world.folder / "sites"
    wait_for(lambda: witnessed_rows(world.journal, sites)[-1] == report["rows"], "the last head", world.tails)
