"""Carries schedules out on a consortium of real processes, and puts everything right afterwards.

What ends without having been ended by the storm is told: a process that gives up under fire has not
survived it, even if a new start would hide it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.evidence import Follower, in_hand
from benchmarks.chaos.link import Gate, Weather
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.schedule import Blow, Deed, Harm, blows
from benchmarks.consortium import COORDINATOR, Consortium, started_by

CALM_S = 120.0
"""For everybody to be back, with nothing left to answer, once nothing is done to them any more."""

LOOK_S = 0.2


@dataclass(frozen=True)
class Struck:
    """A blow that fell: wall-clock milliseconds, to be held against the journal."""

    at_ms: int
    blow: Blow


class Storm:
    """A consortium behind a proxy, and what is done to both.

    Attributes:
        struck: what was done so far.
        fallen: processes that ended by themselves, one sentence each.
    """

    def __init__(self, consortium: Consortium, proxy: Proxy) -> None:
        self.consortium = consortium
        self.proxy = proxy
        self.struck: list[Struck] = []
        self.fallen: list[str] = []
        self.follower = Follower(consortium.home / "state" / "journal.db")
        self._guards: dict[str, asyncio.Lock] = {}
        self._stopped: set[int] = set()

    def set_weather(self, weather: Weather) -> None:
        """For all links."""
        for site in self.consortium.names:
            self.proxy.set_weather(site, weather)

    async def rage(self, seed: str, harms: tuple[Harm, ...]) -> None:
        """Follow the schedules, side by side, until cancelled; what is down then is put up again."""
        async with asyncio.TaskGroup() as tasks:
            for number, harm in enumerate(harms):
                tasks.create_task(self._follow(f"{seed} {number}", harm))
            await asyncio.Event().wait()

    async def calm(self) -> str:
        """Fair weather, all processes up, and a wait until nobody has anything left to say.

        Returns what is still wrong after `CALM_S`, "" for nothing.
        """
        self.set_weather(Weather())
        for site in self.consortium.names:
            self.proxy.turn(site, Gate.OPEN)
        end = time.monotonic() + CALM_S
        while wrong := self._unrest():
            self._raise_fallen()
            if time.monotonic() > end:
                return wrong
            await asyncio.sleep(LOOK_S)
        return ""

    # -- one blow ---------------------------------------------------------------------------------

    async def _follow(self, seed: str, harm: Harm) -> None:
        for blow in blows(seed, harm):
            await asyncio.sleep(blow.after_s)
            async with self._guards.setdefault(f"{blow.deed in LINKED} {blow.target}", asyncio.Lock()):
                self.struck.append(Struck(time.time_ns() // 1_000_000, blow))
                await self._strike(blow)

    async def _strike(self, blow: Blow) -> None:
        match blow.deed:
            case Deed.KILL:
                await self._kill(blow)
            case Deed.STOP:
                await self._stop([self.consortium.children[blow.target].pid], blow.lasts_s)
            case Deed.STOP_TRAINER:
                await self._stop(started_by(self.consortium.children[blow.target].pid), blow.lasts_s)
            case Deed.KILL_TRAINER:
                for pid in started_by(self.consortium.children[blow.target].pid):
                    _signal(pid, signal.SIGKILL)
            case Deed.RESET:
                self.proxy.reset(blow.target)
            case Deed.PARTITION:
                await self._shut(blow, Gate.HELD)
            case Deed.BLACK_HOLE:
                await self._shut(blow, Gate.SWALLOW)
            case Deed.HALF_OPEN:
                await self._shut(blow, Gate.SWALLOW, mend=False)

    async def _kill(self, blow: Blow) -> None:
        self._note_if_fallen(blow.target)
        self.consortium.kill(blow.target)
        try:
            await asyncio.sleep(blow.lasts_s)
        finally:
            self.consortium.launch(blow.target)

    async def _stop(self, pids: list[int], lasts_s: float) -> None:
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

    async def _shut(self, blow: Blow, gate: Gate, mend: bool = True) -> None:
        self.proxy.turn(blow.target, gate)
        try:
            await asyncio.sleep(blow.lasts_s)
        finally:
            self.proxy.turn(blow.target, Gate.OPEN, mend)

    # -- afterwards -------------------------------------------------------------------------------

    def _note_if_fallen(self, name: str) -> bool:
        code = self.consortium.children[name].poll()
        if code is None:
            return False
        self.fallen.append(f"{name} ended by itself with exit code {code}")
        return True

    def _raise_fallen(self) -> None:
        for name in self.consortium.children:
            if self._note_if_fallen(name):
                self.consortium.launch(name)

    def _unrest(self) -> str:
        """Who is not back or not done, in words."""
        for name, child in self.consortium.children.items():
            if child.poll() is not None:
                return f"{name} does not run"
        attached = self.follower.look().attached
        for name in self.consortium.names:
            if name not in attached:
                return f"{name} is not attached"
            if orders := in_hand(self.consortium.site(name) / "state"):
                return f"{name} still has {', '.join(orders)}"
        return ""


LINKED = frozenset({Deed.PARTITION, Deed.BLACK_HOLE, Deed.HALF_OPEN, Deed.RESET})
"""Deeds against a link. They may fall together with one against the process at its end."""


@contextmanager
def storm_over(folder: Path, sites: int, seed: int) -> Iterator[Storm]:
    """A consortium of real processes behind a proxy of its own; both end with the block."""
    with Proxy(seed) as proxy, Consortium(folder, sites, through=proxy.link) as consortium:
        yield Storm(consortium, proxy)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def agents(consortium: Consortium) -> tuple[str, ...]:
    """Names of all processes but the coordinator."""
    return tuple(name for name in consortium.children if name != COORDINATOR)
