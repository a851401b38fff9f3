"""What a person's folder remembers of epochs, so that a command is not given to a coordinator that was left.

epoch.json    beside the member's keys: the highest epoch seen, with its evidence
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fedtrain.core import canonical
from fedtrain.core.agent import AgentEvent, AgentState, EpochSeen, step
from fedtrain.errors import RemoteError, StorageError
from fedtrain.trust import private_files, statements
from fedtrain.trust.folders import MemberKeys
from fedtrain.wire.memory import Epochs

NAME = "epoch.json"


def remembered(state: Path, keys: MemberKeys) -> Epochs:
    """The memory in the folder that holds these keys."""
    check = statements.epoch_check(keys.membership.consortium, keys.coordinator_public)
    return Epochs(EpochFile(state / NAME), check)


class EpochFile:
    """As much of an agent as `Epochs` needs, in a file: the last event, which says it all."""

    def __init__(self, path: Path) -> None:
        self.state = AgentState()
        self._path = path
        if path.exists():
            # One that cannot be read is as good as none: the next answer writes it again.
            with contextlib.suppress(RemoteError):
                event = canonical.decode(EpochSeen, private_files.read_public(path, "is gone"))
                self.state, _ = step(self.state, event)

    def submit(self, *events: AgentEvent) -> None:
        """Keep what was seen. In a folder that cannot be written it holds for this command only."""
        for event in events:
            self.state, _ = step(self.state, event)
            with contextlib.suppress(StorageError):
                private_files.write_public(self._path, canonical.encode(event))
