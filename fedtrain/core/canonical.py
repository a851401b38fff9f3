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
from collections.abc import Mapping
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
    if value is None or isinstance(value, (bool, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LocalError(f"a canonical document cannot hold {value}")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    raise LocalError(f"no canonical form for {type(value).__name__}")


def decode(kind: type[T], data: bytes | str) -> T:
    """The dataclass `kind` from canonical (or any) JSON; `RemoteError` if it does not fit."""
    try:
        plain = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{kind.__name__}: not valid JSON ({error})") from error
    return from_plain(kind, plain)


def from_plain(kind: type[T], plain: Any, path: str = "") -> T:
    """The dataclass `kind` from parsed JSON, field by field, with types checked."""
    return typing.cast(T, _read(kind, plain, path or kind.__name__))


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number here")


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


def _read(kind: Any, plain: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), plain, path)
    if origin in (typing.Union, types.UnionType):
        if plain is None and type(None) in typing.get_args(kind):
            return None
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return _read(inner, plain, path)
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), plain, path)
    if origin in (dict, Mapping):
        _, item_kind = typing.get_args(kind)
        if not isinstance(plain, dict):
            raise RemoteError(f"{path}: expected an object, found {type(plain).__name__}")
        return {key: _read(item_kind, item, f"{path}.{key}") for key, item in plain.items()}
    return _read_scalar(kind, plain, path)


def _read_dataclass(kind: type, plain: Any, path: str) -> Any:
    if not isinstance(plain, dict):
        raise RemoteError(f"{path}: expected an object, found {type(plain).__name__}")
    fields = _fields(kind)
    unknown = sorted(set(plain) - set(fields))
    if unknown:
        raise RemoteError(f"{path}: unknown field {unknown[0]!r}")
    values = {}
    for name, (field_kind, required) in fields.items():
        if name in plain:
            values[name] = _read(field_kind, plain[name], f"{path}.{name}")
        elif required:
            raise RemoteError(f"{path}: field {name!r} is missing")
    return kind(**values)


def _read_tuple(args: tuple[Any, ...], plain: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(plain, list):
        raise RemoteError(f"{path}: expected a list, found {type(plain).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_read(args[0], item, f"{path}[{i}]") for i, item in enumerate(plain))
    if len(args) != len(plain):
        raise RemoteError(f"{path}: expected {len(args)} items, found {len(plain)}")
    return tuple(
        _read(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, plain, strict=True))
    )


def _read_scalar(kind: Any, plain: Any, path: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(plain)
        except ValueError as error:
            valid = ", ".join(str(member.value) for member in kind)
            raise RemoteError(f"{path}: {plain!r} is not one of {valid}") from error
    if kind is float and type(plain) is int and abs(plain) < 1 << 1023:
        return float(plain)
    if kind is Any:
        return plain
    if type(plain) is not kind:
        raise RemoteError(f"{path}: expected {kind.__name__}, found {type(plain).__name__}")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise RemoteError(f"{path}: the number is too large")  # JSON has no infinity, but it has 1e999
    return plain
