"""Core values to protobuf bytes and back, by the table of `wire.records`.

`encode` and `decode` are strict both ways: sizes, names, digests, finite numbers and known kinds are
checked, and so are the lengths of all lists. Bytes that do not fit are the sender's fault (`RemoteError`
or the record's own class of it), values that do not fit are ours (`LocalError`).
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError

from fedtrain.core import messages as core
from fedtrain.errors import LocalError, RemoteError
from fedtrain.wire.records import FROM_PEER, RECORDS, TO_PEER
from fedtrain.wire.shapes import Count, Record, Unfit
from fedtrain.wire.v1 import session_pb2

T = TypeVar("T")

FROM_PEER_BYTES_MAX = 1 << 20
"""A heartbeat of 1024 orders has half of it. Protobuf takes up to twelve times a message's bytes to read."""

_BODIES: dict[str, Record[Any]] = {**FROM_PEER, **TO_PEER}
_BODY_NAMES = {record.kind: name for name, record in _BODIES.items()}


def encode(value: object) -> bytes:
    """Protobuf bytes of any value in `RECORDS`; `LocalError` if it breaks its own bounds."""
    return cast(bytes, write_message(value).SerializeToString())


def decode(kind: type[T], data: bytes) -> T:
    """The value of type `kind` from bytes of the other side; `RemoteError` if they do not fit."""
    return read_message(kind, parse(RECORDS[kind].message, data))


def encode_from_peer(message: core.FromPeer) -> bytes:
    """Envelope of a site's message."""
    return session_pb2.FromPeer(
        **{_body_name(message, FROM_PEER): write_message(message)}
    ).SerializeToString()


def decode_from_peer(data: bytes) -> core.FromPeer:
    """A site's message; `RemoteError` if it is too long or has no body that this version knows."""
    if len(data) > FROM_PEER_BYTES_MAX:
        raise RemoteError(
            f"a message of {len(data)} bytes came in a session, {FROM_PEER_BYTES_MAX} are allowed"
        )
    return cast(core.FromPeer, _read_body(parse(session_pb2.FromPeer, data), FROM_PEER))


def encode_to_peer(epoch: int, message: core.ToPeer) -> bytes:
    """Envelope of the coordinator's message with its epoch."""
    try:
        Count().hold(epoch, "epoch")
    except Unfit as error:
        raise LocalError(f"a message was not sent: {error}") from error
    body = {_body_name(message, TO_PEER): write_message(message)}
    return session_pb2.ToPeer(epoch=epoch, **body).SerializeToString()


def decode_to_peer(data: bytes) -> tuple[int, core.ToPeer]:
    """(epoch, the coordinator's message); `RemoteError` if it does not fit."""
    envelope = parse(session_pb2.ToPeer, data)
    try:
        Count().hold(envelope.epoch, "epoch")
    except Unfit as error:
        raise RemoteError(f"the other side sent a message that does not fit: {error}") from error
    return envelope.epoch, cast(core.ToPeer, _read_body(envelope, TO_PEER))


def parse(message: type[Any], data: bytes) -> Any:
    """The protobuf message of hostile bytes; `RemoteError` if it is none."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise RemoteError(
            f"{len(data)} bytes that should be a {message.__name__} are not: the other side may run "
            "another version"
        ) from error


def read_message(kind: type[T], message: Any) -> T:
    """The value of an already parsed message of the other side, held to the bounds of its record."""
    record = RECORDS[kind]
    try:
        return cast(T, record.read(message, kind.__name__))
    except Unfit as error:
        raise record.fault(f"the other side sent a message that does not fit: {error}") from error


def write_message(value: object) -> Any:
    """The protobuf message of a value in `RECORDS`; `LocalError` if it breaks its own bounds."""
    record = RECORDS.get(type(value))
    if record is None:
        raise LocalError(f"{type(value).__name__} is not a message of the protocol")
    try:
        return record.write(value, type(value).__name__)
    except Unfit as error:
        raise LocalError(f"a message was not sent: {error}") from error


def _body_name(message: object, table: dict[str, Record[Any]]) -> str:
    name = _BODY_NAMES.get(type(message), "")
    if name not in table:
        raise LocalError(f"{type(message).__name__} does not travel in this direction")
    return name


def _read_body(envelope: Any, table: dict[str, Record[Any]]) -> Any:
    name = envelope.WhichOneof("body")
    if name is None:
        raise RemoteError("the other side sent a message without a body that this version knows")
    return read_message(table[name].kind, getattr(envelope, name))
