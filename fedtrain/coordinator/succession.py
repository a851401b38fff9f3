"""Of two coordinators one is obeyed: who may start, what each answer proves, and who steps down.

The state folder's lock keeps two processes off one folder. A *copy* of the folder is what needs care:
a standby that takes over, a backup that was restored. Three things settle it (docs/decisions/0007).

- A start notices that the folder is not where it was (`place_of`) and asks for a deliberate take-over.
- Every answer carries the epoch, signed with the consortium's message key, which the standby has too.
- A coordinator that is shown a signed higher epoch journals who showed it, and answers nothing more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import struct
from pathlib import Path

from fedtrain.coordinator.hub import Hub
from fedtrain.core import canonical, events as ev
from fedtrain.core.epochs import next_epoch
from fedtrain.errors import BadSignature, ConfigError, RefusedError, StaleEpoch, StorageError
from fedtrain.trust import statements
from fedtrain.wire.values import Caller, EpochProof

_log = logging.getLogger(__name__)

GET_GENERATION = 0x80087601
"""Linux's FS_IOC_GETVERSION: a number that ext4, xfs and btrfs give anew to each file that they make."""

CHANCE_BITS = 62


def place_of(journal: Path) -> str:
    """An opaque name of where a journal lies: other for every copy of it, the same after a restart.

    The number of its inode, and where the file system tells it, of the inode's generation: a copy on
    a fresh volume, or in the place of a deleted folder, easily gets the same inode number again.
    """
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot look at {journal} ({error.strerror})") from error
    try:
        inode = os.fstat(descriptor).st_ino
        try:
            (generation,) = struct.unpack("l", fcntl.ioctl(descriptor, GET_GENERATION, bytes(8)))
        except OSError:
            return str(inode)
        return f"{inode}.{generation & 0xFFFFFFFF}"
    finally:
        os.close(descriptor)


def choose_epoch(hub: Hub, folder: Path, place: str, take_over: bool) -> int:
    """The epoch to start with.

    Raises:
        RefusedError: another coordinator has taken over from this folder.
        ConfigError: the folder is a copy, or was moved to another disk.
    """
    state = hub.state
    if take_over:
        return next_epoch(max(state.epoch, state.fenced), secrets.randbits(CHANCE_BITS))
    if state.fenced:
        raise RefusedError(why_fenced(hub, folder))
    if state.place not in ("", place):
        raise ConfigError(
            "is not where it was at its last start: it is a copy, a restored backup, or it was moved to "
            "another disk. If the coordinator it was copied from runs, or may come back, leave this one "
            f"alone; to let this one take its place: fedtrain coordinator serve {folder} --take-over",
            file=str(folder),
        )
    return next_epoch(state.epoch)


def why_fenced(hub: Hub, folder: Path) -> str:
    """Who told that another coordinator is obeyed, and what to do; from the journal."""
    (row, *_) = [row for row in reversed(list(hub.journal.read())) if row.kind == ev.Fenced.__name__]
    event = canonical.decode(ev.Fenced, row.payload)
    return (
        f"another coordinator has taken over: {event.site} follows epoch {event.epoch}, this one was in "
        f"{hub.state.epoch}. Leave this one off and point sites and operators to the other; only if that one "
        f"is gone for good: fedtrain coordinator serve {folder} --take-over"
    )


class Succession:
    """Implements the wire's `EpochHandler`. Made after the hub has booted: its epoch is this life's."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        consortium, key = hub.keys.membership.consortium, hub.keys.message_key
        epoch, at_ms = hub.state.epoch, hub.state.booted_ms
        signature = statements.sign(statements.Epoch(consortium, epoch, at_ms), key)
        self._proof = EpochProof(epoch, at_ms, signature.hex())
        self._check_signed = statements.epoch_check(consortium, key.public)

    def proof(self) -> EpochProof:
        """The epoch of this life, signed once."""
        return self._proof

    def hear(self, caller: Caller, shown: EpochProof) -> None:
        """Step down if `caller` follows a later coordinator. Only a signed epoch counts: else one
        hostile member could end any coordinator with a number.
        """
        if shown.epoch <= self._hub.state.epoch:
            return
        try:
            self._check_signed(shown.epoch, shown.at_ms, shown.signature)
        except BadSignature as error:
            _log.warning("%s shows epoch %d, which was never signed: ignored", caller.name, shown.epoch)
            raise BadSignature(
                f"epoch {shown.epoch} was not signed by this consortium's coordinator: join again"
            ) from error
        self._hub.submit(ev.Fenced(self._hub.clock.now_ms(), shown.epoch, caller.name))
        self.check()

    def check(self) -> None:
        """Holds that nobody has taken over."""
        state = self._hub.state
        if state.fenced:
            raise StaleEpoch(
                f"this coordinator is of epoch {state.epoch} and steps down: the one of epoch {state.fenced} "
                "has taken over; ask its operator for its address"
            )
