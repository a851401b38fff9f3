"""The only loop: journal, step, act, in this order, for every event.

An event that is not durable has not happened: if the journal raises, the state is untouched and
nothing is done. An effect is started only after its event is durable, so after a crash the fold
over the journal names every effect that may be missing (`resume` in the machine's own module).
One driver serves the coordinator, the agent and the simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from fedtrain.core import canonical
from fedtrain.core.ports import ActorPort, Entry, JournalPort, Recorded
from fedtrain.errors import IntegrityError, RemoteError

S = TypeVar("S")
F = TypeVar("F")


class Timed(Protocol):
    """What the driver needs of an event."""

    @property
    def at_ms(self) -> int:
        """When it happened, UTC milliseconds."""


E = TypeVar("E", bound=Timed)


class Driver(Generic[S, E, F]):
    """Owns a state and the order *journal, step, act*.

    Not thread-safe: a shell calls it from its event loop only. Events that are handled while an
    effect is being started (a simulation does that) wait for their turn.
    """

    def __init__(
        self,
        journal: JournalPort,
        actor: ActorPort[F],
        step: Callable[[S, E], tuple[S, tuple[F, ...]]],
        state: S,
    ) -> None:
        self.state = state
        self._journal = journal
        self._actor = actor
        self._step = step
        self._inbox: deque[E] = deque()
        self._running = False

    @property
    def settled(self) -> bool:
        """Whether the state is that of the journal's last row: no event is being worked on."""
        return not self._running

    def handle(self, *events: E) -> None:
        """Journal the events in one durable write, then step through them and start their effects."""
        self._inbox.extend(events)
        if self._running:
            return
        self._running = True
        try:
            while self._inbox:
                batch = tuple(self._inbox)
                self._inbox.clear()
                self._journal.append([entry_of(event) for event in batch])
                for event in batch:
                    self.state, effects = self._step(self.state, event)
                    for effect in effects:
                        self._actor.perform(effect)
        finally:
            self._inbox.clear()
            self._running = False


def entry_of(event: Timed) -> Entry:
    """The event as the journal keeps it."""
    return Entry(
        at_ms=event.at_ms,
        run=run_of(event),
        kind=type(event).__name__,
        payload=canonical.encode(event).decode(),
    )


def run_of(event: object) -> str:
    """The run that an event belongs to, "" for none: its own field, or the head of its order's id."""
    run = getattr(event, "run", None)
    if isinstance(run, str):
        return run
    spec = getattr(event, "spec", None)
    if spec is not None:
        return str(spec.run)
    order = getattr(event, "order", None)
    if isinstance(order, str):
        return order.split(".", 1)[0]
    return str(getattr(order, "run", ""))


def replay(
    journal: JournalPort,
    step: Callable[[S, E], tuple[S, tuple[F, ...]]],
    state: S,
    kinds: Mapping[str, type[E]],
) -> S:
    """The state after everything that the journal holds; its effects are not carried out again."""
    return fold(journal.read(), step, state, kinds)


def fold(
    rows: Iterable[Recorded],
    step: Callable[[S, E], tuple[S, tuple[F, ...]]],
    state: S,
    kinds: Mapping[str, type[E]],
) -> S:
    """The state that these rows, which follow one another, make of `state`."""
    for row in rows:
        kind = kinds.get(row.kind)
        if kind is None:
            raise IntegrityError(
                f"the journal holds an event {row.kind!r} that this version does not know; "
                "open it with the version that wrote it, or a newer one"
            )
        try:
            event = canonical.decode(kind, row.payload)
        except RemoteError as error:
            raise IntegrityError(f"the journal's {row.kind} row cannot be read: {error}") from error
        state, _ = step(state, event)
    return state
