"""Why nobody answered, in words.

A gRPC client sees a refused certificate, a wrong authority, a wrong clock and a wrong port all as
UNAVAILABLE. What is known here, the own certificate and the library's own words, tells them apart. The
library's words are matched by pieces that its TLS and resolver code has used for years; what matches
nothing is shown as it stands.

Two things the client is never told. A coordinator that does not accept a certificate in the handshake
closes the connection without an alert, so all its reasons look alike, and the sentence names them all. A
member that was revoked is not refused there but in the call, in the coordinator's own words.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedtrain.trust.certificates import LeafFacts, utc_text


class Stage(enum.Enum):
    """How far a connection had come when it failed."""

    WAY = enum.auto()  # nothing has answered yet; with a proxy, it is the proxy that is reached first
    GREETING = enum.auto()  # something answered, and what it showed was not good
    JUDGED = enum.auto()  # our certificate was shown, and the other side closed


@dataclass(frozen=True)
class Cause:
    """Pieces of the library's words, any of which is enough, and what they mean."""

    stage: Stage
    pieces: tuple[str, ...]
    meaning: str


_CAUSES = (
    Cause(
        Stage.GREETING,
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired",),
        "its certificate has expired by this machine's clock ({now}): check that clock, then ask the"
        " coordinator's operator for a new certificate",
    ),
    Cause(
        Stage.GREETING,
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid",),
        "its certificate is not valid yet by this machine's clock ({now}): set that clock",
    ),
    Cause(
        Stage.GREETING,
        ("CERTIFICATE_VERIFY_FAILED: unsupported certificate purpose",),
        "what answers there shows the certificate of a member, not of a coordinator: check the address, and"
        " tell an operator",
    ),
    Cause(
        Stage.GREETING,
        ("CERTIFICATE_VERIFY_FAILED", "certificate signature failure", "BAD_SIGNATURE"),
        "its certificate comes from another authority than those in ca.crt here: check the address; if it is"
        " right, the consortium replaced its authority while {name} was away, or was set up anew: ask an"
        " operator for an invite (`fedtrain site invite {name} --again`) and join again",
    ),
    Cause(
        Stage.GREETING,
        ("Hostname Verification Check failed",),
        "it is the coordinator of another consortium: check the address",
    ),
    Cause(
        Stage.GREETING,
        ("WRONG_VERSION_NUMBER", "OPENSSL_internal:HTTP_REQUEST"),
        "what listens there does not speak TLS: check the port",
    ),
    Cause(
        Stage.GREETING,
        ("ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"),
        "what listens there speaks an older TLS, and 1.3 is needed: check the port, and whether something on"
        " the way opens TLS connections",
    ),
    Cause(
        Stage.GREETING,
        ("missing selected ALPN",),
        "what listens there speaks TLS but not gRPC, as a web server does: check the port, and whether"
        " something on the way opens TLS connections",
    ),
    Cause(
        Stage.WAY,
        ("HTTP proxy", "proxy returned", "Expected 'H'"),
        "the HTTP proxy refused the connection: check `proxy` and ask whether it allows CONNECT to that port",
    ),
    Cause(
        Stage.WAY,
        ("address lookup failed", "Domain name not found", "errors resolving", "DNS resolution failed"),
        "{its} name cannot be resolved: check the spelling and this machine's DNS",
    ),
    Cause(
        Stage.WAY,
        ("Connection refused",),
        "nothing listens {there}, or a firewall rejects it: check that {it} runs, and the port",
    ),
    Cause(
        Stage.WAY,
        ("No route to host", "Network is unreachable"),
        "there is no route to {it}: check this machine's network",
    ),
    Cause(
        Stage.WAY,
        ("timed out", "timeout", "no answer in time", "Deadline Exceeded", "Endpoint closing"),
        "{it} did not answer in time: check for a firewall that drops packets, and that {it} runs",
    ),
    Cause(
        Stage.WAY,
        ("Handshake read failed",),
        "{it} took the connection and ended it before showing a certificate, so ours is not the reason: check"
        " the port, and whether a firewall cuts TLS connections",
    ),
    Cause(
        Stage.JUDGED,
        ("_alert_", "handshake failed", "Socket closed", "Connection reset"),
        "it{or_proxy} closed the connection once it had seen our certificate, and TLS does not say why. Ours"
        " ({identity}) is valid until {end} by this machine's clock ({now}). Either that clock or its clock"
        " is wrong, or it trusts other authorities by now: the consortium replaced its authority while {name}"
        " was away, or was set up anew. Compare the clocks, then ask an operator for an invite"
        " (`fedtrain site invite {name} --again`) and join again",
    ),
)
"""The most telling first."""


def explain_unreachable(
    facts: LeafFacts, address: str, details: str, now_ms: int, proxy: str | None = None
) -> str:
    """One sentence for an `UnreachableError`: what happened, and what to check.

    Args:
        facts: of the own certificate, the one that the connection showed.
        address: the coordinator's, as it was dialled.
        details: gRPC's words for the failure.
        proxy: `host:port` of the proxy that was dialled first, None for none.
    """
    identity, now = facts.identity, utc_text(now_ms)
    cause = _cause_of(details)
    on_the_way = cause is not None and cause.stage is Stage.WAY
    if now_ms >= facts.not_after_ms and not on_the_way:
        return f"{address} cannot accept us: {explain_expired(facts, now_ms)}"
    if now_ms < facts.not_before_ms and not on_the_way:
        return (
            f"{address} cannot accept us: our certificate ({identity}) is valid from"
            f" {utc_text(facts.not_before_ms)} on, and here it is {now}: set this machine's clock"
        )
    if cause is None:
        reason = " ".join(details.split())[:300] or "gRPC gave no reason"
        return f"{address} cannot be reached ({reason}): check the address and that the coordinator runs"
    meaning = cause.meaning.format(
        now=now,
        end=utc_text(facts.not_after_ms),
        name=identity.name,
        identity=identity,
        it=f"the proxy {proxy}" if proxy else "the coordinator",
        its=f"the proxy's ({proxy})" if proxy else "its",
        or_proxy=f", or the proxy {proxy}," if proxy else "",
        there=f"at the proxy {proxy}" if proxy else "there",
    )
    expired = f". Besides, {explain_expired(facts, now_ms)}" if now_ms >= facts.not_after_ms else ""
    return f"{address} cannot be reached: {meaning}{expired}"


def explain_expired(facts: LeafFacts, now_ms: int) -> str:
    """That our certificate has expired, and the way back."""
    name = facts.identity.name
    return (
        f"our certificate ({facts.identity}) expired at {utc_text(facts.not_after_ms)}, and here it is"
        f" {utc_text(now_ms)}: set the clock if that is wrong, else ask an operator for an invite"
        f" (`fedtrain site invite {name} --again`) and join again (`fedtrain join INVITE DIR`)"
    )


def not_admitted(facts: LeafFacts, details: str, now_ms: int) -> bool:
    """Whether the coordinator was reached and closed because our certificate has expired: for good."""
    cause = _cause_of(details)
    return now_ms >= facts.not_after_ms and cause is not None and cause.stage is Stage.JUDGED


def _cause_of(details: str) -> Cause | None:
    words = details.casefold()
    for cause in _CAUSES:
        if any(piece.casefold() in words for piece in cause.pieces):
            return cause
    return None
