"""How one field, and one record of fields, is written to protobuf and read back under its bounds.

A rule has two directions, `write` (value to protobuf) and `read` (protobuf to value), and both hold
the value to the same bounds: what we would refuse to read we never send. A value that does not fit
raises `Unfit`, which `convert` turns into `LocalError` (ours, when writing) or the record's
`RemoteError` (theirs, when reading).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.unknown_fields import UnknownFieldSet

from fedtrain.errors import LocalError, RemoteError

T = TypeVar("T")

COUNT_MAX = 1 << 53
"""Largest count: a float64 holds every integer up to here, so sizes and weights stay exact."""


class Unfit(Exception):
    """A value outside the bounds of its field; the message names the field."""


class Rule(Protocol):
    """One field's spelling and bounds."""

    def write(self, value: Any, path: str) -> Any:
        """The protobuf value of a core value."""

    def read(self, value: Any, path: str) -> Any:
        """The core value of a protobuf value."""


class Scalar:
    """A rule whose value is spelled the same on both sides."""

    def write(self, value: Any, path: str) -> Any:
        """The value itself, once held to its bounds."""
        self.hold(value, path)
        return value

    def read(self, value: Any, path: str) -> Any:
        """The value itself, once held to its bounds."""
        self.hold(value, path)
        return value

    def hold(self, value: Any, path: str) -> None:
        """Raises `Unfit` unless the value is within the bounds."""
        raise LocalError(f"{type(self).__name__} has no bounds")


@dataclasses.dataclass(frozen=True)
class Text(Scalar):
    """A string of at most `length_max` characters, of the form `pattern` where one is given."""

    length_max: int
    pattern: re.Pattern[str] | None = None

    def hold(self, value: Any, path: str) -> None:
        """Length first: a pattern is never run over a long hostile string."""
        if not isinstance(value, str):
            raise Unfit(f"{path} is {type(value).__name__}, not text")
        if len(value) > self.length_max:
            raise Unfit(f"{path} has {len(value)} characters, at most {self.length_max} are allowed")
        if self.pattern is not None and self.pattern.fullmatch(value) is None:
            raise Unfit(f"{path} is {value[:80]!r}, which has not the form of this field")


@dataclasses.dataclass(frozen=True)
class Raw(Scalar):
    """A byte string of at most `size_bytes_max` bytes."""

    size_bytes_max: int

    def hold(self, value: Any, path: str) -> None:
        """Checks type and size."""
        if not isinstance(value, bytes):
            raise Unfit(f"{path} is {type(value).__name__}, not bytes")
        if len(value) > self.size_bytes_max:
            raise Unfit(f"{path} has {len(value)} bytes, at most {self.size_bytes_max} are allowed")


@dataclasses.dataclass(frozen=True)
class Count(Scalar):
    """An integer in 0..`maximum`."""

    maximum: int = COUNT_MAX

    def hold(self, value: Any, path: str) -> None:
        """Checks type and range; a bool is no count."""
        if type(value) is not int:
            raise Unfit(f"{path} is {type(value).__name__}, not a whole number")
        if not 0 <= value <= self.maximum:
            raise Unfit(f"{path} is {value}, outside 0..{self.maximum}")


@dataclasses.dataclass(frozen=True)
class Real(Scalar):
    """A finite number, at least `minimum` where one is given."""

    minimum: float = -math.inf

    def hold(self, value: Any, path: str) -> None:
        """Checks type, finiteness and range."""
        if type(value) is not float:
            raise Unfit(f"{path} is {type(value).__name__}, not a floating-point number")
        if not math.isfinite(value):
            raise Unfit(f"{path} is {value}, a finite number is needed")
        if value < self.minimum:
            raise Unfit(f"{path} is {value}, below {self.minimum}")


class Flag(Scalar):
    """True or false."""

    def hold(self, value: Any, path: str) -> None:
        """Checks the type."""
        if type(value) is not bool:
            raise Unfit(f"{path} is {type(value).__name__}, not true or false")


class Choice:
    """A core enum and its protobuf numbers. Number 0 is protobuf's "absent" and never valid."""

    def __init__(self, numbers: dict[enum.StrEnum, int]) -> None:
        self._numbers = numbers
        self._members = {number: member for member, number in numbers.items()}

    def write(self, value: Any, path: str) -> int:
        """The member's number."""
        if value not in self._numbers:
            raise Unfit(f"{path} is {value!r}, which is not one of {', '.join(self._numbers)}")
        return self._numbers[value]

    def read(self, value: Any, path: str) -> enum.StrEnum:
        """The number's member."""
        if value not in self._members:
            raise Unfit(f"{path} has the unknown number {value}; the other side may be a newer version")
        return self._members[value]


@dataclasses.dataclass(frozen=True)
class Maybe:
    """A value that may be absent (None)."""

    rule: Rule

    def write(self, value: Any, path: str) -> Any:
        """None stays None, which protobuf takes as absent."""
        return None if value is None else self.rule.write(value, path)

    def read(self, value: Any, path: str) -> Any:
        """None for absent."""
        return None if value is None else self.rule.read(value, path)


