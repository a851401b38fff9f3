"""I8: a journal replays to the state that was live, and nothing is done before it is journaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedtrain.core import canonical
from fedtrain.core.ports import MemoryJournal
from fedtrain.sim.violation import Violation

Machine = Callable[[Any, Any], tuple[Any, tuple[Any, ...]]]
"""`step` of one of the two machines."""


class JournalWatch:
    """Beside one process's journal: the state that its live machine had, and after how many rows."""

    def __init__(
        self, name: str, journal: MemoryJournal, step: Machine, kinds: Mapping[str, type], state: object
    ) -> None:
        self.state: Any = state
        self._initial: Any = state
        self._name = name
        self._journal = journal
        self._step = step
        self._kinds = kinds
        self._stepped = 0

    def stepped(self, state: object) -> None:
        """The live machine answered one more event with this state."""
        self._stepped += 1
        self.state = state
        if self._stepped > len(self._journal.entries):
            raise Violation(f"I8: {self._name} stepped through an event that is not in its journal")

    def missed(self) -> list[tuple[Any, Any, tuple[Any, ...]]]:
        """What was journaled and never answered, because the process died in between.

        Returns (event, state behind it, effects) in order, and counts them as answered.
        """
        found = []
        for row in self._journal.entries[self._stepped :]:
            event: Any = canonical.decode(self._kinds[row.kind], row.payload)
            self.state, effects = self._step(self.state, event)
            found.append((event, self.state, effects))
        self._stepped = len(self._journal.entries)
        return found

    def compare(self, replayed: object) -> None:
        """A replay of the whole journal has led to this state."""
        if replayed != self.state:
            raise Violation(f"I8: the journal of {self._name} does not replay to the state that was live")

    def fold(self) -> None:
        """Replay the whole journal here and now, and compare."""
        state = self._initial
        for row in self._journal.read():
            state, _ = self._step(state, canonical.decode(self._kinds[row.kind], row.payload))
        self.compare(state)
