"""Snapshots: the same state as from the first row, whatever becomes of them."""

from __future__ import annotations

import itertools
import json
import logging
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fedtrain.core import agent, canonical, events as ev, transitions
from fedtrain.core.contract import Contract
from fedtrain.core.driver import entry_of, fold
from fedtrain.core.state import State
from fedtrain.errors import IntegrityError
from fedtrain.storage import snapshots as module
from fedtrain.storage.chain import digest_of
from fedtrain.storage.database import SCHEMA
from fedtrain.storage.journal import Entry, Journal, Snapshot
from fedtrain.storage.snapshots import Snapshots

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from restart_time import Play

NUM_EVENTS = 300


@pytest.fixture(scope="module")
def life() -> list[ev.Event]:
    """A coordinator's life: enrolments, a seeding, rounds, a site that is lost and comes back."""
    return list(itertools.islice(Play(State(), 1_700_000_000_000).events(), NUM_EVENTS))


def in_order(state: State) -> str:
    """Every field of the state, mappings in their own order."""
    return json.dumps(canonical.to_plain(state))


def from_row_1(journal: Journal) -> State:
    return fold(journal.read(), transitions.step, State(), ev.EVENTS)


def recover(journal: Journal) -> State:
    return Snapshots(journal, State).recover(transitions.step, State(), ev.EVENTS)


def keep_at(journal: Journal, life: list[ev.Event], *places: int) -> None:
    """Append the whole life, with a snapshot behind each of these rows."""
    book = Snapshots(journal, State)
    state, done = State(), 0
    for place in (*places, len(life)):
        batch = life[done:place]
        if batch:
            journal.append([entry_of(event) for event in batch])
        for event in batch:
            state, _ = transitions.step(state, event)
        done = place
        if place in places:
            book.keep(state)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(1, NUM_EVENTS))
def test_a_snapshot_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, life: list[ev.Event], place: int
) -> None:
    """Snapshot and rest fold to the very state of all rows, also in the order of its mappings."""
    path = tmp_path_factory.mktemp("life") / "j"
    journal = Journal.open(path)
    keep_at(journal, life, place)
    journal.close()
    journal = Journal.open(path)
    book = Snapshots(journal, State)
    state = book.recover(transitions.step, State(), ev.EVENTS)
    assert book.rows_behind == NUM_EVENTS - place
    assert in_order(state) == in_order(from_row_1(journal))
    assert transitions.resume(state) == transitions.resume(from_row_1(journal))
    journal.close()


