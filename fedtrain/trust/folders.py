"""Where keys and certificates lie: the `state` folder of a coordinator and of a member.

    coordinator   identity.json  authority.json  message.key, and the files of `generations`
    member        identity.json  tls.key tls.crt ca.crt      message.key coordinator.pub  (tls.next.key)

A member's `tls.crt` holds its certificate and, behind it, the issuing authorities to be presented with
it; `ca.crt` holds the roots that it trusts, two while one authority follows another. `tls.next.key` lies
there during a renewal (`renewal`).

Keys are written before anybody hears of them and `identity.json` last, so a crash in between leaves
a folder that the same command completes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedtrain.core import canonical
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.trust import generations, private_files
from fedtrain.trust.authority import Authority, server_name
from fedtrain.trust.certificates import key_digest, read_certificate, split_certificates
from fedtrain.trust.enrolment import accept
from fedtrain.trust.identity import Identity, Role, parse_identity
from fedtrain.trust.invites import Invite, check_address
from fedtrain.trust.keys import MessageKey, check_public, load_tls_key, make_csr, make_tls_key_and_csr

_IDENTITY = "identity.json"
CA_CERTIFICATE = "ca.crt"
TLS_KEY, NEXT_TLS_KEY, TLS_CERTIFICATE = "tls.key", "tls.next.key", "tls.crt"
_MESSAGE_KEY = "message.key"
_COORDINATOR_PUBLIC = "coordinator.pub"

_JOIN_FIRST = "is missing: run `fedtrain join INVITE DIR` first, or give the folder that it made"
_INIT_FIRST = generations.INIT_FIRST


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
    """A coordinator's folder, loaded.

    Attributes:
        authority: the newest, which issues if its key is here.
        server_key_pem, server_certificate_pem: of the oldest generation, which everybody trusts; with the
            issuers that are to be presented behind the certificate.
        roots_pem: all roots that are trusted, one behind the other.
        book: which generations there are, and how long certificates live.
    """

    membership: Membership
    authority: Authority
    server_key_pem: bytes = field(repr=False)
    server_certificate_pem: bytes
    message_key: MessageKey
    roots_pem: bytes
    book: generations.Book


@dataclass(frozen=True)
class MemberKeys:
    """The folder of a site, operator, observer or auditor, loaded.

    Attributes:
        certificate_pem: the member's own certificate.
        ca_pem: the roots that the coordinator's certificate may come from.
        intermediates_pem: issuing authorities to be presented behind the certificate.
    """

    membership: Membership
    tls_key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    ca_pem: bytes
    message_key: MessageKey
    coordinator_public: str
    intermediates_pem: bytes = b""

    @property
    def chain_pem(self) -> bytes:
        """What is presented in a handshake."""
        return self.certificate_pem + self.intermediates_pem


@dataclass(frozen=True)
class Application:
    """A newcomer's keys, made and saved, and the signing request for the first of them."""

    tls_key_pem: bytes = field(repr=False)
    csr_pem: bytes
    message_key: MessageKey


def init_coordinator(
    state: Path, consortium: str, address: str, now_ms: int, plan: generations.Plan | None = None
) -> CoordinatorKeys:
    """Makes a new consortium in `state`: authority, server certificate and message key.

    `ConfigError` if the folder holds one already, because a second authority would lock every member
    out; an authority without the rest is what a crash leaves, and is completed.
    """
    plan = plan or generations.Plan()
    check_address(address)
    if (state / _IDENTITY).exists():
        raise ConfigError("holds a consortium already: choose another folder", file=str(state))
    private_files.make_private_folder(state)
    generations.first_generation(state, consortium, plan, now_ms)
    private_files.write_private(state / _MESSAGE_KEY, MessageKey.generate().pem())
    membership = Membership(consortium, "coordinator", Role.COORDINATOR, address, server_name(consortium))
    private_files.write_public(state / _IDENTITY, canonical.encode(membership))
    return load_coordinator(state, plan.passphrase)


def load_coordinator(state: Path, passphrase: bytes = b"") -> CoordinatorKeys:
    """The coordinator's keys from `state`; `ConfigError` says which file is missing, unfit or encrypted."""
    membership = load_consortium(state)
    book = generations.read_book(state)
    authority, _ = generations.load_authority(state, book.newest, passphrase)
    server_key_pem, server_chain_pem = generations.load_server(state, book.oldest)
    return CoordinatorKeys(
        membership=membership,
        authority=authority,
        server_key_pem=server_key_pem,
        server_certificate_pem=server_chain_pem,
        message_key=MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _INIT_FIRST)),
        roots_pem=generations.trusted_roots(state, book),
        book=book,
    )


