"""`run watch`: a live table on a terminal, one line per event elsewhere.

Each document that the coordinator sends is the whole view of the run, so a display needs no memory
of its own but of what it printed last.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from fedtrain.cli import output
from fedtrain.cli.output import printable
from fedtrain.errors import EXIT_DONE, EXIT_REFUSED, UnreachableError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from fedtrain.wire.client import CoordinatorClient

View = Mapping[str, Any]

_EXITS = {"done": EXIT_DONE, "stopped": EXIT_REFUSED, "paused": EXIT_REFUSED}
_USUAL = ("training", "aggregating")
"""Phases that come and go with every round; a line for each would drown the rest."""

_SEAT_COLUMNS = ("site", "standing", "steps", "loss", "tokens/s", "sent", "reason")


class Display(Protocol):
    """Where views go."""

    def show(self, view: View) -> None:
        """Make the run as it is now visible."""


async def follow(client: CoordinatorClient, run: str) -> int:
    """Show a run until it ends or is paused, and return the exit code.

    A watch that breaks off is opened again for as long as the coordinator answers.
    """
    with display() as screen:
        while True:
            try:
                async for document in client.watch(run):
                    if document.get("kind") != "run":
                        continue  # a newer coordinator may tell more
                    screen.show(document)
                    if document["phase"] in _EXITS:
                        return _end(document)
            except UnreachableError as error:
                output.note(f"fedtrain: {error}; connecting again")
            await client.connect()


def _end(view: View) -> int:
    phase = view["phase"]
    reason = f": {view['reason']}" if view.get("reason") else ""
    output.note(f"run {view['run']} is {phase} at version {view.get('version', 0)}{reason}")
    return _EXITS[phase]


def display(to_stderr: bool = False) -> AbstractContextManager[Display]:
    """The display that fits where views go: standard output, or standard error beside a document."""
    stream = sys.stderr if to_stderr else sys.stdout
    return LiveTable(to_stderr) if stream.isatty() else Lines(to_stderr)


class Lines:
    """One plain line for everything that became true since the last view."""

    def __init__(self, to_stderr: bool = False) -> None:
        self._say = output.note if to_stderr else output.say
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lines need no tidying up."""

    def show(self, view: View) -> None:
        """Print the lines that are new. A subject is repeated when what is said of it changes."""
        for subject, words in lines_of(view):
            if self._said.get(subject) != words:
                self._said[subject] = words
                self._say(f"{printable(subject)}: {printable(words)}")


class LiveTable:
    """A table that stays in place; rich restores the terminal however the command ends."""

    def __init__(self, to_stderr: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=to_stderr), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, view: View) -> None:
        """Draw the view over the last one."""
        self._live.update(table_of(view), refresh=True)


def lines_of(view: View) -> Iterator[tuple[str, str]]:
    """(subject, what is true of it): one line per closed round, and whatever is not as it should be."""
    run, last, current = view["run"], view.get("last"), view.get("round") or {}
    if last:
        subject = f"{run} round {last['index']} of {view['rounds']}"
        if last["attempt"] > 1:
            subject += f", attempt {last['attempt']}"
        yield subject, _closed(last)
    if view["phase"] not in _USUAL:
        yield run, f"{view['phase']}{_because(view)}"
    for site, seat in sorted(current.get("seats", {}).items()):
        if seat.get("reason"):
            subject = f"{run} round {current['index']}.{current['attempt']} {site}"
            yield subject, f"{seat['standing']}{_because(seat)}"


def table_of(view: View) -> Group:
    """A view as a screenful: the run, the open round's sites, the last closed round."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    current, last = view.get("round"), view.get("last")
    rounds = f"round {current['index']} of {view['rounds']}" if current else f"{view['rounds']} rounds"
    if current and current["attempt"] > 1:
        rounds += f", attempt {current['attempt']}"
    title = f"{view['run']}  {view['phase']}  {rounds}  version {view.get('version', 0)}{_because(view)}"
    table = Table(box=None, pad_edge=False)
    for column in _SEAT_COLUMNS:
        table.add_column(column)
    for site, seat in sorted((current["seats"] if current else {}).items()):
        table.add_row(*(Text(printable(cell)) for cell in (site, *_seat(seat))))
    parts: list[RenderableType] = [Text(printable(title), style="bold"), table]
    if last:
        parts.append(Text(printable(f"round {last['index']}: {_closed(last)}"), style="dim"))
    evaluations = view.get("evaluations") or {}
    losses = [
        f"{site} {found['loss']:.4f} (v{found['version']})" for site, found in sorted(evaluations.items())
    ]
    if losses:
        parts.append(Text(printable("held-out loss: " + ", ".join(losses)), style="dim"))
    return Group(*parts)


def _closed(record: View) -> str:
    """A round's outcome: losses where sites reported any, who had which part, and the traffic."""
    version = record.get("version")
    outcome = f"abandoned{_because(record)}" if version is None else f"version {version}"
    by_standing: dict[str, list[str]] = {}
    for site, seat in sorted(record["seats"].items()):
        by_standing.setdefault(seat["standing"], []).append(f"{site}{_because(seat)}")
    parts = [outcome, *_losses(record)]
    parts += [f"{standing}: {', '.join(names)}" for standing, names in by_standing.items()]
    parts.append(f"{_size(record.get('bytes_up'))} up, {_size(record.get('bytes_down'))} down")
    return "; ".join(parts)


def _losses(record: View) -> Iterator[str]:
    """What the sites measured: each trained on its text, and tried the version before on what it held out."""
    for key, words in (("train_loss", "training loss"), ("eval_loss", "held-out loss of the version before")):
        found = [
            f"{site} {seat[key]:.3f}"
            for site, seat in sorted(record["seats"].items())
            if seat.get(key) is not None
        ]
        if found:
            yield f"{words} {', '.join(found)}"


def _seat(seat: View) -> tuple[str, ...]:
    loss, rate = seat.get("loss"), seat.get("tokens_per_s")
    return (
        str(seat["standing"]),
        f"{seat.get('steps', 0)}/{seat.get('steps_total', 0)}",
        "-" if loss is None else f"{loss:.4f}",
        f"{rate:.0f}" if rate else "-",
        _size(seat.get("bytes_up")),
        str(seat.get("reason") or ""),
    )


def _because(part: View) -> str:
    return f" ({part['reason']})" if part.get("reason") else ""


def _size(count: int | None) -> str:
    size = float(count or 0)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
