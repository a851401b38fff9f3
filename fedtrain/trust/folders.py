"""Where keys and certificates lie: the `state` folder of a coordinator and of a member.

    coordinator   identity.json  ca.key  ca.crt  server.key  server.crt  message.key
    member        identity.json  tls.key tls.crt ca.crt      message.key coordinator.pub

Keys are written before anybody hears of them and `identity.json` last, so a crash in between leaves
a folder that the same command completes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedtrain.core import canonical
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.trust import private_files
from fedtrain.trust.authority import Authority, create_authority, server_name
from fedtrain.trust.enrolment import accept
from fedtrain.trust.identity import Identity, Role, parse_identity
from fedtrain.trust.invites import Invite, check_address
from fedtrain.trust.keys import MessageKey, check_public, make_csr, make_tls_key_and_csr

_IDENTITY = "identity.json"
_CA_KEY, _CA_CERTIFICATE = "ca.key", "ca.crt"
_SERVER_KEY, _SERVER_CERTIFICATE = "server.key", "server.crt"
_TLS_KEY, _TLS_CERTIFICATE = "tls.key", "tls.crt"
_MESSAGE_KEY = "message.key"
_COORDINATOR_PUBLIC = "coordinator.pub"

_JOIN_FIRST = "is missing: run `fedtrain join INVITE DIR` first, or give the folder that it made"
_INIT_FIRST = "is missing: run `fedtrain coordinator init DIR` first, or give the folder that it made"


@dataclass(frozen=True)
class Membership:
    """`identity.json`: whose folder this is, and where the coordinator is found.

    Attributes:
        address: `HOST:PORT` of the coordinator, as invites name it.
        server_name: the DNS name that the coordinator's certificate must carry.
    """

    consortium: str
    name: str
    role: Role
    address: str
    server_name: str

    @property
    def identity(self) -> Identity:
        return Identity(self.consortium, self.role, self.name)


@dataclass(frozen=True)
class CoordinatorKeys:
    """A coordinator's folder, loaded."""

    membership: Membership
    authority: Authority
    server_key_pem: bytes = field(repr=False)
    server_certificate_pem: bytes
    message_key: MessageKey


@dataclass(frozen=True)
class MemberKeys:
    """The folder of a site, operator, observer or auditor, loaded."""

    membership: Membership
    tls_key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    ca_pem: bytes
    message_key: MessageKey
    coordinator_public: str


@dataclass(frozen=True)
class Application:
    """A newcomer's keys, made and saved, and the signing request for the first of them."""

    tls_key_pem: bytes = field(repr=False)
    csr_pem: bytes
    message_key: MessageKey


def init_coordinator(state: Path, consortium: str, address: str, now_ms: int) -> CoordinatorKeys:
    """Makes a new consortium in `state`: authority, server certificate and message key.

    `ConfigError` if the folder holds one already, because a second authority would lock every member
    out; an authority without the rest is what a crash leaves, and is completed.
    """
    check_address(address)
    if (state / _IDENTITY).exists():
        raise ConfigError("holds a consortium already: choose another folder", file=str(state))
    private_files.make_private_folder(state)
    if (state / _CA_CERTIFICATE).exists():
        authority = _load_authority(state)
        if authority.consortium != consortium:
            raise ConfigError(
                f"holds the authority of {authority.consortium}: choose another folder", file=str(state)
            )
    else:
        ca_key_pem, ca_pem = create_authority(consortium, now_ms)
        authority = Authority(ca_key_pem, ca_pem)
        private_files.write_private(state / _CA_KEY, ca_key_pem)
        private_files.write_public(state / _CA_CERTIFICATE, ca_pem)
    server_key_pem, server_certificate_pem = authority.issue_server(now_ms)
    private_files.write_private(state / _SERVER_KEY, server_key_pem)
    private_files.write_public(state / _SERVER_CERTIFICATE, server_certificate_pem)
    private_files.write_private(state / _MESSAGE_KEY, MessageKey.generate().pem())
    membership = Membership(consortium, "coordinator", Role.COORDINATOR, address, server_name(consortium))
    private_files.write_public(state / _IDENTITY, canonical.encode(membership))
    return load_coordinator(state)


