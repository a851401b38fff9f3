"""The consortium's certificate authority: it decides names, roles and lifetimes.

An authority is a root, whose certificate members trust, and a key that issues: the root's own, or that of
an *issuer*, an authority below a root whose key lies elsewhere. One without a key can be trusted and
cannot issue.

Every TLS key is on P-256: gRPC's TLS library refuses Ed25519 certificates in a handshake. The
authority's own certificate is kept small, because it travels inside every invite; key identifiers
are left out everywhere, since its subject already tells one authority from the next.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtrain.core.orders import NAME
from fedtrain.errors import ConfigError, LocalError, RefusedError, RemoteError
from fedtrain.trust.certificates import (
    FOREIGN_FAULTS,
    SKEW_MS,
    at_ms,
    check_issuer,
    p256_key_of,
    parse_certificate,
    read_request,
)
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.keys import load_tls_key, private_pem

_DAY_MS = 24 * 3600 * 1000

_HOUR_MS = 3600 * 1000

AUTHORITY_LIFETIME_MS = 3650 * _DAY_MS
"""Ten years: as long as a consortium. `coordinator roll-over` replaces it earlier."""

SERVER_LIFETIME_MS = AUTHORITY_LIFETIME_MS
"""As long as the authority: both keys lie in the same folder, so whoever steals one has the other, and a
shorter life would only add a day on which nobody can connect."""

SITE_LIFETIME_MS = 72 * _HOUR_MS
"""Three days: who steals a site's key has it for so long at most, and agents renew at half of it."""

PERSON_LIFETIME_MS = 30 * _DAY_MS
"""Thirty days: people's certificates are renewed when they use the command line, which is less often."""

OFFLINE_LIFETIME_MS = 365 * _DAY_MS
"""A year, for what is signed by hand away from the coordinator: it can be revoked, but not renewed."""


def server_name(consortium: str) -> str:
    """The DNS name in the coordinator's certificate, which every client asks for.

    It never resolves (`.invalid` is reserved, RFC 2606) and does not depend on where the coordinator
    runs, so members may reach it by address, by name or through a proxy.
    """
    return f"{consortium}.fedtrain.invalid"


