"""The coordinator's signed journal heads, kept at the site: rewriting history then needs its help.

heads/<sequence>.json    a `storage.chain.SignedHead`, as `audit verify --heads` reads it
"""

from __future__ import annotations

from pathlib import Path

from fedtrain.core import canonical
from fedtrain.core.messages import Head
from fedtrain.errors import BadSignature, IntegrityError, RemoteError
from fedtrain.peer.outbox import signature_bytes
from fedtrain.storage.chain import SignedHead
from fedtrain.storage.filesystem import disk_errors
from fedtrain.trust.keys import key_id
from fedtrain.trust.statements import verify_head


class Witness:
    """Checks heads and keeps them.

    Args:
        folder: made if it is missing.
        consortium: whose journal it is.
        coordinator_public: the message key that signs its heads.
    """

    def __init__(self, folder: Path, consortium: str, coordinator_public: str) -> None:
        self._folder = folder
        self._consortium = consortium
        self._public = coordinator_public
        self._key_id = key_id(coordinator_public)

    def check(self, head: Head) -> SignedHead:
        """The head with its key; `BadSignature` if the coordinator did not sign it."""
        signed = SignedHead(
            head.consortium, head.sequence, head.hash, head.at_ms, head.signature, self._key_id
        )
        if head.consortium != self._consortium:
            raise BadSignature(f"a head of consortium {head.consortium} came, this is {self._consortium}")
        verify_head(signed.message(), self._public, signature_bytes(head.signature))
        return signed

    def keep(self, signed: SignedHead) -> None:
        """Store a checked head for good.

        Raises `IntegrityError` if another head with this sequence is kept already: the coordinator
        has signed two histories.
        """
        path = self._folder / f"{signed.sequence}.json"
        with disk_errors(f"keep the coordinator's head in {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = path.read_bytes() if path.exists() else b""
        if not kept:
            # Not synced: the agent's journal holds the same head, and that is.
            with disk_errors(f"keep the coordinator's head in {self._folder}"):
                draft = path.with_suffix(".part")
                draft.write_bytes(canonical.encode(signed))
                draft.replace(path)
        elif _hash_in(kept) != signed.hash:
            raise IntegrityError(
                f"the coordinator signed two different heads at row {signed.sequence} of its journal: keep "
                f"{path} and tell the other sites"
            )


def _hash_in(kept: bytes) -> str:
    try:
        return canonical.decode(SignedHead, kept).hash
    except RemoteError as error:
        raise IntegrityError(f"a kept head cannot be read: {error}") from error
