"""All chance of one world, in streams that do not disturb each other, and a name for every fault.

A draw depends on the seed, on the name of its stream and on how many draws of that stream came
before, never on what else happens. So a fault can be left out and the others stay as they were:
what the minimiser lives on. A fault's key is `<kind>/<whom it strikes>/<how many-th draw>`, e.g.
`message lost/site-a>coordinator/17`; `choice` has the text forms.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Chance:
    """One world's chance. `allows` says of a fault's key whether it may strike."""

    def __init__(self, seed: int, allows: Callable[[str], bool]) -> None:
        self._seed = seed
        self._allows = allows
        self._streams: dict[tuple[str, str], random.Random] = {}
        self._draws: dict[tuple[str, str], int] = {}

    def stream(self, kind: str, about: str = "") -> random.Random:
        """The numbers for one purpose at one place, always the same ones in the same order."""
        name = (kind, about)
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = random.Random(f"{self._seed}.{kind}.{about}")
        return found

    def draw(self, probability: float, fault: str, about: str) -> str:
        """The key of the fault that strikes now, "" if none does. Drawn also where it may not strike."""
        name = (fault, about)
        ordinal = self._draws[name] = self._draws.get(name, 0) + 1
        if self.stream(fault, about).random() >= probability:
            return ""
        key = f"{fault}/{about}/{ordinal}"
        return key if self._allows(key) else ""

    def of(self, key: str) -> random.Random:
        """Numbers that belong to one fault: how long, where, what."""
        return random.Random(f"{self._seed}.{key}")
