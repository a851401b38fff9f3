"""`peer pending`, `approve`, `deny`, `withdraw`: what they print, leave behind, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedtrain.cli import consent
from fedtrain.core import agent
from fedtrain.core.contract import Approval, Contract, Verdict, Word
from fedtrain.core.driver import entry_of
from fedtrain.core.orders import Order, OrderKind
from fedtrain.storage.journal import Journal

Command = Callable[..., Any]

ALLOWS = Contract(("*",), ("tiny",), 1, approval=Approval.MANUAL)
TASK = json.dumps({"name": "tiny", "terms": {"use": "economic", "licence": "CC-BY-4.0"}})


def an_order(run: str) -> Order:
    kind, cohort = OrderKind.SEED, ("jsc", "north")
    return Order(
        f"{run}.0.1.jsc",
        kind,
        run,
        0,
        1,
        "jsc",
        1,
        None,
        0,
        False,
        "",
        (),
        cohort,
        TASK,
        "int8",
        4096,
        60_000,
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site whose agent is not running: `waits` waits for a word, `narrow` is refused by its contract,
    `gone` was withdrawn from, `done` has taken this site's work."""
    monkeypatch.setattr(consent, "TAKEN_S", 0.0)
    (tmp_path / "peer.yaml").write_text("site: jsc\ncoordinator: localhost:7443\n")
    (tmp_path / "state").mkdir()
    journal = Journal.open(tmp_path / "state" / "journal.db")
    economic = replace(ALLOWS, use="economic")
    alone = replace(an_order("narrow"), cohort=("north",))
    receipt = {"blob": "a" * 64, "outcome": "stored", "epoch": 1, "signed_ms": 1, "signature": "s"}
    journal.append(
        [
            entry_of(event)
            for event in (
                agent.AgentBooted(1, economic),
                agent.OrderReceived(1_700_000_000_000, an_order("waits"), 1, 1),
                agent.OrderReceived(3, alone, 1, 1),
                agent.RunDecided(4, "gone", Verdict(Word.WITHDRAWN, "why", "eve")),
                agent.RunDecided(5, "done", Verdict(Word.APPROVED, "", "eve")),
                agent.OrderReceived(6, an_order("done"), 1, 1),
                agent.UploadAcknowledged(7, "done.0.1.jsc", **receipt),  # type: ignore[arg-type]
            )
        ]
    )
    journal.close()
    return tmp_path


def left(site: Path) -> list[dict[str, str]]:
    """The words that wait for the agent."""
    return [json.loads(path.read_bytes()) for path in sorted((site / "state/decisions").glob("*.json"))]


def test_pending_says_what_is_asked(fedtrain: Command, site: Path) -> None:
    """One document with all that a person needs to decide, and a table of the same."""
    done = fedtrain("peer", "pending", site, "--json")
    (waiting,) = done.document["pending"]
    assert done.code == 0 and waiting["run"] == "waits" and waiting["since_ms"] == 1_700_000_000_000
    assert (waiting["task"], waiting["use"], waiting["licence"]) == ("tiny", "economic", "CC-BY-4.0")
    assert waiting["cohort"] == ["jsc", "north"] and waiting["work"] == "seed, 0 steps"
    table = fedtrain("peer", "pending", site).out
    assert "waits" in table and "economic" in table and "2023-11-14" in table


def test_a_word_is_left_for_the_agent(fedtrain: Command, site: Path) -> None:
    """Without an agent each word lies in the state folder, with the person's name, and is said to."""
    for kind, run, more in (
        ("approve", "waits", ()),
        ("approve", "gone", ()),
        ("deny", "narrow", ("--reason", "too narrow")),
        ("withdraw", "done", ("--reason", "leaving")),
    ):
        done = fedtrain("peer", kind, site, run, *more, "--json")
        assert done.code == 0, done.err
        assert done.document["taken"] is False and "next start" in done.document["reason"]
    words = left(site)
    assert [(word["kind"], word["subject"], word["reason"]) for word in words] == [
        ("approve", "waits", ""),
        ("approve", "gone", ""),
        ("deny", "narrow", "too narrow"),
        ("withdraw", "done", "leaving"),
    ]
    assert all(word["by"] for word in words)


@pytest.mark.parametrize(
    ("kind", "run", "words"),
    [
        ("approve", "nothing", "has asked this site for nothing"),
        ("approve", "narrow", "no approval changes that"),
        ("approve", "done", "approved already"),
        ("deny", "gone", "withdrawn already, by eve"),
        ("deny", "nothing", "has asked this site for nothing"),
        ("withdraw", "waits", "no part in run waits"),
        ("withdraw", "gone", "withdrawn already"),
    ],
)
def test_a_word_without_meaning_is_refused(
    fedtrain: Command, site: Path, kind: str, run: str, words: str
) -> None:
    """Exit code 3, the reason in words, and nothing left behind."""
    done = fedtrain("peer", kind, site, run)
    assert done.code == 3 and words in done.err
    assert left(site) == []


def test_a_site_that_never_ran(fedtrain: Command, tmp_path: Path) -> None:
    """Without a journal there is nothing to decide about: exit code 2, with the file and the remedy."""
    (tmp_path / "peer.yaml").write_text("site: jsc\ncoordinator: localhost:7443\n")
    done = fedtrain("peer", "pending", tmp_path)
    assert done.code == 2 and "journal.db" in done.err and "peer run" in done.err
