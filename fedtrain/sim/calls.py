"""What travels between a site and a coordinator: a session's messages, and calls with their answers."""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core import messages as msg


@dataclass(frozen=True)
class Envelope:
    """A message of a session.

    Attributes:
        epoch: the coordinator's own, or the highest that the site has seen.
        proven: from a site: whether it can show the coordinator's signature under that epoch.
    """

    session: str
    epoch: int
    message: msg.FromPeer | msg.ToPeer
    proven: bool = True


@dataclass(frozen=True)
class Fetch:
    """A site asks for a blob on the way to a version, from `offset` on."""

    digest: str
    offset: int


@dataclass(frozen=True)
class Part:
    """Bytes of a blob of `size_bytes`, from `offset` on."""

    digest: str
    size_bytes: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Piece:
    """Bytes of an offered blob, from `offset` on."""

    order: str
    digest: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Refusal:
    """A call was answered with an error; `again`: the same may be tried again later."""

    reason: str
    again: bool = False


@dataclass(frozen=True)
class Request:
    """One call of a site; `epoch` and `proven` as in `Envelope`."""

    call: int
    epoch: int
    body: Fetch | msg.Offer | Piece | msg.Commit
    proven: bool = True


@dataclass(frozen=True)
class Response:
    """The answer to a call."""

    call: int
    epoch: int
    body: Part | msg.Missing | msg.Receipt | Refusal


def data_bytes(body: Envelope | Request | Response) -> int:
    """Bytes of tensors in it: what takes time on a slow link. 0 for mere words."""
    inner = None if isinstance(body, Envelope) else body.body
    return len(inner.data) if isinstance(inner, (Piece, Part)) else 0
