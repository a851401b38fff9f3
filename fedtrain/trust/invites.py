"""An invite: everything that a newcomer needs, in one line to paste.

Python's gRPC cannot make client certificates optional on a port, so an invite *is* a certificate: a
short-lived one in the role `enrolling`, with its key, the authority's certificate and the address.
While one authority follows another it carries both, and where an issuer below the root signs, that one's
certificate, too.
The line is `fedtrain1-` and base64url of length-prefixed fields and a checksum. It is a secret until
it is used; the key that a member works with is made at the member and is another one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedtrain.core.orders import NAME
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.trust.authority import Authority, server_name
from fedtrain.trust.certificates import (
    FOREIGN_FAULTS,
    LeafFacts,
    check_chain,
    parse_certificate,
    read_certificate,
    split_certificates,
    utc_text,
)
from fedtrain.trust.identity import MEMBER_ROLES, Role
from fedtrain.trust.keys import load_tls_key, private_pem

PREFIX = "fedtrain1-"
LINE_CHARACTERS_MAX = 8192
"""An invite has 1,100 to 1,600, with two roots and two issuers below 4,000; what is longer is some other
text, pasted by mistake."""

_CHECKSUM_BYTES = 4
_KEY_BYTES = 32
_FIELDS = 5
_MORE_FIELDS_MAX = 4
"""Certificates beyond the first root: others that a server may come from, and issuers."""

_ROOT, _ISSUER = b"R", b"I"
_ADDRESS = re.compile(
    r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})"
)


@dataclass(frozen=True)
class Invite:
    """What the pasted line says.

    Attributes:
        role: what the newcomer will be; one of `MEMBER_ROLES`.
        address: where the coordinator is reached, `HOST:PORT`.
        ca_pem: the roots that the newcomer is to trust, one behind the other.
        certificate_pem, key_pem: of the bootstrap certificate, good for enrolling and nothing else.
        facts: what that certificate says. Its name is the newcomer's; its fingerprint names the invite.
        intermediates_pem: the issuer between that certificate and its root, if there is one.
    """

    role: Role
    address: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    facts: LeafFacts
    intermediates_pem: bytes = b""

    @property
    def chain_pem(self) -> bytes:
        """What is presented in the handshake."""
        return self.certificate_pem + self.intermediates_pem

    @property
    def consortium(self) -> str:
        return self.facts.identity.consortium

    @property
    def name(self) -> str:
        return self.facts.identity.name

    @property
    def server_name(self) -> str:
        """The DNS name that the coordinator's certificate must carry."""
        return server_name(self.consortium)

    @property
    def expires_ms(self) -> int:
        return self.facts.not_after_ms


