"""The consortium's certificate authority: it decides names, roles and lifetimes.

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
from fedtrain.errors import ConfigError, LocalError, RemoteError
from fedtrain.trust.certificates import FOREIGN_FAULTS, at_ms, p256_key_of, parse_certificate, read_request
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.keys import load_tls_key, private_pem

_DAY_MS = 24 * 3600 * 1000

SKEW_MS = 5 * 60 * 1000
"""Certificates start this long before they are made, for a peer whose clock is behind."""

AUTHORITY_LIFETIME_MS = 3650 * _DAY_MS
"""Ten years: as long as a consortium; replacing an authority means a new invite for every member."""

SERVER_LIFETIME_MS = AUTHORITY_LIFETIME_MS
"""As long as the authority: both keys lie in the same folder, so whoever steals one has the other, and a
shorter life would only add a day on which nobody can connect."""

LEAF_LIFETIME_MS = 90 * _DAY_MS
"""Ninety days, against the 72 hours that revocation would like: as long as a member has no way to
renew its certificate by itself, it would drop out in the middle of a run every third day."""


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
    serial = secrets.randbits(63) | 1
    # The second part tells this authority from another one of the same consortium, made earlier or later.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{serial & 0xFFFFFFFF:08x}"),
        ]
    )
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
    """Issues certificates with the key of one consortium's authority.

    Attributes:
        consortium: the name in the authority's certificate.
        certificate_pem: the certificate that members hold as their only root.
    """

    def __init__(self, key_pem: bytes, certificate_pem: bytes) -> None:
        """`ConfigError` if the two do not belong together or are no authority's."""
        key = load_tls_key(key_pem)
        try:
            self._certificate = parse_certificate(certificate_pem)
            matches = p256_key_of(self._certificate) == key.public_key()
            names = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            constraints = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (*FOREIGN_FAULTS, RemoteError, x509.ExtensionNotFound) as error:
            raise ConfigError(f"the authority's certificate cannot be read ({error})") from error
        if not matches or not constraints.ca or len(names) != 1:
            raise ConfigError(
                "the authority's key and certificate do not belong together: restore both from one backup"
            )
        self._key = key
        self.consortium = str(names[0].value)
        self.certificate_pem = certificate_pem

    def issue_server(self, now_ms: int, lifetime_ms: int = SERVER_LIFETIME_MS) -> tuple[bytes, bytes]:
        """(key PEM, certificate PEM) for the coordinator's port; good for serving, not for calling."""
        key = ec.generate_private_key(ec.SECP256R1())
        identity = Identity(self.consortium, Role.COORDINATOR, "coordinator")
        return private_pem(key), self._issue(key.public_key(), identity, now_ms, lifetime_ms)

    def issue_leaf(
        self, csr_pem: bytes, identity: Identity, now_ms: int, lifetime_ms: int = LEAF_LIFETIME_MS
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
        self, public_key: ec.EllipticCurvePublicKey, identity: Identity, now_ms: int, lifetime_ms: int
    ) -> bytes:
        if identity.consortium != self.consortium:
            raise LocalError(f"the authority of {self.consortium} cannot name {identity}")
        if lifetime_ms <= 0:
            raise ConfigError(f"a certificate cannot be valid for {lifetime_ms} ms")
        authority_ends_ms = at_ms(self._certificate.not_valid_after_utc)
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
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


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