def load_consortium(state: Path) -> Membership:
    """Whose folder a coordinator's is, for whoever needs no key; `ConfigError` if it is a member's."""
    membership = _load_membership(state, _INIT_FIRST)
    if membership.role is not Role.COORDINATOR:
        raise ConfigError(
            f"belongs to {membership.identity}, not to a coordinator: give the coordinator's folder",
            file=str(state),
        )
    return membership


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
    return begin_application(state, invite.name)


def begin_application(state: Path, name: str) -> Application:
    """Keys in `state`, those that lie there or new ones, and the signing request for the first of them."""
    private_files.make_private_folder(state)
    if (state / TLS_KEY).exists():
        tls_key_pem = private_files.read_private(state / TLS_KEY, _JOIN_FIRST)
        csr_pem = make_csr(tls_key_pem, name)
    else:
        tls_key_pem, csr_pem = make_tls_key_and_csr(name)
        private_files.write_private(state / TLS_KEY, tls_key_pem)
    if (state / _MESSAGE_KEY).exists():
        message_key = MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _JOIN_FIRST))
    else:
        message_key = MessageKey.generate()
        private_files.write_private(state / _MESSAGE_KEY, message_key.pem())
    return Application(tls_key_pem, csr_pem, message_key)


def finish_join(
    state: Path,
    invite: Invite,
    application: Application,
    certificate_pem: bytes,
    coordinator_public: str,
    roots_pem: bytes = b"",
    intermediates_pem: bytes = b"",
) -> MemberKeys:
    """Checks the coordinator's answer against the invite and saves it.

    Args:
        roots_pem: whom to trust from now on; empty for the root in the invite alone.
        intermediates_pem: issuing authorities between the certificate and a root.

    `RemoteError` if the answer is not what the invite promised; nothing is saved then.
    """
    membership = Membership(invite.consortium, invite.name, invite.role, invite.address, invite.server_name)
    roots_pem = roots_pem or invite.ca_pem
    return save_member(state, membership, certificate_pem, coordinator_public, roots_pem, intermediates_pem)


def save_member(
    state: Path,
    membership: Membership,
    certificate_pem: bytes,
    coordinator_public: str,
    roots_pem: bytes,
    intermediates_pem: bytes = b"",
) -> MemberKeys:
    """Saves an identity for the TLS key that lies in `state`; `RemoteError` if it is for another one."""
    tls_key_pem = private_files.read_private(state / TLS_KEY, _JOIN_FIRST)
    accept(membership.identity, tls_key_pem, certificate_pem, roots_pem, intermediates_pem)
    check_public(coordinator_public)
    private_files.write_public(state / CA_CERTIFICATE, roots_pem)
    private_files.write_public(state / TLS_CERTIFICATE, certificate_pem + intermediates_pem)
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
    key_pem, certificate_pem, intermediates_pem = load_certificate(state)
    return MemberKeys(
        membership=membership,
        tls_key_pem=key_pem,
        certificate_pem=certificate_pem,
        intermediates_pem=intermediates_pem,
        ca_pem=private_files.read_public(state / CA_CERTIFICATE, _JOIN_FIRST),
        message_key=MessageKey.from_pem(private_files.read_private(state / _MESSAGE_KEY, _JOIN_FIRST)),
        coordinator_public=public,
    )


def load_certificate(state: Path) -> tuple[bytes, bytes, bytes]:
    """(TLS key, the member's certificate, the intermediates behind it), all PEM.

    The certificate decides which key it is: that of a renewal has its own name until the renewal is
    over. Who renews may be another process, so a set that does not fit is read once more.
    """
    path = state / TLS_CERTIFICATE
    for _ in range(2):
        pem = private_files.read_public(path, _JOIN_FIRST)
        try:
            certificate_pem, *intermediates = split_certificates(pem)
            wanted = read_certificate(certificate_pem).key_digest
        except (RemoteError, ValueError) as error:
            raise ConfigError(f"is damaged ({error}): join again", file=str(path)) from error
        for key in (NEXT_TLS_KEY, TLS_KEY):
            if key == NEXT_TLS_KEY and not (state / key).exists():
                continue
            key_pem = private_files.read_private(state / key, _JOIN_FIRST)
            if key_digest(load_tls_key(key_pem).public_key()) == wanted:
                return key_pem, certificate_pem, b"".join(intermediates)
    raise ConfigError(f"does not belong to the key in {TLS_KEY}: join again", file=str(path))


def _load_membership(state: Path, missing: str) -> Membership:
    path = state / _IDENTITY
    try:
        membership = canonical.decode(Membership, private_files.read_public(path, missing))
        parse_identity(f"fedtrain://{membership.consortium}/{membership.role.value}/{membership.name}")
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): restore it from a backup", file=str(path)) from error
    return membership
