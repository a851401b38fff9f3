"""Something that lives, crashes at a chosen place, and starts again with nothing but its disk."""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from fedtrain.core.ports import ActorPort, Entry, MemoryJournal
from fedtrain.sim.clock import Action
from fedtrain.sim.scene import Scene

F = TypeVar("F")


class Place(enum.StrEnum):
    """Where in *journal, step, act* a process dies."""

    AT_ONCE = "between events"
    BEFORE_JOURNAL = "before the journal's write"
    AFTER_JOURNAL = "between journal and act"
    AMID_EFFECTS = "amid the effects"


class Crashed(Exception):
    """The process died here. It reaches nobody but its own `Process.run`."""


class Fuse:
    """Blows when its place has been reached so many times; unarmed it does nothing."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._count = 0

    def arm(self, place: Place, count: int) -> None:
        """Blow at the `count`-th time from now."""
        self._place, self._count = place, count

    def disarm(self) -> None:
        """Do not blow."""
        self._place = None

    def reach(self, place: Place) -> None:
        """The process is at this place now; raises `Crashed` if the fuse blows."""
        if place is not self._place:
            return
        self._count -= 1
        if self._count <= 0:
            self.disarm()
            raise Crashed(place.value)


class FusedJournal:
    """A journal whose process may die before or after an append became durable."""

    def __init__(self, inner: MemoryJournal, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def append(self, entries: Sequence[Entry]) -> int:
        """Append all, unless the process dies first."""
        self._fuse.reach(Place.BEFORE_JOURNAL)
        sequence = self._inner.append(entries)
        self._fuse.reach(Place.AFTER_JOURNAL)
        return sequence

    def read(self) -> Iterator[Entry]:
        """All rows, oldest first."""
        return self._inner.read()


class CrashingActor(Generic[F]):
    """An actor whose process may die with some of an event's effects started and others not."""

    def __init__(self, inner: ActorPort[F], fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def perform(self, effect: F) -> None:
        """Start the effect, unless the process dies first."""
        self._fuse.reach(Place.AMID_EFFECTS)
        self._inner.perform(effect)


class Process(abc.ABC):
    """A name that is up or down. What a life asked for dies with it; its journal and disk stay.

    A subclass starts each life in `begin`.
    """

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.scene = scene
        self.journal = MemoryJournal()
        self.fuse = Fuse()
        self.up = False
        self._life = 0

    @abc.abstractmethod
    def begin(self) -> None:
        """Read the disk and start to work, remembering nothing of the last life."""

    @abc.abstractmethod
    def receive(self, source: str, body: object) -> None:
        """A message came."""

    def start(self) -> None:
        """Begin a life, unless one is under way."""
        if not self.up:
            self.up = True
            self._life += 1
            self.scene.note(self.name, "starts")
            self.run(self.begin)

    def run(self, action: Action) -> None:
        """Do something that may end this life."""
        try:
            action()
        except Crashed as crash:
            self.crash(str(crash))

    def later(self, delay_ms: int, action: Action) -> None:
        """Do something in a while, if this life lasts that long."""
        life = self._life

        def due() -> None:
            if self.up and self._life == life:
                self.run(action)

        self.scene.clock.after(delay_ms, due)

    def threaten(self, gap_ms: int) -> None:
        """Crash now and then, `gap_ms` apart on average, until faults are over."""
        delay_ms = int(self.scene.chance.expovariate(1 / gap_ms))

        def strike() -> None:
            if self.scene.clear:
                self.fuse.disarm()
                return
            if self.up:
                self._light()
            self.threaten(gap_ms)

        if self.scene.clock.now_ms + delay_ms < self.scene.plan.clear_ms:
            self.scene.clock.after(delay_ms, strike)
        else:
            self.scene.clock.at(self.scene.plan.clear_ms, self.fuse.disarm)

    def _light(self) -> None:
        """Crash at once, or set the fuse for a place that the process will come to."""
        place = self.scene.chance.choice(tuple(Place))
        if place is Place.AT_ONCE:
            self.crash(place.value)
        else:
            self.fuse.arm(place, self.scene.chance.randint(1, 4))

    def crash(self, place: str) -> None:
        """End this life without a word; the next one begins after a while."""
        kind = "coordinator" if self.name == "coordinator" else "site"
        self.scene.faults[f"{kind} crashed {place}"] += 1
        self.scene.note(self.name, "crashes", place)
        self.restart(self.scene.chance.randint(50, 6_000))

    def restart(self, delay_ms: int) -> None:
        """Down now, up again after the delay."""
        self.up = False
        self.fuse.disarm()
        self.scene.clock.after(delay_ms, self.start)
