"""The coordinator's epoch on every call, in both directions, as evidence that anybody can hold.

A coordinator answers every call, whatever the service, with its epoch in the initial metadata; a
member asks with the highest epoch that it has seen in the request's metadata. Both are the same
sentence: the coordinator of that epoch signed it with the consortium's message key, so a member can
pass on what it saw and cannot make anything up. Signing and verifying are not done here.

    fedtrain-epoch: <epoch>.<at_ms>.<signature, hex>
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from fedtrain.errors import RemoteError
from fedtrain.wire.shapes import COUNT_MAX
from fedtrain.wire.values import EpochProof

KEY = "fedtrain-epoch"

_SPELLING = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9a-f]{128})")

Metadata = tuple[tuple[str, str], ...]


class EpochBook(Protocol):
    """What a member remembers of epochs."""

    def epoch_shown(self) -> EpochProof | None:
        """The evidence for the highest epoch seen; None if there is none yet."""

    def epoch_seen(self, proof: EpochProof | None) -> None:
        """Hold who answers against it, before the answer counts; None if the answer carries no epoch.

        Raises `StaleEpoch` if the one who answers is not to be obeyed.
        """


def write(proof: EpochProof | None) -> Metadata:
    """The metadata that says it; none without a proof."""
    if proof is None:
        return ()
    return ((KEY, f"{proof.epoch}.{proof.at_ms}.{proof.signature}"),)


def read(metadata: Iterable[Any] | None) -> EpochProof | None:
    """The epoch in a call's metadata, None if it has none; `RemoteError` for anything else under its key."""
    said = [value for key, value in metadata or () if key == KEY]
    if not said:
        return None
    found = _SPELLING.fullmatch(said[0]) if len(said) == 1 and isinstance(said[0], str) else None
    if found is None or max(int(found[1]), int(found[2])) > COUNT_MAX:
        raise RemoteError(f"the call's {KEY} is not an epoch with its signature: compare both versions")
    return EpochProof(int(found[1]), int(found[2]), found[3])
