"""The driver's order: journal, step, act; and what a replay refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from core_script import Script

from fedtrain.core.driver import Driver, entry_of, replay, run_of
from fedtrain.core.events import EVENTS, Booted, RunPaused, RunSubmitted, WorkFailed
from fedtrain.core.ports import Entry, MemoryActor, MemoryJournal
from fedtrain.core.state import State
from fedtrain.core.transitions import step
from fedtrain.errors import IntegrityError, StorageError


@dataclass(frozen=True)
class Said:
    """An event with a word."""

    at_ms: int
    word: str


class Log(MemoryJournal):
    """A journal that writes into a list shared with the machine and the actor, and may be full."""

    def __init__(self, log: list[str], full: bool = False) -> None:
        super().__init__()
        self._log = log
        self._full = full

    def append(self, entries: Sequence[Entry]) -> int:
        if self._full:
            raise StorageError("no space left")
        self._log.append(f"journal {len(entries)}")
        return super().append(entries)


class Talking:
    """Notes what it is asked to do; `again` makes it hand in another event meanwhile."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.driver: Driver[int, Said, str] | None = None

    def perform(self, effect: str) -> None:
        self.log.append(f"act {effect}")
        if effect == "again" and self.driver is not None:
            self.driver.handle(Said(2, "nested"))
            self.log.append("returned")
        if effect == "die":
            raise KeyboardInterrupt


def made(full: bool = False) -> tuple[Driver[int, Said, str], list[str]]:
    """A driver whose journal, machine and actor write one log."""
    log: list[str] = []

    def stepped(state: int, event: Said) -> tuple[int, tuple[str, ...]]:
        log.append(f"step {event.word}")
        return state + 1, (event.word,)

    actor = Talking(log)
    driver: Driver[int, Said, str] = Driver(Log(log, full), actor, stepped, 0)
    actor.driver = driver
    return driver, log


def test_journal_then_step_then_act() -> None:
    """A batch is one durable write; then each event is answered and its effects are started."""
    driver, log = made()
    driver.handle(Said(1, "one"), Said(1, "two"))
    assert log == ["journal 2", "step one", "act one", "step two", "act two"]
    assert driver.state == 2


def test_a_journal_that_fails_lets_nothing_happen() -> None:
    """An event that is not durable has not happened: no step, no effect, the same state."""
    driver, log = made(full=True)
    with pytest.raises(StorageError):
        driver.handle(Said(1, "one"))
    assert (log, driver.state) == ([], 0)


def test_events_from_within_an_effect_wait() -> None:
    """An event that an effect leads to at once is journaled and answered after the one before."""
    driver, log = made()
    driver.handle(Said(1, "again"))
    assert log == [
        "journal 1",
        "step again",
        "act again",
        "returned",
        "journal 1",
        "step nested",
        "act nested",
    ]


def test_a_death_amid_effects_leaves_a_usable_driver() -> None:
    """What died with an effect does not stick in the driver's inbox."""
    driver, log = made()
    with pytest.raises(KeyboardInterrupt):
        driver.handle(Said(1, "die"), Said(1, "never"))
    driver.handle(Said(2, "next"))
    assert log[-3:] == ["journal 1", "step next", "act next"]


def test_rows_name_their_run() -> None:
    """The journal's run column comes from the event's run, its spec, its order's id, or its order."""
    from test_core_agent import FIRST

    from fedtrain.core.agent import OrderReceived

    spec = Script().spec
    assert run_of(RunPaused(1, "x", "op")) == "x"
    assert run_of(RunSubmitted(1, spec, "op")) == "run"
    assert run_of(WorkFailed(1, "x.1.1.a", "r")) == "x"
    assert run_of(OrderReceived(1, FIRST)) == "run-1"
    assert run_of(Booted(1, 1)) == ""
    payload = '{"at_ms":5,"code":"","epoch":2,"place":"here","version":""}'
    assert entry_of(Booted(5, 2, "here")) == Entry(5, "", "Booted", payload)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Entry(1, "", "Invented", "{}"), "'Invented' that this version does not know"),
        (
            Entry(1, "", "Booted", '{"at_ms":1}'),
            "Booted row cannot be read: Booted: field 'epoch' is missing",
        ),
        (Entry(1, "", "Booted", "{"), "Booted row cannot be read: Booted: not valid JSON"),
    ],
)
def test_a_journal_that_cannot_be_read(row: Entry, words: str) -> None:
    """A row of another version or a broken one stops the replay with a sentence."""
    journal = MemoryJournal()
    journal.append([row])
    with pytest.raises(IntegrityError, match=words.replace("(", r"\(")):
        replay(journal, step, State(), EVENTS)


def test_a_replay_leads_to_the_live_state() -> None:
    """The fold over the rows of a whole run is the state that was live."""
    script = Script().begin()
    script.seed()
    script.play_round()
    actor: MemoryActor[object] = MemoryActor()
    assert script.replayed() == script.state
    assert actor.performed == []
