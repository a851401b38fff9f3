"""One run's way back, as the auditor keeps it: where it may go, and whether it got there."""

from __future__ import annotations

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.state import RoundRecord
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.violation import demand


class WayBack:
    """Of one run.

    Attributes:
        target: the version that is being restored, None while none is.
    """

    def __init__(self, chain: Chain) -> None:
        self.target: int | None = None
        self._chain = chain
        self._snapshots = [0]
        self._due = False

    def snapshot(self, version: int) -> None:
        """This version can be had whole."""
        self._snapshots.append(version)

    def asked(self, version: int) -> None:
        """An operator wants to go back there: from the snapshot before the newest one on it is possible."""
        if self._snapshots[-2:][0] <= version < len(self._chain.digests) - 1:
            self.target, self._due = version, True

    def begun(self, effect: fx.Restore) -> None:
        """The coordinator sets about it."""
        newest = len(self._chain.digests) - 1
        told = (effect.round, effect.base_version, effect.version)
        demand(told == (newest + 1, newest, self.target), "I3", f"{told} is to be restored")
        self._due = False

    def pursued(self) -> None:
        """A step is over: what was asked for has to have begun with it."""
        demand(not self._due, "I12", f"nobody restores version {self.target}")

    def done(self, record: RoundRecord, event: ev.Event) -> int:
        """It is the newest version again: bit for bit, and counting nothing. Returns by how many versions."""
        version = len(self._chain.digests)
        told = (record.restored, record.version, record.index, record.counted, dict(record.seats))
        demand(told == (self.target, version, version, (), {}), "I3", f"the record of a restored {told}")
        assert record.restored is not None, "only such records come here"
        demand(isinstance(event, ev.VersionRestored), "I2", f"version {version} was not restored")
        assert isinstance(event, ev.VersionRestored), "demanded above"
        self._chain.restore(record.restored, event.model_digest, event.snapshot)
        demand(record.model_digest == event.model_digest, "I2", "the record names another model")
        self._snapshots.append(version)
        self.target = None
        return version - record.restored
