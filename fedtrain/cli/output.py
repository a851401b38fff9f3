"""What a person or a program reads: documents as tables or as JSON, and text that cannot harm a terminal.

Names and reasons come from other institutions, so every character that could steer a terminal is
shown as its escape. JSON goes out in ASCII, with the same effect.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

PLAIN_WIDTH = 200
"""Columns of a table in a pipe or a file, where there is no window to fit."""


_FIRST = ("run", "name", "site", "index", "attempt", "version", "role", "phase", "reason")
"""Keys that open a line or a table, in this order."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_EPOCH_MS = 10**12
"""Smaller numbers of milliseconds are durations; as a moment this is in 2001."""


def printable(value: object) -> str:
    """The value as text on one line, control characters escaped."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(document: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result: one JSON document, or tables."""
    if as_json:
        say(json.dumps(document, indent=2, sort_keys=True))
    else:
        say_rich(render(document))


def say(text: str) -> None:
    """Print a result on standard output. A reader that went away (`| head`) ends the command quietly."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _quiet_end()


def say_rich(content: RenderableType) -> None:
    """Print tables, coloured where standard output is a terminal."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    with console.capture() as captured:
        console.print(content)
    say("\n".join(line.rstrip() for line in captured.get().splitlines()))


def note(text: str) -> None:
    """Print what is not the result, on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """For commands that serve until they are stopped: their log, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Lines(logging.Formatter):
    """A line an event, with control characters escaped: reasons and versions are other people's words."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        # Indented, so that no line of an error's text passes for one of the log's.
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))


def render(document: Mapping[str, Any]) -> Group:
    """Any document: plain values as lines, and a table wherever several records have the same keys.

    Records are a list of objects, or an object of objects (then the key is the first column).
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    keys = _ordered(document)
    width = max((len(key) for key in keys), default=0)
    for key in keys:
        value = document[key]
        title = Text(printable(key), style="bold")
        if records := _records(value):
            parts += [title, Padding(_table(records), (0, 0, 0, 2))]
        elif isinstance(value, Mapping) and value:
            parts += [title, Padding(render(value), (0, 0, 0, 2))]
        else:
            parts.append(Text.assemble(title, " " * (width - len(key) + 2), _cell(key, value)))
    return Group(*parts)


def _records(value: Any) -> list[dict[str, Any]]:
    """The value as records, empty if it holds none."""
    if isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values()):
        return [{"name": key, **item} for key, item in value.items()]
    if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        return [dict(item) for item in value]
    return []


def _ordered(keys: Iterable[str]) -> list[str]:
    """Keys as a person would read them: what is meant first, and a time only once.

    Documents arrive with sorted keys; `expires_ms` beside `expires` is for programs.
    """
    names = list(dict.fromkeys(keys))
    names = [name for name in names if not (name.endswith("_ms") and name.removesuffix("_ms") in names)]
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _table(records: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = _ordered(key for record in records for key in record)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for record in records:
        table.add_row(*(Text(_cell(column, record.get(column))) for column in columns))
    return table


def _cell(key: str, value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key.endswith("_ms") and value >= _EPOCH_MS:
        return utc(value)
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}..."
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(printable(item) for item in value)
    if isinstance(value, Mapping) and all(isinstance(item, Mapping) for item in value.values()):
        # Records inside a record, e.g. the seats of a round: who, and how it ended for them.
        return ", ".join(
            f"{printable(name)} {printable(item.get('standing', ''))}" for name, item in value.items()
        )
    return json.dumps(value) if isinstance(value, (dict, list)) else printable(value)


def utc(at_ms: int) -> str:
    """A moment in UTC, to the second; milliseconds since 1970."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"  # no clock shows this: a hostile or broken value


def _quiet_end() -> NoReturn:
    # The interpreter flushes standard output once more at exit; let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)
