"""Certificates that are signed by hand, where the root's key is kept: no coordinator takes part.

    request    at the newcomer: name, role, signing request, public message key, signed with that key
    admission  made where the root is: the certificate, and all that a newcomer needs of its coordinator

Both are one JSON file each, and neither is a secret. CADIR/consortium.json tells the signer where the
coordinator is. Such a certificate lives for a year, because nothing renews it by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fedtrain.core import canonical
from fedtrain.core.orders import NAME
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.trust import private_files
from fedtrain.trust.authority import OFFLINE_LIFETIME_MS, Authority
from fedtrain.trust.certificates import check_chain
from fedtrain.trust.folders import MemberKeys, Membership, begin_application, save_member
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.keys import MessageKey, check_public, verify

T = TypeVar("T")

_KIND = "certificate-request"
_CONSORTIUM = "consortium.json"


@dataclass(frozen=True)
class Request:
    """What a newcomer asks for. `signature` (hex) is its message key's over the rest."""

    name: str
    role: str
    organisation: str
    csr_pem: str
    message_key: str
    signature: str = ""


@dataclass(frozen=True)
class Consortium:
    """Where the coordinator is and by which key its statements are known."""

    membership: Membership
    message_key: str


@dataclass(frozen=True)
class SignedAdmission:
    """What a newcomer gets: its certificate under the root, and its coordinator."""

    membership: Membership
    certificate_pem: str
    root_pem: str
    coordinator_key: str
    message_key: str
    organisation: str


def make_request(state: Path, name: str, role: str, organisation: str) -> Request:
    """Keys in `state`, made now or used again, and the request for them; `ConfigError` for a bad name."""
    if NAME.fullmatch(name) is None or role not in MEMBER_ROLES:
        raise ConfigError(
            f"{name[:80]!r} as {role[:20]!r} cannot be: a name is 1 to 63 of a-z, 0-9 and inner hyphens, a "
            f"role one of {', '.join(sorted(MEMBER_ROLES))}"
        )
    application = begin_application(state, name)
    key = application.message_key
    request = Request(name, role, organisation, application.csr_pem.decode(), key.public)
    return replace(request, signature=key.sign(_KIND, canonical.encode(request)).hex())


def read_request_file(path: Path) -> Request:
    """The request in a file, held against its signature; `ConfigError` if it is damaged or made up."""
    request = _read(path, Request)
    try:
        signature = bytes.fromhex(request.signature)
        verify(request.message_key, _KIND, canonical.encode(replace(request, signature="")), signature)
    except (RemoteError, ValueError) as error:
        raise ConfigError(f"is damaged ({error}): ask for a new request", file=str(path)) from error
    if request.role not in MEMBER_ROLES or NAME.fullmatch(request.name) is None:
        raise ConfigError("asks for a name or a role that cannot be", file=str(path))
    return request


def note_consortium(folder: Path, membership: Membership, message_public: str) -> None:
    """Beside an offline root: whose it is, for admissions."""
    facts = Consortium(membership, message_public)
    private_files.write_public(folder / _CONSORTIUM, canonical.encode(facts))


def sign_request(root: Authority, folder: Path, request: Request, now_ms: int) -> SignedAdmission:
    """The newcomer's certificate under the root whose folder this is."""
    known = _read(folder / _CONSORTIUM, Consortium)
    identity = Identity(root.consortium, Role(request.role), request.name)
    pem = root.issue_leaf(request.csr_pem.encode(), identity, now_ms, OFFLINE_LIFETIME_MS)
    return SignedAdmission(
        membership=replace(known.membership, name=request.name, role=identity.role),
        certificate_pem=pem.decode(),
        root_pem=root.certificate_pem.decode(),
        coordinator_key=known.message_key,
        message_key=request.message_key,
        organisation=request.organisation,
    )


def read_admission(path: Path) -> SignedAdmission:
    """The admission in a file; `ConfigError` if it is none."""
    admission = _read(path, SignedAdmission)
    try:
        check_public(admission.message_key)
        check_chain(admission.certificate_pem.encode(), admission.root_pem.encode())
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): have the request signed again", file=str(path)) from error
    return admission


def take_admission(state: Path, admission: SignedAdmission) -> MemberKeys:
    """At the newcomer: save the identity, if it is for the keys that were made here.

    `RemoteError` if it is for another name or key.
    """
    pem = private_files.read_private(state / "message.key", "is missing: run `fedtrain join --request DIR`")
    key = MessageKey.from_pem(pem)
    if key.public != admission.message_key:
        raise ConfigError(
            "holds other keys than the admission is for: use the folder that made the request",
            file=str(state),
        )
    return save_member(
        state,
        admission.membership,
        admission.certificate_pem.encode(),
        admission.coordinator_key,
        admission.root_pem.encode(),
    )


def write_file(path: Path, what: Request | SignedAdmission) -> None:
    """One JSON file, whole or not at all."""
    private_files.write_public(path, canonical.encode(what))


def _read(path: Path, kind: type[T]) -> T:
    try:
        return canonical.decode(kind, private_files.read_public(path, "is missing: check the path"))
    except RemoteError as error:
        raise ConfigError(f"is no {kind.__name__.lower()} of fedtrain's ({error})", file=str(path)) from error
