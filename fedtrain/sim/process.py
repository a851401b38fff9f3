"""Something that lives, crashes at a chosen place, and starts again with nothing but its disk."""

from __future__ import annotations

import abc
import enum
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from fedtrain.core.ports import ActorPort, Entry, JournalPort, Recorded
from fedtrain.errors import StorageError
from fedtrain.sim.clock import JUMPS_MS, Action, WallClock
from fedtrain.sim.scene import Scene

F = TypeVar("F")


class Place(enum.StrEnum):
    """Where in *journal, step, act* a process dies."""

    AT_ONCE = "between events"
    BEFORE_JOURNAL = "before the journal's write"
    AFTER_JOURNAL = "between journal and act"
    AMID_EFFECTS = "amid the effects"
    AMID_TRANSFER = "amid a transfer"
    BEFORE_ROW = "between a file and its journal row"
    BEFORE_REPLY = "between a journal row and its reply"


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

    def __init__(self, inner: JournalPort, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def append(self, entries: Sequence[Entry]) -> int:
        """Append all, unless the process dies first."""
        self._fuse.reach(Place.BEFORE_JOURNAL)
        sequence = self._inner.append(entries)
        self._fuse.reach(Place.AFTER_JOURNAL)
        return sequence

    def read(self) -> Iterable[Recorded]:
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
    """A name that is up or down. What a life asked for dies with it; its disk stays.

    A subclass starts each life in `begin`.

    Attributes:
        wall: the clock of its machine.
        up: whether a life is under way.
    """

    def __init__(self, name: str, scene: Scene, offset_ms: int = 0) -> None:
        self.name = name
        self.scene = scene
        self.wall = WallClock(scene.clock, offset_ms)
        self.fuse = Fuse()
        self.up = False
        self._life = 0
        self._stopped_until_ms = 0

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """`coordinator` or `site`: what faults are counted by."""

    @abc.abstractmethod
    def begin(self) -> None:
        """Read the disk and start to work, remembering nothing of the last life."""

    @abc.abstractmethod
    def receive(self, source: str, body: object) -> None:
        """A message came."""

    @abc.abstractmethod
    def lose_power(self, how: random.Random) -> None:
        """What is not synced is lost, wholly or in part."""

    def start(self) -> None:
        """Begin a life, unless one is under way."""
        if not self.up:
            self.up = True
            self._life += 1
            self._stopped_until_ms = 0
            self.scene.note(self.name, "starts")
            self.run(self.begin)

    def run(self, action: Action) -> None:
        """Do something that may end this life: by a crash, or because its journal refuses a write.

        A process that is stopped does it once it goes on.
        """
        if self.scene.clock.now_ms < self._stopped_until_ms:
            self.later(self._stopped_until_ms - self.scene.clock.now_ms, action)
            return
        try:
            action()
        except Crashed as crash:
            self.crash(str(crash))
        except StorageError as error:
            self.crash(f"because of its journal: {error}")

    def later(self, delay_ms: int, action: Action) -> None:
        """Do something in a while, if this life lasts that long."""
        life = self._life

        def due() -> None:
            if self.up and self._life == life:
                self.run(action)

        self.scene.clock.after(delay_ms, due)

    # -- faults -----------------------------------------------------------------------------------

    def threaten(self, crash_gap_ms: int) -> None:
        """Crash, stop, lose power and jump in time now and then, until faults are over.

        Crashes are `crash_gap_ms` apart on average; the others as the plan's rates say.
        """
        scene, rates = self.scene, self.scene.plan.rates

        def when_up(strike: Callable[[random.Random], None]) -> Callable[[random.Random], None]:
            return lambda how: strike(how) if self.up else None

        scene.recur(crash_gap_ms, "crash", self.name, when_up(self._light))
        scene.recur(rates.stop_gap_ms, "process stopped", self.name, when_up(self._stop))
        scene.recur(rates.power_gap_ms, "power lost", self.name, self._lose_power)
        scene.recur(rates.jump_gap_ms, "clock jumps", self.name, self._jump)
        scene.clock.at(scene.plan.clear_ms, self.fuse.disarm)

    def _light(self, how: random.Random) -> None:
        """Crash at once, or set the fuse for a place that the process will come to."""
        place = how.choice(tuple(Place))
        if place is Place.AT_ONCE:
            self.crash(place.value)
        else:
            self.fuse.arm(place, how.randint(1, 4))

    def _stop(self, how: random.Random) -> None:
        """SIGSTOP: neither dead nor alive for a while; then everything that waited happens."""
        stopped_ms = how.randint(1_000, 60_000)
        until_ms = min(self.scene.clock.now_ms + stopped_ms, self.scene.plan.clear_ms)
        self._stopped_until_ms = max(self._stopped_until_ms, until_ms)
        self.scene.note(self.name, "stops", f"for {stopped_ms / 1000:g} s")

    def _lose_power(self, how: random.Random) -> None:
        """The machine goes dark; a process that was down already loses what its disk had not synced."""
        self.lose_power(how)
        if self.up:
            self.crash("by a loss of power")

    def _jump(self, how: random.Random) -> None:
        """Somebody sets the wall clock: by seconds, hours or a year."""
        by_ms = how.choice((1, -1)) * how.choice(JUMPS_MS)
        self.wall.offset_ms += by_ms
        self.scene.note(self.name, "clock", f"jumps by {by_ms / 1000:+,.0f} s")

    def crash(self, how: str) -> None:
        """End this life without a word; the next one begins after a while."""
        self.scene.faults[f"{self.kind} crashed {how}"] += 1
        self.scene.note(self.name, "crashes", how)
        self.restart(self.scene.chance.stream("restart", self.name).randint(50, 6_000))

    def end(self) -> None:
        """End this life; nobody starts another by itself."""
        self.up = False
        self.fuse.disarm()

    def restart(self, delay_ms: int) -> None:
        """Down now, up again after the delay."""
        self.end()
        self.scene.clock.after(delay_ms, self.start)