def load_coordinator(state: Path) -> CoordinatorKeys:
    """The coordinator's keys from `state`; `ConfigError` says which file is missing or unfit."""
    membership = _load_membership(state, _INIT_FIRST)
    if membership.role is not Role.COORDINATOR:
        raise ConfigError(
            f"belongs to {membership.identity}, not to a coordinator: give the coordinator's folder",
            file=str(state),
        )
    return CoordinatorKeys(
        membership=membership,
        authority=_load_authority(state),
        server_key_pem=private_files.read_private(state / _SERVER_KEY, _INIT_FIRST),
        server_certificate_pem=private_files.read_public(state / _SERVER_CERTIFICATE, _INIT_FIRST),
        message_key=MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _INIT_FIRST)),
    )


def move_coordinator(state: Path, address: str) -> None:
    """From now on the folder's owner, coordinator or member, names this address.

    `ConfigError` if `address` is not `HOST:PORT`.
    """
    check_address(address)
    membership = replace(_load_membership(state, _INIT_FIRST), address=address)
    private_files.write_public(state / _IDENTITY, canonical.encode(membership))


def begin_join(state: Path, invite: Invite) -> Application:
    """Makes and saves the newcomer's keys, before the coordinator hears of them.

    Keys that lie there already are used again: after a lost reply the request must name the same key,
    and a member whose certificate expired stays the same member. `ConfigError` if the folder belongs
    to somebody else.
    """
    if (state / _IDENTITY).exists():
        owner = _load_membership(state, _JOIN_FIRST).identity
        if owner != Identity(invite.consortium, invite.role, invite.name):
            raise ConfigError(f"belongs to {owner} already: join into another folder", file=str(state))
    private_files.make_private_folder(state)
    if (state / _TLS_KEY).exists():
        tls_key_pem = private_files.read_private(state / _TLS_KEY, _JOIN_FIRST)
        csr_pem = make_csr(tls_key_pem, invite.name)
    else:
        tls_key_pem, csr_pem = make_tls_key_and_csr(invite.name)
        private_files.write_private(state / _TLS_KEY, tls_key_pem)
    if (state / _MESSAGE_KEY).exists():
        message_key = MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _JOIN_FIRST))
    else:
        message_key = MessageKey.generate()
        private_files.write_private(state / _MESSAGE_KEY, message_key.pem())
    return Application(tls_key_pem, csr_pem, message_key)


def finish_join(
    state: Path, invite: Invite, application: Application, certificate_pem: bytes, coordinator_public: str
) -> MemberKeys:
    """Checks the coordinator's answer against the invite and saves it.

    `RemoteError` if the answer is not what the invite promised; nothing is saved then.
    """
    accept(invite, application.tls_key_pem, certificate_pem)
    check_public(coordinator_public)
    membership = Membership(invite.consortium, invite.name, invite.role, invite.address, invite.server_name)
    private_files.write_public(state / _TLS_CERTIFICATE, certificate_pem)
    private_files.write_public(state / _CA_CERTIFICATE, invite.ca_pem)
    private_files.write_public(state / _COORDINATOR_PUBLIC, coordinator_public.encode() + b"\n")
    private_files.write_public(state / _IDENTITY, canonical.encode(membership))
    return load_member(state)


def load_member(state: Path) -> MemberKeys:
    """A member's keys from `state`; `ConfigError` says which file is missing or unfit."""
    membership = _load_membership(state, _JOIN_FIRST)
    if membership.role is Role.COORDINATOR:
        raise ConfigError(
            "is the coordinator's folder, not a member's: give the folder of a site or an operator",
            file=str(state),
        )
    public_file = state / _COORDINATOR_PUBLIC
    public = private_files.read_public(public_file, _JOIN_FIRST).decode("ascii", "replace").strip()
    try:
        check_public(public)
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): join again", file=str(public_file)) from error
    return MemberKeys(
        membership=membership,
        tls_key_pem=private_files.read_private(state / _TLS_KEY, _JOIN_FIRST),
        certificate_pem=private_files.read_public(state / _TLS_CERTIFICATE, _JOIN_FIRST),
        ca_pem=private_files.read_public(state / _CA_CERTIFICATE, _JOIN_FIRST),
        message_key=MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _JOIN_FIRST)),
        coordinator_public=public,
    )


def _load_authority(state: Path) -> Authority:
    return Authority(
        private_files.read_private(state / _CA_KEY, _INIT_FIRST),
        private_files.read_public(state / _CA_CERTIFICATE, _INIT_FIRST),
    )


def _load_membership(state: Path, missing: str) -> Membership:
    path = state / _IDENTITY
    try:
        membership = canonical.decode(Membership, private_files.read_public(path, missing))
        parse_identity(f"fedtrain://{membership.consortium}/{membership.role.value}/{membership.name}")
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): restore it from a backup", file=str(path)) from error
    return membership
