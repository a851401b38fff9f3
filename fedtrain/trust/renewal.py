"""A member's next certificate, at the member: made for a new key, and saved so that no crash hurts.

    tls.next.key    the new key, saved before anybody hears of it
    ca.crt          the roots to trust from now on
    tls.crt         the new certificate: from its rename on, the new key is the one that counts
    tls.key         the new key, when all is done

A crash behind any of these steps leaves a folder that works: with the old certificate, whose root is
trusted for as long as it is in use, or with the new one, whose key `folders.load_certificate` finds. A lost
reply is harmless, because the next try asks with the same key and gets the same certificate.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedtrain.errors import StorageError
from fedtrain.trust import private_files
from fedtrain.trust.enrolment import accept
from fedtrain.trust.folders import (
    CA_CERTIFICATE,
    NEXT_TLS_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    MemberKeys,
    load_member,
)
from fedtrain.trust.keys import make_csr, make_tls_key_and_csr

_LOCK = "renewal.lock"


@dataclass(frozen=True)
class Renewal:
    """A member's next TLS key, made and saved, and the signing request for it."""

    tls_key_pem: bytes = field(repr=False)
    csr_pem: bytes


@contextlib.contextmanager
def renewal_lock(state: Path) -> Iterator[bool]:
    """Whether nobody else renews in this folder: of two at once, the later would lock the earlier out.

    Raises `StorageError` if the folder cannot be written.
    """
    try:
        descriptor = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot renew the certificate in {state} ({error.strerror}): check owner and mode"
        ) from error
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def begin_renewal(state: Path, keys: MemberKeys) -> Renewal:
    """Make and save the next key, or take up the one that an interrupted renewal has left."""
    name = keys.membership.name
    path = state / NEXT_TLS_KEY
    if path.exists():
        left = private_files.read_private(path, "is gone: try again")
        if left != keys.tls_key_pem:
            return Renewal(left, make_csr(left, name))
        _settle(state)
    key_pem, csr_pem = make_tls_key_and_csr(name)
    private_files.write_private(path, key_pem)
    return Renewal(key_pem, csr_pem)


def finish_renewal(
    state: Path,
    keys: MemberKeys,
    renewal: Renewal,
    certificate_pem: bytes,
    roots_pem: bytes,
    intermediates_pem: bytes = b"",
) -> MemberKeys:
    """Check the coordinator's answer and save it; the folder then holds what is returned.

    Args:
        keys: as the folder holds them until now.
        roots_pem: whom to trust from now on; empty for those of before.

    `RemoteError` if the certificate is not for this member and this key; nothing changes then.
    """
    roots_pem = roots_pem or keys.ca_pem
    accept(keys.membership.identity, renewal.tls_key_pem, certificate_pem, roots_pem, intermediates_pem)
    private_files.write_public(state / CA_CERTIFICATE, roots_pem)
    private_files.write_public(state / TLS_CERTIFICATE, certificate_pem + intermediates_pem)
    _settle(state)
    return load_member(state)


def _settle(state: Path) -> None:
    """The new key takes the old one's name."""
    try:
        (state / NEXT_TLS_KEY).replace(state / TLS_KEY)
    except OSError as error:
        raise StorageError(f"cannot rename the new key in {state} ({error.strerror})") from error


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
