"""The judgement on the peer of every call: who is it, and may it do this, now?

The TLS handshake proves that the consortium's authority once issued the peer's certificate. Python's
gRPC then keeps a connection open for as long as the peer likes, beyond the certificate's end, and
takes no revocation list, so this is asked again on every call and costs a few microseconds.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping

from fedtrain.errors import RefusedError, RemoteError, Unauthenticated
from fedtrain.trust.certificates import LeafFacts, read_certificate, utc_text
from fedtrain.trust.identity import Role

_TLS_VERSION = b"TLSv1.3"
_SECURITY_LEVEL = b"TSI_PRIVACY_AND_INTEGRITY"

_read_once = functools.lru_cache(maxsize=1024)(read_certificate)
"""By PEM bytes: the facts in a certificate never change. 1024 is above the members of a consortium."""


def judge(
    auth_context: Mapping[str, Iterable[bytes]],
    *,
    call: str,
    allowed: Collection[Role],
    consortium: str,
    now_ms: int,
) -> LeafFacts:
    """Who is calling, if it may make this call.

    Args:
        auth_context: gRPC's `context.auth_context()`: property name -> values.
        call: the call's name as a person knows it, for the refusal's sentence.
        allowed: roles that may make it.

    Raises `RefusedError` for a role that may not, `Unauthenticated` for a certificate that is not good
    here, not now or not over this connection; `RemoteError` for one that shows no
    readable certificate.
    """
    _check_transport(auth_context)
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise RemoteError(f"{call}: the peer shows {len(certificates)} certificates instead of one")
    facts = _read_once(certificates[0])
    if facts.identity.consortium != consortium:
        raise Unauthenticated(
            f"{facts.identity} belongs to another consortium; this is {consortium}: check the address"
        )
    check_validity(facts, now_ms)
    if facts.identity.role not in allowed:
        needed = " or ".join(sorted(role.value for role in allowed))
        raise RefusedError(
            f"{call} is for the role {needed}, and {facts.identity.name} is"
            f" {facts.identity.role.value}: use a folder that was joined in that role"
        )
    return facts


def check_validity(facts: LeafFacts, now_ms: int) -> None:
    """Holds that the certificate is valid now; `Unauthenticated` says when it was or will be."""
    if now_ms >= facts.not_after_ms:
        raise Unauthenticated(
            f"the certificate of {facts.identity} expired at {utc_text(facts.not_after_ms)}:"
            " ask an operator for a new invite and join again"
        )
    if now_ms < facts.not_before_ms:
        raise Unauthenticated(
            f"the certificate of {facts.identity} is valid from {utc_text(facts.not_before_ms)} on, and here"
            f" it is {utc_text(now_ms)}: set the clocks of both machines"
        )


def _check_transport(auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """Refuses a connection that is not TLS 1.3 with encryption.

    gRPC's server negotiates 1.2 with a client that offers no more and Python has no option against
    it, so the version is held here. A runtime that does not tell the version cannot be held to it and
    is refused as well.
    """
    level = list(auth_context.get("security_level", ()))
    if list(auth_context.get("transport_security_type", ())) != [b"ssl"] or level != [_SECURITY_LEVEL]:
        raise Unauthenticated("the connection is not encrypted by TLS: fedtrain has no insecure mode")
    versions = list(auth_context.get("ssl_tls_version", ()))
    if not versions:
        raise Unauthenticated("this server's gRPC does not tell the TLS version: install grpcio>=1.85")
    if versions != [_TLS_VERSION]:
        found = versions[0][:16].decode("ascii", "replace")
        raise Unauthenticated(f"the connection uses {found}; TLS 1.3 is needed: update its TLS library")
