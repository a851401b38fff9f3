"""What the core needs of the outside, as protocols, with the in-memory forms that ship.

Another transport or another store implements these and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

F_contra = TypeVar("F_contra", contravariant=True)
F = TypeVar("F")


class Entry(NamedTuple):
    """One event as the journal keeps it.

    Attributes:
        at_ms: wall clock, milliseconds since 1970, UTC; told, never decided from.
        run: the run that it belongs to, "" if none.
        kind: name of the event.
        payload: canonical JSON text.
    """

    at_ms: int
    run: str
    kind: str
    payload: str


class Recorded(Protocol):
    """What the driver needs of a journal's row when it reads it back."""

    @property
    def kind(self) -> str:
        """The event's kind."""

    @property
    def payload(self) -> str:
        """Its canonical JSON."""


class JournalPort(Protocol):
    """Where events are kept. `append` returns only when all entries are durable, or raises."""

    def append(self, entries: Sequence[Entry]) -> int:
        """Store all entries or none; returns the last one's sequence."""

    def read(self) -> Iterable[Recorded]:
        """All rows, oldest first."""


class ActorPort(Protocol[F_contra]):
    """Who carries effects out. `perform` only starts the work; it never waits and never raises."""

    def perform(self, effect: F_contra) -> None:
        """Start carrying the effect out."""


class MemoryJournal:
    """A journal in a list, for simulations and tests."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def append(self, entries: Sequence[Entry]) -> int:
        """Keep the entries."""
        self.entries.extend(entries)
        return len(self.entries)

    def read(self) -> Iterator[Entry]:
        """All entries, oldest first."""
        return iter(self.entries)


class MemoryActor(Generic[F]):
    """Remembers what it was asked to do, for tests."""

    def __init__(self) -> None:
        self.performed: list[F] = []

    def perform(self, effect: F) -> None:
        """Remember the effect."""
        self.performed.append(effect)