@dataclasses.dataclass(frozen=True)
class Many:
    """A tuple of at most `length_max` items under one rule."""

    rule: Rule
    length_max: int

    def write(self, value: Any, path: str) -> list[Any]:
        """Protobuf's list."""
        if not isinstance(value, tuple):
            raise Unfit(f"{path} is {type(value).__name__}, not a tuple")
        self._hold_length(value, path)
        return [self.rule.write(item, f"{path}[{index}]") for index, item in enumerate(value)]

    def read(self, value: Any, path: str) -> tuple[Any, ...]:
        """The tuple; its length is checked before an item is looked at."""
        self._hold_length(value, path)
        return tuple(self.rule.read(item, f"{path}[{index}]") for index, item in enumerate(value))

    def _hold_length(self, value: Any, path: str) -> None:
        if len(value) > self.length_max:
            raise Unfit(f"{path} has {len(value)} items, at most {self.length_max} are allowed")


class Pairs:
    """A mapping as rows of two fields, sorted by key; a key that comes twice does not fit."""

    def __init__(self, row: Row, length_max: int) -> None:
        self._rows = Many(row, length_max)

    def write(self, value: Any, path: str) -> list[Any]:
        """The rows of a mapping."""
        return self._rows.write(tuple(sorted(value.items())), path)

    def read(self, value: Any, path: str) -> dict[str, Any]:
        """The mapping of rows."""
        rows = self._rows.read(value, path)
        found = dict(rows)
        if len(found) != len(rows):
            raise Unfit(f"{path} names something twice")
        return found


class Fields:
    """A protobuf message as a list of named rules: what `Row` and `Record` share.

    Args:
        message: generated class.
        rules: one rule per field of it; none may be missing, so a field added to a proto is never
            dropped in silence.
        closed: refuse a message with fields that this version does not know. For what is signed or
            goes on the record: half of such a sentence is another sentence. Else they are ignored.
    """

    def __init__(self, message: type[Any], rules: dict[str, Rule], closed: bool) -> None:
        declared = message.DESCRIPTOR.fields_by_name
        if set(declared) != set(rules):
            raise LocalError(f"{message.__name__}: fields {sorted(set(declared) ^ set(rules))} have no match")
        self.message = message
        self.rules = rules
        self._closed = closed
        self._with_presence = {name for name, field in declared.items() if field.has_presence}

    def build(self, values: dict[str, Any], path: str) -> Any:
        """The protobuf message of these values."""
        written = {name: rule.write(values[name], f"{path}.{name}") for name, rule in self.rules.items()}
        try:
            return self.message(**written)
        except (UnicodeEncodeError, ValueError, TypeError) as error:
            raise Unfit(f"{path} does not fit its message ({error})") from error

    def take(self, message: Any, path: str) -> dict[str, Any]:
        """The values of a protobuf message; a sub-message that is absent counts as None."""
        if self._closed and (unknown := UnknownFieldSet(message)):
            raise Unfit(
                f"{path} has a field (number {unknown[0].field_number}) that this version does not know and "
                "must not leave out: install the other side's version here"
            )
        values = {}
        for name, rule in self.rules.items():
            absent = name in self._with_presence and not message.HasField(name)
            if absent and not isinstance(rule, Maybe):
                raise Unfit(f"{path}.{name} is missing")
            values[name] = rule.read(None if absent else getattr(message, name), f"{path}.{name}")
        return values


class Row:
    """A tuple whose places are the fields of a message, in the order of the rules."""

    def __init__(self, message: type[Any], /, closed: bool = False, **rules: Rule) -> None:
        self._fields = Fields(message, rules, closed)

    def write(self, value: Any, path: str) -> Any:
        """The message of a tuple."""
        names = tuple(self._fields.rules)
        if not isinstance(value, tuple) or len(value) != len(names):
            raise Unfit(f"{path} is not a tuple of {', '.join(names)}")
        return self._fields.build(dict(zip(names, value, strict=True)), path)

    def read(self, value: Any, path: str) -> tuple[Any, ...]:
        """The tuple of a message."""
        return tuple(self._fields.take(value, path).values())


class Record(Generic[T]):
    """A core dataclass whose fields are the fields of a message.

    Args:
        kind: the dataclass.
        message: the generated class.
        fault: what a message that does not fit is called when it came from the other side.
        closed: as in `Fields`.
        rules: one rule per field, by name.
    """

    def __init__(
        self,
        kind: type[T],
        message: type[Any],
        /,
        *,
        fault: type[RemoteError] = RemoteError,
        closed: bool = False,
        **rules: Rule,
    ) -> None:
        names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if names != set(rules):
            raise LocalError(f"{kind.__name__}: fields {sorted(names ^ set(rules))} have no rule or no field")
        self.kind = kind
        self.fault = fault
        self.message = message
        self._fields = Fields(message, rules, closed)

    def write(self, value: Any, path: str) -> Any:
        """The message of a dataclass instance."""
        if type(value) is not self.kind:
            raise Unfit(f"{path} is {type(value).__name__}, not {self.kind.__name__}")
        return self._fields.build({name: getattr(value, name) for name in self._fields.rules}, path)

    def read(self, value: Any, path: str) -> T:
        """The dataclass instance of a message."""
        return self.kind(**self._fields.take(value, path))
