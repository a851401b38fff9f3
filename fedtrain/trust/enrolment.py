"""From an invite to a certificate, at both ends.

The newcomer makes its keys, shows the invite's certificate and sends a signing request. Whether an
invite was used before is decided by the coordinator's state; here is only what a valid request is.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.errors import LocalError, RemoteError
from fedtrain.trust.authority import SITE_LIFETIME_MS, Authority
from fedtrain.trust.certificates import LeafFacts, check_chain, key_digest, read_certificate, read_request
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.keys import check_public, load_tls_key


@dataclass(frozen=True)
class Enrolled:
    """What became of a signing request.

    Attributes:
        certificate_pem: the newcomer's certificate.
        key_digest: of its TLS public key: a repeated request with the same one is the same newcomer.
        message_key: its public message key, 64 hex digits.
    """

    certificate_pem: bytes
    key_digest: str
    message_key: str


def requested_key_digest(csr_pem: bytes) -> str:
    """Which key asks, before anything is issued: the same one again, or another?

    `RemoteError` if the request is malformed or not signed by that key.
    """
    return key_digest(read_request(csr_pem))


def enrol(
    authority: Authority,
    bootstrap: LeafFacts,
    role: Role,
    csr_pem: bytes,
    message_public: str,
    now_ms: int,
    lifetime_ms: int = SITE_LIFETIME_MS,
) -> Enrolled:
    """Issues the newcomer's certificate under the name in its invite.

    Args:
        bootstrap: facts of the invite's certificate, as `admission.judge` gave them.
        role: the role that the invite was made for, as the coordinator recorded it.
        message_public: the newcomer's public message key.

    `RemoteError` for a request that is malformed, or for the invite's own key.
    """
    if bootstrap.identity.role is not Role.ENROLLING:
        raise LocalError(f"{bootstrap.identity} is no invite, so it cannot enrol")
    digest = requested_key_digest(csr_pem)
    if digest == bootstrap.key_digest:
        # That key travelled in the pasted line: whoever saw the line would hold the member's key.
        raise RemoteError("the signing request holds the invite's own key: make a new key at the site")
    identity = Identity(authority.consortium, role, bootstrap.identity.name)
    return Enrolled(
        certificate_pem=authority.issue_leaf(csr_pem, identity, now_ms, lifetime_ms),
        key_digest=digest,
        message_key=check_public(message_public),
    )


def accept(
    expected: Identity,
    key_pem: bytes,
    certificate_pem: bytes,
    roots_pem: bytes,
    intermediates_pem: bytes = b"",
) -> LeafFacts:
    """At the member: holds that a certificate is what was asked for, before it is kept.

    `RemoteError` if it is of another authority, name, role or key.
    """
    check_chain(certificate_pem, roots_pem, intermediates_pem)
    facts = read_certificate(certificate_pem)
    if facts.identity != expected:
        raise RemoteError(f"the coordinator issued a certificate for {facts.identity} instead of {expected}")
    if facts.key_digest != key_digest(load_tls_key(key_pem).public_key()):
        raise RemoteError("the coordinator issued a certificate for another key than the one made here")
    return facts
