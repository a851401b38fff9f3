"""Frozen dataclasses to canonical JSON and back: one spelling for every value.

The journal hashes these bytes, receipts sign them and simulations compare them, so equal values
must have equal bytes: sorted keys, no spaces, no NaN. Reading is strict, because a document may
come from another process: unknown or missing fields and wrong types are a `RemoteError`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedtrain.errors import LocalError, RemoteError

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Canonical JSON bytes of a dataclass, mapping, tuple, enum or plain value."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical bytes, hex: one name for one value."""
    return hashlib.sha256(encode(value)).hexdigest()


def to_plain(value: Any) -> Any:
    """The value as dicts, lists and scalars; raises `LocalError` on a type without a spelling."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LocalError(f"a canonical document cannot hold {value}")
        return value
    if dataclasses.is_dataclass(kind):
        return {name: to_plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    raise LocalError(f"no canonical form for {kind.__name__}")


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


def decode(kind: type[T], data: bytes | str) -> T:
    """The dataclass `kind` from canonical (or any) JSON; `RemoteError` if it does not fit."""
    try:
        plain = _parse(data if isinstance(data, str) else data.decode())
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{kind.__name__}: not valid JSON ({error})") from error
    return from_plain(kind, plain)


def from_plain(kind: type[T], plain: Any) -> T:
    """The dataclass `kind` from parsed JSON, field by field, with types checked."""
    try:
        return typing.cast(T, _reader(typing.cast(Any, kind))(plain))
    except _Misfit as error:
        raise RemoteError(f"{kind.__name__}{''.join(reversed(error.path))}: {error.reason}") from error


def shape(kind: type) -> str:
    """SHA-256, in hex, of what a dataclass and all those inside it look like: names, types, defaults.

    Documents of equal shape can be read by each other's code; what a field *means* is not in it.
    """
    told: dict[str, list[list[object]]] = {}
    waiting: list[Any] = [kind]
    while waiting:
        this = waiting.pop()
        waiting += typing.get_args(this)
        if isinstance(this, type) and issubclass(this, enum.Enum):
            told[this.__qualname__] = [[str(member.value)] for member in this]
        if not (isinstance(this, type) and dataclasses.is_dataclass(this)) or this.__qualname__ in told:
            continue
        fields = _fields(this)
        told[this.__qualname__] = [[name, str(hint), required] for name, (hint, required) in fields.items()]
        waiting += [hint for hint, _ in fields.values()]
    return digest(told)


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number here")


_parse = json.JSONDecoder(parse_constant=_no_constant).decode
"""Made once: `json.loads` would make a decoder for each row of a journal."""


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Field name -> (type, required) of a dataclass, with annotations resolved once."""
    hints = typing.get_type_hints(kind)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(kind)
    }


# -- readers: one function per type, made once, because a coordinator's whole state is read like this ----

Reader = Callable[[Any], Any]


class _Misfit(Exception):
    """A value that does not fit. Each level that it passes adds its place, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def _expected(what: str, plain: Any) -> _Misfit:
    return _Misfit(f"expected {what}, found {type(plain).__name__}")


@functools.cache
def _reader(kind: Any) -> Reader:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(typing.cast(type, kind))
    if origin in (typing.Union, types.UnionType):
        (inner,) = (_reader(arg) for arg in typing.get_args(kind) if arg is not type(None))
        return lambda plain: None if plain is None else inner(plain)
    if origin is tuple:
        args = typing.get_args(kind)
        return _list_reader(args[0]) if args[1:] == (Ellipsis,) else _row_reader(args)
    if origin in (dict, Mapping):
        return _mapping_reader(typing.get_args(kind)[1])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum_reader(kind)
    return _SCALARS.get(kind) or _scalar_reader(kind)


def _dataclass_reader(kind: type) -> Reader:
    # A field of a plain type is looked at here: a call for each would take twice as long.
    fields = [
        (name, hint if hint in _PLAIN else None, _reader(hint), required)
        for name, (hint, required) in _fields(kind).items()
    ]
    known = frozenset(_names(kind))

    def read(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise _expected("an object", plain)
        if not known.issuperset(plain):
            raise _Misfit(f"unknown field {min(set(plain) - known)!r}")
        values = {}
        for name, exact, read_field, required in fields:
            if name in plain:
                value = plain[name]
                if type(value) is not exact:
                    try:
                        value = read_field(value)
                    except _Misfit as error:
                        error.path.append(f".{name}")
                        raise
                values[name] = value
            elif required:
                raise _Misfit(f"field {name!r} is missing")
        return kind(**values)

    return read


def _list_reader(item_kind: Any) -> Reader:
    read_item = _reader(item_kind)

    def read(plain: Any) -> tuple[Any, ...]:
        if not isinstance(plain, list):
            raise _expected("a list", plain)
        items: list[Any] = []
        try:
            for item in plain:
                items.append(read_item(item))
        except _Misfit as error:
            error.path.append(f"[{len(items)}]")
            raise
        return tuple(items)

    return read


def _row_reader(kinds: tuple[Any, ...]) -> Reader:
    """For lists of fixed length."""
    readers = [_reader(kind) for kind in kinds]

    def read(plain: Any) -> tuple[Any, ...]:
        if not isinstance(plain, list):
            raise _expected("a list", plain)
        if len(readers) != len(plain):
            raise _Misfit(f"expected {len(readers)} items, found {len(plain)}")
        items: list[Any] = []
        try:
            for read_item, item in zip(readers, plain, strict=True):
                items.append(read_item(item))
        except _Misfit as error:
            error.path.append(f"[{len(items)}]")
            raise
        return tuple(items)

    return read


def _mapping_reader(item_kind: Any) -> Reader:
    read_item = _reader(item_kind)

    def read(plain: Any) -> dict[str, Any]:
        if not isinstance(plain, dict):
            raise _expected("an object", plain)
        items, key = {}, ""
        try:
            for key, item in plain.items():
                items[key] = read_item(item)
        except _Misfit as error:
            error.path.append(f".{key}")
            raise
        return items

    return read


def _enum_reader(kind: type[enum.Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(plain: Any) -> enum.Enum:
        found = members.get(plain) if isinstance(plain, (str, int)) else None
        if found is None:
            raise _Misfit(f"{plain!r} is not one of {', '.join(map(str, members))}")
        return found

    return read


def _scalar_reader(kind: type) -> Reader:
    def read(plain: Any) -> Any:
        if type(plain) is kind:
            return plain
        raise _expected(kind.__name__, plain)

    return read


def _read_float(plain: Any) -> float:
    if type(plain) is int and abs(plain) < 1 << 1023:
        return float(plain)
    if type(plain) is not float:
        raise _expected("float", plain)
    if not math.isfinite(plain):
        raise _Misfit("the number is too large")  # JSON has no infinity, but it has 1e999
    return plain


_PLAIN = (str, int, bool)
_SCALARS: dict[Any, Reader] = {float: _read_float, Any: lambda plain: plain}
