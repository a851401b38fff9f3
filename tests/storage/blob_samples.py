"""A blob to play with, and a look at what lies in a blob folder."""

from __future__ import annotations

import hashlib

from fedtrain.storage.blobs import Blobs

DATA = bytes(range(256)) * 40


def digest_of(data: bytes) -> str:
    """Its name as a blob."""
    return hashlib.sha256(data).hexdigest()


DIGEST = digest_of(DATA)


def files(blobs: Blobs) -> set[str]:
    """Every file below the folder."""
    return {str(p.relative_to(blobs.folder)) for p in blobs.folder.rglob("*") if not p.is_dir()}
