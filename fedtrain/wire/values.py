"""The requests and answers that only the wire knows; those that decisions are made from are in core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 1 << 20
"""Bytes of a blob per chunk. 1 MiB streams ran at 0.5-0.6 GB/s over TLS, larger messages far slower."""

Document = dict[str, Any]
"""Parsed JSON object, as the command line prints it with `--json`."""


@dataclass(frozen=True)
class Caller:
    """Who calls, as the certificate says. Made by the coordinator's judge for every call.

    Attributes:
        name: the site's or person's name in the consortium.
        role: role word of the certificate, e.g. `site`.
        fingerprint: SHA-256 of the certificate, hex.
        key_digest: SHA-256 of its public key, hex.
        not_after_ms: end of its validity, Unix milliseconds.
        address: the transport's name for the other end; filled in here, for logs only.
    """

    name: str
    role: str
    fingerprint: str
    key_digest: str
    not_after_ms: int
    address: str = ""


@dataclass(frozen=True)
class EpochProof:
    """That the coordinator was in `epoch` at `at_ms`, signed with its message key (64 bytes, hex)."""

    epoch: int
    at_ms: int
    signature: str


@dataclass(frozen=True)
class SigningRequest:
    """A request for a certificate (PEM) and the public message key (Ed25519, hex) that goes with it."""

    csr_pem: bytes
    message_key: str


@dataclass(frozen=True)
class Admission:
    """A member's certificate, and whom to trust from now on.

    Attributes:
        chain_pem: the roots that a coordinator's certificate may come from, two while one follows the
            other (PEM, one behind the other).
        message_key: the coordinator's public message key (hex).
        intermediates_pem: issuing authorities between the certificate and its root, to be presented
            with it; empty where the root itself issues.
    """

    certificate_pem: bytes
    chain_pem: bytes
    message_key: str
    consortium: str
    intermediates_pem: bytes = b""


@dataclass(frozen=True)
class FetchRequest:
    """A blob from a byte on."""

    digest: str
    offset: int


@dataclass(frozen=True)
class InviteRequest:
    """An invite for `name` in `role`, good for `valid_s` seconds."""

    name: str
    role: str
    valid_s: int


@dataclass(frozen=True)
class InviteOrder:
    """As `InviteRequest`, with the institution that a site belongs to, "" for one of its own.

    `again`: the name is a member's, whose certificate has expired or whose keys are lost.
    """

    name: str
    role: str
    valid_s: int
    organisation: str = ""
    again: bool = False


@dataclass(frozen=True)
class Verdict:
    """A member and why something is done about it."""

    name: str
    reason: str


@dataclass(frozen=True)
class VersionOrder:
    """A version of a run."""

    run: str
    version: int


@dataclass(frozen=True)
class RollOverOrder:
    """Begin to replace the authority; or, with `finish`, drop the old one, whoever depends on it."""

    finish: bool


@dataclass(frozen=True)
class Registration:
    """A member whose certificate was signed away from the coordinator, by the authority's own key."""

    certificate_pem: bytes
    message_key: str
    organisation: str = ""


@dataclass(frozen=True)
class InviteLine:
    """The one line to paste."""

    line: str


@dataclass(frozen=True)
class Spec:
    """A run's specification as canonical JSON of `core.spec.RunSpec`."""

    json: str


@dataclass(frozen=True)
class RunName:
    """The run that is meant."""

    run: str


@dataclass(frozen=True)
class MemberName:
    """The member that is meant."""

    name: str


@dataclass(frozen=True)
class Everything:
    """No restriction."""


@dataclass(frozen=True)
class ExportRequest:
    """A published model of a run; `version` None for the newest."""

    run: str
    version: int | None


@dataclass(frozen=True)
class ExportHead:
    """What an export will hand over: `digest` is SHA-256 of the file, `model_digest` that of the model."""

    version: int
    size_bytes: int
    digest: str
    model_digest: str


@dataclass(frozen=True)
class JournalRequest:
    """Journal rows with a sequence number above `after`."""

    after: int


@dataclass(frozen=True)
class HealthRequest:
    """The standard health question; the service's name does not matter here."""

    service: str


@dataclass(frozen=True)
class HealthResponse:
    """The standard health answer; 1 means serving."""

    status: int


@dataclass(frozen=True)
class Export:
    """A model on its way: its head, then its bytes in order."""

    head: ExportHead
    pieces: AsyncIterator[bytes]
