"""What can happen to the coordinator itself and to its members; `events` has the rest, and the whole list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Root of all events."""

    at_ms: int


@dataclass(frozen=True)
class Booted(Event):
    """A coordinator process started and owns the state directory.

    `epoch` is `epochs.next_epoch` of the one before; `place` is an opaque name of where the state
    lies, so that a start from a copy is noticed. `version` and `code` say what runs from now on: the
    version of fedtrain, and a digest over its installed source files.
    """

    epoch: int
    place: str = ""
    version: str = ""
    code: str = ""


@dataclass(frozen=True)
class Fenced(Event):
    """A site proved that it follows a coordinator of a higher epoch: this one is not obeyed any more."""

    epoch: int
    site: str


@dataclass(frozen=True)
class MemberInvited(Event):
    """An operator made an invite. `invite` is the fingerprint of its bootstrap certificate.

    `organisation`: the institution that the site belongs to, "" for one of its own.
    """

    name: str
    role: str
    invite: str
    expires_ms: int
    organisation: str = ""


@dataclass(frozen=True)
class MemberEnrolled(Event):
    """A member used its invite: its TLS key (digest), certificate (PEM) and message key are known.

    `invite` is "" for a member whose certificate was signed away from the coordinator.
    """

    name: str
    role: str
    invite: str
    key_digest: str
    certificate: str
    message_key: str
    organisation: str = ""


@dataclass(frozen=True)
class MemberRenewed(Event):
    """A member has a new certificate, of a new TLS key. The one before stays good until its own end."""

    name: str
    key_digest: str
    certificate: str


@dataclass(frozen=True)
class MemberRevoked(Event):
    """An operator ended a membership, and all that the member had under way."""

    name: str
    by: str
    reason: str


@dataclass(frozen=True)
class AuthorityAdded(Event):
    """From now on this authority issues certificates; those of the one before stay good."""

    by: str
    subject: str
    certificate: str


@dataclass(frozen=True)
class AuthorityRetired(Event):
    """Certificates of this authority are not accepted any more."""

    by: str
    subject: str


@dataclass(frozen=True)
class InviteMisused(Event):
    """An invite was shown again with another key. Nothing was issued."""

    name: str
    invite: str
    reason: str


@dataclass(frozen=True)
class SiteAttached(Event):
    """A site's agent opened its session. `session` tells this session from the site's earlier ones.

    `holding` are the orders that it is still working on.
    """

    site: str
    session: str
    version: str
    holding: tuple[str, ...]


@dataclass(frozen=True)
class SiteLost(Event):
    """Liveness gave the site up: no sign of life for its patience, or it said goodbye."""

    site: str
    reason: str


@dataclass(frozen=True)
class SiteDeclared(Event):
    """A site said, signed, under which contract it acts and what its discoverable data sets hold.

    Attributes:
        contract: SHA-256 of the contract's canonical JSON, hex.
        examples: data set -> examples, counted by the site's trainer.
    """

    site: str
    contract: str
    examples: Mapping[str, int]
    signature: str


@dataclass(frozen=True)
class SiteQuarantined(Event):
    """An operator took a site out of all runs."""

    site: str
    by: str
    reason: str


@dataclass(frozen=True)
class SiteReleased(Event):
    """An operator ended a site's quarantine."""

    site: str
    by: str
    reason: str
