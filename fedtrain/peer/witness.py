"""The coordinator's signed journal heads, kept at the site: rewriting history then needs its help.

heads/<sequence>.json          a `storage.chain.SignedHead`, as `audit verify --heads` reads it
heads/<sequence>.<hash>.json   another one of the same row: evidence that two histories were told
"""

from __future__ import annotations

from pathlib import Path

from fedtrain.core import canonical
from fedtrain.core.messages import Head
from fedtrain.errors import BadSignature, IntegrityError, RemoteError
from fedtrain.storage.chain import SignedHead
from fedtrain.storage.filesystem import disk_errors
from fedtrain.trust.keys import key_id
from fedtrain.trust.statements import signature_bytes, verify_head


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
        verify_head(signed.message(), self._public, signature_bytes(head.signature, "the head"))
        return signed

    def keep(self, signed: SignedHead) -> bool:
        """Store a checked head for good; False if it is here already.

        Raises `IntegrityError` if another head of this row is here: the coordinator has signed two
        histories. The second one is kept too, because the two together prove it to anybody.
        """
        path = self._folder / f"{signed.sequence}.json"
        with disk_errors(f"keep the coordinator's head in {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = path.read_bytes() if path.exists() else b""
        if not kept:
            self._write(path, signed)
            return True
        if _hash_in(kept) == signed.hash:
            return False
        second = path.with_name(f"{signed.sequence}.{signed.hash[:16]}.json")
        self._write(second, signed)
        raise IntegrityError(
            f"the coordinator signed two different heads of row {signed.sequence} of its journal, which "
            f"proves that it tells two histories: show {path} and {second} to the other sites"
        )

    def _write(self, path: Path, signed: SignedHead) -> None:
        # Not synced: the agent's journal holds the same head, and that is.
        with disk_errors(f"keep the coordinator's head in {self._folder}"):
            draft = path.with_name(f"{path.name}.part")
            draft.write_bytes(canonical.encode(signed))
            draft.replace(path)


def _hash_in(kept: bytes) -> str:
    try:
        return canonical.decode(SignedHead, kept).hash
    except RemoteError as error:
        raise IntegrityError(f"a kept head cannot be read: {error}") from error
