"""Keys and streams of masked sums: what two sites share, what only one knows, and how it is boxed up.

Every attempt of a masked round has keys of its own. The *mask key* (X25519) gives each pair of sites the
seed of a stream that one adds and the other subtracts; the *self-mask seed* hides an update that arrives
late, after its site was counted as lost; the *share key* encrypts what sites hold for one another. The
session, a digest over all that the round is about, goes into every derived key, so sites that were told
different things derive different streams, and nothing but noise comes out of their sum. Source: Bonawitz
et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, 2017, doi
10.1145/3133956.3133982.

Secrets: `MaskKeys` keeps its own in memory that `wipe` overwrites. Python may have made copies, and so
does the cryptographic library for as long as it works; nothing here prevents that. Derived seeds are
immutable bytes and are only forgotten.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedtrain.core import canonical
from fedtrain.core.orders import DIGEST
from fedtrain.errors import BadSignature, ConfigError, LocalError, RemoteError

SECRET_BYTES = 32
BOX_EXTRA_BYTES = 28
"""A box is so much longer than what is in it: 12 bytes of nonce, 16 of authentication."""

_DOMAIN = b"fedtrain/v1/mask/"
_MAGIC = b"FTMKEY1\n"
_COUNTER_BYTES = 16
_WORD_BYTES = 4
_PIECE_BYTES = 1 << 19
_ZEROS = memoryview(bytes(_PIECE_BYTES))
"""What is encrypted to get the bare stream; half a MiB per call, so that calls cost nothing."""


class MaskKeys:
    """One site's secrets of one attempt: two private keys and a seed, 32 bytes each.

    Attributes:
        mask_public, share_public: the public keys, 64 hex digits.
        seed_digest: SHA-256 of the self-mask seed, hex.
    """

    def __init__(self, secrets: bytes) -> None:
        if len(secrets) != 3 * SECRET_BYTES:
            raise LocalError(f"mask keys are made of {3 * SECRET_BYTES} bytes, not of {len(secrets)}")
        self._secrets = bytearray(secrets)
        self.mask_public = public_of(self.mask_private)
        self.share_public = public_of(self.share_private)
        self.seed_digest = hashlib.sha256(self.seed).hexdigest()

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> MaskKeys:
        """New keys; `random(n)` gives n bytes from the operating system unless another is given."""
        return cls(random(3 * SECRET_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskKeys:
        """What `to_bytes` wrote; `ConfigError` if it is anything else."""
        if len(data) != len(_MAGIC) + 3 * SECRET_BYTES or not data.startswith(_MAGIC):
            raise ConfigError(
                "the file of mask keys is not one: remove it; the round goes on without this site"
            )
        return cls(data[len(_MAGIC) :])

    def to_bytes(self) -> bytes:
        """For a file with mode 0600, which is removed when the session is burnt."""
        return _MAGIC + bytes(self._secrets)

    @property
    def mask_private(self) -> bytes:
        """The private mask key: it is shared among the others, for the case that this site is lost."""
        return self._part(0)

    @property
    def share_private(self) -> bytes:
        """The private share key: nobody else ever holds it or a share of it."""
        return self._part(1)

    @property
    def seed(self) -> bytes:
        """The self-mask seed: it is shared among the others, for the case that this site's update counts."""
        return self._part(2)

    def wipe(self) -> None:
        """Overwrite the secrets; afterwards every use is a `LocalError`."""
        self._secrets[:] = bytes(len(self._secrets))
        self._secrets.clear()

    def _part(self, index: int) -> bytes:
        if not self._secrets:
            raise LocalError("the mask keys of this session were burnt")
        return bytes(self._secrets[index * SECRET_BYTES : (index + 1) * SECRET_BYTES])


def public_of(private: bytes) -> str:
    """The public key of a private mask or share key, 64 hex digits."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def pair_seed(private: bytes, public: str, session: str, source: str = "the other site") -> bytes:
    """The 32 bytes that seed the stream between two sites in this session: the same on both sides.

    Args:
        private: one's own private mask key; `public` the other's public one, 64 hex digits.
        session: digest of the session, 64 hex digits.
        source: whose key `public` is, for the message of `RemoteError` if it is none.
    """
    return _derived(private, public, [b"stream", _session_bytes(session)], source)


@dataclass(frozen=True)
class Label:
    """What a box says of itself; it opens under no other.

    Attributes:
        session: of the attempt, 64 hex digits.
        source, target: names of the sites.
        keys_digest: SHA-256 of the document with everybody's keys, 64 hex digits.
    """

    session: str
    source: str
    target: str
    keys_digest: str


def seal_share(private: bytes, public: str, label: Label, payload: bytes) -> bytes:
    """`payload` for the target's eyes: 28 bytes longer, different each time.

    `private` is the source's private share key, `public` the target's public one.
    """
    nonce = os.urandom(12)
    return nonce + _box(private, public, label, label.target).encrypt(nonce, payload, canonical.encode(label))


def open_share(private: bytes, public: str, label: Label, box: bytes) -> bytes:
    """What the source sealed under this label, with the target's private and the source's public key.

    `BadSignature` names the source if the box was altered, or is for someone or something else.
    """
    cipher = _box(private, public, label, label.source)
    try:
        return cipher.decrypt(box[:12], box[12:], canonical.encode(label))
    except (InvalidTag, ValueError) as error:
        raise BadSignature(
            f"the box from {label.source} for {label.target} does not open: it was altered, or made with"
            " other keys, for another session or another site"
        ) from error


class CtrStream:
    """A stream of uint32 words that a 32-byte seed determines, readable from any place: AES-256 in CTR mode.

    Word w is bytes 4w to 4w + 3, little endian, of the key stream whose counter starts at 0. A seed is
    used for one stream only. Safe in threads; the work itself runs without Python's lock.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SECRET_BYTES:
            raise LocalError(f"a stream is seeded with {SECRET_BYTES} bytes, not with {len(seed)}")
        self._key = algorithms.AES(seed)

    def words(self, start: int, out: Any) -> None:
        """Fill `out`, a contiguous array of "<u4", with the words from `start` on."""
        target = memoryview(out).cast("B")
        counter, inside = divmod(_WORD_BYTES * start, _COUNTER_BYTES)
        encryptor = Cipher(self._key, modes.CTR(counter.to_bytes(_COUNTER_BYTES, "big"))).encryptor()
        if inside:
            encryptor.update(bytes(inside))
        for begin in range(0, len(target), _PIECE_BYTES):
            piece = target[begin : begin + _PIECE_BYTES]
            encryptor.update_into(_ZEROS[: len(piece)], piece)


def _derived(private: bytes, public: str, parts: list[bytes], source: str) -> bytes:
    """32 bytes from a key agreement, bound to `parts`."""
    if DIGEST.fullmatch(public) is None:
        raise RemoteError(f"the key of {source} is not 64 lower-case hex digits")
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        )
    except ValueError as error:  # a point of small order: the result would be zero, and known to all
        raise RemoteError(f"the key of {source} cannot be used: everybody would know the result") from error
    info = _DOMAIN + b"\0".join(parts)
    return HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(shared)


def _box(private: bytes, public: str, label: Label, other: str) -> ChaCha20Poly1305:
    # One key per direction, so what a site sent can never be shown to it as what it got.
    parts = [b"box", _session_bytes(label.session), label.source.encode(), label.target.encode()]
    return ChaCha20Poly1305(_derived(private, public, parts, other))


def _session_bytes(session: str) -> bytes:
    if DIGEST.fullmatch(session) is None:
        raise LocalError("a session is 64 lower-case hex digits")
    return bytes.fromhex(session)
