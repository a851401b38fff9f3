"""Which protocol a site and a coordinator speak with each other.

Both say their own version, (major, minor), in hello and welcome, and both hold the other's against the
same rule: equal majors, and minors at most one apart. The smaller minor is spoken. So a consortium is
brought up to date one process at a time, in any order, as long as nobody skips a minor.

What a minor may do and what becomes of fields that only one side knows: docs/decisions/0009.
"""

from __future__ import annotations

from fedtrain.core.messages import PROTOCOL_VERSION
from fedtrain.errors import RefusedError
from fedtrain.wire.status import printable

Version = tuple[int, int]

FEATURES: dict[Version, tuple[str, ...]] = {
    (1, 1): (
        "signed epochs on every call",
        "refusals that say when to come back",
        "slower signs of life of idle sites",
        "renewed certificates",
        "agreements that name the contract, declarations, withdrawals and the roster",
    ),
}
"""Version -> what it added to 1.0. A side that does not know a thing never meets it as a signed field, only
as metadata that gRPC lets it ignore. New kinds of messages are sent to a side that speaks their minor."""


def negotiate(theirs: Version, release: str, side: str, our_release: str) -> Version:
    """The version that both speak.

    Args:
        theirs: the other side's version of the protocol.
        release: the fedtrain that runs there.
        side: what the other side is: `site` or `coordinator`.
        our_release: the fedtrain that runs here.

    Raises `RefusedError`, with a sentence for both sides, if the two are too far apart.
    """
    ours = PROTOCOL_VERSION
    if theirs[0] == ours[0] and abs(theirs[1] - ours[1]) <= 1:
        return min(ours, theirs)
    us, release = ("coordinator" if side == "site" else "site"), printable(release)
    older, newest = (side, our_release) if theirs < ours else (us, release)
    raise RefusedError(
        f"the {side} speaks protocol {text(theirs)} (fedtrain {release}), the {us} {text(ours)} (fedtrain "
        f"{our_release}), too far apart to talk: install fedtrain {newest}, or one with the minor before "
        f"it, at the {older}"
    )


def text(version: Version) -> str:
    """`1.1`"""
    return ".".join(map(str, version))


def unspoken(version: Version) -> tuple[str, ...]:
    """What we know and leave out in a conversation of this version."""
    return tuple(name for added, names in FEATURES.items() if added > version for name in names)
