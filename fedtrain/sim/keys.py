"""What stands in for the cryptography of masked rounds: real in its structure, toys in their strength.

Key agreement is Diffie and Hellman's in a field of 127 bits, streams and boxes come from hashes, and shares
are the real ones of `methods.shamir`. So whoever lacks a private key lacks what follows from it, here too:
a coordinator that lies can be tried out. Signatures need a secret that only the `Notary` and the site have.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import random
from dataclasses import dataclass

import numpy as np

from fedtrain.errors import RemoteError
from fedtrain.methods.ring import Words
from fedtrain.methods.shamir import SECRET_BYTES

_PRIME = (1 << 127) - 1
_BASE = 3
_TAG_BYTES = 16


class Notary:
    """Makes and checks the signatures of one world: it knows what every name signs with."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._secrets: dict[str, bytes] = {}

    def key_of(self, name: str) -> str:
        """The public key of this name's messages, hex."""
        secret = hashlib.sha256(f"{self._seed} signs {name}".encode()).digest()
        key = hashlib.sha256(secret).hexdigest()
        self._secrets[key] = secret
        return key

    def sign(self, name: str, text: str) -> str:
        """A signature of this name."""
        return self._signed(self.key_of(name), text)

    def holds(self, key: str, text: str, signature: str) -> bool:
        """Whether the owner of this key has signed this text."""
        return key in self._secrets and self._signed(key, text) == signature

    def _signed(self, key: str, text: str) -> str:
        return hashlib.sha256(self._secrets[key] + text.encode()).hexdigest()


def said(site: str, topic: str, order: str, document: str) -> str:
    """What is signed of a statement."""
    return f"{site}\n{topic}\n{order}\n{document}"


@dataclass(frozen=True)
class Secrets:
    """A site's of one session, 32 bytes each: two private keys, and the seed of its own mask."""

    mask: bytes
    share: bytes
    seed: bytes

    @staticmethod
    def drawn(chance: random.Random) -> Secrets:
        """New ones."""
        return Secrets(*(chance.randbytes(SECRET_BYTES) for _ in range(3)))


@functools.lru_cache(maxsize=4_096)
def public_of(private: bytes) -> str:
    """The public key, 64 digits of hex."""
    return f"{pow(_BASE, int.from_bytes(private, 'big') % _PRIME, _PRIME):064x}"


@functools.lru_cache(maxsize=4_096)
def pair_seed(private: bytes, public: str, session: str) -> bytes:
    """What two sites of a session have in common, from either's private and the other's public key."""
    common = pow(int(public, 16), int.from_bytes(private, "big") % _PRIME, _PRIME)
    return hashlib.sha256(f"{common:x} {session}".encode()).digest()


def stream(seed: bytes, count: int) -> Words:
    """The first words of a seed's stream, shape (count,)."""
    return np.frombuffer(hashlib.shake_256(seed).digest(4 * count), "<u4").astype(np.uint32)


def seal(key: bytes, about: str, plain: bytes) -> str:
    """A box, base64, that only this key opens, and only as one about this."""
    closed = _veiled(key, about, plain)
    return base64.b64encode(_tag(key, about, closed) + closed).decode()


def unseal(key: bytes, about: str, box: str) -> bytes:
    """What is in the box; `RemoteError` if it is none of this key's, or about something else."""
    try:
        found = base64.b64decode(box, validate=True)
    except binascii.Error as error:
        raise RemoteError("the box is no base64") from error
    if found[:_TAG_BYTES] != _tag(key, about, found[_TAG_BYTES:]):
        raise RemoteError("the box was sealed with another key, or for something else")
    return _veiled(key, about, found[_TAG_BYTES:])


def _veiled(key: bytes, about: str, data: bytes) -> bytes:
    veil = hashlib.shake_256(key + about.encode()).digest(len(data))
    return bytes(one ^ other for one, other in zip(data, veil, strict=True))


def _tag(key: bytes, about: str, closed: bytes) -> bytes:
    return hashlib.sha256(b"tag" + key + about.encode() + closed).digest()[:_TAG_BYTES]
