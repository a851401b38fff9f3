"""The bad network as a process of its own, told what to do through its standard input.

One line of JSON a command, one line of JSON an answer. It ends with its input, so it never outlives
the one who started it.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.chaos.link import Counters, Gate, Link, Weather
from benchmarks.consortium import REPOSITORY


class Proxy:
    """The proxy's handle: a context manager, the process lives as long as the block."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.proxy", str(seed)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input is its end

    def link(self, port: int, site: str) -> int:
        """A new link from a site to a port of this machine; returns the port for the site to dial."""
        return int(self._tell(do="link", site=site, port=port)["port"])

    def set_weather(self, site: str, weather: Weather) -> None:
        """From now on, also for what is under way."""
        self._tell(do="weather", site=site, **asdict(weather))

    def turn(self, site: str, gate: Gate, mend: bool = True) -> None:
        """As `Link.turn`."""
        self._tell(do="turn", site=site, gate=gate.value, mend=mend)

    def reset(self, site: str) -> None:
        """RST to every connection of the site."""
        self._tell(do="reset", site=site)

    def counters(self, site: str) -> Counters:
        """What has happened on the site's link so far."""
        return Counters(**self._tell(do="counters", site=site))

    def _tell(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None, "opened as pipes"
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Switchboard:
    """All links of the process, by site."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._links: dict[str, Link] = {}

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; the answer."""
        do, site = command.pop("do"), command.pop("site")
        if do == "link":
            chance = random.Random(f"{self._seed} {site}")
            link = self._links[site] = Link(chance, ("127.0.0.1", command["port"]))
            return {"port": await link.open()}
        link = self._links[site]
        match do:
            case "weather":
                link.weather = Weather(**command)
            case "turn":
                link.turn(Gate(command["gate"]), command["mend"])
            case "reset":
                link.reset()
            case "counters":
                return asdict(link.counters)
            case _:
                raise ValueError(f"{do!r} is no command")
        return {}


async def serve(seed: int) -> None:
    """Obey until the input ends."""
    board = Switchboard(seed)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await board.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
