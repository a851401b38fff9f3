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

SKEW_MS = 5 * 60 * 1000
"""Certificates start this long before they are made, for a peer whose clock is behind."""

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
        key_digest: SHA-256 of the public key (DER), hex.
        issuer: the name of the authority that signed it (RFC 4514); two authorities never share one.
    """

    identity: Identity
    fingerprint: str
    not_before_ms: int
    not_after_ms: int
    key_digest: str
    issuer: str = ""


def renew_at_ms(facts: LeafFacts) -> int:
    """When half of the certificate's life is over, counted from its making and not from its start."""
    made_ms = facts.not_before_ms + SKEW_MS
    return made_ms + (facts.not_after_ms - made_ms) // 2


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
        issuer = certificate.issuer.rfc4514_string()
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
        issuer=issuer,
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


def check_chain(certificate_pem: bytes, roots_pem: bytes, intermediates_pem: bytes = b"") -> None:
    """Holds that the certificate comes from one of the roots, by way of at most one intermediate.

    Args:
        roots_pem: trusted authorities, one behind the other.
        intermediates_pem: issuing authorities that a root has signed, as they are presented beside it.

    Raises `RemoteError` if it does not.
    """
    roots = split_certificates(roots_pem)
    issuers = roots + [pem for pem in split_certificates(intermediates_pem) if _issued_by_any(pem, roots)]
    if not _issued_by_any(certificate_pem, issuers):
        raise RemoteError("the certificate was not issued by this consortium's authority")


def split_certificates(pem: bytes) -> list[bytes]:
    """The certificates of a bundle, each as PEM; `RemoteError` for more than 16 KiB or anything odd."""
    if len(pem) > PEM_BYTES_MAX:
        raise RemoteError(f"the certificates have {len(pem)} bytes; at most {PEM_BYTES_MAX} are read")
    if not pem.strip():
        return []
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        return [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
    except FOREIGN_FAULTS as error:
        raise RemoteError(f"the certificates cannot be read ({error})") from error


def _issued_by_any(certificate_pem: bytes, issuers: list[bytes]) -> bool:
    for issuer in issuers:
        try:
            check_issuer(certificate_pem, issuer)
        except RemoteError:
            continue
        return True
    return False


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
