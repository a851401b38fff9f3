"""Reading certificates and signing requests that somebody else made.

Everything here may be hostile: it is bounded in size, parsed once, and reduced to the few facts that
decisions use. Whatever does not fit is a `RemoteError` that says what was expected.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedtrain.errors import RemoteError
from fedtrain.trust.identity import Identity, parse_identity

PEM_BYTES_MAX = 16_384
"""Ours have 700 bytes. More than this is not parsed: a parser is an attack surface."""

FOREIGN_FAULTS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises on bytes that it cannot read."""


@dataclass(frozen=True)
class LeafFacts:
    """What a certificate says, reduced to what decisions use.

    Attributes:
        fingerprint: SHA-256 of the whole certificate (DER), hex. It names this one certificate.
        not_before_ms, not_after_ms: UTC milliseconds; valid when not_before <= now < not_after.
        key_digest: SHA-256 of the public key (DER), hex. A renewed certificate may keep its key.
    """

    identity: Identity
    fingerprint: str
    not_before_ms: int
    not_after_ms: int
    key_digest: str


def utc_text(at_ms: int) -> str:
    """A moment as people write it in messages: `2026-03-01 12:00 UTC`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def at_ms(moment: datetime) -> int:
    """An aware datetime as UTC milliseconds; certificates count whole seconds."""
    return int(moment.timestamp()) * 1000


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def key_digest(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo (DER), hex."""
    return hashlib.sha256(
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def read_certificate(pem: bytes) -> LeafFacts:
    """The facts of a member's, a coordinator's or an invite's certificate.

    Its signature is not judged: the TLS handshake has done so for a peer, `check_issuer` does so for
    one that arrived in a message. `RemoteError` if it is not one P-256 leaf with exactly one identity.
    """
    certificate = parse_certificate(pem)
    public_key = p256_key_of(certificate)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        not_before_ms = at_ms(certificate.not_valid_before_utc)
        not_after_ms = at_ms(certificate.not_valid_after_utc)
        may_sign = _is_authority(certificate)
    except x509.ExtensionNotFound as error:
        raise RemoteError("the certificate names no identity: it was not issued by a consortium") from error
    except (*FOREIGN_FAULTS, OverflowError) as error:
        raise RemoteError(f"the certificate cannot be read ({error})") from error
    if may_sign:
        raise RemoteError("the certificate is an authority's, not a member's")
    if len(uris) != 1:
        raise RemoteError(f"the certificate names {len(uris)} identities instead of one")
    return LeafFacts(
        identity=parse_identity(uris[0]),
        fingerprint=fingerprint(certificate),
        not_before_ms=not_before_ms,
        not_after_ms=not_after_ms,
        key_digest=key_digest(public_key),
    )


def read_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, proven to be the sender's own by the request's signature.

    Name, alternative names and extensions in it are ignored: the coordinator decides those.
    """
    request_bytes = _one_pem(csr_pem, b"CERTIFICATE REQUEST", "signing request")
    try:
        request = x509.load_pem_x509_csr(request_bytes)
        public_key = request.public_key()
        proven = request.is_signature_valid
    except FOREIGN_FAULTS as error:
        raise RemoteError(f"the signing request cannot be read ({error})") from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise RemoteError("the signing request holds another kind of key: a P-256 key is needed")
    if not proven:
        raise RemoteError("the signing request is not signed by the key that it names")
    return public_key


def parse_certificate(pem: bytes) -> x509.Certificate:
    """The one certificate in `pem`; `RemoteError` if there is none, several, or more than 16 KiB."""
    try:
        return x509.load_pem_x509_certificate(_one_pem(pem, b"CERTIFICATE", "certificate"))
    except FOREIGN_FAULTS as error:
        raise RemoteError(f"the certificate cannot be read ({error})") from error


def p256_key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key; `RemoteError` unless it is on P-256."""
    try:
        public_key = certificate.public_key()
    except FOREIGN_FAULTS as error:
        raise RemoteError(f"the certificate's key cannot be read ({error})") from error
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(public_key.curve, ec.SECP256R1):
        return public_key
    raise RemoteError("the certificate holds another kind of key: a P-256 key is needed")


def check_issuer(certificate_pem: bytes, ca_pem: bytes) -> None:
    """Holds that the authority in `ca_pem` signed the certificate; `RemoteError` if it did not."""
    certificate, ca = parse_certificate(certificate_pem), parse_certificate(ca_pem)
    p256_key_of(ca)
    try:
        authority = _is_authority(ca)
        certificate.verify_directly_issued_by(ca)
    except (*FOREIGN_FAULTS, InvalidSignature) as error:
        raise RemoteError("the certificate was not issued by this consortium's authority") from error
    if not authority:
        raise RemoteError("the issuer's certificate is a member's: it may not issue any")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _one_pem(data: bytes, label: bytes, what: str) -> bytes:
    if len(data) > PEM_BYTES_MAX:
        raise RemoteError(f"the {what} has {len(data)} bytes; at most {PEM_BYTES_MAX} are read")
    count = data.count(b"-----BEGIN " + label + b"-----")
    if count != 1:
        raise RemoteError(f"expected one {what} in PEM form, found {count}")
    return data