def resealed(snapshot: Snapshot, **changes: Any) -> Snapshot:
    """A snapshot that was forged, with a digest that fits."""
    forged = snapshot._replace(**changes)
    return forged._replace(digest=digest_of(*forged[:4]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s._replace(payload=s.payload[:-9] + bytes([s.payload[-9] ^ 1]) + s.payload[-8:]),
            "damaged",
        ),
        (lambda s: s._replace(payload=s.payload[: len(s.payload) // 2]), "damaged"),
        (lambda s: s._replace(digest="0" * 64), "damaged"),
        (lambda s: s._replace(format="0" * 64), "damaged"),
        (lambda s: resealed(s, format="0" * 64), "another version"),
        (lambda s: resealed(s, hash="f" * 64), "of another journal"),
        (lambda s: resealed(s, sequence=NUM_EVENTS + 1), "of another journal"),
        (lambda s: resealed(s, payload=b"not compressed"), "cannot be read"),
    ],
    ids=["flip", "torn", "digest", "format", "newer fedtrain", "other chain", "future", "rubbish"],
)
def test_an_unfit_snapshot_is_passed_over(
    tmp_path: Path, life: list[ev.Event], caplog: pytest.LogCaptureFixture, change: Any, words: str
) -> None:
    """It is told and costs time: the one before it is read, or all rows; the state is always the same."""
    journal = Journal.open(tmp_path / "j")
    keep_at(journal, life, 100, 200)
    expected = in_order(from_row_1(journal))
    newest, older = journal.snapshots()
    assert (newest.sequence, older.sequence) == (200, 100)
    for kept, behind in (([older], 200), ([], NUM_EVENTS)):
        journal._connection.execute("DELETE FROM snapshots")
        for snapshot in (change(newest), *kept):
            journal.keep_snapshot(snapshot)
        caplog.clear()
        book = Snapshots(journal, State)
        with caplog.at_level(logging.WARNING):
            assert in_order(book.recover(transitions.step, State(), ev.EVENTS)) == expected
        assert words in caplog.text and book.rows_behind == behind
    journal.close()


def test_a_snapshot_of_another_shape_is_not_read(tmp_path: Path, life: list[ev.Event]) -> None:
    """What another version wrote is ignored, and the rows make the state."""

    class Older(State):
        """As an earlier fedtrain had it."""

    journal = Journal.open(tmp_path / "j")
    keep_at(journal, life)
    Snapshots(journal, Older).keep(from_row_1(journal))
    book = Snapshots(journal, State)
    book.recover(transitions.step, State(), ev.EVENTS)
    assert book.rows_behind == NUM_EVENTS
    journal.close()


def test_two_are_kept_and_one_is_due_after_enough_rows(
    tmp_path: Path, life: list[ev.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one is due every so many rows, more apart in a long journal; only the newest two stay."""
    journal = Journal.open(tmp_path / "j")
    monkeypatch.setattr(module, "SPACING_ROWS", 40)
    monkeypatch.setattr(module, "SPACING_SHARE", 4)
    book, state = Snapshots(journal, State), State()
    kept = []
    for event in life:
        journal.append([entry_of(event)])
        state, _ = transitions.step(state, event)
        if book.due:
            book.keep(state, journal.head)
            kept.append(journal.head[0])
    assert kept[:4] == [40, 80, 120, 160] and kept[4] - 160 == kept[4] // 4 == 53
    assert [snapshot.sequence for snapshot in journal.snapshots()] == kept[:-3:-1]
    assert recover(journal) == state
    journal.close()


def test_a_snapshot_hides_no_damage(tmp_path: Path, life: list[ev.Event]) -> None:
    """A row that is in the snapshot and need not be folded is still held against the chain at open."""
    journal = Journal.open(tmp_path / "j")
    keep_at(journal, life, NUM_EVENTS)
    journal.close()
    with sqlite3.connect(tmp_path / "j") as connection:
        connection.execute("UPDATE rows SET at_ms=at_ms+1 WHERE sequence=17")
    connection.close()
    with pytest.raises(IntegrityError, match="row 17 does not match its hash"):
        Journal.open(tmp_path / "j")


def test_a_journal_of_the_first_schema_is_taken_along(tmp_path: Path, life: list[ev.Event]) -> None:
    """A file of an older fedtrain keeps its rows and heads and gets what is new."""
    path = tmp_path / "j"
    with sqlite3.connect(path) as connection:
        connection.executescript(f"{SCHEMA} PRAGMA user_version=1;")
    connection.close()
    reader = Journal.open(path, writer=False)
    assert list(reader.read()) == []
    reader.close()
    journal = Journal.open(path)
    keep_at(journal, life, 250)
    journal.close()
    journal = Journal.open(path)
    assert [snapshot.sequence for snapshot in journal.snapshots()] == [250]
    assert journal.append([Entry(1, "", "k", "{}")]) == NUM_EVENTS + 1
    journal.close()


def test_a_changed_head_is_found_at_the_start(tmp_path: Path, life: list[ev.Event]) -> None:
    """A signed head that is not of its row means that one of them was changed: the start names it."""
    journal = Journal.open(tmp_path / "j")
    keep_at(journal, life[:10])
    journal.close()
    with sqlite3.connect(tmp_path / "j") as connection:
        connection.execute("INSERT INTO heads VALUES ('c', 5, 'not its hash', 1, '00', 'k')")
    connection.close()
    with pytest.raises(IntegrityError, match="signed head at row 5"):
        Journal.open(tmp_path / "j")


def test_an_agent_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    """The other machine that lives for years: what it holds and its epoch come back the same."""
    contract = Contract(tasks=("synthetic",))
    events: list[agent.AgentEvent] = [
        agent.AgentBooted(1, contract),
        *(agent.EpochSeen(2, epoch) for epoch in range(1, 50)),
        agent.HeadWitnessed(3, "consortium", 7, "00", 3, "11"),
    ]
    journal = Journal.open(tmp_path / "j")
    book, state = Snapshots(journal, agent.AgentState), agent.AgentState()
    for number, event in enumerate(events):
        journal.append([entry_of(event)])
        state, _ = agent.step(state, event)
        if number == 30:
            book.keep(state)
    journal.close()
    journal = Journal.open(tmp_path / "j")
    book = Snapshots(journal, agent.AgentState)
    assert book.recover(agent.step, agent.AgentState(), agent.AGENT_EVENTS) == state
    assert state.epoch == 49 and state.contract == contract and book.rows_behind == len(events) - 31
    journal.close()
