"""What is left after the storm: the journals of the coordinator and of every site, and what sites hold.

Everything is read as anybody with a copy of the folders would read it: read-only, rows held against
their chain, the coordinator's against the heads that sites kept, receipts and commits against the
keys that signed them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedtrain.cli.audit import examine
from fedtrain.core import canonical, events as ev, transitions
from fedtrain.core.agent import AGENT_EVENTS, AgentEvent, AgentState, step as agent_step
from fedtrain.core.orders import OrderKind
from fedtrain.core.state import State
from fedtrain.errors import FedtrainError
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader
from fedtrain.storage.journal import Journal

E = TypeVar("E")

_VERSION_FILE = re.compile(r"(\d+)\.safetensors")


@dataclass(frozen=True)
class SiteEvidence:
    """One site's own account.

    Attributes:
        events: its journal.
        coordinator_public: the key that receipts are held against, as the site got it when it joined.
        held: run -> (version, digest computed from the file) of the public model that lies there.
    """

    events: tuple[AgentEvent, ...]
    coordinator_public: str
    held: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Evidence:
    """All of it.

    Attributes:
        events: the coordinator's journal.
        faults: journals that do not verify, one sentence each.
    """

    events: tuple[ev.Event, ...]
    sites: Mapping[str, SiteEvidence]
    faults: tuple[str, ...] = ()


class Follower:
    """Reads a coordinator's journal as it grows, also while the coordinator is dead or stopped."""

    def __init__(self, path: Path) -> None:
        self.state = State()
        self._path = path
        self._sequence = 0

    def look(self) -> State:
        """The state after all rows so far."""
        with closing(Journal.open(self._path, writer=False)) as journal:
            for row in journal.read(self._sequence):
                event = canonical.decode(ev.EVENTS[row.kind], row.payload)
                self.state, _ = transitions.step(self.state, event)
                self._sequence = row.sequence
        return self.state


def gather(home: Path, sites: Mapping[str, Path]) -> Evidence:
    """Read everything.

    Args:
        home: the coordinator's folder.
        sites: name -> folder.
    """
    faults: list[str] = []
    for name, folder in sites.items():
        faults += _faults(home / "state" / "journal.db", folder / "state", f"the heads of {name}")
        faults += _faults(folder / "state" / "journal.db", None, f"the journal of {name}")
    events: list[ev.Event] = []
    try:
        events += _read(home / "state" / "journal.db", ev.EVENTS)
    except FedtrainError as error:
        faults.append(str(error))
    return Evidence(tuple(events), {n: _site(f / "state", faults) for n, f in sites.items()}, tuple(faults))


def _faults(journal: Path, witness: Path | None, what: str) -> list[str]:
    """What does not verify of a journal; the coordinator's against what `witness` kept of it."""
    try:
        if witness is None:
            report = examine(journal, (), None)
        else:
            report = examine(journal, [witness / "heads"], witness / "coordinator.pub")
            if not report.heads_checked:
                return [f"{what}: none was kept"]
    except FedtrainError as error:
        return [f"{what}: {error}"]
    return [f"{what}: {problem}" for problem in report.problems]


def _site(state: Path, faults: list[str]) -> SiteEvidence:
    events: list[AgentEvent] = []
    held: dict[str, tuple[int, str]] = {}
    try:
        events += _read(state / "journal.db", AGENT_EVENTS)
        for folder in sorted((state / "models").glob("*")):
            versions = [int(m[1]) for p in folder.iterdir() if (m := _VERSION_FILE.fullmatch(p.name))]
            if versions:
                held[folder.name] = max(versions), _digest(folder / f"{max(versions)}.safetensors")
    except FedtrainError as error:
        faults.append(str(error))
    return SiteEvidence(tuple(events), (state / "coordinator.pub").read_text().strip(), held)


def _read(path: Path, kinds: Mapping[str, type[E]]) -> Iterator[E]:
    with closing(Journal.open(path, writer=False)) as journal:
        for row in journal.read():
            yield canonical.decode(kinds[row.kind], row.payload)


def _digest(path: Path) -> str:
    with ModelReader(path) as reader:
        return reader.verify(Layout(tuple(map(Entry, reader.names, reader.shapes))))


def in_hand(state: Path) -> tuple[str, ...]:
    """Orders whose bytes a site still has to deliver, by its own journal.

    An evaluation has none: it counts as told once the session has outlived it by a heartbeat.
    """
    known = AgentState()
    for event in _read(state / "journal.db", AGENT_EVENTS):
        known, _ = agent_step(known, event)
    return tuple(name for name, held in known.in_hand.items() if held.order.kind is not OrderKind.EVALUATE)
