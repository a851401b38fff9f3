"""YAML into plain values that remember their lines, and nothing that YAML could do beyond that.

A run or site file holds mappings, lists and plain values. So anchors and aliases (which can make
a kilobyte expand to gigabytes), tags (which can name Python objects), duplicate keys (of which
one would be lost without a word), deep nesting and large files are refused, each with its line.

Words mean what YAML 1.2's core schema says, not YAML 1.1's: `3e-3` is a number, `no` and `12:30`
are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedtrain.errors import ConfigError

FILE_BYTES_MAX = 1 << 20
DEPTH_MAX = 12
"""The shapes of run and site files are four levels deep; a task's own section may go deeper."""

KeyPath = tuple[str | int, ...]

_STR = "tag:yaml.org,2002:str"
_PREFIX = "tag:yaml.org,2002:"
_WORDS = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    "float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
        list("-+.0123456789"),
    ),
}


@dataclass(frozen=True)
class Document:
    """A file's plain values, and the line on which each key path begins (counted from 1)."""

    file: str
    plain: dict[str, Any]
    lines: dict[KeyPath, int]

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the longest known part of a key path."""
        ends = range(len(path), 0, -1)
        return next((self.lines[tuple(path[:end])] for end in ends if tuple(path[:end]) in self.lines), 1)

    def place(self, path: Sequence[str | int]) -> str:
        """`file:line` of a key path."""
        return f"{self.file}:{self.line(path)}"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's words, bounded depth and no aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own hook; none of YAML 1.1's words

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal(event, "anchors and aliases (&name, *name) are not read here: write the value out")
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise _refusal(event, f"nested more than {DEPTH_MAX} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, (_pattern, _first) in _WORDS.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"{_PREFIX}{_kind}", _whole, _first)


def read_document(path: str | Path) -> Document:
    """The YAML mapping in a file; `ConfigError` with the line for anything else."""
    file = str(path)
    text = _read_text(file)
    try:
        root = _Loader(text).get_single_node()
        lines: dict[KeyPath, int] = {}
        plain = _plain(root, (), lines) if root is not None else {}
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"a control character (code {error.character}) is not allowed here"
        raise ConfigError(message, file=f"{file}:{line}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        raise ConfigError(error.problem or "this is not YAML", file=where) from error
    if not isinstance(plain, dict):
        raise ConfigError(
            f"found {kind_of(plain)}, but the file must hold `key: value` lines", file=f"{file}:1"
        )
    return Document(file, plain, lines)


def kind_of(value: Any) -> str:
    """What a plain value is, in a person's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else "a section"


def _read_text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigError("no such file: check the path", file=file) from error
    except IsADirectoryError as error:
        raise ConfigError("this is a folder: name the YAML file inside it", file=file) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read ({reason})", file=file) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"larger than {FILE_BYTES_MAX} bytes: this is not a run or site file", file=file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8 text: save the file as UTF-8", file=f"{file}:{line}") from error


def _refusal(found: Any, problem: str) -> yaml.MarkedYAMLError:
    """The error about a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=found.start_mark)


def _tag_refusal(node: yaml.Node) -> yaml.MarkedYAMLError:
    tag = node.tag
    shown = f"!!{tag.removeprefix(_PREFIX)}" if tag.startswith(_PREFIX) else repr(tag)
    return _refusal(node, f"the tag {shown} is not allowed: only plain values are read")


def _plain(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    """The node as dicts, lists and plain values; notes the line of every key path on the way."""
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
        items = []
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            items.append(_plain(item, (*path, i), lines))
        return items
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    raise _tag_refusal(node)


def _mapping(node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key: Hashable = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise _refusal(key_node, "a key must be a word (put it in quotes if it looks like a number)")
        if key in values:
            first = lines[(*path, key)]
            raise _refusal(key_node, f"the key {key!r} is here twice (first on line {first}): keep one")
        lines[(*path, key)] = line
        values[key] = _plain(value_node, (*path, key), lines)
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix(_PREFIX)
    text = node.value
    if node.tag == _STR:
        return text
    if kind not in _WORDS:
        raise _tag_refusal(node)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        # Python itself refuses integers of thousands of digits, whose conversion would take long.
        number = int(text) if kind == "int" else float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise _refusal(node, f"{text[:40]!r} is too large a number")
    return number
