"""Why nobody answered, in words.

A gRPC client sees a refused certificate, a wrong authority, a wrong clock and a wrong port all as
UNAVAILABLE. What is known here, the own certificate and the library's own words, tells them apart. The
library's words are matched by pieces that its TLS and resolver code has used for years; what matches
nothing is shown as it stands.
"""

from __future__ import annotations

from fedtrain.trust.certificates import LeafFacts, utc_text

_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired",),
        "its certificate has expired by this machine's clock ({now}): check that clock, then ask the"
        " coordinator's operator for a new certificate",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid",),
        "its certificate is not valid yet by this machine's clock ({now}): set that clock",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "certificate signature failure", "BAD_SIGNATURE"),
        "its certificate comes from another authority than the one in ca.crt here: check the address, and"
        " ask whether the coordinator was set up anew (then join again with a new invite)",
    ),
    (
        ("Hostname Verification Check failed",),
        "it is the coordinator of another consortium: check the address",
    ),
    (
        ("WRONG_VERSION_NUMBER", "OPENSSL_internal:HTTP_REQUEST"),
        "what listens there does not speak TLS: check the port",
    ),
    (
        ("proxy returned", "HTTP proxy"),
        "the HTTP proxy refused the connection: check `proxy` and ask whether it allows CONNECT to that port",
    ),
    (
        ("address lookup failed", "Domain name not found", "errors resolving", "DNS resolution failed"),
        "its name cannot be resolved: check the spelling and this machine's DNS",
    ),
    (
        ("Connection refused",),
        "nothing listens there, or a firewall rejects it: check that the coordinator runs, and the port",
    ),
    (
        ("No route to host", "Network is unreachable"),
        "there is no route to it: check this machine's network",
    ),
    (
        ("_alert_", "handshake failed", "handshake read failed", "Socket closed", "Connection reset"),
        "it closed the connection while certificates were shown, as it does when it does not accept ours: ask"
        " its operator whether {name} is still a member, whether the coordinator was set up anew, and"
        " whether its clock is right (here it is {now})",
    ),
    (
        ("timed out", "timeout", "Deadline Exceeded"),
        "it did not answer in time: check for a firewall that drops packets, and that the coordinator runs",
    ),
)
"""(pieces of the library's words, what they mean), the most telling first."""


def explain_unreachable(facts: LeafFacts, address: str, details: str, now_ms: int) -> str:
    """One sentence for an `UnreachableError`: what happened, and what to check.

    Args:
        facts: of the own certificate, the one that the connection showed.
        address: the coordinator's, as it was dialled.
        details: gRPC's words for the failure.
    """
    identity, now = facts.identity, utc_text(now_ms)
    if now_ms >= facts.not_after_ms:
        return (
            f"{address} cannot accept us: our certificate ({identity}) expired at"
            f" {utc_text(facts.not_after_ms)}, and here it is {now}: set the clock if that is wrong, else ask"
            " an operator for a new invite and join again"
        )
    if now_ms < facts.not_before_ms:
        return (
            f"{address} cannot accept us: our certificate ({identity}) is valid from"
            f" {utc_text(facts.not_before_ms)} on, and here it is {now}: set this machine's clock"
        )
    words = details.casefold()
    for pieces, meaning in _CAUSES:
        if any(piece.casefold() in words for piece in pieces):
            return f"{address} cannot be reached: {meaning.format(now=now, name=identity.name)}"
    reason = " ".join(details.split())[:300] or "gRPC gave no reason"
    return f"{address} cannot be reached ({reason}): check the address and that the coordinator runs"
