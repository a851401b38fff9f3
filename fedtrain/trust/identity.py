"""The name inside a certificate: who, in which role, of which consortium.

It is a URI, `fedtrain://<consortium>/<role>/<name>`, in the certificate's alternative names. The
form follows SPIFFE (The SPIFFE Identity and Verifiable Identity Document, spiffe.io); the scheme is
our own, because a role in the path means something here and nothing there.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fedtrain.core.orders import NAME
from fedtrain.errors import LocalError, RemoteError

_URI = re.compile(rf"fedtrain://({NAME.pattern})/([a-z]{{1,16}})/({NAME.pattern})")


class Role(enum.StrEnum):
    """What the holder of a certificate is, and so which calls are open to it."""

    COORDINATOR = "coordinator"
    SITE = "site"
    OPERATOR = "operator"
    OBSERVER = "observer"
    AUDITOR = "auditor"
    ENROLLING = "enrolling"  # holds an invite, may do nothing but enrol


MEMBER_ROLES = frozenset({Role.SITE, Role.OPERATOR, Role.OBSERVER, Role.AUDITOR})
"""Roles that an invite can lead to."""


@dataclass(frozen=True)
class Identity:
    """One name in one role in one consortium; `LocalError` if a part is not a valid name."""

    consortium: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        for part in (self.consortium, self.name):
            if NAME.fullmatch(part) is None:
                raise LocalError(f"{part[:80]!r} cannot be part of an identity: it is not a valid name")

    def __str__(self) -> str:
        return f"fedtrain://{self.consortium}/{self.role.value}/{self.name}"


def parse_identity(uri: str) -> Identity:
    """The identity that `uri` spells; `RemoteError` for anything that `str(Identity)` never gives."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise RemoteError(f"{uri[:120]!r} is not an identity (fedtrain://<consortium>/<role>/<name>)")
    consortium, role, name = match.groups()
    try:
        return Identity(consortium, Role(role), name)
    except ValueError as error:
        valid = ", ".join(Role)
        raise RemoteError(f"{uri[:120]!r} names the role {role!r}, which is not one of {valid}") from error