def create_authority(consortium: str, now_ms: int) -> tuple[bytes, bytes]:
    """A new authority: (key PEM, certificate PEM). `ConfigError` if the consortium's name is not valid."""
    if NAME.fullmatch(consortium) is None:
        raise ConfigError(
            f"{consortium[:80]!r} cannot name a consortium: use 1 to 63 lower-case letters, digits and"
            " inner hyphens"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    serial, subject = _subject(consortium, "")
    builder = (
        _dated(now_ms - SKEW_MS, now_ms + AUTHORITY_LIFETIME_MS)
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(serial)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return private_pem(key), builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class Authority:
    """Issues certificates in the name of one consortium.

    Attributes:
        consortium: the name in the root's certificate.
        certificate_pem: the root's certificate, which members trust.
        intermediates_pem: the issuer's, to be presented behind what it issues; empty if the root issues.
        subjects: names under which certificates of this authority are issued (RFC 4514).
        serial: short name of the root, the last part of its subject.
    """

    def __init__(self, key_pem: bytes, certificate_pem: bytes, issuer_pem: bytes = b"") -> None:
        """`ConfigError` if these do not belong together or are no authority's.

        Args:
            key_pem: of the issuer if there is one, else of the root; empty if the key is not here.
            certificate_pem: the root's.
            issuer_pem: of the issuer below the root, if there is one.
        """
        try:
            root = parse_certificate(certificate_pem)
            self._certificate = parse_certificate(issuer_pem) if issuer_pem else root
            if issuer_pem:
                check_issuer(issuer_pem, certificate_pem)
            public_key = p256_key_of(self._certificate)
            names = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            serials = root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            constraints = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (*FOREIGN_FAULTS, RemoteError, x509.ExtensionNotFound) as error:
            raise ConfigError(f"the authority's certificate cannot be read ({error})") from error
        self._key = load_tls_key(key_pem) if key_pem else None
        matches = self._key is None or public_key == self._key.public_key()
        if not matches or not constraints.ca or len(names) != 1 or len(serials) != 1:
            raise ConfigError(
                "the authority's key and certificate do not belong together: restore both from one backup"
            )
        self.consortium = str(names[0].value)
        self.certificate_pem = certificate_pem
        self.intermediates_pem = issuer_pem
        self.subjects = frozenset(one.subject.rfc4514_string() for one in {root, self._certificate})
        self.serial = str(serials[0].value)

    @property
    def issues(self) -> bool:
        """Whether the issuing key is here."""
        return self._key is not None

    def issue_issuer(self, now_ms: int) -> tuple[bytes, bytes]:
        """(key PEM, certificate PEM) of an authority below this root, for a coordinator that issues while
        the root's key lies elsewhere."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial, subject = _subject(self.consortium, " issuer")
        builder = (
            _dated(now_ms - SKEW_MS, min(now_ms + AUTHORITY_LIFETIME_MS, self._ends_ms()))
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .serial_number(serial)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        certificate = builder.sign(self._signing_key(), hashes.SHA256())
        return private_pem(key), certificate.public_bytes(Encoding.PEM)

    def issue_server(self, now_ms: int, lifetime_ms: int = SERVER_LIFETIME_MS) -> tuple[bytes, bytes]:
        """(key PEM, PEM to be presented) for the coordinator's port; good for serving, not for calling."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(self.consortium, Role.COORDINATOR, "coordinator")
        certificate_pem = self._issue(key.public_key(), identity, now_ms, lifetime_ms)
        return private_pem(key), certificate_pem + self.intermediates_pem

    def issue_leaf(
        self, csr_pem: bytes, identity: Identity, now_ms: int, lifetime_ms: int = SITE_LIFETIME_MS
    ) -> bytes:
        """Certificate PEM for a member's own key. The name comes from here, not from the request.

        `RemoteError` if the request is malformed, not on P-256 or not signed by its key.
        """
        if identity.role not in MEMBER_ROLES:
            raise LocalError(f"a signing request cannot lead to the role {identity.role.value}")
        return self._issue(read_request(csr_pem), identity, now_ms, lifetime_ms)

    def issue_bootstrap(self, name: str, now_ms: int, lifetime_ms: int) -> tuple[bytes, bytes]:
        """(key PEM, certificate PEM) of an invite for `name`: its holder may enrol and nothing else."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(self.consortium, Role.ENROLLING, name)
        return private_pem(key), self._issue(key.public_key(), identity, now_ms, lifetime_ms)

    def _issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identity: Identity,
        now_ms: int,
        lifetime_ms: int,
    ) -> bytes:
        if identity.consortium != self.consortium:
            raise LocalError(f"the authority of {self.consortium} cannot name {identity}")
        if lifetime_ms <= 0:
            raise ConfigError(f"a certificate cannot be valid for {lifetime_ms} ms")
        key, authority_ends_ms = self._signing_key(), self._ends_ms()
        if now_ms >= authority_ends_ms:
            raise ConfigError("the consortium's authority has expired: make a new one and invite all members")
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        if identity.role is Role.COORDINATOR:
            names.append(x509.DNSName(server_name(self.consortium)))
            usage = ExtendedKeyUsageOID.SERVER_AUTH
        builder = (
            _dated(now_ms - SKEW_MS, min(now_ms + lifetime_ms, authority_ends_ms))
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
            .issuer_name(self._certificate.subject)
            .serial_number(x509.random_serial_number())
            .public_key(public_key)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _signing_key(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            raise RefusedError(
                "the key that issues certificates is not here: sign the request where it is kept, with"
                " `fedtrain site sign REQUEST --ca CADIR`"
            )
        return self._key

    def _ends_ms(self) -> int:
        return at_ms(self._certificate.not_valid_after_utc)


def _subject(consortium: str, suffix: str) -> tuple[int, x509.Name]:
    """A serial number, and a name that no other authority of this consortium ever had: gRPC's TLS library
    cannot hold two roots of one name apart."""
    serial = secrets.randbits(63) | 1
    return serial, x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{serial & 0xFFFFFFFF:08x}{suffix}"),
        ]
    )


def _dated(not_before_ms: int, not_after_ms: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .not_valid_before(datetime.fromtimestamp(not_before_ms // 1000, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after_ms // 1000, UTC))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
