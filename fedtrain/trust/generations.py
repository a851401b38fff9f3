"""The authorities of one consortium, on the coordinator's disk.

A *generation* is one authority and the server certificate made from it. There is one, and while the next
authority replaces it there are two:

    ca.crt   [issuer.crt]  [ca.key or issuer.key]  server.key  server.crt        generation 1
    ca-2.crt [issuer-2.crt] ...                                                    generation 2
    authority.json   which generations are trusted, and how long certificates live

Keys are written before the certificates that name them and `server.crt` last, so a generation whose
server certificate is there is whole. `authority.json` alone says which ones count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedtrain.core import canonical
from fedtrain.errors import ConfigError, RemoteError, StorageError
from fedtrain.trust import private_files
from fedtrain.trust.authority import (
    PERSON_LIFETIME_MS,
    SITE_LIFETIME_MS,
    Authority,
    create_authority,
)
from fedtrain.trust.identity import Role
from fedtrain.trust.keys import is_sealed, open_private, seal_private

_BOOK = "authority.json"
INIT_FIRST = "is missing: run `fedtrain coordinator init DIR` first, or give the folder that it made"

LIFETIME_MIN_MS = 10_000
"""Certificates renew at half of their life; below this a slow link would not get there in time."""


@dataclass(frozen=True)
class Book:
    """`authority.json`.

    Attributes:
        oldest: generation whose server certificate is presented; it is trusted.
        newest: generation that issues; it is trusted, too.
        site_ms, person_ms: life of the certificates of sites, and of operators, observers and auditors.
    """

    oldest: int = 1
    newest: int = 1
    site_ms: int = SITE_LIFETIME_MS
    person_ms: int = PERSON_LIFETIME_MS

    def lifetime_ms(self, role: Role) -> int:
        """How long a member's certificate lives."""
        return self.site_ms if role is Role.SITE else self.person_ms


@dataclass(frozen=True)
class Generation:
    """An authority and what the coordinator presents in its name."""

    authority: Authority
    key_pem: bytes = field(repr=False)
    server_key_pem: bytes = field(repr=False)
    server_chain_pem: bytes


@dataclass(frozen=True)
class Plan:
    """How a new consortium's certificates are to be made.

    Attributes:
        site_ms, person_ms: as in `Book`.
        passphrase: encrypts keys that issue; empty for none.
        offline: folder for the root, which is then carried away; None keeps the root in the coordinator's.
        issues: whether the coordinator may issue; without, every certificate is signed by the root.
    """

    site_ms: int = SITE_LIFETIME_MS
    person_ms: int = PERSON_LIFETIME_MS
    passphrase: bytes = field(default=b"", repr=False)
    offline: Path | None = None
    issues: bool = True


def check_lifetime(lifetime_ms: int) -> int:
    """`lifetime_ms` itself if certificates can live so long; else `ConfigError`."""
    if not LIFETIME_MIN_MS <= lifetime_ms <= 366 * 86_400_000:
        raise ConfigError(f"a certificate cannot live for {lifetime_ms / 1000:g} s: use 10s to 366d")
    return lifetime_ms


def first_generation(state: Path, consortium: str, plan: Plan, now_ms: int) -> Generation:
    """Makes and saves generation 1; a root without the rest, which a crash leaves, is completed."""
    if plan.offline is not None:
        root = make_offline_root(plan.offline, consortium, now_ms, plan.passphrase)
        made = below(root, now_ms, issues=plan.issues)
    elif not plan.issues:
        raise ConfigError("without an issuer the root has to lie elsewhere: give --offline-ca CADIR, too")
    elif has_root(state, 1):
        authority, key_pem = load_authority(state, 1, plan.passphrase)
        if authority.consortium != consortium:
            raise ConfigError(
                f"holds the authority of {authority.consortium}: choose another folder", file=str(state)
            )
        made = serve_under(authority, key_pem, now_ms)
    else:
        made = new_generation(consortium, now_ms)
    save_generation(state, 1, made, plan.passphrase)
    write_book(state, Book(site_ms=check_lifetime(plan.site_ms), person_ms=check_lifetime(plan.person_ms)))
    return made


def new_generation(consortium: str, now_ms: int) -> Generation:
    """A new root that issues itself."""
    key_pem, certificate_pem = create_authority(consortium, now_ms)
    return serve_under(Authority(key_pem, certificate_pem), key_pem, now_ms)


def below(root: Authority, now_ms: int, *, issues: bool) -> Generation:
    """What the coordinator gets of a root whose key is kept elsewhere: an issuer, or nothing that issues."""
    if issues:
        key_pem, issuer_pem = root.issue_issuer(now_ms)
        return serve_under(Authority(key_pem, root.certificate_pem, issuer_pem), key_pem, now_ms)
    server_key_pem, chain_pem = root.issue_server(now_ms)
    return Generation(Authority(b"", root.certificate_pem), b"", server_key_pem, chain_pem)


def serve_under(authority: Authority, key_pem: bytes, now_ms: int) -> Generation:
    """The generation of an authority that issues, with a new server certificate."""
    server_key_pem, chain_pem = authority.issue_server(now_ms)
    return Generation(authority, key_pem, server_key_pem, chain_pem)


def read_book(state: Path) -> Book:
    """Which generations count; a folder without the file has one. `ConfigError` if it is damaged."""
    path = state / _BOOK
    if not path.exists():
        return Book()
    try:
        book = canonical.decode(Book, private_files.read_public(path, INIT_FIRST))
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): restore it from a backup", file=str(path)) from error
    if not 1 <= book.oldest <= book.newest:
        raise ConfigError("is damaged: restore it from a backup", file=str(path))
    return book


def write_book(state: Path, book: Book) -> None:
    """From now on these generations count."""
    private_files.write_public(state / _BOOK, canonical.encode(book))