def make_invite(
    authority: Authority,
    name: str,
    role: Role,
    address: str,
    now_ms: int,
    lifetime_ms: int,
    roots_pem: bytes = b"",
) -> Invite:
    """A new invite for `name`, usable for `lifetime_ms`; `ConfigError` for a bad name, role or address.

    Args:
        roots_pem: whom the newcomer is to trust; empty for the authority's own root.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:80]!r} cannot name a member: use 1 to 63 lower-case letters, digits and inner hyphens"
        )
    if role not in MEMBER_ROLES:
        valid = ", ".join(sorted(MEMBER_ROLES))
        raise ConfigError(f"nobody can be invited as {role.value}: use one of {valid}")
    key_pem, certificate_pem = authority.issue_bootstrap(name, now_ms, lifetime_ms)
    return Invite(
        role=role,
        address=check_address(address),
        ca_pem=roots_pem or authority.certificate_pem,
        certificate_pem=certificate_pem,
        key_pem=key_pem,
        facts=read_certificate(certificate_pem),
        intermediates_pem=authority.intermediates_pem,
    )


def encode_invite(invite: Invite) -> str:
    """The line to paste. It holds letters, digits, `-` and `_` only: no mail or shell changes those."""
    first, *others = (_der(pem) for pem in split_certificates(invite.ca_pem))
    fields = (
        invite.role.value.encode(),
        invite.address.encode(),
        first,
        _der(invite.certificate_pem),
        _scalar(invite.key_pem),
        *(_ROOT + other for other in others),
        *(_ISSUER + _der(pem) for pem in split_certificates(invite.intermediates_pem)),
    )
    payload = b"".join(len(part).to_bytes(2, "big") + part for part in fields)
    return PREFIX + base64.urlsafe_b64encode(payload + _checksum(payload)).rstrip(b"=").decode()


def decode_invite(line: str, now_ms: int) -> Invite:
    """The invite in a pasted line, whose line breaks and spaces are forgiven.

    `ConfigError` if it is cut off, mistyped, expired or no invite at all.
    """
    payload = _payload(line)
    try:
        role, address, ca, certificate, key, *more = _split(payload)
        invite = _assemble(role, address, certificate, key, (_ROOT + ca, *more))
    except (*FOREIGN_FAULTS, RemoteError) as error:
        raise ConfigError(f"the invite is not valid ({error}): ask the operator for a new one") from error
    if now_ms >= invite.expires_ms:
        raise ConfigError(
            f"the invite expired at {utc_text(invite.expires_ms)}: ask the operator for a new one, or set"
            f" this machine's clock if it is not {utc_text(now_ms)} now"
        )
    return invite


def check_address(address: str) -> str:
    """`address` itself if it is `HOST:PORT` (IPv6 in brackets); else `ConfigError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match.group(1)) <= 65535:
        raise ConfigError(
            f"{address[:80]!r} is not an address: use HOST:PORT, for instance coordinator.example.org:7443"
        )
    return address


def _payload(line: str) -> bytes:
    """The checked bytes behind the prefix; `ConfigError` tells a wrong text from a damaged invite."""
    if len(line) > LINE_CHARACTERS_MAX:
        raise ConfigError("this text is far too long for an invite: paste the one line and nothing else")
    text = "".join(line.split())
    if not text.startswith(PREFIX):
        raise ConfigError(f"this is not an invite: it begins with {PREFIX}, and this with {text[:12]!r}")
    digits = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(digits + "=" * (-len(digits) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not payload or _checksum(payload) != checksum:
        raise ConfigError("the invite is cut off or mistyped: paste the whole line")
    return payload


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + payload).digest()[:_CHECKSUM_BYTES]


def _split(payload: bytes) -> list[bytes]:
    fields: list[bytes] = []
    rest = payload
    while rest:
        size = int.from_bytes(rest[:2], "big")
        fields.append(rest[2 : 2 + size])
        if len(rest) < 2 + size:
            raise RemoteError("its last field is incomplete")
        rest = rest[2 + size :]
    if not _FIELDS <= len(fields) <= _FIELDS + _MORE_FIELDS_MAX:
        raise RemoteError(f"it has {len(fields)} fields instead of {_FIELDS}")
    return fields


def _assemble(
    role: bytes, address: bytes, certificate: bytes, key: bytes, authorities: tuple[bytes, ...]
) -> Invite:
    """The invite from its fields, which must fit together: a checksum keeps nobody from lying."""
    if any(field[:1] not in (_ROOT, _ISSUER) for field in authorities):
        raise RemoteError("it holds a field of a newer version: update fedtrain here")
    ca_pem = b"".join(_pem(field[1:]) for field in authorities if field[:1] == _ROOT)
    intermediates_pem = b"".join(_pem(field[1:]) for field in authorities if field[:1] == _ISSUER)
    certificate_pem = _pem(certificate)
    facts = read_certificate(certificate_pem)
    check_chain(certificate_pem, ca_pem, intermediates_pem)
    if facts.identity.role is not Role.ENROLLING:
        raise RemoteError(f"its certificate is for the role {facts.identity.role.value}")
    if len(key) != _KEY_BYTES:
        raise RemoteError("its key has the wrong size")
    private_key = ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256R1())
    if private_key.public_key() != parse_certificate(certificate_pem).public_key():
        raise RemoteError("its key and its certificate do not belong together")
    if role.decode() not in MEMBER_ROLES:
        raise RemoteError(f"nobody can be invited as {role.decode()[:20]!r}")
    return Invite(
        role=Role(role.decode()),
        address=check_address(address.decode()),
        ca_pem=ca_pem,
        certificate_pem=certificate_pem,
        key_pem=private_pem(private_key),
        facts=facts,
        intermediates_pem=intermediates_pem,
    )


def _der(certificate_pem: bytes) -> bytes:
    return parse_certificate(certificate_pem).public_bytes(Encoding.DER)


def _pem(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


def _scalar(key_pem: bytes) -> bytes:
    """The private number alone, 32 bytes: an encoded key repeats what the certificate says already."""
    private_value = load_tls_key(key_pem).private_numbers().private_value
    return private_value.to_bytes(_KEY_BYTES, "big")
