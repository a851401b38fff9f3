"""Keys that never leave the place where they were made.

Two kinds, for two jobs: a P-256 key proves who is at the other end of a connection, an Ed25519
*message key* signs statements that must hold long after the connection is gone.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from fedtrain.core.orders import DIGEST, NAME
from fedtrain.errors import BadSignature, ConfigError, LocalError, RemoteError

_DOMAIN = b"fedtrain/v1/"
"""Opens everything that is signed, so no signature of ours means anything anywhere else."""

_SCRYPT_COST = 1 << 16
"""64 MiB and a fifth of a second per guess, against the 2,048 hashes of the key file's own encryption."""

_SEALED = re.compile(rb"fedtrain-scrypt: ([0-9a-f]{32})\n")
_ENCRYPTED = b"BEGIN ENCRYPTED PRIVATE KEY"


def make_tls_key_and_csr(name: str) -> tuple[bytes, bytes]:
    """A new P-256 key and a signing request for it: (key PEM, request PEM)."""
    key_pem = private_pem(ec.generate_private_key(ec.SECP256R1()))
    return key_pem, make_csr(key_pem, name)


def make_csr(key_pem: bytes, name: str) -> bytes:
    """The signing request (PEM) for an existing key, so that an interrupted enrolment can go on.

    `name` is a courtesy to whoever reads the request; the coordinator decides the real one.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(load_tls_key(key_pem), hashes.SHA256()).public_bytes(Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS #8 PEM: it is guarded by its file's mode."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def seal_private(key_pem: bytes, passphrase: bytes) -> bytes:
    """The key encrypted with a passphrase: PKCS #8 under a key that scrypt made of it.

    A line before the PEM holds the salt. Without a passphrase the key is returned as it is. The source
    of the idea: C. Percival, Stronger key derivation via sequential memory-hard functions, 2009.
    """
    if not passphrase:
        return key_pem
    salt = secrets.token_bytes(16)
    encryption = BestAvailableEncryption(_stretched(passphrase, salt))
    sealed = load_tls_key(key_pem).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return b"fedtrain-scrypt: %s\n%s" % (salt.hex().encode(), sealed)


def is_sealed(key_pem: bytes) -> bool:
    """Whether a passphrase is needed to use the key."""
    return _ENCRYPTED in key_pem


def open_private(key_pem: bytes, passphrase: bytes) -> bytes:
    """The key that `seal_private` encrypted, in the clear; one that is not encrypted as it is.

    `ConfigError` if the passphrase is missing or wrong.
    """
    if not is_sealed(key_pem):
        return key_pem
    if not passphrase:
        raise ConfigError("the key is encrypted: give its passphrase with --passphrase-file FILE")
    match = _SEALED.match(key_pem)
    if match is None:
        raise ConfigError("the key is encrypted in another way than fedtrain's: restore it from a backup")
    stretched = _stretched(passphrase, bytes.fromhex(match.group(1).decode()))
    try:
        key = serialization.load_pem_private_key(key_pem, password=stretched)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "the passphrase does not open this key: check it, or restore the key from a backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the TLS key is not a P-256 key: restore it from a backup")
    return private_pem(key)


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_COST, r=8, p=1).derive(passphrase).hex().encode()


def load_tls_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key that `private_pem` wrote; `ConfigError` if the PEM is no P-256 key."""
    key = _load_private(key_pem)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigError("the TLS key is not a P-256 key: restore it from a backup")


class MessageKey:
    """An Ed25519 key that signs statements.

    Attributes:
        public: the public key, 64 hex digits; others verify with it.
        key_id: its short name in logs and journals, 16 hex digits; see `key_id`.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()
        self.key_id = key_id(self.public)

    @classmethod
    def generate(cls) -> MessageKey:
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> MessageKey:
        """The key that `pem()` wrote; `ConfigError` if it is anything else."""
        key = _load_private(pem)
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("the message key is not an Ed25519 key: restore it from a backup")
        return cls(key)

    def pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM, for a file with mode 0600."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, kind: str, payload: bytes) -> bytes:
        """The signature, 64 bytes, over `payload` as a statement of this `kind`.

        The same payload signed as another kind has another signature, so a consent can never be shown
        as a receipt. Ed25519 is deterministic: a repeated statement is repeated byte for byte.
        """
        return self._private.sign(_signed_bytes(kind, payload))


def key_id(public: str) -> str:
    """The short name of a public message key: 16 hex digits of its SHA-256."""
    return hashlib.sha256(bytes.fromhex(check_public(public))).hexdigest()[:16]


def check_public(public: str) -> str:
    """`public` itself if it has the form of a message key, 64 hex digits; else `RemoteError`."""
    if DIGEST.fullmatch(public) is None:
        raise RemoteError("a public message key is 64 lower-case hex digits, and this is something else")
    return public


def verify(public: str, kind: str, payload: bytes, signature: bytes) -> None:
    """Holds that `public` signed `payload` as a statement of this `kind`; else `BadSignature`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(check_public(public))).verify(
            signature, _signed_bytes(kind, payload)
        )
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadSignature(
            f"the signature of this {kind} does not verify under key {key_id(public)}: it was altered on the"
            " way or signed by somebody else"
        ) from error


def _signed_bytes(kind: str, payload: bytes) -> bytes:
    if NAME.fullmatch(kind) is None:
        raise LocalError(f"{kind!r} cannot be a kind of statement")
    return _DOMAIN + kind.encode() + b"\0" + payload


def _load_private(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the private key cannot be read ({error}): restore it from a backup") from error