def has_generation(state: Path, number: int) -> bool:
    """Whether the generation lies there whole."""
    return _path(state, "server", number, "crt").exists()


def has_root(state: Path, number: int) -> bool:
    """Whether at least its root is there, as a crash may leave it."""
    return _path(state, "ca", number, "crt").exists()


def save_generation(state: Path, number: int, generation: Generation, passphrase: bytes = b"") -> None:
    """Writes the generation; the issuing key is encrypted if there is a passphrase."""
    authority = generation.authority
    if generation.key_pem:
        sealed = seal_private(generation.key_pem, passphrase)
        name = "issuer" if authority.intermediates_pem else "ca"
        private_files.write_private(_path(state, name, number, "key"), sealed)
    if authority.intermediates_pem:
        private_files.write_public(_path(state, "issuer", number, "crt"), authority.intermediates_pem)
    private_files.write_public(_path(state, "ca", number, "crt"), authority.certificate_pem)
    private_files.write_private(_path(state, "server", number, "key"), generation.server_key_pem)
    private_files.write_public(_path(state, "server", number, "crt"), generation.server_chain_pem)


def load_server(state: Path, number: int) -> tuple[bytes, bytes]:
    """(key PEM, PEM to be presented) of the generation's server certificate."""
    return (
        private_files.read_private(_path(state, "server", number, "key"), INIT_FIRST),
        private_files.read_public(_path(state, "server", number, "crt"), INIT_FIRST),
    )


def load_authority(state: Path, number: int, passphrase: bytes) -> tuple[Authority, bytes]:
    """The authority and its issuing key (PEM, in the clear; empty if it is kept elsewhere)."""
    known = load_certificates(state, number)
    key_file = _path(state, "issuer" if known.intermediates_pem else "ca", number, "key")
    key_pem = _open_key(key_file, passphrase) if key_file.exists() else b""
    return Authority(key_pem, known.certificate_pem, known.intermediates_pem), key_pem


def load_certificates(state: Path, number: int) -> Authority:
    """The authority without its key: what it issued can be recognised."""
    certificate_pem = private_files.read_public(_path(state, "ca", number, "crt"), INIT_FIRST)
    issuer = _path(state, "issuer", number, "crt")
    return Authority(b"", certificate_pem, private_files.read_public(issuer, "") if issuer.exists() else b"")


def trusted_roots(state: Path, book: Book) -> bytes:
    """The roots of all generations that count, newest first."""
    return b"".join(
        private_files.read_public(_path(state, "ca", number, "crt"), INIT_FIRST)
        for number in range(book.newest, book.oldest - 1, -1)
    )


def drop_keys(state: Path, below_number: int) -> None:
    """Forgets the keys of generations before `below_number`; their certificates stay as evidence."""
    for number in range(1, below_number):
        for name in ("ca", "issuer", "server"):
            path = _path(state, name, number, "key")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"cannot delete {path} ({error.strerror}): check its owner") from error


# -- a root whose key is kept elsewhere ------------------------------------------------------------


def make_offline_root(folder: Path, consortium: str, now_ms: int, passphrase: bytes = b"") -> Authority:
    """A root in a folder of its own, to be carried away. One that lies there already is completed by
    nobody: `ConfigError`."""
    if _path(folder, "ca", 1, "crt").exists():
        raise ConfigError("holds an authority already: choose another folder", file=str(folder))
    private_files.make_private_folder(folder)
    key_pem, certificate_pem = create_authority(consortium, now_ms)
    private_files.write_private(_path(folder, "ca", 1, "key"), seal_private(key_pem, passphrase))
    private_files.write_public(_path(folder, "ca", 1, "crt"), certificate_pem)
    return Authority(key_pem, certificate_pem)


def prepare_next(state: Path, folder: Path, passphrase: bytes, now_ms: int) -> None:
    """The next generation of a coordinator, below a new root in `folder`; its roll-over then takes it up.

    The coordinator issues under the new root if it does now.
    """
    book = read_book(state)
    if has_generation(state, book.newest + 1):
        raise ConfigError(
            "the next authority is prepared already: run `fedtrain coordinator roll-over DIR` to take it up",
            file=str(state),
        )
    known, key_pem = load_authority(state, book.newest, passphrase)
    root = make_offline_root(folder, known.consortium, now_ms, passphrase)
    save_generation(state, book.newest + 1, below(root, now_ms, issues=bool(key_pem)), passphrase)


def is_encrypted(state: Path) -> bool:
    """Whether the key that issues is encrypted, so that a passphrase is needed."""
    number = read_book(state).newest
    files = (_path(state, name, number, "key") for name in ("issuer", "ca"))
    return any(path.exists() and is_sealed(private_files.read_private(path, INIT_FIRST)) for path in files)


def load_offline_root(folder: Path, passphrase: bytes = b"") -> Authority:
    """The root from its folder, with its key; `ConfigError` says what is missing."""
    missing = "is missing: give the folder that `coordinator init --offline-ca` made"
    certificate_pem = private_files.read_public(_path(folder, "ca", 1, "crt"), missing)
    private_files.read_private(_path(folder, "ca", 1, "key"), missing)
    return Authority(_open_key(_path(folder, "ca", 1, "key"), passphrase), certificate_pem)


def _open_key(path: Path, passphrase: bytes) -> bytes:
    try:
        return open_private(private_files.read_private(path, INIT_FIRST), passphrase)
    except ConfigError as error:
        if error.file:
            raise
        raise ConfigError(str(error), file=str(path)) from error


def _path(folder: Path, name: str, number: int, suffix: str) -> Path:
    return folder / (f"{name}.{suffix}" if number == 1 else f"{name}-{number}.{suffix}")
